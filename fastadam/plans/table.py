"""Keeps a table of coefficients: what each leaf's next step multiplies by, and how many steps the leaf has taken."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from struct import Struct
from typing import Any

import numpy as np

from fastadam import kernels
from fastadam.arrays.host import Array
from fastadam.group import Group
from fastadam.kernels.chores import Numbers
from fastadam.kernels.formats import key
from fastadam.plans.chores import PLAIN, Chores
from fastadam.rule import Rule

EVERY = True  # of `live`: every leaf takes the step


class Table:
    """Holds the rows of one step, which of them each leaf takes, and how far each leaf has come.

    row:     (leaves + 1,) int64: which of `rows` each leaf takes this step, -1 to leave it alone.
    rows:    (rows, coefficients + carried + chores' numbers) float64.
    counts:  (leaves + 1,) int64: the steps that each leaf has taken; the last is the optimizer's own count.
    carried: (leaves + 1, carried) float64: what the rule accumulates for each leaf, copied from its row by each step.
    leads:   (leaves,) int64: the first leaf of each leaf's cohort, all of which share this step's coefficients.
    width:   the coefficients of a row, before what the rule carries.
    carries: whether it accumulates anything.
    shared:  whether all leaves have the same of it, which the judge makes of sums over all leaves.
    told:    dicts that each step writes it into as well, by name, where it is shared.
    skipped: the steps left out by skip_nonfinite.
    seed:    of the random bits of a step, drawn where `drawing` says that something is rounded stochastically.

    Leaves of one group that have taken the same steps share a row; apart=True gives each leaf a row of its own, for
    methods that multiply a leaf's row by a factor of its own.
    """

    def __init__(
        self, rule: type[Rule], groups: Sequence[Group], chores: Chores = PLAIN, seed: int = 0, drawing: bool = False,
        apart: bool = False,
    ) -> None:  # fmt: skip
        n = sum(len(group.leaves) for group in groups)
        self.groups, self.seed, self.skipped = groups, seed, 0
        kernel = kernels.ALL[rule.kernel]
        self.width, self.shared = len(kernel.Coefficients._fields), kernel.Judging is not None  # type: ignore[attr-defined]
        width = self.width + len(rule.carried)
        self.row, self.rows = np.zeros(n + 1, np.int64), np.zeros((max(n, 1), width + len(Numbers._fields)))
        self.counts = np.zeros(n + 1, np.int64)
        self.carried = np.tile(np.array(list(rule.carried.values()), np.float64), (n + 1, 1))
        self.carries, self._drawing, self._apart = bool(rule.carried), False, apart
        self.told: Sequence[dict[str, Any]] = ()
        self._names = list(rule.carried)
        self._accumulated = slice(self.width, width)  # the columns of what the rule carries
        self._chores, self._scheduled = chores, callable(chores.ema_decay)
        self._riding: tuple[float, ...] = ()
        if not self._scheduled:
            self._riding = chores.numbers(0)[:-1]
            self.rows[:, width:-1] = self._riding
        self._with_numbers = self._scheduled  # else the chores' numbers, always the same, stand in the rows already
        length = self.rows.shape[1] if self._with_numbers else width
        self._pack, self._memory = Struct(f"{length}d").pack_into, self.rows.data
        if drawing:
            self.draw()
        self._live: Any = None  # who took the step that leaves were sorted for
        self._cohorts: list[tuple[Group, list[tuple[int, int]]]] = []  # per group, (row's offset, leaf) of each cohort
        self.leads = np.arange(n)

    def draw(self) -> None:
        """Let each row say what the random bits of its step depend on, from now on."""
        self._drawing = self._with_numbers = True
        self._pack = Struct(f"{self.rows.shape[1]}d").pack_into

    def fill(self, scale: float, live: Any = EVERY) -> None:
        """Work out the coefficients of the next step, in which gradients are multiplied by `scale` first.

        live: EVERY, or per leaf whether it takes the step.
        Raises TypeError, ValueError for a schedule's number that no step can take; then only rows have changed.
        """
        if live != self._live:
            self.sort(live)
        t, counts = self.counts.item(-1) + 1, self.counts
        if self._scheduled:
            self._riding = self._chores.numbers(t)[:-1]
        for group, cohorts in self._cohorts:
            lr = group.lr_at(t)
            for at, leaf in cohorts:
                count = counts.item(leaf) + 1
                carried = self.carried[leaf].tolist() if self.carries else ()
                numbers = group.coefficients_at(count, lr, scale, *carried)
                if self._with_numbers:
                    numbers = *numbers, *self._riding, float(key(self.seed, count)) if self._drawing else 0.0
                self._pack(self._memory, at, *numbers)  # 0.3 µs, where NumPy's assignment takes 1
        if self._apart:
            self.rows[: len(self.leads)] = self.rows[self.leads]

    def sort(self, live: Any) -> None:
        """Let the leaves of a group that have taken the same steps share a row, and those that rest have none.

        They stay together as long as the same leaves step, so this is for the steps where others do.
        """
        self._live = None  # until all is done
        histories = list(zip(self.counts.tolist(), map(tuple, self.carried.tolist()), strict=True))
        row, leads = np.full(len(self.row), -1), np.arange(len(self.row) - 1)
        row[-1] = used = 0
        cohorts: list[tuple[Group, list[tuple[int, int]]]] = []
        for group in self.groups:
            firsts: dict[Any, int] = {}
            rows: list[tuple[int, int]] = []
            for leaf in group.leaves:
                if live is EVERY or live[leaf]:
                    leads[leaf] = first = firsts.setdefault(histories[leaf], leaf)
                    if first == leaf:
                        row[leaf] = leaf if self._apart else used
                        rows.append((int(row[leaf]) * self.rows.strides[0], leaf))
                        used += 1
                    row[leaf] = leaf if self._apart else row[first]
            cohorts.append((group, rows))
        self.row[:] = row
        self._cohorts, self.leads, self._live = cohorts, leads, live

    def judging(self) -> tuple[float, ...]:
        """Return what the judge of all leaves must know. Raises ValueError where groups differ in it."""
        first, *others = (group.rule.judging for group in self.groups)
        for k, other in enumerate(others, start=1):
            for name, a, b in zip(first._fields if first else (), first, other, strict=True):  # type: ignore[attr-defined]
                if a != b:
                    difference = f"{self.groups[k].where}{name} is {b!r}, {self.groups[0].where}{name} is {a!r}"
                    raise ValueError(f"{difference}: expected one for all groups, whose sums are added up")
        return first

    def share(self, carried: Sequence[float]) -> list[tuple[Any, Any, Any]]:
        """Let every row have these numbers carried, the first of them as its factor; returns (array or dict, where,
        values): what a step by these rows changes besides, in leaves that do not take it, too."""
        self.rows[:, self.width - 1], self.rows[:, self._accumulated] = carried[0], carried
        named = [(home, name, x) for home in self.told for name, x in zip(self._names, carried, strict=True)]
        return [(self.carried, ..., np.array(carried)), *named]

    @property
    def cohorts(self) -> list[int]:
        """Return the first leaf of each cohort, the leaves that share this step's coefficients."""
        return [leaf for _, rows in self._cohorts for _, leaf in rows]

    def notice(self) -> None:
        """Take up counts, or what the rule carries, that were set from outside."""
        self._live = None

    def take_up(self, leaf: int, count: int, carried: Sequence[float]) -> None:
        """Let a leaf have taken so many steps, and carry what it has accumulated in them where that is its own."""
        self.counts[leaf] = count
        if not self.shared:
            self.carried[leaf] = carried

    def after(self, leaf: int) -> tuple[Any, ...]:
        """Return (count, *carried) that a leaf has after the step which has been filled in."""
        carried = self.rows[self.row[leaf], self._accumulated].tolist() if self.carries else ()
        return self.counts.item(leaf) + 1, *carried

    def carries_on(self, leaf: int) -> list[Array]:
        """Return views of what a leaf carries after the step which has been filled in, once its sums are judged."""
        row = self.rows[self.row[leaf], self._accumulated]
        return [row[k, ...] for k in range(len(row))]

    def count(self) -> None:
        """Take the step that has been filled in as taken by every leaf, in a table that looks ahead."""
        self.counts += 1
        if self.carries:
            self.carried[:] = self.rows[self.row, self._accumulated]

    def counted(self, row: Array, rows: Array) -> list[tuple[Array, Any, Any]]:
        """Return what a step by these rows changes here: (array, where, values), of the leaves whose row is not -1."""
        live: Any = slice(None) if row.min(initial=0) >= 0 else np.flatnonzero(row >= 0)
        changes: list[tuple[Array, Any, Any]] = [(self.counts, live, self.counts[live] + 1)]
        if self.carries:
            changes.append((self.carried, live, rows[row[live], self._accumulated]))
        return changes

    def copy(self) -> Table:
        """Return a table with memory of its own, to look ahead by: this one stays as it is."""
        ahead = copy.copy(self)
        for name in ("row", "rows", "counts", "carried"):
            setattr(ahead, name, getattr(self, name).copy())
        ahead._memory = ahead.rows.data
        return ahead
