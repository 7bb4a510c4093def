"""Has learning rates as functions of the step, such as `fa.Adam(params, lr=Warmup(100, Cosine(1e-3, steps=900)))`.

A schedule is a callable of t, the count of the step to take: 1, 2, ... Its formulas are in k = t - 1, the steps taken
before, which is what torch's schedulers call the epoch and optax the count. So step 1 has the learning rate that torch
has before the first scheduler.step(). Where a schedule has an end, the last value holds from there on.

Schedules are plain frozen dataclasses: they print, compare, copy and pickle as their arguments, and remember nothing.
Any other function of t that gives a number serves too; optax's count from 0: `lr=lambda t: schedule(t - 1)`.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from fastadam.checks import flag, integer, number
from fastadam.rule import LearningRate


def _milestones(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} is {value!r}, expected a tuple of step counts")
    counts = tuple(integer(f"{name}[{i}]", count, low=1) for i, count in enumerate(value))
    if any(a >= b for a, b in pairwise(counts)):
        raise ValueError(f"{name} is {value!r}, expected rising step counts")
    return counts


def _schedule(name: str, value: Any) -> Callable[[int], float]:
    if isinstance(value, type):
        raise TypeError(f"{name} is {value!r}, expected a schedule or a number, not a class")
    return value if callable(value) else Constant(number(name, value, low=0))


def _curve(name: str, value: Any) -> str:
    if not isinstance(value, str) or value not in ("cos", "linear"):
        error = ValueError if isinstance(value, str) else TypeError
        raise error(f"{name} is {value!r}, expected 'cos' or 'linear'")
    return value


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(["lr", "start_lr", "end_lr", "gamma", "power"], lambda name, x: number(name, x, low=0)),
    **dict.fromkeys(["steps", "every", "factor", "warmup"], lambda name, x: integer(name, x, low=1)),
    **dict.fromkeys(["div_factor", "final_div_factor"], lambda name, x: number(name, x, low=1)),
    "pct_start": lambda name, x: number(name, x, low=0, below=1),
    "milestones": _milestones,
    "then": _schedule,
    "anneal_strategy": _curve,
    "three_phase": flag,
}


@dataclass(frozen=True)
class Schedule:
    """Is what every schedule has. It is checked when it is made, with a TypeError or ValueError naming the argument.

    >>> fa.schedules.Constant(1e-3)(1)
    0.001
    """

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, _CHECKS[each.name](each.name, getattr(self, each.name)))

    def __call__(self, t: int) -> float:
        """Return the learning rate of step t = 1, 2, ..."""
        error: type[Exception] = ValueError
        try:
            counts = bool(1 <= t < math.inf)
        except (TypeError, ValueError):  # no number; several
            counts, error = False, TypeError
        if not counts:
            raise error(f"t is {t!r}, expected the count of a step, from 1")
        return self._after(t - 1)

    def _after(self, k: int) -> float:
        """Return the learning rate after k steps."""
        raise NotImplementedError


def _power(base: float, exponent: float) -> float:
    """Return base**exponent; infinity instead of an OverflowError, so that the optimizer can name the learning rate."""
    try:
        return float(base**exponent)
    except OverflowError:
        return math.inf


def _cosine(start: float, end: float, share: float) -> float:
    """Return a number between start and end, along half a cosine; share: of the way, 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class Constant(Schedule):
    """Stays at lr at every step.

    >>> fa.schedules.Constant(1e-3)(1)
    0.001
    """

    lr: float

    def _after(self, k: int) -> float:
        return self.lr


@dataclass(frozen=True)
class Step(Schedule):
    """Falls in steps, lr·gamma^⌊k/every⌋: times gamma after every `every` steps. torch: StepLR.

    >>> [fa.schedules.Step(1.0, every=2, gamma=0.5)(t) for t in (1, 2, 3, 4, 5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    lr: float
    every: int
    gamma: float = 0.1

    def _after(self, k: int) -> float:
        return self.lr * _power(self.gamma, k // self.every)


@dataclass(frozen=True)
class MultiStep(Schedule):
    """Falls in steps, times gamma after as many steps as each milestone says.

    torch: MultiStepLR; optax: piecewise_constant_schedule.

    >>> [fa.schedules.MultiStep(1.0, (1, 3), gamma=0.5)(t) for t in (1, 2, 3, 4)]
    [1.0, 0.5, 0.5, 0.25]
    """

    lr: float
    milestones: tuple[int, ...]
    gamma: float = 0.1

    def _after(self, k: int) -> float:
        return self.lr * _power(self.gamma, bisect_right(self.milestones, k))


@dataclass(frozen=True)
class Exponential(Schedule):
    """Falls smoothly, as lr·gamma^(k/every). torch: ExponentialLR (every=1); optax: exponential_decay.

    >>> [fa.schedules.Exponential(1.0, gamma=0.5)(t) for t in (1, 2, 3)]
    [1.0, 0.5, 0.25]
    """

    lr: float
    gamma: float
    every: int = 1

    def _after(self, k: int) -> float:
        return self.lr * _power(self.gamma, k / self.every)


@dataclass(frozen=True)
class Polynomial(Schedule):
    """Falls along a polynomial, end_lr + (lr - end_lr)·(1 - k/steps)^power; power 1 is linear.

    torch: PolynomialLR; optax: polynomial_schedule.

    >>> [fa.schedules.Polynomial(1.0, steps=4)(t) for t in (1, 3, 5)]
    [1.0, 0.5, 0.0]
    """

    lr: float
    steps: int
    power: float = 1.0
    end_lr: float = 0.0

    def _after(self, k: int) -> float:
        left = 1 - min(k / self.steps, 1)
        return self.end_lr + (self.lr - self.end_lr) * _power(left, self.power)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Falls along half a cosine to end_lr in `steps` steps: Loshchilov & Hutter 2017, equation 5, without restarts.

    torch: CosineAnnealingLR, which climbs again after T_max steps; optax: cosine_decay_schedule, which does not.

    >>> [round(fa.schedules.Cosine(1.0, steps=4)(t), 6) for t in (1, 3, 5)]
    [1.0, 0.5, 0.0]
    """

    lr: float
    steps: int
    end_lr: float = 0.0

    def _after(self, k: int) -> float:
        return _cosine(self.lr, self.end_lr, min(k / self.steps, 1))


@dataclass(frozen=True)
class CosineRestarts(Schedule):
    """Falls along a Cosine that is begun anew after `steps` steps, each round `factor` times as long as the one before.

    Loshchilov & Hutter 2017, equation 5. torch: CosineAnnealingWarmRestarts(T_0=steps, T_mult=factor).

    >>> [round(fa.schedules.CosineRestarts(1.0, 2)(t), 6) for t in (1, 2, 3)]
    [1.0, 0.5, 1.0]
    """

    lr: float
    steps: int
    factor: int = 1
    end_lr: float = 0.0

    def _after(self, k: int) -> float:
        length = self.steps
        if self.factor == 1:
            k %= length
        while k >= length:
            k, length = k - length, length * self.factor
        return _cosine(self.lr, self.end_lr, k / length)


@dataclass(frozen=True)
class InverseSqrt(Schedule):
    """Rises, then falls, as lr·min(t/warmup, √(warmup/t)): linear up to lr at step `warmup`, then 1/√t.

    Vaswani et al. 2017, equation 3, whose lr is 1/√(d_model·warmup). With warmup=1, lr/√t.

    >>> fa.schedules.InverseSqrt(1.0, warmup=4)(16)
    0.5
    """

    lr: float
    warmup: int = 1

    def _after(self, k: int) -> float:
        return self.lr * min((k + 1) / self.warmup, math.sqrt(self.warmup / (k + 1)))


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Rises from lr/div_factor to lr, then down to lr/(div_factor·final_div_factor) at the last of `steps` steps.

    Smith & Topin 2019. torch: OneCycleLR, whose max_lr and total_steps are lr and steps; the peak is where torch has
    it, at k = pct_start·steps - 1. three_phase: down to where it began, as slowly as it rose, and then to the end.
    The momentum is left as it is.

    >>> round(fa.schedules.OneCycle(1.0, steps=100)(30), 6)
    1.0
    """

    lr: float
    steps: int
    pct_start: float = 0.3
    anneal_strategy: str = "cos"
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    three_phase: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.three_phase and self.pct_start > 0.5:
            raise ValueError(f"pct_start is {self.pct_start!r}, expected at most 0.5 with three_phase")

    def _after(self, k: int) -> float:
        low, peak = self.lr / self.div_factor, self.pct_start * self.steps - 1
        end = low / self.final_div_factor
        corners = [(0.0, low), (peak, self.lr), *([(2 * peak, low)] if self.three_phase else []), (self.steps - 1, end)]
        for (k0, lr0), (k1, lr1) in pairwise(corners):
            if k < k1:
                share = (k - k0) / (k1 - k0)
                return _cosine(lr0, lr1, share) if self.anneal_strategy == "cos" else lr0 + (lr1 - lr0) * share
        return end


@dataclass(frozen=True)
class Warmup(Schedule):
    """Rises from start_lr in `steps` steps to where `then` begins, a schedule or a number; then that, from its step 1.

    Goyal et al. 2017, section 2.2. torch: LinearLR and the other in SequentialLR; optax: linear_schedule and the other
    in join_schedules. From start_lr 0, as there, the first step only gathers moments.

    >>> opt = fa.Adam(np.ones(3), lr=fa.schedules.Warmup(4, fa.schedules.Cosine(1e-3, steps=96)))
    """

    steps: int
    then: LearningRate
    start_lr: float = 0.0

    def _after(self, k: int) -> float:
        then: Callable[[int], float] = self.then  # type: ignore[assignment]
        if k >= self.steps:
            return float(then(k - self.steps + 1))
        return self.start_lr + (float(then(1)) - self.start_lr) * (k / self.steps)
