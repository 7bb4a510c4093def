"""What the text of one kernel says: its parameters, shared memory and registers, and its statements in basic blocks."""

import re
from typing import NamedTuple

LETTERS = {"u": "u", "s": "i", "b": "u", "f": "f"}
PARAMETER = r"\.param (?:\.align (\d+) )?\.(\w+) (?:\.ptr[ .\w]*?\.align \d+ )?(\w+)(?:\[(\d+)\])?"
SHARED = r"^\s*\.shared \.align (\d+) \.(\w+) (\w+)(?:\[(\d+)\])?;"
REFUSED = {"ftz", "approx", "sat", "volatile", "fma"}  # flushed, approximate, clamped, of unknown order, fused


class Statement(NamedTuple):
    """One instruction: its opcode in pieces, its operands, and the predicate that it asks for."""

    guard: str  # a register, after "!" if its negation is asked; "" for none
    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    text: str

    @classmethod
    def of(cls, text):
        """Read it. Raises NotImplementedError for what may not or cannot be executed exactly."""
        match = re.fullmatch(r"(?:@(!?%\w+)\s+)?([\w.]+)\s*(.*)", text)
        if match is None:
            raise NotImplementedError(f"{text!r} is no instruction that is known")
        guard, opcode, rest = match.groups()
        pieces = tuple(opcode.split("."))
        if REFUSED & set(pieces) or (pieces[0] == "mad" and pieces[-1][0] == "f"):
            raise NotImplementedError(f"{text!r}: fused, flushed, approximate or volatile")
        if guard and pieces[0] != "bra":
            raise NotImplementedError(f"{text!r}: a predicate on what is no branch")
        operands = tuple(x.strip() for x in re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s]+", rest))
        return cls(guard or "", pieces, operands, text)


def kind_of(word):
    """NumPy's dtype for a PTX type, as text; "?" for a predicate."""
    return "?" if word == "pred" else f"{LETTERS[word[0]]}{int(word[1:]) // 8}"


def placed(variables):
    """{name: (offset, bytes)} of variables (align, kind, name, count), one after the other as they are aligned."""
    places, end = {}, 0
    for align, kind, name, count in variables:
        size = int(kind[1:]) // 8
        end += -end % int(align or size)
        places[name] = end, size * int(count or 1)
        end += places[name][1]
    return places


class Kernel:
    """One kernel of a program in PTX.

    parameters, shared: {name: (offset, bytes)}. registers: {name: dtype}. labels: {label: number of its block}.
    blocks: lists of Statements; each ends where threads may part or meet.
    """

    def __init__(self, program, name):
        """Raises KeyError for a kernel that the program lacks, NotImplementedError for a text beyond this reader."""
        found = re.search(rf"\.entry {name}\((.*?)\)[^{{]*?\{{(.*?)^\}}", program, re.DOTALL | re.MULTILINE)
        if found is None:
            raise KeyError(f"the program has no kernel {name}")
        head, body = found.groups()
        body = re.sub(r"//.*", "", body)
        self.name = name
        self.parameters = placed(re.findall(PARAMETER, head))
        shared = re.findall(SHARED, program, re.MULTILINE)
        self.shared = placed([variable for variable in shared if re.search(rf"\b{variable[2]}\b", body)])
        if ".local" in body:
            raise NotImplementedError(f"{name} keeps numbers in local memory")
        self.registers = {}
        for kind, prefix, count in re.findall(r"\.reg \.(\w+)\s+(%?\w+)(?:<(\d+)>)?;", body):
            names = [f"{prefix}{k}" for k in range(int(count))] if count else [prefix]
            self.registers |= dict.fromkeys(names, kind_of(kind))
        self._split(body)

    def _split(self, body):
        self.blocks, self.labels = [[]], {}
        for line in body.splitlines():
            for part in re.split(r";|(?<=:)\s*$", line):
                text = re.sub(r"^[{}\s]+", "", part).strip()
                if text.endswith(":"):
                    if self.blocks[-1]:
                        self.blocks.append([])
                    self.labels[text[:-1]] = len(self.blocks) - 1
                elif text and text[0] not in ".}":
                    self.blocks[-1].append(Statement.of(text))
                    if self.blocks[-1][-1].opcode[0] in ("bra", "ret", "bar"):
                        self.blocks.append([])

    def grain(self, space):
        """The fewest bytes that an access to this space touches; 16 where there is none."""
        kinds = (
            kind_of(s.opcode[-1])
            for block in self.blocks
            for s in block
            if s.opcode[:2] in {("ld", space), ("st", space)}
        )
        return min((int(kind[1]) for kind in kinds), default=16)

    @property
    def waits(self):
        """Whether it has a barrier."""
        return any(s.opcode[0] == "bar" for block in self.blocks for s in block)
