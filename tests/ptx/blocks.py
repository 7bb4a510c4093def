"""Each basic block of a kernel as a Python function over NumPy arrays with one element a thread.

A function takes (machine, registers, threads): it reads the registers that other blocks have written, and returns the
number of the block where its threads go on, for each or for all of them.
"""

import numpy as np

from ptx.instructions import ACCESSES, HELPERS, INSTRUCTIONS

SUMS = {"atom.global.add.u64", "atom.relaxed.gpu.global.add.u64"}  # the same: PTX says what holds where nothing is said
WAIT, DONE = 1 << 14, 1 << 15  # added to the block that follows a barrier; where a thread is that has returned
SPECIAL = {"%tid.x": "machine.tid[threads]", "%ctaid.x": "machine.ctaid[threads]", "%ntid.x": "machine.ntid"}


class Translation:
    """A kernel's blocks as functions. kept: the registers that one block writes and another reads."""

    def __init__(self, kernel):
        self.kernel, self._constants, self._symbols = kernel, {}, {**kernel.parameters, **kernel.shared}
        texts = [self._block(number, block) for number, block in enumerate(kernel.blocks)]
        self.kept = sorted(set().union(*(read for _, read, _ in texts)))
        source = []
        for number, (lines, read, written) in enumerate(texts):
            first = [f"{_name(r)} = registers[{r!r}][threads]" for r in sorted(read)]
            last = [f"registers[{r!r}][threads] = {_name(r)}" for r in sorted(written & set(self.kept))]
            body = [*first, *lines[:-1], *last, lines[-1]]
            source += [f"def block{number}(machine, registers, threads):", *(f"    {line}" for line in body)]
        names = {"np": np, **HELPERS, **self._constants}
        exec(compile("\n".join(source), kernel.name, "exec"), names)
        self.functions = [names[f"block{number}"] for number in range(len(kernel.blocks))]

    def _block(self, number, block):
        """(lines of which the last returns, registers read from other blocks, registers written)."""
        self._lines, self._written, self._read, self._number = [], set(), set(), number
        ways = {"bra": self._branch, "ret": self._return, "bar": self._barrier, "atom": self._sum}
        ways |= dict.fromkeys(("ld", "st"), self._access)
        end = f"return {number + 1}"
        for k, statement in enumerate(block):
            self._statement, self._where = statement, f"{number}, {k}"
            way = self._move if "{" in statement.text and statement.opcode[0] == "mov" else self._compute
            try:
                end = ways.get(statement.opcode[0], way)(*statement.operands) or end
            except (KeyError, ValueError, TypeError, IndexError) as error:
                raise NotImplementedError(f"{self.kernel.name}: {statement.text!r}: {error!r}") from error
        return [*self._lines, end], self._read, self._written

    # Operands: an expression for what is read, a line for what is written.

    def _constant(self, bits, kind):
        value = np.bool_(bits)
        if kind != "?":
            value = np.array(bits % 2 ** (8 * int(kind[1])), f"u{kind[1]}").view(kind)[()]
        name = f"constant_{kind.replace('?', 'p')}_{value.tobytes()[::-1].hex()}"
        self._constants[name] = value
        return name

    def _value(self, word, kind):
        """An expression of this dtype for an operand; for None a number that must be known."""
        if kind is None:
            return str(int(word, 0))
        if word in SPECIAL:
            return SPECIAL[word] if kind == "u4" else f"{SPECIAL[word]}.view('{kind}')"
        if word in self.kernel.registers:
            if word not in self._written:
                self._read.add(word)
            has = self.kernel.registers[word]
            if has == kind:
                return _name(word)
            if has[1:] == kind[1:]:
                return f"{_name(word)}.view('{kind}')"
            if has[0] != "u" or has[1] < kind[1]:
                raise ValueError(f"{word} is {has}, {kind} is asked")
            return f"{_name(word)}.astype('u{kind[1]}').view('{kind}')"
        if word in self._symbols:
            return self._constant(self._symbols[word][0], kind)
        if word[:2] in ("0f", "0d"):
            return self._constant(int(word[2:], 16), kind)
        return self._constant(int(word.rstrip("U"), 0), kind)

    def _set(self, word, expression, kind):
        """Write an expression of this dtype."""
        if word == "_":
            return
        has = self.kernel.registers[word]
        if has != kind and has[1:] == kind[1:]:
            expression = f"({expression}).view('{has}')"
        elif has != kind:
            if has[0] != "u" or has[1] < kind[1] or kind[0] == "f":
                raise ValueError(f"{word} is {has}, {kind} is given")
            expression = f"({expression}).astype('{kind[0]}{has[1]}').view('{has}')"
        self._lines.append(f"{_name(word)} = {expression}")
        self._written.add(word)

    # Where threads go.

    def _branch(self, label):
        guard, target = self._statement.guard, self.kernel.labels[label]
        if self._statement.opcode not in (("bra",), ("bra", "uni")):
            raise ValueError("no branch that is known")
        if not guard:
            return f"return {target}"
        taken = f"{'~' * (guard[0] == '!')}{self._value(guard.strip('!'), '?')}"
        return f"return np.where({taken}, {target}, {self._number + 1})"

    def _return(self):
        return f"return {DONE}"

    def _barrier(self, barrier):
        if self._statement.opcode != ("bar", "sync") or barrier != "0":
            raise ValueError("no barrier of all of a block's threads")
        return f"return {self._number + 1 + WAIT}"

    # What they do.

    def _access(self, *operands):
        way, space, count, kind = ACCESSES[".".join(self._statement.opcode)]
        names, address = operands if way == "load" else operands[::-1]
        names = [name.strip() for name in names.strip("{}").split(",")]
        base, _, offset = address.strip("[]").partition("+")
        wide = self.kernel.registers.get(base, "u8")
        place = self._value(base, wide) + (f" + {self._constant(int(offset), wide)}" if offset else "")
        if len(names) != count:
            raise ValueError("another number of values")
        if way == "load":
            self._lines.append(f"x = machine.load('{space}', {place}, '{kind}', {count}, threads, ({self._where}))")
            for k, name in enumerate(names):
                self._set(name, f"x[{k}]", kind)
        else:
            values = "".join(f"{self._value(name, kind)}, " for name in names)
            self._lines.append(f"machine.store('{space}', {place}, '{kind}', ({values}), threads, ({self._where}))")

    def _sum(self, to, address, x):
        """One of SUMS: what it returns depends on an order that nothing says, so nobody may read it."""
        if ".".join(self._statement.opcode) not in SUMS or "+" in address:
            raise ValueError("no atomic operation that is known")
        place = self._value(address.strip("[]"), "u8")
        self._lines.append(f"machine.add({place}, {self._value(x, 'u8')}, threads, ({self._where}))")

    def _move(self, to, of):
        """mov of several registers that together are one."""
        kind = {"mov.b32": "u4", "mov.b64": "u8"}[".".join(self._statement.opcode)]
        parts = [name.strip() for name in (to if to[0] == "{" else of).strip("{}").split(",")]
        small = {1: "u1", 2: "u2", 4: "u4"}[int(kind[1]) // len(parts)]
        shifts = [self._constant(8 * int(small[1]) * k, kind) for k in range(len(parts))]
        if to[0] == "{":
            whole = self._value(of, kind)
            for part, by in zip(parts, shifts, strict=True):
                self._set(part, f"({whole} >> {by}).astype('{small}')", small)
        else:
            pieces = zip(parts, shifts, strict=True)
            joined = [f"({self._value(part, small)}.astype('{kind}') << {by})" for part, by in pieces]
            self._set(to, " | ".join(joined), kind)

    def _compute(self, to, *operands):
        kind, kinds, expression = INSTRUCTIONS[".".join(self._statement.opcode)]
        values = [self._value(word, each) for word, each in zip(operands, kinds, strict=True)]
        self._set(to, expression.format(*values), kind)


def _name(register):
    return "r_" + register.strip("%").replace(".", "_")
