"""Is the NumPy backend's walk, the element functions on whole chunks: slow, simple, and what the others must equal."""

from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from .chores import BLOCK, NOTES, TAKEN, Numbers, average, block_sums, clip, in_pairs, largest, sum_of_squares
from .contract import Euclidean, Kernel
from .formats import compute, decoded, encoded, followed, format_of, is_drawn, join, split
from .streams import Columns, Several


def step(
    kernel: Kernel, streams: Any, chunks: Any, row: Any, rows: Any, flags: Any, notes: Any, firsts: Any
) -> Iterator[tuple[Any, Any]]:
    """Step every chunk once; yields (piece of a stream or a chunk, its new values), and writes nothing but notes.

    Where flags ask for sums, they are noted in their order, of each block, and nothing is yielded.

    streams: per leaf, Columns of flat arrays in one memory order; then those of the zeros, as a gradient. The other
    arguments: see Plan.
    """
    *_, nothing = streams
    width, extra = len(kernel.Coefficients._fields), len(Numbers._fields)  # type: ignore[attr-defined]
    with np.errstate(all="ignore"):
        for k, (leaf, first, n, g_leaf, g_first, missed, _) in enumerate(chunks):
            r = row[leaf]
            if r < 0:
                continue
            pieces = Columns.of(None if x is None else _piece(x, first, n) for x in streams[leaf]._replace(g=None).row)
            p, slots, low = pieces.p, pieces.slots, pieces.low
            wide = compute(p.dtype).type
            stored, new_ema, other = [p, *slots], pieces.ema, low
            if pieces.rounded is not None:
                stored[0], outside = followed(p, pieces.rounded)
                if not flags.summing:
                    yield chunks[k, TAKEN:], np.count_nonzero(outside)
            for now in range(r - missed, r + 1):
                source, at = (streams[g_leaf].g, g_first) if now == r else (nothing.g, 0)
                gradient = g = _gradient(source, at, n, wide)
                c = kernel.Coefficients(*rows[now, :width].astype(wide))
                x = Numbers(*rows[now, -extra:].astype(wide))
                if flags.limit:
                    g, c = clip(c.grad_scale * g, x.max_value), c._replace(grad_scale=wide(1))
                before = _joined(stored[0], other).astype(wide, copy=False)
                old = [decoded(x, slot, n, wide) for x, slot in zip(stored[1:], kernel.slots, strict=True)]
                new_p, new_slots, summands = kernel.stepped(flags.summed, wide(0), before, g, old, c)
                if flags.summing:
                    for j, (each, values) in enumerate(zip(kernel.sums, summands, strict=True)):
                        add_up = sum_of_squares if isinstance(each, Euclidean) else block_sums
                        notes[k, : -(-n // BLOCK), j] = add_up(values)
                    continue
                new_ema = None if pieces.ema is None else average(new_ema, new_p, x)
                drawn = int(rows[now, -1]), firsts[leaf] + first
                stored[0], other = (encoded(new_p, p, None, drawn), None) if low is None else split(new_p, p.dtype)
                stored[1:] = [
                    encoded(values, like, slot, drawn if is_drawn(slot) else None)
                    for values, like, slot in zip(new_slots, slots, kernel.slots, strict=True)
                ]
                if flags.stats:
                    noted, after = notes[k, : -(-n // BLOCK)], _joined(stored[0], other).astype(wide, copy=False)
                    noted[:, 0], noted[:, 1] = sum_of_squares(gradient), sum_of_squares(after)
                    noted[:, 2], noted[:, 3] = sum_of_squares(after - before), largest(after - before)
            if flags.summing:
                continue
            stored_p, *stored_slots = stored
            copy, rounded = (encoded(new_p, x) for x in (pieces.copy, pieces.rounded))
            stepped = Columns(stored_p, None, tuple(stored_slots), new_ema, copy, other, rounded)
            for x, values in zip(pieces.row, stepped.row, strict=True):
                if x is not None:
                    yield x, values
            if flags.clear:
                for x in _arrays(streams[g_leaf].g):
                    yield x[g_first : g_first + n], 0


def _arrays(g: Any) -> tuple[Any, ...]:
    """Return the arrays that a gradient comes as."""
    return g if isinstance(g, Several) else (g,)


def _gradient(g: Any, first: int, n: int, wide: Any) -> Any:
    """Return n elements of a gradient in the compute type: of several arrays their sum, from the first array on."""
    return reduce(add, (x[first : first + n].astype(wide, copy=False) for x in _arrays(g)))


def _piece(x: Any, first: int, n: int) -> Any:
    """Return n elements of a stream, or the blocks that hold them, which a chunk begins with."""
    length = format_of(x.dtype).length
    return x[length(first) : length(first + n)]


def _joined(p: Any, low: Any) -> Any:
    return p if low is None else join(p, low)


def measure(streams: Any, chunks: Any, row: Any, notes: Any) -> None:
    """Store in notes[chunk, block] (sum of squares, 0, 0, largest magnitude) of every gradient, in its p's compute
    type."""
    with np.errstate(all="ignore"):
        for k, (leaf, _, n, g_leaf, g_first, *_) in enumerate(chunks):
            if row[leaf] >= 0:
                wide = compute(streams[leaf].p.dtype)
                g = _gradient(streams[g_leaf].g, g_first, n, wide)
                squares = sum_of_squares(g)
                notes[k, : len(squares), 0], notes[k, : len(squares), 3] = squares, largest(g)


def sums(chunks: Any, notes: Any, row: Any, sums_of_leaves: Any) -> None:
    """Store in sums_of_leaves[leaf] the notes of its blocks, the first columns added in pairs of neighbours, the last's
    largest."""
    for leaf in np.unique(chunks[:, 0]):
        if row[leaf] >= 0:
            notes_of_chunks = [notes[k, : -(-n // BLOCK)] for k, (at, _, n, *_) in enumerate(chunks) if at == leaf]
            blocks = np.concatenate(notes_of_chunks)
            sums_of_leaves[leaf] = [*(in_pairs(blocks[:, j].tolist()) for j in range(NOTES - 1)), blocks[:, -1].max()]
