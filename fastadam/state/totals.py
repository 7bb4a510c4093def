"""Adds up the gradients of micro-batches until a step takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastadam.arrays.host import Array, shaped_like
from fastadam.kernels.formats import compute
from fastadam.plans.plan import Plan
from fastadam.state.resized import follow
from fastadam.state.slots import State


def share(batches: int, reduction: str) -> float:
    """Return what a step multiplies the sum of so many micro-batches by, whose "mean" or "sum" it takes."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}, expected 'mean' or 'sum'")
    return 1 / max(1, batches) if reduction == "mean" else 1.0


class Totals:
    """Holds what has been accumulated for the next step.

    arrays: per leaf, the flat sum of its gradients in the compute dtype; nothing before the first is accumulated.
    counts: (leaves + 1,) int64: per leaf, whether there is such a sum; last, of how many micro-batches.
    """

    def __init__(self, leaves: int) -> None:
        self.arrays: list[Array] = []
        self.counts = np.zeros(leaves + 1, np.int64)

    @property
    def batches(self) -> int:
        """Return how many micro-batches have been accumulated."""
        return int(self.counts[-1])

    def add(self, plan: Plan, state: State, grads: Sequence[Any], batches: int = 1) -> None:
        """Add the gradients of so many micro-batches, which the plan has accepted, None among them."""
        if not self.arrays:
            with state.on_stream():
                self.arrays = [state.home.allocate(p.size, compute(p.dtype)) for p in state.params]
        row, then = self.counts.copy(), self.counts.copy()
        for leaf, g in enumerate(grads):
            row[leaf], then[leaf] = (-1, row[leaf]) if g is None else (row[leaf], 1)
        then[-1] += batches
        plan.accumulate(self.arrays, row, [(self.counts, ..., then)])

    def take(self, state: State, reduction: str) -> tuple[list[Array | None], float, list[Any]]:
        """Return the sums as gradients, what a step multiplies them by, and what it writes to drop them: (x, where,
        value)."""
        of_each = share(self.batches, reduction)
        if self.batches == 0:
            raise ValueError("step() got no grads and nothing has been accumulated: expected one of them")
        return self.sums(state), of_each, [(self.counts, ..., 0)]

    def sums(self, state: State) -> list[Array | None]:
        """Return each leaf's sum in the shape of its parameter, None where there is none."""
        if not self.arrays:
            return [None] * len(state.params)
        return [
            shaped_like(x, p) if added else None
            for x, p, added in zip(self.arrays, state.params, self.counts.tolist(), strict=False)
        ]

    def map(self, function: Callable[[Any], Any]) -> Totals:
        """Return other totals, of function(array) for each array; the counts are copied."""
        other = Totals(len(self.counts) - 1)
        other.arrays, other.counts = list(map(function, self.arrays)), self.counts.copy()
        return other

    def with_leaf(self, state: State, leaf: int, new: Array, rows: Array) -> Totals:
        """Return totals in which a leaf's sum follows the rows of an array in its place; see accept_rows."""
        other = self.map(lambda x: x)
        if self.arrays:
            with state.on_stream():
                other.arrays[leaf] = state.home.allocate(new.size, compute(new.dtype))
                follow(state.home, self.arrays[leaf], state.params[leaf], other.arrays[leaf], new, rows)
        return other

    def check_empty(self) -> None:
        """Refuse gradients beside those that have been accumulated."""
        if self.batches:
            raise ValueError(
                f"grads are given, and {self.batches} micro-batches have been accumulated: expected step() for these, "
                "or forget() before"
            )

    def forget(self) -> None:
        """Drop what has been accumulated."""
        self.counts[:] = 0
