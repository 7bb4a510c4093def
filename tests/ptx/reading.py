"""What the text of one kernel says: its parameters, shared memory and registers, and its statements in basic blocks."""

import re
from typing import NamedTuple

KINDS = {  # NumPy's dtype for a PTX type, as text; "?" for a predicate
    **{f"{letter}{8 * n}": f"{like}{n}" for letter, like in (("u", "u"), ("s", "i"), ("b", "u")) for n in (1, 2, 4, 8)},
    **{"f16": "f2", "f32": "f4", "f64": "f8", "pred": "?"},
}
SPACES = {"global": 0, "shared": 1 << 56, "param": 1 << 57}  # where the generic addresses of each begin
PARAMETER = r"\.param (?:\.align (\d+) )?\.(\w+) (?:\.ptr[ .\w]*?\.align \d+ )?(\w+)(?:\[(\d+)\])?"
SHARED = r"^\s*\.shared \.align (\d+) \.(\w+) (\w+)(?:\[(\d+)\])?;"
LIMITS = r"\s*\.maxntid (\d+)(?:, 1, 1)?\s*"  # what may stand between a kernel's parameters and its text
APART = 128  # bytes between two variables in shared memory, which belong to neither
IGNORED = {".reg", ".shared", ".loc", ".pragma"}  # read elsewhere, or of no meaning for what is computed


class Statement(NamedTuple):
    """One instruction: its opcode in pieces, its operands, and the predicate that it asks for."""

    guard: str  # a register, after "!" if its negation is asked; "" for none
    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    text: str

    @classmethod
    def of(cls, text):
        """Read it. Raises NotImplementedError for what is no instruction that can be read."""
        match = re.fullmatch(r"(?:@(!?%\w+)\s+)?([\w.]+)\s*(.*)", text)
        if match is None:
            raise NotImplementedError(f"{text!r} is no instruction that is known")
        guard, opcode, rest = match.groups()
        pieces = tuple(opcode.split("."))
        if guard and pieces[0] != "bra":
            raise NotImplementedError(f"{text!r}: a predicate on what is no branch")
        operands = tuple(x.strip() for x in re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s]+", rest))
        return cls(guard or "", pieces, operands, text)


def placed(variables, apart=0):
    """{name: (offset, bytes)} of variables (align, kind, name, count), one after the other as they are aligned."""
    places, end = {}, 0
    for align, kind, name, count in variables:
        size = int(kind[1:]) // 8
        end += -end % int(align or size)
        places[name] = end, size * int(count or 1)
        end += places[name][1] + apart
    return places


class Kernel:
    """One kernel of a program in PTX.

    most: the threads of a block that it is compiled for. parameters, shared: {name: (offset, bytes)}. registers:
    {name: dtype}. labels: {label: number of its block}. blocks: lists of Statements; each ends where threads may part
    or meet. waits: whether there is a barrier.
    """

    def __init__(self, program, name):
        """Raises KeyError for a kernel that the program lacks, NotImplementedError for a text beyond this reader."""
        match = re.search(rf"\.entry {name}\((.*?)\)(.*?)^\{{(.*?)^\}}", program, re.DOTALL | re.MULTILINE)
        if match is None:
            raise KeyError(f"the program has no kernel {name}")
        head, limits, body = match.groups()
        body = re.sub(r"//.*", "", body)
        limit = re.fullmatch(LIMITS, limits)
        if limits.strip() and limit is None:
            raise NotImplementedError(f"{name}: {limits.strip()!r} is no limit that is known")
        self.name, self.most = name, int(limit[1]) if limit else 1024
        self.parameters = placed(re.findall(PARAMETER, head))
        shared = re.findall(SHARED, program, re.MULTILINE)
        self.shared = placed([variable for variable in shared if re.search(rf"\b{variable[2]}\b", body)], APART)
        self.registers = {}
        for kind, prefix, count in re.findall(r"\.reg \.(\w+)\s+(%?\w+)(?:<(\d+)>)?;", body):
            for register in [f"{prefix}{k}" for k in range(int(count))] if count else [prefix]:
                if kind not in KINDS or KINDS[kind] != self.registers.setdefault(register, KINDS[kind]):
                    what = f"{register} is {kind}, unknown or in another scope of another kind"
                    raise NotImplementedError(f"{name}: {what}")
        self._split(body)
        self.waits = any(s.opcode[0] == "bar" for block in self.blocks for s in block)

    def _split(self, body):
        self.blocks, self.labels = [[]], {}
        for line in body.splitlines():
            for part in re.split(r";|(?<=:)\s*$", line):
                text = re.sub(r"^[{}\s]+", "", part).strip()
                if text.endswith(":"):
                    if self.blocks[-1]:
                        self.blocks.append([])
                    self.labels[text[:-1]] = len(self.blocks) - 1
                elif text and text.split()[0] not in IGNORED:
                    self.blocks[-1].append(Statement.of(text))
                    if self.blocks[-1][-1].opcode[0] in ("bra", "ret", "bar"):
                        self.blocks.append([])

    def grain(self, space):
        """The fewest bytes that an access to this space touches; 16 where there is none."""
        others = SPACES.keys() - {space}  # an access that names none may touch any
        statements = (s for block in self.blocks for s in block if s.opcode[0] in ("ld", "st", "atom"))
        kinds = (KINDS[s.opcode[-1]] for s in statements if s.opcode[1] not in others)
        return min((int(kind[1]) for kind in kinds), default=16)
