"""The NumPy backend's walk: the element functions on whole chunks. Slow, simple, and what the others must equal."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastadam.kernels.chores import BLOCK, NOTES, Numbers, average, clip, in_pairs, largest, sum_of_squares
from fastadam.kernels.contract import Kernel


def step(
    kernel: Kernel, streams: Any, chunks: Any, row: Any, rows: Any, flags: Any, notes: Any
) -> Iterator[tuple[Any, Any]]:
    """Step every chunk once; yields (piece of a stream, its new values), and writes nothing but notes.

    streams: per leaf, p, g, the slots, the average and the copy as flat arrays in one memory order, None for an absent
    one; then the zeros. The other arguments: see fastadam.plan.Plan.
    """
    width, extra = len(kernel.Coefficients._fields), len(Numbers._fields)  # type: ignore[attr-defined]
    with np.errstate(all="ignore"):
        for k, (leaf, first, n, g_leaf, g_first, missed) in enumerate(chunks):
            r = row[leaf]
            if r < 0:
                continue
            pieces: Any = (None if x is None else x[first : first + n] for x in streams[leaf])
            p, _, *slots, ema, copy = pieces
            new, new_ema = [p, *slots], ema
            for now in range(r - missed, r + 1):
                source, at = (streams[g_leaf][1], g_first) if now == r else (streams[-1][1], 0)
                gradient = g = source[at : at + n].astype(p.dtype, copy=False)
                c = kernel.Coefficients(*rows[now, :width].astype(p.dtype))
                x = Numbers(*rows[now, -extra:].astype(p.dtype))
                if flags.limit:
                    g, c = clip(c.grad_scale * g, x.max_value), c._replace(grad_scale=p.dtype.type(1))
                before, new = new[0], kernel.element(new[0], g, *new[1:], c)
                new_ema = None if ema is None else average(new_ema, new[0], x)
                if flags.stats:
                    here = notes[k, : -(-n // BLOCK)]
                    here[:, 0], here[:, 1] = sum_of_squares(gradient), sum_of_squares(new[0])
                    here[:, 2], here[:, 3] = sum_of_squares(new[0] - before), largest(new[0] - before)
            short = None if copy is None else new[0].astype(np.float32).astype(copy.dtype)
            for old, values in zip([p, *slots, ema, copy], [*new, new_ema, short], strict=True):
                if old is not None:
                    yield old, values
            if flags.clear:
                yield streams[g_leaf][1][g_first : g_first + n], 0


def measure(streams: Any, chunks: Any, row: Any, notes: Any) -> None:
    """notes[chunk, block] <- (sum of squares, 0, 0, largest magnitude) of every gradient."""
    with np.errstate(all="ignore"):
        for k, (leaf, _, n, g_leaf, g_first, _) in enumerate(chunks):
            if row[leaf] >= 0:
                g = streams[g_leaf][1][g_first : g_first + n]
                squares = sum_of_squares(g)
                notes[k, : len(squares), 0], notes[k, : len(squares), 3] = squares, largest(g)


def sums(chunks: Any, notes: Any, row: Any, found: Any) -> None:
    """found[leaf] <- the notes of its blocks, the first columns added in pairs of neighbours, the last's largest."""
    for leaf in np.unique(chunks[:, 0]):
        if row[leaf] >= 0:
            own = [notes[k, : -(-n // BLOCK)] for k, (at, _, n, *_) in enumerate(chunks) if at == leaf]
            blocks = np.concatenate(own)
            found[leaf] = [*(in_pairs(blocks[:, j].tolist()) for j in range(NOTES - 1)), blocks[:, -1].max()]
