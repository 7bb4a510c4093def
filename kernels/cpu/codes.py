"""Reads slots of 8 bits in compiled code: a block's numbers into scratch before it is stepped, its codes back after.

The walk steps scratch, which stays in L1, as if it were the slot: one traversal serves them all.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..chores import BLOCK
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
from .blocks import each, put, room_of
from .elements import KERNEL_OF, asked, coded, columns, storage
from .formats import draws_from, mixed, of_type
from .several import add_up
from .words import I32, I64, place

_F32 = ir.FloatType()
_BITS, _FLOATS = ir.VectorType(I32, LANES), ir.VectorType(_F32, LANES)
_HALVES = ir.VectorType(ir.IntType(16), 2 * LANES)
TOGETHER = 4  # groups whose largest numbers are found, and whose scales are worked out, in one vector
QUARTERS = range(GROUP // LANES)
STRIP, FLOAT = TOGETHER * GROUP, 4
SIGN, INFINITY = 0x80000000, 0x7F800000


def _lanes(builder: Any, vector: Any, at: list[int], other: Any = None) -> Any:
    """Return a vector of these lanes of one, or of two."""
    other = ir.Constant(vector.type, ir.Undefined) if other is None else other
    return builder.shuffle_vector(vector, other, ir.Constant(ir.VectorType(I32, len(at)), at))


def _everywhere(builder: Any, scalar: Any) -> Any:
    """Return a vector of one number."""
    first = builder.insert_element(ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined), scalar, I32(0))
    return _lanes(builder, first, [0] * LANES)


def _floats(number: Any, count: int = LANES) -> Any:
    return ir.Constant(ir.VectorType(_F32, count), [float(number)] * count)


def _at(builder: Any, address: Any, kind: Any, k: int = 0) -> Any:
    return place(builder, address, kind, I64(k))


def _left(builder: Any, x: Any, by: int) -> Any:
    """Return x shifted to the left, or to the right."""
    return builder.shl(x, of_type(x, by)) if by >= 0 else builder.lshr(x, of_type(x, -by))


def _bits_of(builder: Any, x: Any, mask: int) -> Any:
    return builder.and_(x, of_type(x, mask))


def _merged(builder: Any, a: Any, b: Any, mask: int) -> Any:
    """Return the bits of a where the mask has them, else b's."""
    every = (1 << a.type.element.width) - 1
    return builder.or_(_bits_of(builder, a, mask), _bits_of(builder, b, every ^ mask))


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_unsigned(">", a, b), a, b)


def _unpack_group(builder: Any, signed: bool, codes: Any, scale: Any, room: Any) -> None:
    """Store GROUP numbers at `room` from the addresses of their codes and of their scale."""
    packed = builder.load(_at(builder, codes, _BITS), align=1)
    size = _everywhere(builder, builder.load(_at(builder, scale, _F32), align=1))
    for j in QUARTERS:
        code = _bits_of(builder, _left(builder, packed, SHIFT - 8 * j), LAST[signed] << SHIFT)
        x = builder.bitcast(builder.or_(code, of_type(code, TWO)), _FLOATS)
        x = builder.fmul(builder.fsub(x, _floats(TO[signed])), size)
        if signed:
            sign = _bits_of(builder, _left(builder, packed, 24 - 8 * j), SIGN)
            x = builder.bitcast(builder.or_(builder.bitcast(x, _BITS), sign), _FLOATS)
        builder.store(x, _at(builder, room, _FLOATS, j), align=1)


def _in_one(builder: Any, most: list[Any]) -> Any:
    """Return (4,) the largest of each of four vectors: pairs of lanes of two vectors beside each other, and so on."""
    low, high = ([k + d for k in range(0, LANES, 4) for d in (a, LANES + a, a + 1, LANES + a + 1)] for a in (0, 2))
    pairs = [_larger(builder, *(_lanes(builder, a, at, b) for at in (low, high))) for a, b in (most[:2], most[2:])]
    low, high = ([k + d for k in range(0, LANES, 4) for d in (a, a + 1, LANES + a, LANES + a + 1)] for a in (0, 2))
    largest = _larger(builder, *(_lanes(builder, pairs[0], at, pairs[1]) for at in (low, high)))
    while largest.type.count > TOGETHER:
        half = largest.type.count // 2
        halves = (_lanes(builder, largest, list(range(at, at + half))) for at in (0, half))
        largest = _larger(builder, *halves)
    return largest


def _scales(builder: Any, largest: Any, signed: bool) -> tuple[Any, Any, Any]:
    """Return (4,) scales, their inverses, and which groups have codes other than 0."""
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


def _measure_strip(builder: Any, signed: bool, room: Any, scales: Any, findings: Any) -> None:
    """Store the scales of TOGETHER groups; into `findings` what packs them: their inverses, and LANES further the codes
    to keep.

    A pass of its own: with the packing in one, vectors spill, and a step takes 1.1 times as long.
    """

    def largest(k: int) -> Any:
        numbers = [builder.load(_at(builder, room, _BITS, 4 * k + j), align=1) for j in QUARTERS]
        a, b, c, d = (_bits_of(builder, x, SIGN - 1) for x in numbers) if signed else numbers
        return _larger(builder, _larger(builder, a, b), _larger(builder, c, d))

    most = _in_one(builder, [largest(k) for k in range(TOGETHER)])
    scale, inverses, usual = _scales(builder, most, signed)
    builder.store(scale, _at(builder, scales, scale.type), align=1)
    builder.store(inverses, _at(builder, findings, inverses.type), align=1)
    kept = builder.sext(usual, most.type)
    builder.store(kept, _at(builder, builder.add(findings, I64(4 * LANES)), kept.type), align=1)


def _pack_group(builder: Any, signed: bool, codes: Any, room: Any, findings: Any, start: Any) -> None:
    """Store a group's codes. start: None, to nearest; else what is mixed for its first element."""
    drawn = start is not None
    inverse = _everywhere(builder, builder.load(_at(builder, findings, _F32), align=1))
    kept = _everywhere(builder, builder.load(_at(builder, findings, I32, LANES), align=1))
    if drawn:
        lane = ir.Constant(_BITS, [i * MIX[0] % 2**32 for i in range(LANES)])
        begin = builder.add(_everywhere(builder, start), lane)
    rounded = []
    for j in QUARTERS:
        x = builder.load(_at(builder, room, _BITS, j), align=1)
        to = of_type(x, int((DRAWN if drawn else TO[signed]).view(np.uint32)))
        to = builder.or_(to, _bits_of(builder, x, SIGN)) if signed else to  # the code keeps x's sign so far
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
    packed = _merged(builder, _left(builder, low, 16 - SHIFT), _left(builder, high, SHIFT - 16), 0xFF)
    if signed:
        packed = _merged(builder, packed, _merged(builder, _left(builder, low, -8), high, 0xFF), 0x7F7F)
    word = builder.and_(builder.bitcast(packed, _BITS), kept)
    builder.store(word, _at(builder, codes, _BITS), align=1)


def _places(builder: Any, base: Any, column: int, number: int, room: Any, start: Any) -> tuple[Any, Any]:
    """Return the addresses of a block of a slot, and of its numbers in scratch."""
    block = builder.mul(builder.udiv(start, I64(BLOCK)), I64(BYTES))
    return builder.add(builder.extract_value(base, column), block), builder.add(room, I64(room_of(number)))


def _of_group(builder: Any, k: Any) -> Any:
    """Return how far, in bytes, what belongs to element k's group lies from the block's first, where a group has a
    float."""
    return builder.mul(builder.udiv(k, I64(GROUP)), I64(FLOAT))


def _read(builder: Any, slot: Any, block: Any, home: Any, n: Any) -> None:
    """Fill scratch with the n numbers of a block's codes."""
    scales = builder.add(block, I64(BLOCK))
    with each(builder, I64(0), n, GROUP) as k:
        codes, scale = builder.add(block, k), builder.add(scales, _of_group(builder, k))
        _unpack_group(builder, is_signed(slot), codes, scale, builder.add(home, builder.mul(k, I64(FLOAT))))


def _write(builder: Any, slot: Any, block: Any, home: Any, n: Any, key: Any, first: Any) -> None:
    """Store a block's codes and scales from the n numbers in scratch, filled up with zeros to whole strips.

    key, first: what is drawn from, and the index of the block's first element among all.
    """
    scales, findings = builder.add(block, I64(BLOCK)), builder.add(home, I64(BLOCK * FLOAT))
    strips = builder.udiv(builder.add(n, I64(STRIP - 1)), I64(STRIP))
    stripped = builder.mul(strips, I64(STRIP))
    with each(builder, n, stripped) as i:
        put(builder, home, i, ir.Constant(_F32, 0.0))
    with each(builder, I64(0), stripped, STRIP) as k:
        numbers, of_group = builder.add(home, builder.mul(k, I64(FLOAT))), _of_group(builder, k)
        _measure_strip(
            builder, is_signed(slot), numbers, builder.add(scales, of_group), builder.add(findings, of_group)
        )
    with each(builder, I64(0), stripped, GROUP) as k:
        numbers, of_group = builder.add(home, builder.mul(k, I64(FLOAT))), _of_group(builder, k)
        bits = draws_from(builder, key, first, k) if is_drawn(slot) else None
        _pack_group(builder, is_signed(slot), builder.add(block, k), numbers, builder.add(findings, of_group), bits)


def _slots(tag: Any) -> list[tuple[int, int, Any]]:
    """Return (number, column, slot) of each slot of 8 bits."""
    slots = dict(zip(columns(tag).slots, KERNEL_OF[tag.instance_class].slots, strict=True))
    return [(number, column, slots[column]) for number, column in enumerate(coded(tag))]


@intrinsic
def opened(typing, tag, base, room, start, end):
    """Return where each stream of elements start to end - 1 can be read and written as one of floats: slots of codes,
    and a gradient of several arrays, in scratch, less what `start` adds to an address."""

    def generate(context, builder, signature, args):
        _, base, room, start, end = args
        streams = base
        for number, column, slot in _slots(tag):
            block, home = _places(builder, base, column, number, room, start)
            _read(builder, slot, block, home, builder.sub(end, start))
            home = builder.sub(home, builder.mul(start, I64(FLOAT)))
            streams = builder.insert_value(streams, home, column)
        if asked(tag, "several"):
            home = builder.add(room, I64(room_of(len(coded(tag)))))
            add_up(builder, tag, base, start, builder.sub(end, start), home, asked(tag, "clear"))
            home = builder.sub(home, builder.mul(start, I64(storage(tag)[0][1].compute.itemsize)))
            streams = builder.insert_value(streams, home, columns(tag).g)
        return streams

    return base(tag, base, *[types.uint64] * 3), generate


@intrinsic
def closed(typing, tag, base, room, start, end, key):
    """Return what `opened` read from codes, written back as codes."""

    def generate(context, builder, signature, args):
        _, base, room, start, end, key = args
        first = builder.add(builder.extract_value(base, signature.args[1].count - 1), start)
        for number, column, slot in _slots(tag):
            block, home = _places(builder, base, column, number, room, start)
            _write(builder, slot, block, home, builder.sub(end, start), key, first)
        return context.get_dummy_value()

    return types.void(tag, base, *[types.uint64] * 3, key), generate
