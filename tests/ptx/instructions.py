"""The instructions of PTX that are known, by their whole names, and what each means for NumPy's arrays."""

from itertools import product

import numpy as np

from ptx.reading import KINDS, SPACES

NAN = {"f4": 0x7FFFFFFF, "f2": 0x7FFF}  # the only one that the device's arithmetic of these types gives


class Fault(Exception):
    """What a device would not do as it was meant, or leaves undefined."""


def canonical(x):
    """x with the NaN that the device gives; of float64 any counts."""
    kind = x.dtype.str[1:]
    if kind not in NAN or not (wrong := x != x).any():
        return x
    return np.where(wrong, np.array(NAN[kind], f"u{kind[1]}").view(kind), x)


def shifted(x, by, left):
    """x shifted; by its width or more: only its sign is left."""
    bits = x.dtype.itemsize * 8
    far, by = by >= bits, np.minimum(by, bits - 1).astype(x.dtype)
    if left:
        return np.where(far, 0, x << by).astype(x.dtype)
    return np.where(far & (x.dtype.kind == "u"), 0, x >> by).astype(x.dtype)


def funnel(low, high, by, left):
    """shf.wrap: the upper word of both after a shift to the left, the lower one after a shift to the right."""
    pair, by = low.astype("u8") | high.astype("u8") << np.uint64(32), (by & np.uint32(31)).astype("u8")
    return (pair >> (np.uint64(32) - by if left else by)).astype("u4")


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


def by_table(a, b, c, table):
    """lop3.b32: bits by a table of 8, the minterms of a, b, c counted down from all three."""
    whole = np.zeros_like(a)
    for k in range(8):
        if table >> k & 1:
            whole = whole | (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    return whole


def field(a, at, size):
    """bfe of an unsigned a."""
    return a >> a.dtype.type(at) & a.dtype.type((1 << size) - 1)


def inserted(a, b, at, size):
    """bfi: b with the last bits of a in the place of some of its own."""
    mask = b.dtype.type(((1 << size) - 1) << at)
    return (a << b.dtype.type(at) & mask) | (b & ~mask)


def high_product(a, b):
    """mul.hi of 32 bits."""
    wide = f"{a.dtype.kind}8"
    return (a.astype(wide) * b.astype(wide) >> np.array(32, wide)).astype(a.dtype)


HELPERS = {
    f.__name__: f
    for f in (canonical, shifted, funnel, quotient, remainder, permuted, by_table, field, inserted, high_product)
}
UNSIGNED, SIGNED, BITS, FLOATS = "u16 u32 u64", "s16 s32 s64", "b16 b32 b64", "f32 f64"
INTEGERS = f"{UNSIGNED} {SIGNED}"
SAME = "np.copy({0})[()]"  # no other name for the same array
INFIX = {"eq": "==", "ne": "!=", "neu": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
# Opcode without its type T; of which types there is one; the types of what it reads (n: a number in the text); what it
# gives, T where nothing is said.
RULES = [
    ("mov", f"{INTEGERS} {BITS} {FLOATS} pred", "T", SAME),
    *((op, INTEGERS, "T T", f"{{}} {sign} {{}}") for op, sign in {"add": "+", "sub": "-", "mul.lo": "*"}.items()),
    ("mad.lo", INTEGERS, "T T T", "{} * {} + {}"),
    ("mul.hi", "u32 s32", "T T", "high_product({}, {})"),
    *((f"mul.wide.{t}{n}", "", f"{t}{n} {t}{n}", f"{{}}.astype('{KINDS[f'{t}{2 * n}']}') * {{}}", f"{t}{2 * n}")
      for t in "us" for n in (16, 32)),
    ("div", INTEGERS, "T T", "quotient({}, {})"), ("rem", INTEGERS, "T T", "remainder({}, {})"),
    ("min", INTEGERS, "T T", "np.minimum({}, {})"), ("max", INTEGERS, "T T", "np.maximum({}, {})"),
    ("neg", f"{SIGNED} {FLOATS}", "T", "-{}"), ("abs", f"{SIGNED} {FLOATS}", "T", "np.abs({})"),
    *((op, f"{BITS} pred", "T T", f"{{}} {sign} {{}}") for op, sign in {"and": "&", "or": "|", "xor": "^"}.items()),
    ("not", f"{BITS} pred", "T", "~{}"),
    ("shl", BITS, "T u32", "shifted({}, {}, True)"), ("shr", f"{INTEGERS} {BITS}", "T u32", "shifted({}, {}, False)"),
    ("shf.l.wrap", "b32", "T T u32", "funnel({}, {}, {}, True)"),
    ("shf.r.wrap", "b32", "T T u32", "funnel({}, {}, {}, False)"),
    ("bfi", "b32 b64", "T T n n", "inserted({}, {}, {}, {})"), ("bfe", "u32 u64", "T n n", "field({}, {}, {})"),
    ("lop3", "b32", "T T T n", "by_table({}, {}, {}, {})"), ("prmt", "b32", "T T T", "permuted({}, {}, {})"),
    ("selp", f"{INTEGERS} {BITS} {FLOATS}", "T T pred", "np.where({2}, {0}, {1})"),
    *((f"setp.{x}", {"eq": f"{INTEGERS} {BITS}", "ne": f"{INTEGERS} {BITS}", "neu": FLOATS}.get(x, INTEGERS), "T T",
       f"{{}} {sign} {{}}", "pred") for x, sign in INFIX.items()),
    ("setp.gt", FLOATS, "T T", "{} > {}", "pred"),
    # Each rounded once. Touching no more than the sign, neg and abs leave a NaN as it is; all else gives the one NaN.
    *((f"{op}.rn", FLOATS, "T T", f"canonical({{}} {sign} {{}})")
      for op, sign in {"add": "+", "sub": "-", "mul": "*", "div": "/"}.items()),
    ("sqrt.rn", FLOATS, "T", "canonical(np.sqrt({}))"),
    *((f"cvt.{how}", "", how[-3:], f"canonical({{}}.astype('{KINDS[how[-7:-4]]}'))", how[-7:-4])
      for how in ("f64.f32", "rn.f32.f64", "f32.f16", "rn.f16.f32", "rn.f64.s64")),
    *((f"cvt.{to}.{of}", "", of, f"{{}}.astype('{KINDS[to]}')", to)
      for to, of in product(f"u8 s8 {INTEGERS}".split(), repeat=2)),
    *((f"cvta.{space}", "u64", "T", f"{{}} + np.uint64({first})") for space, first in SPACES.items()),
    ("cvta.to.global", "u64", "T", SAME),
]  # fmt: skip
INSTRUCTIONS = {  # by its name: the dtype that it gives, those that it reads, the expression
    ".".join([name, *filter(None, [t])]): (
        KINDS[(gives or ["T"])[0].replace("T", t)],
        [None if each == "n" else KINDS[each.replace("T", t)] for each in reads.split()],
        expression,
    )
    for name, types, reads, expression, *gives in RULES
    for t in types.split() or [""]
}
ACCESSES = {  # by its name: the Machine's method, the space ("": as the address says), how many values, their dtype
    ".".join([op, *filter(None, [space, f"v{count}" if count > 1 else ""]), t]): (way, space, count, KINDS[t])
    for (op, way), space, count in product({"ld": "load", "st": "store"}.items(), ("", *SPACES), (1, 2, 4))
    for t in f"u8 s8 b8 {INTEGERS} {BITS} {FLOATS}".split()
    if (op, space) != ("st", "param")
    and count * int(t[1:]) <= 128
    and (count * int(t[1:]) > 8 or space in ("shared", "param"))  # memory.py's places are of two bytes
}
