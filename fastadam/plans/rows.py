"""Takes gradients of some rows of a leaf: checks and sorts them, sums what names one row, cuts them into chunks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastadam.arrays.flat import FlatBuffer
from fastadam.arrays.host import Array, Host, describe, flat_like, is_array, memory_order
from fastadam.kernels.chores import CHUNK_WORDS
from fastadam.kernels.formats import FLOATS

PIECE = 1_024  # elements of a row at a time: missed steps are taken over and over, so all streams must stay in L1


class RowGradient(NamedTuple):
    """Holds the gradient of some rows. rows: (k,) ascending, each once. values: flat, in p's order of axes. place: (k,)
    each row's index in values.

    On a device, where the step sums what belongs to one row, values are as they were given, and place is ByRow.
    """

    rows: Array
    values: Any
    place: Any


class ByRow(NamedTuple):
    """Sorts indices by row. order: (k,) positions by row, those of one row as they were given. start: where in it each
    of `rows` begins."""

    rows: Array
    order: Array
    start: Array


def check_indices(p_name: str, g_name: str, owner: Any, indices: Any) -> None:
    """Refuse, naming it, what are no rows of `owner`."""
    if isinstance(owner, FlatBuffer) or owner.ndim == 0 or memory_order(owner)[0] != 0:
        raise ValueError(
            f"{g_name} has rows, {p_name} is {describe(owner)}: expected an array with the first axis slowest in memory"
        )
    if not is_array(indices) or indices.dtype.kind not in "iu" or indices.ndim != 1:
        raise TypeError(f"{g_name}'s indices are {describe(indices)}, expected a one-dimensional array of integers")
    if (bad := np.flatnonzero((indices < 0) | (indices >= len(owner)))).size:
        first = int(bad[0])
        raise IndexError(
            f"{g_name}'s indices[{first}] is {indices[first]}, expected 0 to {len(owner) - 1}: "
            f"{p_name} is {describe(owner)}"
        )


def check_values(p_name: str, g_name: str, owner: Any, indices: Array, values: Any, home: Host) -> Array:
    """Return the gradient of these rows, as an array; raise an error that names it where it is none."""
    expected = (indices.size, *owner.shape[1:])
    where = "" if isinstance(owner, np.ndarray) else " on its device"
    difference = (
        f"{g_name}'s values are {describe(values)}, expected {owner.dtype}{expected}{where}: "
        f"{p_name} is {describe(owner)}"
    )
    if not home.is_array(values) or (array := home.read(values, f"{g_name}'s values")).dtype.name not in FLOATS:
        raise TypeError(difference)
    if array.shape != expected:
        raise ValueError(difference)
    return array


def by_row(indices: Array) -> ByRow:
    """Return which of the indices name the same row."""
    k = indices.size
    if k == 0:
        return ByRow(*[np.empty(0, np.int64)] * 3)
    # Index and position in one integer, which NumPy sorts by vectors; together they would fill memory before 63 bits.
    key = np.sort(indices.astype(np.int64) << k.bit_length() | np.arange(k))
    order, ordered = key & ((1 << k.bit_length()) - 1), key >> k.bit_length()
    new = np.empty(k, bool)
    new[0], new[1:] = True, ordered[1:] != ordered[:-1]
    return ByRow(ordered[new], order, np.flatnonzero(new))


def distinct(indices: Array, values: Array, p: Array) -> RowGradient:
    """Sum what belongs to the same row, in the order given."""
    rows, order, start = by_row(indices)
    place = order[start]
    if len(rows) < len(order):
        counts = np.diff(start, append=len(order))
        sums, more = values[place], np.ones(len(order), bool)
        more[start] = False
        with np.errstate(all="ignore"):
            np.add.at(sums, np.repeat(np.arange(len(rows)), counts)[more], values[order[more]])
        values, place = sums, np.arange(len(rows))
    straight = flat_like(values, p)
    if straight is None:  # another order of axes than p's, or gaps
        home = np.empty([values.shape[axis] for axis in memory_order(p)], values.dtype)
        home[...] = values.transpose(memory_order(p))
        straight = home.reshape(-1)
    return RowGradient(rows, straight, place)


def row_chunks(
    leaf: int, rows: Array, g_leaf: int, place: Array | None, missed: Array | int, width: int
) -> Array:  # fmt: skip
    """Return the chunks (see fastadam.plans.plan.Plan) of rows of `width` elements. Neighbours that go alike share
    them.

    g_leaf, place: whose gradient they take, and where each row's begins in it, in rows; None: always at 0.
    missed: (rows,) how many steps each takes before.
    """
    missed = np.broadcast_to(missed, rows.shape)
    alike = (np.diff(rows) == 1) & (np.diff(missed) == 0)
    if place is not None:
        alike &= np.diff(place) == 1
    first = np.flatnonzero(np.concatenate([[True], ~alike])) if len(rows) else rows  # of each run of neighbours
    lengths = np.diff(first, append=len(rows)) * width
    pieces = -(-lengths // PIECE)
    run = np.repeat(np.arange(len(first)), pieces)
    start = PIECE * (np.arange(len(run)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
    chunks = np.zeros((len(run), CHUNK_WORDS), np.int64)
    chunks[:, 0] = leaf
    chunks[:, 1] = rows[first][run] * width + start
    chunks[:, 2] = np.minimum(PIECE, lengths[run] - start)
    chunks[:, 3] = g_leaf
    chunks[:, 4] = 0 if place is None else place[first][run] * width + start
    chunks[:, 5] = missed[first][run]
    return chunks
