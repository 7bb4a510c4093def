"""Has what every processor's judge has in common: what it is asked for, how limits become factors, and its report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fastadam.arrays.host import Array
from fastadam.kernels.chores import NOTES, in_pairs
from fastadam.plans.chores import Chores, StepInfo
from fastadam.plans.measured import LeafSums, Measured
from fastadam.plans.plan import Plan

Changes = Sequence[tuple[Any, Any, Any]]  # x[where] = values for each (x, where, values)


class Part(NamedTuple):
    """Names some of a plan's leaves, or of their rows, and the coefficients they take: see Plan.launch_some."""

    work: Sequence[Any]
    row: Array
    rows: Array


class Verdict(NamedTuple):
    """Says what is decided on the gradients that were measured.

    bad:     the path of the first leaf whose gradient is not finite, where that matters; the step is skipped then.
    norm:    the global L2 norm of the gradients.
    clips:   per group, what its gradients are multiplied by.
    factors: (leaves,) float64, what each leaf's row is multiplied by. Leaves that share a row have one factor: those
             that shall not, have rows of their own (Table's `apart`).
    """

    bad: str | None = None
    norm: float | None = None
    clips: Sequence[float] | None = None
    factors: Array | None = None


class Judge:
    """Measures the gradients of a step as far as it must, decides on them, launches the step or skips it, and reports.

    plan: whose steps these are, with its table of coefficients. names: per leaf, what follows "params" in errors.
    apart: whether factors go into the rows of a table, which leaves must not share then.
    join: what makes LeafSums, per leaf, of (blocks, NOTES) that a plan has added up, where its leaves are parts: host
        alone.
    noted: per leaf, (blocks, NOTES) of the last step that was told what others had measured, if it has statistics.
    """

    apart: ClassVar[bool] = True
    join: Callable[[Sequence[Array]], Sequence[LeafSums]] | None = None

    def __init__(self, plan: Plan, chores: Chores, names: Sequence[str]) -> None:
        self._plan, self._table, self._chores, self._names = plan, plan.table, chores, names
        self.noted: Sequence[Array] | None = None if names else ()
        self._limited = any(group.max_norm for group in plan.table.groups)
        self._clipping = self._limited or chores.max_norm is not None
        self._skipping = bool(chores.skip_nonfinite)
        self._noting = chores.stats is not None
        # Whether there is nothing to measure or to report, but something to launch.
        measuring = self._clipping or self._skipping or plan.summed.size
        self._plain = bool(names) and not (measuring or self._noting or plan.mastered)

    def step(
        self, scale: float, grads: Sequence[Any] = (), after: Changes = (), used: Changes = (),
        part: Part | None = None, measured: Mapping[str, Measured] | None = None,
    ) -> StepInfo:  # fmt: skip
        """Step by the plan's table, which has been filled in with this scale; or one part only, by its coefficients.

        grads: what to zero where zero_grads is asked for and the step is skipped.
        after: what to write once the step has been launched. used: what to write if it is skipped or refused.
        measured: what to decide on, where more leaves count than these.
        Raises FloatingPointError that names the leaf, where skip_nonfinite is "raise".
        """
        raise NotImplementedError

    def decide_on(self, measured: Mapping[str, Measured], scale: float) -> Verdict:
        """Return the verdict on leaves that others have measured, too, by path and in the order of the whole tree."""
        measures = measured.values()
        if self._skipping and (bad := [path for path, one in measured.items() if not math.isfinite(one.largest)]):
            return Verdict(bad=bad[0])
        if not self._clipping:
            return Verdict()
        groups = range(len(self._table.groups))
        of_groups = [[one.squares for one in measures if one.group == k] for k in groups]
        norm, clips = self.clips([one.squares for one in measures], scale, of_groups)
        return self.verdict(norm, clips)

    def verdict(self, norm: float, clips: Sequence[float]) -> Verdict:
        """Return the verdict that multiplies each group's gradients by its factor."""
        return Verdict(None, norm, clips, np.repeat(clips, [len(group.leaves) for group in self._table.groups]))

    def clips(
        self, squares: Sequence[float], scale: float, of_groups: Sequence[Sequence[float]] | None = None
    ) -> tuple[float, list[float]]:
        """Return the global norm, and each group's factor: by its norm where it has a limit of its own, else by the
        global.

        squares: of each leaf's gradient. of_groups: those of each group's leaves, where they are not the table's.
        """

        def factor(norm: float, limit: float | None) -> float:
            return 1.0 if limit is None or norm <= limit else limit / norm  # NaN goes on to the parameters

        norm = abs(scale) * math.sqrt(in_pairs(squares))
        everyone, clips = factor(norm, self._chores.max_norm), []
        groups = self._table.groups
        if of_groups is None:
            of_groups = [squares[group.leaves.start : group.leaves.stop] for group in groups]
        for group, squares_of_group in zip(groups, of_groups, strict=True):
            of_group = abs(scale) * math.sqrt(in_pairs(squares_of_group))
            clips.append(everyone if group.max_norm is None else factor(of_group, group.max_norm))
        return norm, clips

    def nothing(self, scale: float) -> StepInfo:
        """Return the report of a step without leaves."""
        verdict = Verdict(None, *self.clips([], scale)) if self._clipping else Verdict()
        return self.report(verdict, np.zeros((0, NOTES)) if self._noting else None, scale)

    def refuse(self, bad: str) -> FloatingPointError:
        """Return the error for the gradient of the leaf at this path, which is not finite."""
        return FloatingPointError(f"grads{bad} holds NaN or infinity, expected finite numbers")

    def report(self, verdict: Verdict, sums: Array | None, scale: float, taken_over: int | None = None) -> StepInfo:
        """Return what a step that was taken has found out. sums: (leaves, NOTES) after it, where statistics are asked
        for."""
        norm, stats, clips = verdict.norm, None, verdict.clips
        if sums is not None:
            norm = abs(scale) * math.sqrt(in_pairs(sums[:, 0].tolist())) if norm is None else norm
            stats = self._statistics(sums, scale)
        factor = None if clips is None else tuple(clips) if self._limited else clips[0]
        return StepInfo(norm, factor, False, stats, taken_over)

    def _statistics(self, sums: Array, scale: float) -> dict[str, dict[str, float]]:
        """Return StepInfo.stats from each leaf's sums."""
        if self._chores.stats == "tensor":
            pieces = {f"params{name}": range(k, k + 1) for k, name in enumerate(self._names)}
        else:
            pieces = {f"groups[{k}]": group.leaves for k, group in enumerate(self._table.groups)}
        return statistics(sums, pieces, scale)


def statistics(sums: Array, pieces: Mapping[str, Sequence[int]], scale: float) -> dict[str, dict[str, float]]:
    """Return StepInfo.stats: of the leaves of each piece, from (leaves, NOTES) of all."""
    stats = {}
    for name, leaves in pieces.items():
        notes = sums[list(leaves)]
        g, p, u = (math.sqrt(in_pairs(notes[:, j].tolist())) for j in range(3))
        largest = float(notes[:, 3].max(initial=0.0))
        stats[name] = {
            "grad_norm": abs(scale) * g, "update_norm": u, "param_norm": p, "largest_update": largest
        }  # fmt: skip
    return stats
