"""Adds up for each leaf what was noted of every block: native, because a model has hundreds of leaves."""

from functools import cache
from typing import Any

from numba import types

from ..chores import BLOCK, CHUNK_WORDS, NOTES
from .entry import native_text
from .words import number, put_number, word

LAST = NOTES - 1


def of_leaves(chunks, count, notes, blocks, row, sums):
    """Store in sums[leaf] the notes of its blocks, added in pairs of neighbours; see fastadam.kernels.reference.sums.

    Addresses of (count, CHUNK_WORDS) chunks, of (count, blocks, NOTES) notes, of each leaf's row, of (leaves, NOTES)
    sums. The notes are gathered at the start of `notes`, and lost.
    """
    k = 0
    while k < count:
        leaf, many = word(chunks, CHUNK_WORDS * k), 0
        while k < count and word(chunks, CHUNK_WORDS * k) == leaf:
            for b in range((word(chunks, CHUNK_WORDS * k + 2) + BLOCK - 1) // BLOCK):
                for j in range(NOTES):
                    put_number(notes, NOTES * many + j, number(notes, NOTES * (k * blocks + b) + j))
                many += 1
            k += 1
        if word(row, leaf) < 0:
            continue
        while many > 1:
            half = many // 2
            for i in range(half):
                to, a, b = NOTES * i, NOTES * 2 * i, NOTES * (2 * i + 1)
                for j in range(LAST):
                    put_number(notes, to + j, number(notes, a + j) + number(notes, b + j))
                x, y = number(notes, a + LAST), number(notes, b + LAST)
                put_number(notes, to + LAST, x if (x > y) | (x != x) else y)
            if many % 2:
                for j in range(NOTES):
                    put_number(notes, NOTES * half + j, number(notes, NOTES * (many - 1) + j))
            many = half + many % 2
        for j in range(NOTES):
            put_number(sums, NOTES * leaf + j, number(notes, j))


@cache
def sums() -> Any:
    """Return of_leaves in native code."""
    return native_text("sums", of_leaves, types.void(*[types.int64] * 6)).entry_point
