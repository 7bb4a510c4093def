"""What a walk notes of each block of a piece, where its tag asks for it; else nothing here leaves code."""

import numpy as np
from numba.extending import overload

from ..chores import BLOCK as BLOCK_ELEMENTS
from ..formats import format_of
from .blocks import difference, largest, put, sum_of_squares
from .elements import asked, closure, coded, columns, storage
from .memory import fetch

BLOCK, WHOLE = np.uint64(BLOCK_ELEMENTS), np.uint64(1 << 62)


def stride(tag):
    """How many elements are stepped between two looks: a block, or all."""


@overload(stride)
def _stride(tag):
    return (lambda tag: BLOCK) if asked(tag, "stats") or coded(tag) else (lambda tag: WHOLE)


def _reader(tag, column, in_place=True):
    """A function that gives the address of a block of a stream in the compute type, filled up with zeros: its own
    where it can be, else that of `room`, after a copy."""
    format, wide = dict(storage(tag))[column], storage(tag)[0][1].compute
    size, zero = np.uint64(format.bytes), wide.type(0)
    whole = BLOCK if in_place and format is format_of(wide) else WHOLE

    def read(tag, base, start, end, room):
        n = min(end - start, BLOCK)
        if n == whole:
            return base[column] + start * size
        for i in range(np.uint64(0), n):
            put(room, i, fetch(tag, column, base, start + i))
        for i in range(n, BLOCK):
            put(room, i, zero)
        return room

    return closure(read, column, whole)


def measured(tag, base, start, end, room, note):
    """note[0], note[3] <- the squares and the largest magnitude of g's block from `start` on, as far as asked for."""


@overload(measured)
def _measured(tag, base, start, end, room, note):
    kind, read = storage(tag)[0][1].compute, _reader(tag, columns(tag).g)
    squares, top = asked(tag, "squares"), asked(tag, "largest")

    def compiled(tag, base, start, end, room, note):
        at = read(tag, base, start, end, room)
        if squares:
            note[0] = sum_of_squares(kind, at)
        if top:
            note[3] = largest(kind, at)

    return compiled


def before(tag, base, start, end, room, notes, k):
    """Note g's squares and keep p, where statistics are asked for."""


@overload(before)
def _before(tag, base, start, end, room, notes, k):
    if not asked(tag, "stats"):
        return lambda tag, base, start, end, room, notes, k: None
    kind, read_g, keep_p = (
        storage(tag)[0][1].compute,
        _reader(tag, columns(tag).g),
        _reader(tag, columns(tag).p, in_place=False),
    )

    def compiled(tag, base, start, end, room, notes, k):
        notes[k, start // BLOCK, 0] = sum_of_squares(kind, read_g(tag, base, start, end, room))
        keep_p(tag, base, start, end, room)

    return compiled


def after(tag, base, start, end, room, notes, k):
    """Note the squares of p and of its update, and the largest update."""


@overload(after)
def _after(tag, base, start, end, room, notes, k):
    if not asked(tag, "stats"):
        return lambda tag, base, start, end, room, notes, k: None
    kind, read_p = storage(tag)[0][1].compute, _reader(tag, columns(tag).p)
    size = np.uint64(kind.itemsize)

    def compiled(tag, base, start, end, room, notes, k):
        note, p = notes[k, start // BLOCK], read_p(tag, base, start, end, room + BLOCK * size)
        difference(kind, room, p)
        note[1], note[2], note[3] = sum_of_squares(kind, p), sum_of_squares(kind, room), largest(kind, room)

    return compiled
