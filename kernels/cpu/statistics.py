"""Writes what a walk notes of each block of a piece, where its tag asks for it; else nothing here leaves code."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..chores import BLOCK
from ..contract import Euclidean
from ..formats import format_of
from .blocks import block_sum, difference, each, largest, put, sum_of_squares
from .elements import KERNEL_OF, asked, columns, stepped, storage
from .formats import TEXTS
from .memory import at_rest, kinds, scoped, unpacked, value_of, values_of
from .several import add_up
from .words import I64, place

SCOPES = 15, 14  # of what scratch holds to be added up: behind those of streams


def _kind(tag: Any) -> Any:
    """Return LLVM's type of the numbers that a tag computes with."""
    return TEXTS[format_of(storage(tag)[0][1].compute)].bits


def _block(
    builder: Any, tag: Any, column: int, base: Any, start: Any, end: Any, room: Any, in_place: bool = True
) -> Any:  # fmt: skip
    """Return the address of a block of a stream in the compute type, filled up with zeros: its own where it can be,
    else that of `room`, after a copy."""
    format = dict(storage(tag))[column]
    n, every = builder.sub(end, start), I64(BLOCK)
    n = builder.select(builder.icmp_unsigned("<", n, every), n, every)
    if not in_place or _in_parts(tag, column) or TEXTS[format].bits != _kind(tag):
        _copy(builder, tag, column, base, start, n, room)
        return room
    full = builder.icmp_unsigned("==", n, every)
    with builder.if_then(builder.not_(full)):
        _copy(builder, tag, column, base, start, n, room)
    begin = builder.mul(start, I64(format.bytes))
    return builder.select(full, builder.add(builder.extract_value(base, column), begin), room)


def _copy(builder: Any, tag: Any, column: int, base: Any, start: Any, n: Any, room: Any) -> None:
    """Copy n elements of a stream into `room` in the compute type, and zeros behind them."""
    if _in_parts(tag, column):
        add_up(builder, tag, base, start, n, room)
    else:
        with each(builder, I64(0), n) as i:
            resting = at_rest(builder, base, builder.add(start, i))
            put(builder, room, i, value_of(builder, tag, column, resting))
    with each(builder, n, I64(BLOCK)) as i:
        put(builder, room, i, ir.Constant(_kind(tag), 0.0))


def _in_parts(tag: Any, column: int) -> bool:
    """Return whether a stream is a gradient that comes as several arrays."""
    return column == columns(tag).g and asked(tag, "several")


def _note(builder: Any, note: Any, k: int, x: Any) -> None:
    builder.store(x, place(builder, note, ir.DoubleType(), I64(k)))


@intrinsic
def measured(typing, tag, base, start, end, room, note):
    """Store in note[0], note[3] the squares and the largest magnitude of g's block from `start` on, as far as asked."""

    def generate(context, builder, signature, args):
        _, base, start, end, room, note = args
        at = _block(builder, tag, columns(tag).g, base, start, end, room)
        for flag, k, look in (("squares", 0, sum_of_squares), ("largest", 3, largest)):
            if asked(tag, flag):
                _note(builder, note, k, look(builder, _kind(tag), at))
        return context.get_dummy_value()

    return types.void(tag, base, *[types.uint64] * 4), generate


@intrinsic
def before(typing, tag, base, start, end, room, note):
    """Note g's squares and keep p, where statistics are asked for."""

    def generate(context, builder, signature, args):
        _, base, start, end, room, note = args
        g = _block(builder, tag, columns(tag).g, base, start, end, room)
        _note(builder, note, 0, sum_of_squares(builder, _kind(tag), g))
        _block(builder, tag, columns(tag).p, base, start, end, room, in_place=False)
        return context.get_dummy_value()

    return types.void(tag, base, *[types.uint64] * 4), generate


@intrinsic
def after(typing, tag, base, start, end, room, note):
    """Note the squares of p and of its update, and the largest update."""

    def generate(context, builder, signature, args):
        _, base, start, end, room, note = args
        kind = _kind(tag)
        other = builder.add(room, I64(BLOCK * storage(tag)[0][1].compute.itemsize))
        p = _block(builder, tag, columns(tag).p, base, start, end, other)
        difference(builder, kind, room, p)
        _note(builder, note, 1, sum_of_squares(builder, kind, p))
        _note(builder, note, 2, sum_of_squares(builder, kind, room))
        _note(builder, note, 3, largest(builder, kind, room))
        return context.get_dummy_value()

    return types.void(tag, base, *[types.uint64] * 4), generate


def _room(builder: Any, room: Any, k: int) -> Any:
    """Return the address of scratch for a block of the k-th of what is added up."""
    return builder.add(room, I64(8 * BLOCK * k))


@intrinsic
def laid_from(typing, tag, room, start):
    """Return scratch for a block that begins at element `start`, less what that adds to an address."""

    def generate(context, builder, signature, args):
        _, room, start = args
        return builder.sub(room, builder.mul(start, I64(storage(tag)[0][1].compute.itemsize)))

    return types.uint64(tag, types.uint64, types.uint64), generate


@intrinsic
def lay(typing, tag, streams, i, c, x, room):
    """Put what element i adds to each sum into scratch; see laid_from."""

    def generate(context, builder, signature, args):
        _, streams, i, c, x, room = args
        values = values_of(builder, tag, at_rest(builder, streams, i))
        c, x = (unpacked(builder, *pair) for pair in zip((c, x), kinds(tag), strict=True))
        _, _, summands = stepped(tag, values, c, x)
        for k, (scope, summand) in enumerate(zip(SCOPES, summands, strict=False)):
            at = place(builder, _room(builder, room, k), _kind(tag), i)
            scoped(builder, builder.store(summand.value, at), scope)
        return context.get_dummy_value()

    return types.void(tag, streams, types.uint64, c, x, types.uint64), generate


@intrinsic
def summed(typing, tag, room, n, note):
    """Note the sums of a block, of which scratch holds n numbers each, filled up with zeros."""

    def generate(context, builder, signature, args):
        _, room, n, note = args
        for k, one in enumerate(KERNEL_OF[tag.instance_class].sums):
            at = _room(builder, room, k)
            with each(builder, n, I64(BLOCK)) as i:
                put(builder, at, i, ir.Constant(_kind(tag), 0.0))
            _note(builder, note, k, block_sum(builder, _kind(tag), at, squared=isinstance(one, Euclidean)))
        return context.get_dummy_value()

    return types.void(tag, *[types.uint64] * 3), generate
