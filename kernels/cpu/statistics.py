"""What a walk notes of each block of a piece, where its tag asks for it; else nothing here leaves code."""

import numpy as np
from numba.extending import overload

from fastadam.kernels.chores import BLOCK as BLOCK_ELEMENTS
from fastadam.kernels.cpu.blocks import copied, difference, largest, sum_of_squares
from fastadam.kernels.cpu.elements import asked, compute_type

BLOCK, WHOLE = np.uint64(BLOCK_ELEMENTS), np.uint64(1 << 62)


def stride(tag):
    """How many elements are stepped between two looks: a block, or all."""


@overload(stride)
def _stride(tag):
    return (lambda tag: BLOCK) if asked(tag, "stats") else (lambda tag: WHOLE)


def measured(tag, base, start, end, room, note):
    """note[0], note[3] <- the squares and the largest magnitude of g's block from `start` on, as far as asked for."""


@overload(measured)
def _measured(tag, base, start, end, room, note):
    kind, squares, top = np.dtype(str(compute_type(tag))), asked(tag, "squares"), asked(tag, "largest")
    size = np.uint64(kind.itemsize)

    def compiled(tag, base, start, end, room, note):
        at = base[1] + start * size
        if end - start < BLOCK:
            at = copied(kind, room, at, end - start)
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
    kind = np.dtype(str(compute_type(tag)))
    size = np.uint64(kind.itemsize)

    def compiled(tag, base, start, end, room, notes, k):
        g, n = base[1] + start * size, end - start
        if n < BLOCK:
            g = copied(kind, room, g, n)
        notes[k, start // BLOCK, 0] = sum_of_squares(kind, g)
        copied(kind, room, base[0] + start * size, n)

    return compiled


def after(tag, base, start, end, room, notes, k):
    """Note the squares of p and of its update, and the largest update."""


@overload(after)
def _after(tag, base, start, end, room, notes, k):
    if not asked(tag, "stats"):
        return lambda tag, base, start, end, room, notes, k: None
    kind = np.dtype(str(compute_type(tag)))
    size = np.uint64(kind.itemsize)

    def compiled(tag, base, start, end, room, notes, k):
        p, n, note = base[0] + start * size, end - start, notes[k, start // BLOCK]
        if n < BLOCK:
            p = copied(kind, room + BLOCK * size, p, n)
        difference(kind, room, p)
        note[1], note[2], note[3] = sum_of_squares(kind, p), sum_of_squares(kind, room), largest(kind, room)

    return compiled
