"""The NumPy backend's walk: the element functions on whole chunks. Slow, simple, and what the others must equal."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastadam.kernels.contract import Kernel


def walk(kernel: Kernel, streams: Any, chunks: Any, row: Any, rows: Any) -> Iterator[tuple[Any, Any]]:
    """Step every chunk once; yields (piece of a stream, its new values), and writes nothing.

    streams: per leaf, p, g and the slots as flat arrays in one memory order, None for an absent slot; then the zeros.
    The other arguments: see fastadam.plan.Plan.
    """
    width = len(kernel.Coefficients._fields)  # type: ignore[attr-defined]
    with np.errstate(all="ignore"):
        for leaf, first, n, g_leaf, g_first, missed in chunks:
            r = row[leaf]
            if r < 0:
                continue
            p, _, *slots = streams[leaf]
            here = new = [None if x is None else x[first : first + n] for x in (p, *slots)]
            for now in range(r - missed, r + 1):
                source, at = (streams[g_leaf][1], g_first) if now == r else (streams[-1][1], 0)
                c = kernel.Coefficients(*rows[now, :width].astype(p.dtype))
                new = kernel.element(new[0], source[at : at + n].astype(p.dtype, copy=False), *new[1:], c)
            yield from ((old, values) for old, values in zip(here, new, strict=True) if old is not None)
