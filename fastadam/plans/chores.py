"""Chores: what a training step does beside the method's arithmetic, in the same pass over memory.

The order, with every operation in the compute type: the gradient is scaled (grad_scale), clipped by norm, clipped by
value; then the method steps; then the average takes up the new parameters, the copy is rounded from them, and the
gradient is zeroed. The norm, and the test for non-finite values, take one read of the gradients before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastadam.arrays.flat import FlatBuffer
from fastadam.arrays.host import Array, Host, describe, flat, flat_like, shaped_like
from fastadam.checks import at_count, integer, number, positive
from fastadam.kernels.chores import NOTES, Flags, Numbers, in_pairs
from fastadam.kernels.formats import SHORT, compute

if TYPE_CHECKING:
    from fastadam.arrays.tree import Tree
    from fastadam.optimizer import Optimizer
    from fastadam.plans.plan import Work


class StepInfo(NamedTuple):
    """What one step found out; None where it was not asked for.

    grad_norm:   the L2 norm of all gradients after grad_scale, before clipping.
    clip_factor: what max_norm multiplied the gradients by, at most 1; one number per group where a group has its own.
    skipped:     whether the step was left out because of a gradient that is not finite.
    stats:       {group or leaf: {"grad_norm", "update_norm", "param_norm", "largest_update"}}.
    """

    grad_norm: float | None = None
    clip_factor: float | tuple[float, ...] | None = None
    skipped: bool = False
    stats: dict[str, dict[str, float]] | None = None


NOTHING = StepInfo()


@dataclass(frozen=True, kw_only=True)
class Chores:
    """What Optimizer takes under these names; see there. Checked when made."""

    max_norm: float | None = None
    max_value: float | None = None
    ema_decay: float | Callable[[int], float] | None = None
    zero_grads: bool = False
    skip_nonfinite: bool | str = False
    stats: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_norm", "max_value"):
            object.__setattr__(self, name, positive(name, getattr(self, name)))
        if self.ema_decay is not None and not callable(self.ema_decay):
            object.__setattr__(self, "ema_decay", number("ema_decay", self.ema_decay, low=0, most=1))
        for name, allowed in (
            ("zero_grads", (False, True)),
            ("skip_nonfinite", (False, True, "raise")),
            ("stats", (None, "group", "tensor")),
        ):
            value = getattr(self, name)
            if not any(value is one or (isinstance(one, str) and value == one) for one in allowed):
                raise ValueError(f"{name} is {value!r}, expected {' or '.join(map(repr, allowed))}")

    @property
    def flags(self) -> Flags:
        """What a walk must be compiled with."""
        return Flags(self.max_value is not None, self.zero_grads, self.stats is not None)

    def numbers(self, t: int) -> tuple[float, ...]:
        """The chores' end of every row at the optimizer's count t."""
        decay = self.ema_decay
        if callable(decay):
            decay = at_count("ema_decay", decay, t, low=0, most=1)
        return Numbers(self.max_value or 0.0, 0.0 if decay is None else 1 - decay)


PLAIN = Chores()  # no chore at all


def check_copies(
    home: Host, names: Sequence[str], leaves: Sequence[Any], arrays: Sequence[Array], copies: Sequence[Any]
) -> list[Array]:
    """The arrays of copy_to as flat ones in their parameters' order, or an error that names the first bad one."""
    found = []
    for name, leaf, p, copy in zip(names, leaves, arrays, copies, strict=True):
        both = f"copy_to{name} is {describe(copy)}, params{name} is {describe(leaf)}"
        if isinstance(copy, FlatBuffer):
            if not isinstance(leaf, FlatBuffer) or (copy.names, copy.shapes) != (leaf.names, leaf.shapes):
                raise ValueError(f"{both}: expected the same names and shapes")
            copy = copy.array
        if not home.is_array(copy) or (copy := home.to_write(f"copy_to{name}", copy)).dtype.name not in SHORT:
            raise TypeError(f"{both}: expected an array of float16 or bfloat16 (ml_dtypes) on the same processor")
        if copy.shape != p.shape or not copy.dtype.isnative:
            raise ValueError(f"{both}: expected its shape, in native byte order")
        straight = flat_like(copy, p)
        if straight is None:
            raise ValueError(f"{both}: expected dense memory in the same order of axes")
        found.append(straight)
    return found


def launch(
    opt: Optimizer, leaves: Sequence[Any], work: Sequence[Work], row: Array, rows: Array, after: Sequence[Any]
) -> StepInfo:
    """Measure as far as asked, then step or skip. rows[row] are this step's numbers, but for the clipping factor."""
    chores, plan = opt._chores, opt._plan
    nothing = None if len(row) > 1 else np.zeros((0, NOTES))  # without leaves there is nothing to launch
    if plan.norm is not None and nothing is None:
        return plan.norm.launch(plan, opt, opt._scale, after)  # type: ignore[no-any-return]
    limits = [group.max_norm for group in opt.groups]
    clipping, skipping = chores.max_norm is not None or any(limits), bool(chores.skip_nonfinite)
    norm, factors = None, None
    if clipping or skipping:
        measured = plan.measure(work, row, clipping, skipping) if nothing is None else nothing
        if skipping and not (finite := np.isfinite(measured[:, -1])).all():
            return _skip(opt, leaves, int(np.argmin(finite)), after)
        if clipping:
            norm, factors = _factors(opt, measured[:, 0].tolist(), limits)
            for group, factor in zip(opt.groups, factors, strict=True):
                for r in set(row[group._leaves.start : group._leaves.stop].tolist()) - {-1}:
                    rows[r, 0] *= factor
    if nothing is not None:
        for x, where, values in [(opt._table.counts, -1, opt._table.counts[-1] + 1), *after]:
            x[where] = values
    elif row is opt._table.row:
        plan.launch(after)
    else:
        plan.launch_some(work, row, rows, [*plan.unread, *after])
    stats = None
    if chores.stats is not None:
        sums = plan.sums(work, row) if nothing is None else nothing
        norm = norm if clipping else abs(opt._scale) * math.sqrt(in_pairs(sums[:, 0].tolist()))
        stats = statistics(opt, sums, opt._scale)
    own = None if factors is None else tuple(factors) if any(limits) else factors[0]
    return StepInfo(norm, own, False, stats)


def _skip(opt: Optimizer, leaves: Sequence[Any], bad: int, after: Sequence[Any]) -> StepInfo:
    opt.forget()
    if opt._chores.skip_nonfinite == "raise":
        raise FloatingPointError(f"grads{opt._structure.names[bad]} holds NaN or infinity, expected finite numbers")
    for g in leaves if opt._chores.zero_grads else ():
        if g is not None:
            (g[1] if isinstance(g, tuple) else g.array if isinstance(g, FlatBuffer) else g)[...] = 0
    opt._table.skipped += 1
    return StepInfo(skipped=True)


def _factors(opt: Optimizer, squares: list[float], limits: Sequence[float | None]) -> tuple[float, list[float]]:
    """The global norm, and each group's factor: by its own norm where it has its own limit, else by the global one."""
    scale = abs(opt._scale)

    def factor(norm: float, limit: float | None) -> float:
        return 1.0 if limit is None or norm <= limit else limit / norm  # NaN goes on to the parameters

    norm = scale * math.sqrt(in_pairs(squares))
    everyone = factor(norm, opt._chores.max_norm)
    own = [scale * math.sqrt(in_pairs(squares[group._leaves.start : group._leaves.stop])) for group in opt.groups]
    return norm, [everyone if m is None else factor(n, m) for n, m in zip(own, limits, strict=True)]


def statistics(opt: Optimizer, sums: Array, scale: float) -> dict[str, dict[str, float]]:
    """StepInfo.stats from each leaf's sums."""
    if opt._chores.stats == "tensor":
        pieces = {f"params{name}": range(k, k + 1) for k, name in enumerate(opt._structure.names)}
    else:
        pieces = {f"groups[{k}]": group._leaves for k, group in enumerate(opt.groups)}
    found = {}
    for name, leaves in pieces.items():
        own = sums[leaves.start : leaves.stop]
        g, p, u = (math.sqrt(in_pairs(own[:, j].tolist())) for j in range(3))
        largest = float(own[:, 3].max(initial=0.0))
        found[name] = {
            "grad_norm": abs(scale) * g, "update_norm": u, "param_norm": p, "largest_update": largest
        }  # fmt: skip
    return found


def accumulate(opt: Optimizer, grads: Tree, micro_batches: int) -> None:
    """See Optimizer.accumulate."""
    count = integer("micro_batches", micro_batches, low=1, most=2**62)
    opt._check_idle("gradients inside averaged() are those of the averages")
    leaves = opt._structure.flatten(grads, "grads")
    opt._plan.accept(leaves)
    if not opt._totals:
        with opt._plan.on_stream():
            opt._totals = [opt._backend.home.allocate(p.size, compute(p.dtype)) for p in opt._arrays]
    row, then = opt._totalled.copy(), opt._totalled.copy()
    for leaf, g in enumerate(leaves):
        row[leaf], then[leaf] = (-1, row[leaf]) if g is None else (row[leaf], 1)
    then[-1] += count
    opt._plan.accumulate(opt._totals, row, [(opt._totalled, ..., then)])


def accumulated(opt: Optimizer, reduction: str) -> tuple[list[Array | None], float]:
    """The accumulated gradients, None where there was none, and what the step must multiply them by."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}, expected 'mean' or 'sum'")
    count = opt._totalled.item(-1)
    if count == 0:
        raise ValueError("step() got no grads and nothing has been accumulated: expected one of them")
    return totals(opt), 1 / count if reduction == "mean" else 1.0


def totals(opt: Optimizer) -> list[Array | None]:
    """Each leaf's accumulated gradient in its shape, None where there was none."""
    if not opt._totals:
        return [None] * len(opt._arrays)
    return [
        shaped_like(x, p) if there else None
        for x, p, there in zip(opt._totals, opt._arrays, opt._totalled.tolist(), strict=False)
    ]


@contextmanager
def averaged(opt: Optimizer) -> Iterator[None]:
    """See Optimizer.averaged."""
    if opt._chores.ema_decay is None:
        raise ValueError("averaged() needs averages: expected an optimizer made with ema_decay")
    if opt._averaging:
        raise RuntimeError("averaged() is in use already: params hold the averaged weights")
    opt.catch_up()
    params: list[Any] = [flat(p) for p in opt._arrays]
    with opt._plan.on_stream():
        kept = [p.copy() for p in params]
    try:
        opt._averaging = True
        with opt._plan.on_stream():
            for p, own in zip(params, opt._slots, strict=True):
                p[:] = own[-3]
        yield
    finally:
        with opt._plan.on_stream():
            for p, values in zip(params, kept, strict=True):
                p[:] = values
        opt._averaging = False
