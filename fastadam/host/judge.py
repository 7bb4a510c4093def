"""Says what becomes of a step on the host: its gradients are measured, it is decided on, launched or skipped,
reported."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import chain, starmap
from operator import setitem
from typing import Any

import numpy as np

from fastadam.arrays.flat import FlatBuffer
from fastadam.arrays.host import Array
from fastadam.kernels.chores import NOTES
from fastadam.kernels.streams import Several
from fastadam.plans import judge
from fastadam.plans.chores import NOTHING, StepInfo
from fastadam.plans.judge import Changes, Part, Verdict
from fastadam.plans.measured import Measured


class Judge(judge.Judge):
    """Is the judge of NumPy's and Numba's plans, which works on arrays of the host."""

    def step(
        self, scale: float, grads: Sequence[Any] = (), after: Changes = (), used: Changes = (),
        part: Part | None = None, measured: Mapping[str, Measured] | None = None,
    ) -> StepInfo:  # fmt: skip
        if self._plain and part is None:
            self._plan.launch(after)
            return NOTHING
        if not self._names:
            measured = measured or {}
        verdict = self.decide(self.measure(part), scale) if measured is None else self.decide_on(measured, scale)
        if verdict.bad is not None:
            return self.skip(verdict.bad, grads, used)
        if not self._names:  # nothing to launch
            deque(starmap(setitem, [*self._table.counted(self._table.row, self._table.rows), *after]), maxlen=0)
            return self.report(verdict, np.zeros((0, NOTES)) if self._noting else None, scale)
        self.launch(part, verdict.factors, after)
        if self._noting and measured is not None:
            self.noted = [x.copy() for x in self._plan.blocks(*self._all_work()[:2])]
        return self.report(verdict, self.sums(part) if self._noting else None, scale, self.taken_over(part))

    def measure(self, part: Part | None) -> Array:
        """Return (leaves, NOTES): what is decided on; see Plan.measure."""
        if not (self._clipping or self._skipping):
            return np.zeros((len(self._names), NOTES))
        work, row, _ = part or self._all_work()
        return self._plan.measure(work, row, self._clipping, self._skipping)

    def decide(self, measured: Array, scale: float) -> Verdict:
        """Return whether to skip the step, else what to multiply rows by."""
        if self._skipping and not (finite := np.isfinite(measured[:, -1])).all():
            return Verdict(bad=self._names[int(np.argmin(finite))])
        if not self._clipping:
            return Verdict()
        return self.verdict(*self.clips(measured[:, 0].tolist(), scale))

    def skip(self, bad: str, grads: Sequence[Any], used: Changes) -> StepInfo:
        """Leave everything as it is but for the count of skipped steps, and gradients that were to be zeroed."""
        deque(starmap(setitem, used), maxlen=0)
        if self._chores.skip_nonfinite == "raise":
            raise self.refuse(bad)
        each = chain.from_iterable(g if isinstance(g, Several) else [g] for g in grads)
        for g in each if self._chores.zero_grads else ():
            if g is not None:
                (g[1] if isinstance(g, tuple) else g.array if isinstance(g, FlatBuffer) else g)[...] = 0
        self._table.skipped += 1
        return StepInfo(skipped=True)

    def launch(self, part: Part | None, factors: Array | None, after: Changes) -> None:
        """Step, with each row multiplied by its leaves' factor."""
        if factors is not None:
            _, row, rows = part or self._all_work()
            taken, first = np.unique(row[:-1], return_index=True)
            rows[taken[taken >= 0], 0] *= factors[first[taken >= 0]]
        if self._plan.summed.size:
            after = [*after, *self.weigh()]
        if part is None:
            self._plan.launch(after)
        else:
            self._plan.launch_some(*part, [*self._plan.unread, *after])

    def weigh(self) -> Changes:
        """Let the factor in each leaf's row be what its method makes of the sums over the leaf, or over all leaves;
        returns what a step by it changes besides."""
        plan, table = self._plan, self._table
        if table.shared:
            return table.share(plan.judged_together(plan.sum_up()))
        leaves = plan.summed[table.row[plan.summed] >= 0]
        if self.join is None:
            elements, sums = plan.elements_of[leaves], plan.sum_up()[leaves]
        else:
            wholes = self.join(plan.sum_up_blocks())
            elements = np.array([wholes[leaf].elements for leaf in leaves], np.float64)
            sums = np.array([wholes[leaf].sums for leaf in leaves])
        rows = table.row[leaves]
        table.rows[rows, table.width - 1] = plan.judged(leaves, elements, sums, table.rows[rows])
        return []

    def sums(self, part: Part | None) -> Array:
        """Return (leaves, NOTES): what the step has noted down."""
        work, row, _ = part or self._all_work()
        return self._plan.sums(work, row)

    def taken_over(self, part: Part | None) -> int | None:
        """Return how many parameters that have a master were set from outside; None where none has one."""
        work, row, _ = part or self._all_work()
        return self._plan.taken_over(work, row) if self._plan.mastered else None

    def _all_work(self) -> Part:
        """Return all leaves, by the plan's table."""
        return Part(self._plan.everything, self._table.row, self._table.rows)
