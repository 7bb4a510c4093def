"""The NumPy backend's walk: the element functions on whole chunks. Slow, simple, and what the others must equal."""

from typing import Any

import numpy as np

from fastadam.kernels.contract import Kernel


def walk(kernel: Kernel, streams: Any, chunks: Any, row: Any, rows: Any, counts: Any, carried: Any) -> None:
    """Step every leaf once, then advance its count.

    streams: per leaf, p, g and the slots as flat arrays in one memory order, None for an absent slot.
    The other arguments: see fastadam.plan.Plan.
    """
    width = len(kernel.Coefficients._fields)  # type: ignore[attr-defined]
    with np.errstate(all="ignore"):
        for leaf, first, n in chunks:
            if row[leaf] >= 0:
                here = [None if s is None else s[first : first + n] for s in streams[leaf]]
                c = kernel.Coefficients(*rows[row[leaf], :width].astype(here[0].dtype))  # type: ignore[union-attr]
                p, _, *slots = here
                for old, new in zip([p, *slots], kernel.element(*here, c), strict=True):
                    if old is not None:
                        old[:] = new
    live = np.flatnonzero(row >= 0)
    if counts.size:
        counts[live] += 1
        carried[live] = rows[row[live], rows.shape[1] - carried.shape[1] :]
