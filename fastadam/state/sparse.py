"""Sparse rows: a step that touches only some rows of a leaf, under one of two semantics.

"lazy", as torch's SparseAdam and TensorFlow's LazyAdam: rows without a gradient stay as they are, moments included.
"exact": such a row only falls behind. When it is next touched, the steps it has missed are taken first, with zeros as
the gradient and with those steps' own coefficients, in one read and one write of memory: bit for bit what the dense
step gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam.arrays.host import Array, writable
from fastadam.checks import number
from fastadam.plans.chores import NOTHING, StepInfo
from fastadam.plans.judge import Part

if TYPE_CHECKING:
    from fastadam.arrays.tree import Tree
    from fastadam.optimizer import Optimizer

FIRST = 64  # steps that a leaf's history has room for at first


class Behind:
    """The rows of some leaves that are behind their leaf's count, and the coefficients of the steps they have missed.

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
        """From here on rows of this leaf may fall behind. Makes room for the coefficients of the step from `count`."""
        if leaf not in self.at:
            self.at[leaf], self._start[leaf] = np.full(rows, count), count
            self.table = np.concatenate([self.table, np.zeros((self._room, self.table.shape[1]))])
        if count - self._start[leaf] == self._room:
            own = self._history(leaf)
            if (done := int(self.at[leaf].min()) - self._start[leaf]) > self._room // 2:  # no row needs the older half
                own[: self._room - done] = own[done:].copy()
                self._start[leaf] += done
            else:
                general, history = self.table[: self._general], self.table[self._general :]
                wider = np.zeros((len(self.at), 2 * self._room, self.table.shape[1]))
                wider[:, : self._room] = history.reshape(len(self.at), self._room, -1)
                self.table = np.concatenate([general, wider.reshape(-1, self.table.shape[1])])
                self._room *= 2

    def index(self, leaf: int, count: int) -> int:
        """Where in `table` the coefficients of the step from `count` on lie."""
        return self._general + list(self.at).index(leaf) * self._room + count - self._start[leaf]

    def _history(self, leaf: int) -> Array:
        first = self._general + list(self.at).index(leaf) * self._room
        return self.table[first : first + self._room]


def _of_this_step(opt: Optimizer, tree: Tree) -> list[Any]:
    """The leaves of a tree that may lack some keys: None where it does, (indices, values) where rows are given."""
    return opt._structure.flatten(tree, "rows", partial=True)


def step_rows(opt: Optimizer, tree: Tree, grad_scale: float, semantics: str) -> StepInfo:
    """See Optimizer.step_rows. Checks first, work last."""
    if semantics not in ("lazy", "exact"):
        raise ValueError(f"semantics is {semantics!r}, expected 'lazy' or 'exact'")
    if opt._window is not None:
        which = "capturable" if opt._capturable else "skip_nonfinite"
        raise ValueError(f"{which} is True, expected False for step_rows: the host must know what each step does")
    opt._check_idle()
    opt._totals.check_empty()
    scale, plan = number("grad_scale", grad_scale), opt._plan
    leaves = _of_this_step(opt, tree)
    given = {}
    for leaf, g in enumerate(leaves):
        if isinstance(g, tuple):
            name = f"rows{opt._structure.names[leaf]}"
            if len(g) != 2:
                raise ValueError(f"{name} is a tuple of {len(g)}, expected (indices, values)")
            given[leaf] = plan.accept_rows(leaf, *g)
    if opt._chores.zero_grads:
        plan.check_clearable([g[1] if leaf in given else g for leaf, g in enumerate(leaves)])
    plan.accept([None if leaf in given else g for leaf, g in enumerate(leaves)])
    opt._table.fill(scale, [g is not None for g in leaves])
    if not leaves:
        opt._table.counts[-1] += 1
        return NOTHING
    behind = opt._behind
    stale = [leaf for leaf in behind.at if leaves[leaf] is not None]
    if stale and (semantics == "lazy" or not given.keys() >= set(stale)):
        catch_up(opt)
        behind = opt._behind

    after: list[Any] = []
    table, chunks = opt._table, []
    row, counts = table.row.copy(), table.counts
    if semantics == "exact":
        for leaf in given:
            behind.watch(leaf, len(opt._state.params[leaf]), int(counts[leaf]))
        for leaf in given:  # the table is as large now as it will be
            row[leaf] = behind.index(leaf, int(counts[leaf]))
            behind.table[row[leaf]] = table.rows[table.row[leaf]]
        behind.table[: len(table.rows)] = table.rows
    for leaf, g in enumerate(leaves):
        if leaf in given:
            rows, values, place = given[leaf]
            plan.place_rows(leaf, values)
            if opt._chores.zero_grads:
                after.append((plan.home.to_write("values", leaves[leaf][1]), ..., 0))
            missed: Any = 0
            if semantics == "exact":
                missed = counts[leaf] - behind.at[leaf][rows]
                after.append((behind.at[leaf], rows, counts[leaf] + 1))
            chunks.append(plan.row_chunks(leaf, rows, place, missed))
        elif g is not None:
            chunks.append(plan.dense_chunks(leaf))
    part = Part(plan.work(chunks), row, behind.table if semantics == "exact" else table.rows)
    return opt._judge.step(scale, leaves, after, part=part)


def catch_up(opt: Optimizer, tree: Tree = None) -> None:
    """See Optimizer.catch_up."""
    behind, plan = opt._behind, opt._plan
    chunks, after = [], []
    wanted: dict[int, Any] = dict.fromkeys(behind.at)
    if tree is not None:
        named = {leaf: rows for leaf, rows in enumerate(_of_this_step(opt, tree)) if rows is not None}
        given = {leaf: plan.accept_indices(leaf, rows) for leaf, rows in named.items()}
        wanted = {leaf: np.unique(rows).astype(np.int64) for leaf, rows in given.items() if leaf in behind.at}
    row = np.full(len(opt._table.row), -1)
    for leaf, some in wanted.items():
        plan._check_unmoved(leaf)
        count = int(opt._table.counts[leaf])
        rows = np.arange(len(opt._state.params[leaf])) if some is None else some
        rows = rows[behind.at[leaf][rows] < count]
        if len(rows):
            row[leaf] = behind.index(leaf, count - 1)
            chunks.append(plan.row_chunks(leaf, rows, None, count - behind.at[leaf][rows] - 1))
            after.append((behind.at[leaf], rows, count))
    if chunks:
        plan.launch_some(plan.work(chunks), row, behind.table, after, counted=False)
    if tree is None:
        opt._behind = Behind(*opt._table.rows.shape)
