"""Each basic block of a kernel as a Python function over NumPy arrays with one element a thread.

A function takes (machine, registers, threads): it reads the registers that other blocks have written, and returns the
number of the block where its threads go on, for each or for all of them.
"""

import numpy as np

from ptx.reading import kind_of

WAIT, DONE = 1 << 14, 1 << 15  # added to the block that follows a barrier; where a thread is that has returned
NAN = {"f4": 0x7FFFFFFF, "f2": 0x7FFF}  # the only one that the device's arithmetic of these types gives
COMPARISONS = {"eq": "==", "ne": "!=", "neu": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|", "xor": "^"}
SPECIAL = {"%tid.x": "machine.tid[threads]", "%ctaid.x": "machine.ctaid[threads]", "%ntid.x": "machine.ntid"}
SHARED_WINDOW = 1 << 56  # where generic addresses of shared memory begin, so that no other space takes them


class Fault(Exception):
    """What a device would not do as it was meant, or leaves undefined."""


def canonical(x):
    """x with the NaN that the device gives."""
    wrong = x != x
    kind = x.dtype.str[1:]
    return np.where(wrong, np.array(NAN[kind], f"u{kind[1]}").view(kind), x) if np.any(wrong) else x


def shifted(x, by, left):
    """x shifted; by its width or more: only its sign is left."""
    bits = x.dtype.itemsize * 8
    far, by = by >= bits, np.minimum(by, bits - 1).astype(x.dtype)
    if left:
        return np.where(far, 0, x << by).astype(x.dtype)
    return np.where(far & (x.dtype.kind == "u"), 0, x >> by).astype(x.dtype)


def quotient(a, b):
    """a / b of integers, towards zero. Raises Fault for b = 0."""
    return (a - remainder(a, b)) // b


def remainder(a, b):
    """What a / b of integers leaves, with the sign of a. Raises Fault for b = 0."""
    if not np.all(b):
        raise Fault("a division by zero, whose result is unspecified")
    return np.fmod(a, b)


def permuted(a, b, choice):
    """prmt.b32: four bytes of the eight of b and a, the sign of one in its place where its number is above 7."""
    pool, whole = a.astype("u8") | b.astype("u8") << np.uint64(32), np.zeros_like(a)
    for k in range(4):
        number = choice >> np.uint32(4 * k)
        byte = (pool >> (number & np.uint32(7)).astype("u8") * np.uint64(8)).astype("u4") & np.uint32(255)
        sign = np.where(byte & np.uint32(128), 255, 0)
        whole = whole | np.where(number & np.uint32(8), sign, byte).astype("u4") << np.uint32(8 * k)
    return whole


def high_product(a, b):
    """mul.hi of 32 bits."""
    wide = f"{a.dtype.kind}8"
    return (a.astype(wide) * b.astype(wide) >> np.array(32, wide)).astype(a.dtype)


class Translation:
    """A kernel's blocks as functions.

    kept: the registers that one block writes and another reads. source: their text, for whoever looks into a fault.
    """

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
        self.source = "\n".join(source)
        names = {
            "np": np, "canonical": canonical, "shifted": shifted, "quotient": quotient, "remainder": remainder,
            "permuted": permuted, "high_product": high_product, **self._constants,
        }  # fmt: skip
        exec(compile(self.source, kernel.name, "exec"), names)
        self.functions = [names[f"block{number}"] for number in range(len(kernel.blocks))]

    def _block(self, number, block):
        """(lines of which the last returns, registers read from other blocks, registers written)."""
        self._lines, self._written, self._read, self._number = [], set(), set(), number
        end = f"return {number + 1}"
        for k, statement in enumerate(block):
            self._statement, self._where = statement, f"{number}, {k}"
            act = getattr(self, f"_{statement.opcode[0]}", None)
            try:
                end = (self._operation if act is None else act)(*statement.operands) or end
            except (KeyError, ValueError, AttributeError, TypeError, IndexError) as error:
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
        """An expression of this dtype for an operand."""
        if word in SPECIAL:
            return SPECIAL[word] if kind == "u4" else f"{SPECIAL[word]}.view('{kind}')"
        if word in self.kernel.registers:
            if word not in self._written:
                self._read.add(word)
            own = self.kernel.registers[word]
            if own == kind:
                return _name(word)
            if own[1:] == kind[1:]:
                return f"{_name(word)}.view('{kind}')"
            if own[0] != "u" or own[1] < kind[1]:
                raise ValueError(f"{word} is {own}, {kind} is asked")
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
        own = self.kernel.registers[word]
        if own != kind and own[1:] == kind[1:]:
            expression = f"({expression}).view('{own}')"
        elif own != kind:
            if own[0] != "u" or own[1] < kind[1]:
                raise ValueError(f"{word} is {own}, {kind} is given")
            expression = f"({expression}).astype('{kind[0]}{own[1]}').view('{own}')"
        self._lines.append(f"{_name(word)} = {expression}")
        self._written.add(word)

    def _address(self, operand):
        base, _, offset = operand.strip("[]").partition("+")
        wide = self.kernel.registers.get(base, "u8")
        address = self._value(base, wide)
        return f"{address} + {self._constant(int(offset), wide)}" if offset else address

    @property
    def _kind(self):
        return kind_of(self._statement.opcode[-1])

    # Where threads go.

    def _bra(self, label):
        guard, target = self._statement.guard, self.kernel.labels[label]
        if not guard:
            return f"return {target}"
        taken = f"{'~' * (guard[0] == '!')}{self._value(guard.strip('!'), '?')}"
        return f"return np.where({taken}, {target}, {self._number + 1})"

    def _ret(self):
        return f"return {DONE}"

    def _bar(self, barrier):
        if self._statement.opcode != ("bar", "sync") or barrier != "0":
            raise ValueError("no barrier of all of a block's threads")
        return f"return {self._number + 1 + WAIT}"

    # Memory.

    def _access(self, names):
        space, kind = self._statement.opcode[1], self._kind
        vector = self._statement.opcode[2]
        names = [name.strip() for name in names.strip("{}").split(",")]
        if space not in ("param", "global", "shared") or len(names) != (int(vector[1]) if vector[0] == "v" else 1):
            raise ValueError("no access that is known")
        return space, kind, names

    def _ld(self, names, address):
        space, kind, names = self._access(names)
        address = self._address(address)
        self._lines.append(f"x = machine.load('{space}', {address}, '{kind}', {len(names)}, threads, ({self._where}))")
        for k, name in enumerate(names):
            self._set(name, f"x[{k}]", kind)

    def _st(self, address, names):
        space, kind, names = self._access(names)
        values = "".join(f"{self._value(name, kind)}, " for name in names)
        self._lines.append(
            f"machine.store('{space}', {self._address(address)}, '{kind}', ({values}), threads, ({self._where}))"
        )

    # Values.

    def _mov(self, to, of):
        kind = self._kind
        if "{" not in to + of:
            return self._set(to, f"np.copy({self._value(of, kind)})[()]", kind)
        parts = [name.strip() for name in (to if to[0] == "{" else of).strip("{}").split(",")]
        small = f"u{int(kind[1]) // len(parts)}"
        shifts = [self._constant(8 * int(small[1]) * k, f"u{kind[1]}") for k in range(len(parts))]
        if to[0] == "{":
            whole = self._value(of, f"u{kind[1]}")
            for part, by in zip(parts, shifts, strict=True):
                self._set(part, f"({whole} >> {by}).astype('{small}')", small)
        else:
            pieces = [
                f"({self._value(part, small)}.astype('u{kind[1]}') << {by})"
                for part, by in zip(parts, shifts, strict=True)
            ]
            self._set(to, " | ".join(pieces), f"u{kind[1]}")
        return None

    def _cvt(self, to, of):
        *rounding, into, source = self._statement.opcode[1:]
        into, source = kind_of(into), kind_of(source)
        narrows = into[1] < source[1]
        if (into[0] == "f") != (source[0] == "f") or rounding != ["rn"] * (into[0] == "f" and narrows):
            raise ValueError("no conversion that is known")
        value = f"{self._value(of, source)}.astype('{into}')"
        self._set(to, f"canonical({value})" if into[0] == "f" and into != "f8" else value, into)

    def _cvta(self, to, of):
        _, *towards, width = self._statement.opcode
        if width != "u64" or towards not in (["to", "global"], ["global"], ["shared"]):
            raise ValueError("no conversion of addresses that is known")
        window = f" + {self._constant(SHARED_WINDOW, 'u8')}" if towards == ["shared"] else ""
        self._set(to, self._value(of, "u8") + window, "u8")

    def _setp(self, to, a, b):
        comparison, kind = self._statement.opcode[1], self._kind
        if len(self._statement.opcode) != 3 or (kind[0] == "f" and comparison not in ("gt", "neu")):
            raise ValueError("no comparison that is known")
        self._set(to, f"{self._value(a, kind)} {COMPARISONS[comparison]} {self._value(b, kind)}", "?")

    def _selp(self, to, a, b, p):
        self._set(
            to,
            f"np.where({self._value(p, '?')}, {self._value(a, self._kind)}, {self._value(b, self._kind)})",
            self._kind,
        )

    def _shl(self, to, x, by):
        left = self._statement.opcode[0] == "shl"
        self._set(to, f"shifted({self._value(x, self._kind)}, {self._value(by, 'u4')}, {left})", self._kind)

    _shr = _shl

    def _shf(self, to, low, high, by):
        if self._statement.opcode not in (("shf", "l", "wrap", "b32"), ("shf", "r", "wrap", "b32")):
            raise ValueError("no funnel shift that is known")
        left = self._statement.opcode[1] == "l"
        pair = f"({self._value(low, 'u4')}.astype('u8') | {self._value(high, 'u4')}.astype('u8') << np.uint64(32))"
        by = f"({self._value(by, 'u4')} & np.uint32(31)).astype('u8')"
        by = f"(np.uint64(32) - {by})" if left else by
        self._set(to, f"({pair} >> {by}).astype('u4')", "u4")

    def _bfi(self, to, a, b, at, size):
        kind = self._kind
        mask = self._constant(((1 << int(size)) - 1) << int(at), kind)
        moved = f"{self._value(a, kind)} << {self._constant(int(at), kind)} & {mask}"
        self._set(to, f"({moved}) | ({self._value(b, kind)} & ~{mask})", kind)

    def _bfe(self, to, a, at, size):
        kind = self._kind
        if kind[0] != "u":
            raise ValueError("no field with a sign is known")
        mask = self._constant((1 << int(size)) - 1, kind)
        self._set(to, f"{self._value(a, kind)} >> {self._constant(int(at), kind)} & {mask}", kind)

    def _lop3(self, to, a, b, c, table):
        """Bits by a table of 8: of the minterms of a, b, c, counted down from all three."""
        terms = [
            "("
            + " & ".join(("" if k & bit else "~") + self._value(x, "u4") for bit, x in ((4, a), (2, b), (1, c)))
            + ")"
            for k in range(8)
            if int(table, 0) >> k & 1
        ]
        self._set(to, " | ".join(terms), "u4")

    def _operation(self, to, *operands):
        """Arithmetic and logic of operands of one dtype."""
        op, *how, _ = self._statement.opcode
        kind = self._kind
        if kind[0] == "f" and how != ["rn"] * (op in ("add", "sub", "mul", "div", "sqrt")):
            raise ValueError("without the one rounding")
        if kind[0] != "f" and how not in ([], ["lo"], ["wide"], ["hi"]):
            raise ValueError("no integer operation that is known")
        values = [self._value(x, kind) for x in operands]
        if how == ["wide"]:
            kind = f"{kind[0]}{2 * int(kind[1])}"
            values = [f"{x}.astype('{kind}')" for x in values[:2]] + [self._value(x, kind) for x in operands[2:]]
        if how == ["hi"]:
            result = {("mul", "4"): f"high_product({', '.join(values)})"}[op, kind[1]]
        elif op in ("div", "rem") and kind[0] != "f":
            result = f"{'quotient' if op == 'div' else 'remainder'}({', '.join(values)})"
        elif op in INFIX:
            result = f"{values[0]} {INFIX[op]} {values[1]}"
        else:
            x, y, z = [*values, None, None][:3]
            result = {
                "neg": f"-{x}", "not": f"~{x}", "abs": f"np.abs({x})", "sqrt": f"np.sqrt({x})",
                "min": f"np.minimum({x}, {y})", "max": f"np.maximum({x}, {y})",
                "mad": f"{x} * {y} + {z}", "prmt": f"permuted({x}, {y}, {z})",
            }[op]  # fmt: skip
            if op in ("min", "max", "mad") and kind[0] == "f":
                raise ValueError("of integers only")
        # neg and abs touch no more than the sign; all other arithmetic gives the one NaN.
        self._set(to, f"canonical({result})" if kind == "f4" and op not in ("neg", "abs") else result, kind)


def _name(register):
    return "r_" + register.strip("%").replace(".", "_")
