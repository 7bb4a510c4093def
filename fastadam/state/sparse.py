"""Takes steps that touch only some rows of a leaf, under one of two semantics.

"lazy", as torch's SparseAdam and TensorFlow's LazyAdam: rows without a gradient stay as they are, moments included.
"exact": such a row only falls behind. When it is next touched, the steps it has missed are taken first, with zeros as
the gradient and with those steps' own coefficients, in one read and one write of memory: bit for bit what the dense
step gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastadam.arrays.host import Array, writable
from fastadam.plans.judge import Part
from fastadam.plans.plan import Plan
from fastadam.plans.rows import RowGradient
from fastadam.plans.table import Table

FIRST = 64  # steps that a leaf's history has room for at first


class Behind:
    """Knows the rows of some leaves that are behind their leaf's count, and the coefficients of the steps they have
    missed.

    table: (general + leaves · room, width) float64, the rows of coefficients that a walk reads: first this step's, then
           for each leaf those of its steps since _start[leaf].
    at:    per leaf, (rows,) int64, the count at which each row of the leaf stands.
    """

    def __init__(self, general: int, width: int) -> None:
        self._general, self._room, self.table = general, FIRST, np.zeros((general, width))
        self.at: dict[int, Array] = {}
        self._start: dict[int, int] = {}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        vars(self).update(kept, table=writable(kept["table"]), at={leaf: writable(x) for leaf, x in kept["at"].items()})

    def watch(self, leaf: int, rows: int, count: int) -> None:
        """Let rows of this leaf fall behind from now on. Makes room for the coefficients of the step from `count`."""
        if leaf not in self.at:
            self.at[leaf], self._start[leaf] = np.full(rows, count), count
            self.table = np.concatenate([self.table, np.zeros((self._room, self.table.shape[1]))])
        if count - self._start[leaf] == self._room:
            rows_of_leaf = self._history(leaf)
            if (
                done := int(self.at[leaf].min(initial=count)) - self._start[leaf]
            ) > self._room // 2:  # no row needs the older half
                rows_of_leaf[: self._room - done] = rows_of_leaf[done:].copy()
                self._start[leaf] += done
            else:
                general, history = self.table[: self._general], self.table[self._general :]
                wider = np.zeros((len(self.at), 2 * self._room, self.table.shape[1]))
                wider[:, : self._room] = history.reshape(len(self.at), self._room, -1)
                self.table = np.concatenate([general, wider.reshape(-1, self.table.shape[1])])
                self._room *= 2

    def replace(self, leaf: int, rows: Array, count: int) -> None:
        """Let a leaf's rows be others, each as far behind as the one it continues, or at `count`; see accept_rows."""
        if leaf in self.at:
            self.at[leaf] = np.where(rows >= 0, np.append(self.at[leaf], count)[rows], count)

    def index(self, leaf: int, count: int) -> int:
        """Return where in `table` the coefficients of the step from `count` on lie."""
        return self._general + list(self.at).index(leaf) * self._room + count - self._start[leaf]

    def _history(self, leaf: int) -> Array:
        first = self._general + list(self.at).index(leaf) * self._room
        return self.table[first : first + self._room]

    def part(
        self, plan: Plan, table: Table, params: Sequence[Array], leaves: Sequence[Any],
        given: dict[int, RowGradient], exact: bool, zeroed: bool,
    ) -> tuple[Part, list[Any]]:  # fmt: skip
        """Return the part of a step over some rows, and what is to be written after it: (x, where, values).

        leaves: per leaf, (indices, values), a dense gradient or None; given: the first, as a plan accepted them.
        exact: whether other rows fall behind, and these take the steps that they have missed. zeroed: see zero_grads.
        """
        after: list[Any] = []
        chunks = []
        row, counts = table.row.copy(), table.counts
        if exact:
            for leaf in given:
                self.watch(leaf, len(params[leaf]), int(counts[leaf]))
            for leaf in given:  # the table is as large now as it will be
                row[leaf] = self.index(leaf, int(counts[leaf]))
                self.table[row[leaf]] = table.rows[table.row[leaf]]
            self.table[: len(table.rows)] = table.rows
        for leaf, g in enumerate(leaves):
            if leaf in given:
                rows, values, place = given[leaf]
                plan.place_rows(leaf, values)
                if zeroed:
                    after.append((plan.home.to_write("values", g[1]), ..., 0))
                missed: Any = 0
                if exact:
                    missed = counts[leaf] - self.at[leaf][rows]
                    after.append((self.at[leaf], rows, counts[leaf] + 1))
                chunks.append(plan.row_chunks(leaf, rows, place, missed))
            elif g is not None:
                chunks.append(plan.dense_chunks(leaf))
        return Part(plan.work(chunks), row, self.table if exact else table.rows), after

    def must_catch_up(self, leaves: Sequence[Any], given: dict[int, RowGradient], exact: bool) -> bool:
        """Return whether rows that are behind must be brought to date before `part`."""
        stale = {leaf for leaf in self.at if leaves[leaf] is not None}
        return bool(stale) and not (exact and given.keys() >= stale)

    def catch_up(self, plan: Plan, table: Table, params: Sequence[Array], leaves: Sequence[Any] | None) -> Behind:
        """Bring rows to date: all, or those whose indices are given for some leaves; returns what is behind then."""
        chunks, after = [], []
        wanted: dict[int, Any] = dict.fromkeys(self.at)
        if leaves is not None:
            accepted = {k: plan.accept_indices(k, rows) for k, rows in enumerate(leaves) if rows is not None}
            wanted = {k: np.unique(rows).astype(np.int64) for k, rows in accepted.items() if k in self.at}
        row = np.full(len(table.row), -1)
        for leaf, chosen in wanted.items():
            plan.check_unmoved(leaf)
            count = int(table.counts[leaf])
            rows = np.arange(len(params[leaf])) if chosen is None else chosen
            rows = rows[self.at[leaf][rows] < count]
            if len(rows):
                row[leaf] = self.index(leaf, count - 1)
                chunks.append(plan.row_chunks(leaf, rows, None, count - self.at[leaf][rows] - 1))
                after.append((self.at[leaf], rows, count))
        if chunks:
            plan.launch_some(plan.work(chunks), row, self.table, after, counted=False)
        return Behind(*table.rows.shape) if leaves is None else self


def accept(plan: Plan, paths: Sequence[str], leaves: Sequence[Any], zeroed: bool) -> dict[int, RowGradient]:
    """Check this step's rows and dense gradients; returns the first, by leaf, sorted.

    Raises IndexError, TypeError, ValueError naming the leaf; then nothing has changed.
    """
    given = {}
    for leaf, g in enumerate(leaves):
        if isinstance(g, tuple):
            if len(g) != 2:
                raise ValueError(f"rows{paths[leaf]} is a tuple of {len(g)}, expected (indices, values)")
            given[leaf] = plan.accept_rows(leaf, *g)
    if zeroed:
        plan.check_clearable([g[1] if leaf in given else g for leaf, g in enumerate(leaves)])
    plan.accept([None if leaf in given else g for leaf, g in enumerate(leaves)])
    return given
