"""Slots of 8 bits in compiled code: a block's numbers into scratch before it is stepped, its codes back after.

The walk steps scratch, which stays in L1, as if it were the slot: one traversal serves them all.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from ..chores import BLOCK as BLOCK_ELEMENTS
from ..codes import (
    BYTES,
    DRAWN,
    GROUP,
    LANES,
    LARGE,
    LAST,
    PART,
    REACH,
    SHIFT,
    TINY,
    TO,
    TWO,
)  # fmt: skip
from ..formats import MIX, is_drawn, is_signed
from .blocks import put, room_of
from .elements import KERNEL_OF, closure, coded, columns
from .formats import draws_from, mixed, of_type
from .memory import first_index

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_BITS, _FLOATS = ir.VectorType(_I32, LANES), ir.VectorType(_F32, LANES)
_HALVES = ir.VectorType(ir.IntType(16), 2 * LANES)
TOGETHER = 4  # groups whose largest numbers are found, and whose scales are worked out, in one vector
QUARTERS = range(GROUP // LANES)
BLOCK, IN_BLOCK = np.uint64(BLOCK_ELEMENTS), np.uint64(BYTES)
IN_GROUP, IN_STRIP = np.uint64(GROUP), np.uint64(TOGETHER * GROUP)
NOTHING, FLOAT = np.float32(0), np.uint64(4)
SIGN, INFINITY = 0x80000000, 0x7F800000


def _lanes(builder: Any, vector: Any, at: list[int], other: Any = None) -> Any:
    """A vector of these lanes of one, or of two."""
    other = ir.Constant(vector.type, ir.Undefined) if other is None else other
    return builder.shuffle_vector(vector, other, ir.Constant(ir.VectorType(_I32, len(at)), at))


def _everywhere(builder: Any, scalar: Any) -> Any:
    """A vector of one number."""
    first = builder.insert_element(ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined), scalar, _I32(0))
    return _lanes(builder, first, [0] * LANES)


def _floats(number: Any, count: int = LANES) -> Any:
    return ir.Constant(ir.VectorType(_F32, count), [float(number)] * count)


def _at(builder: Any, address: Any, kind: Any, k: int = 0) -> Any:
    return builder.gep(builder.inttoptr(address, ir.PointerType(kind)), [_I64(k)])


def _left(builder: Any, x: Any, by: int) -> Any:
    """x shifted to the left, or to the right."""
    return builder.shl(x, of_type(x, by)) if by >= 0 else builder.lshr(x, of_type(x, -by))


def _bits_of(builder: Any, x: Any, mask: int) -> Any:
    return builder.and_(x, of_type(x, mask))


def _merged(builder: Any, a: Any, b: Any, mask: int) -> Any:
    """The bits of a where the mask has them, else b's."""
    every = (1 << a.type.element.width) - 1
    return builder.or_(_bits_of(builder, a, mask), _bits_of(builder, b, every ^ mask))


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_unsigned(">", a, b), a, b)


@intrinsic(prefer_literal=True)
def _unpack_group(typing, signed, codes, scale, room):
    """GROUP numbers at `room` from the addresses of their codes and of their scale."""
    has_sign = bool(signed.literal_value)

    def generate(context, builder, signature, args):
        word = builder.load(_at(builder, args[1], _BITS), align=1)
        size = _everywhere(builder, builder.load(_at(builder, args[2], _F32), align=1))
        for j in QUARTERS:
            code = _bits_of(builder, _left(builder, word, SHIFT - 8 * j), LAST[has_sign] << SHIFT)
            x = builder.bitcast(builder.or_(code, of_type(code, TWO)), _FLOATS)
            x = builder.fmul(builder.fsub(x, _floats(TO[has_sign])), size)
            if has_sign:
                sign = _bits_of(builder, _left(builder, word, 24 - 8 * j), SIGN)
                x = builder.bitcast(builder.or_(builder.bitcast(x, _BITS), sign), _FLOATS)
            builder.store(x, _at(builder, args[3], _FLOATS, j), align=1)
        return context.get_dummy_value()

    return types.void(signed, types.uint64, types.uint64, types.uint64), generate


def _in_one(builder: Any, most: list[Any]) -> Any:
    """(4,) the largest of each of four vectors: pairs of lanes of two vectors beside each other, and so on."""
    low, high = ([k + d for k in range(0, LANES, 4) for d in (a, LANES + a, a + 1, LANES + a + 1)] for a in (0, 2))
    pairs = [_larger(builder, *(_lanes(builder, a, at, b) for at in (low, high))) for a, b in (most[:2], most[2:])]
    low, high = ([k + d for k in range(0, LANES, 4) for d in (a, a + 1, LANES + a, LANES + a + 1)] for a in (0, 2))
    found = _larger(builder, *(_lanes(builder, pairs[0], at, pairs[1]) for at in (low, high)))
    while found.type.count > TOGETHER:
        half = found.type.count // 2
        halves = (_lanes(builder, found, list(range(at, at + half))) for at in (0, half))
        found = _larger(builder, *halves)
    return found


def _scales(builder: Any, largest: Any, signed: bool) -> tuple[Any, Any, Any]:
    """(4,) scales, their inverses, and which groups have codes other than 0."""
    value = builder.bitcast(largest, ir.VectorType(_F32, TOGETHER))
    share, tiny, large = (_floats(x, TOGETHER) for x in (PART[signed], TINY, LARGE))
    part = builder.fmul(value, share)
    scale = builder.select(builder.fcmp_ordered(">", part, tiny), part, tiny)
    scale = builder.select(builder.icmp_unsigned("==", largest, of_type(largest, 0)), _floats(0, TOGETHER), scale)
    finite = builder.icmp_unsigned("<", largest, of_type(largest, INFINITY))
    inverse = builder.fdiv(_floats(REACH[signed], TOGETHER), value)
    inverse = builder.select(builder.fcmp_ordered("<", inverse, large), inverse, large)
    usual = builder.icmp_unsigned("<", builder.sub(largest, of_type(largest, 1)), of_type(largest, INFINITY - 1))
    return builder.select(finite, scale, _floats(np.nan, TOGETHER)), inverse, usual


@intrinsic(prefer_literal=True)
def _measure_strip(typing, signed, room, scales, found):
    """The scales of TOGETHER groups; into `found` what packs them: their inverses, and LANES further the codes to keep.

    A pass of its own: with the packing in one, vectors spill, and a step takes 1.1 times as long.
    """
    has_sign = bool(signed.literal_value)

    def generate(context, builder, signature, args):
        def largest(k):
            numbers = [builder.load(_at(builder, args[1], _BITS, 4 * k + j), align=1) for j in QUARTERS]
            a, b, c, d = (_bits_of(builder, x, SIGN - 1) for x in numbers) if has_sign else numbers
            return _larger(builder, _larger(builder, a, b), _larger(builder, c, d))

        most = _in_one(builder, [largest(k) for k in range(TOGETHER)])
        scale, inverses, usual = _scales(builder, most, has_sign)
        builder.store(scale, _at(builder, args[2], scale.type), align=1)
        builder.store(inverses, _at(builder, args[3], inverses.type), align=1)
        kept = builder.sext(usual, most.type)
        builder.store(kept, _at(builder, builder.add(args[3], _I64(4 * LANES)), kept.type), align=1)
        return context.get_dummy_value()

    return types.void(signed, types.uint64, types.uint64, types.uint64), generate


@intrinsic(prefer_literal=True)
def _pack_group(typing, signed, codes, room, found, start):
    """A group's codes. start: None, to nearest; else what is mixed for its first element."""
    has_sign, drawn = bool(signed.literal_value), not isinstance(start, types.NoneType)

    def generate(context, builder, signature, args):
        inverse = _everywhere(builder, builder.load(_at(builder, args[3], _F32), align=1))
        kept = _everywhere(builder, builder.load(_at(builder, args[3], _I32, LANES), align=1))
        if drawn:
            lane = ir.Constant(_BITS, [i * MIX[0] % 2**32 for i in range(LANES)])
            begin = builder.add(_everywhere(builder, args[4]), lane)
        rounded = []
        for j in QUARTERS:
            x = builder.load(_at(builder, args[2], _BITS, j), align=1)
            to = of_type(x, int((DRAWN if drawn else TO[has_sign]).view(np.uint32)))
            to = builder.or_(to, _bits_of(builder, x, SIGN)) if has_sign else to  # the code keeps x's sign so far
            y = builder.fadd(builder.fmul(builder.bitcast(x, _FLOATS), inverse), builder.bitcast(to, _FLOATS))
            y = builder.bitcast(y, _BITS)
            if drawn:
                random = mixed(builder, begin, MIX[2 + j // 2])
                draw = _bits_of(builder, random, (1 << SHIFT) - 1) if j % 2 else _left(builder, random, SHIFT - 32)
                y = builder.add(y, draw)
            rounded.append(y)
        low, high = (_merged(builder, _left(builder, a, -16), b, 0xFFFF) for a, b in (rounded[::2], rounded[1::2]))
        low, high = (builder.bitcast(x, _HALVES) for x in (low, high))
        if not drawn:
            low, high = (builder.add(x, of_type(x, 1 << SHIFT - 17)) for x in (low, high))
        codes = _merged(builder, _left(builder, low, 16 - SHIFT), _left(builder, high, SHIFT - 16), 0xFF)
        if has_sign:
            codes = _merged(builder, codes, _merged(builder, _left(builder, low, -8), high, 0xFF), 0x7F7F)
        word = builder.and_(builder.bitcast(codes, _BITS), kept)
        builder.store(word, _at(builder, args[1], _BITS), align=1)
        return context.get_dummy_value()

    return types.void(signed, types.uint64, types.uint64, types.uint64, start), generate


def _slot(tag: Any, column: int) -> Any:
    return KERNEL_OF[tag.instance_class].slots[columns(tag).slots.index(column)]


def _reader(tag, column, number):
    signed, room_at = int(is_signed(_slot(tag, column))), np.uint64(room_of(number))

    def read(base, room, start, end):
        block, home = base[column] + start // BLOCK * IN_BLOCK, room + room_at
        for k in range(np.uint64(0), end - start, IN_GROUP):
            _unpack_group(signed, block + k, block + BLOCK + k // IN_GROUP * FLOAT, home + k * FLOAT)

    return closure(read, column, number, signed)


def _writer(tag, column, number):
    slot, room_at = _slot(tag, column), np.uint64(room_of(number))
    signed, drawn = int(is_signed(slot)), is_drawn(slot)

    def write(base, room, start, end, key):
        block, home, n = base[column] + start // BLOCK * IN_BLOCK, room + room_at, end - start
        scales, found, whole = block + BLOCK, home + BLOCK * FLOAT, (n + IN_STRIP - np.uint64(1)) // IN_STRIP * IN_STRIP
        for i in range(n, whole):
            put(home, i, NOTHING)
        for k in range(np.uint64(0), whole, IN_STRIP):
            of_group = k // IN_GROUP * FLOAT
            _measure_strip(signed, home + k * FLOAT, scales + of_group, found + of_group)
        for k in range(np.uint64(0), whole, IN_GROUP):
            bits = draws_from(key, first_index(base), start + k) if drawn else None
            _pack_group(signed, block + k, home + k * FLOAT, found + k // IN_GROUP * FLOAT, bits)

    return closure(write, column, number, signed, drawn)


def _every(functions):
    """One function that calls all of these."""
    if len(functions) == 1:
        return functions[0]
    first, others = functions[0], _every(functions[1:])

    def run(*args):
        first(*args)
        others(*args)

    return closure(run, first.__qualname__, others.__qualname__)


@intrinsic
def _in_rooms(typing, tag, base, room, start):
    """The addresses with those of scratch for slots of 8 bits, less what `start` adds to them."""

    def generate(context, builder, signature, args):
        out = args[1]
        for number, column in enumerate(coded(tag)):
            home = builder.add(args[2], _I64(room_of(number)))
            home = builder.sub(home, builder.mul(args[3], _I64(4)))
            out = builder.insert_value(out, home, column)
        return out

    return base(tag, base, types.uint64, types.uint64), generate


def opened(tag, base, room, start, end):
    """Where each stream of elements start to end - 1 can be read and written as one of floats."""


@overload(opened)
def _opened(tag, base, room, start, end):
    if not coded(tag):
        return lambda tag, base, room, start, end: base
    read = _every([_reader(tag, column, number) for number, column in enumerate(coded(tag))])

    def compiled(tag, base, room, start, end):
        read(base, room, start, end)
        return _in_rooms(tag, base, room, start)

    return compiled


def closed(tag, base, room, start, end, key):
    """What `opened` read from codes, written back as codes."""


@overload(closed)
def _closed(tag, base, room, start, end, key):
    if not coded(tag):
        return lambda tag, base, room, start, end, key: None
    write = _every([_writer(tag, column, number) for number, column in enumerate(coded(tag))])
    return lambda tag, base, room, start, end, key: write(base, room, start, end, key)
