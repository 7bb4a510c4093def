"""Adds up for each leaf what was noted of every block: native, because a model has hundreds of leaves."""

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..chores import BLOCK, NOTES
from .cache import native
from .words import place, word

LAST = NOTES - 1


@intrinsic
def _number(typing, address, k):
    """Return the k-th float64 from an address on."""
    at = types.int64
    return types.float64(at, at), lambda cx, b, sig, args: b.load(place(b, args[0], ir.DoubleType(), args[1]))


@intrinsic
def _put(typing, address, k, x):
    """Store x as the k-th float64 from an address on."""

    def generate(context, builder, signature, args):
        builder.store(args[2], place(builder, args[0], ir.DoubleType(), args[1]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float64), generate


def _sums(chunks, count, notes, blocks, row, sums):
    """Store in sums[leaf] the notes of its blocks, added in pairs of neighbours; see fastadam.kernels.reference.sums.

    Addresses of (count, 6) chunks, of (count, blocks, NOTES) notes, of each leaf's row, of (leaves, NOTES) sums. The
    notes are gathered at the start of `notes`, and lost.
    """
    k = 0
    while k < count:
        leaf, many = word(chunks, 6 * k), 0
        while k < count and word(chunks, 6 * k) == leaf:
            for b in range((word(chunks, 6 * k + 2) + BLOCK - 1) // BLOCK):
                for j in range(NOTES):
                    _put(notes, NOTES * many + j, _number(notes, NOTES * (k * blocks + b) + j))
                many += 1
            k += 1
        if word(row, leaf) < 0:
            continue
        while many > 1:
            half = many // 2
            for i in range(half):
                to, a, b = NOTES * i, NOTES * 2 * i, NOTES * (2 * i + 1)
                for j in range(LAST):
                    _put(notes, to + j, _number(notes, a + j) + _number(notes, b + j))
                x, y = _number(notes, a + LAST), _number(notes, b + LAST)
                _put(notes, to + LAST, x if (x > y) | (x != x) else y)
            if many % 2:
                for j in range(NOTES):
                    _put(notes, NOTES * half + j, _number(notes, NOTES * (many - 1) + j))
            many = half + many % 2
        for j in range(NOTES):
            _put(sums, NOTES * leaf + j, _number(notes, j))


@cache
def sums() -> Any:
    """Return _sums in native code."""
    return native("sums", _sums, types.void(*[types.int64] * 6)).entry_point
