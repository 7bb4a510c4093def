"""Holds the rules that need no schedule: they average what a constant learning rate gives. See rules.py for all rules.

While training params hold y, where gradients are taken; the average x is what to test and keep: see opt.averaged().
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from fastadam.kernels.schedulefree import Coefficients
from fastadam.rule import LearningRate, Rule, used


class ScheduleFree(Rule):
    """Is what both have: z, which takes the steps, and a weighted average of it that needs no memory of its own.

    Beside the kernel's state each leaf carries the sum of the weights so far, and the largest lr.
    """

    weight_decay: float
    warmup_steps: float
    r: float
    weight_lr_power: float

    kernel: ClassVar[str] = "schedulefree"
    carried: ClassVar[dict[str, float]] = {"weight_sum": 0.0, "lr_max": 0.0}
    averaged_slot: ClassVar[str | None] = "z"

    def __post_init__(self) -> None:
        super().__post_init__()
        name = "betas[0]" if hasattr(self, "betas") else "momentum"
        if self._interpolation >= 1:
            raise ValueError(f"{name} is {self._interpolation}, expected a number below 1: the share of x in y")
        if self._interpolation == 0:
            raise ValueError(f"{name} is 0.0, expected a number above 0: else the average cannot be told from params")

    @property
    def _interpolation(self) -> float:
        """Return β of y = (1 - β)·z + β·x."""
        raise NotImplementedError

    @property
    def extrapolation(self) -> float:
        return 1 - 1 / self._interpolation

    def _averaging(self, t: int, lr: float, weight_sum: float, lr_max: float) -> tuple[tuple[float, ...], float, float]:
        """Return (average, y_step, z_step), then what is carried on."""
        if t < self.warmup_steps:
            lr *= t / self.warmup_steps
        lr_max = max(lr, lr_max)
        weight = t**self.r * lr_max**self.weight_lr_power
        weight_sum += weight
        average = weight / weight_sum if weight_sum else 0.0
        return (average, lr * (1 - self._interpolation * (1 - average)), lr), weight_sum, lr_max


@dataclass(frozen=True)
class ScheduleFreeAdamW(ScheduleFree):
    """Takes AdamW's steps, without its first moment, and averages them: Defazio et al. 2024, Algorithm 1.

    As the authors' package: the second moment is corrected as in Adam, decay is of y, and weights in the average are
    t^r·(largest lr so far)^weight_lr_power, so that warmup_steps of a linear rise weigh less. betas[0] is the share of
    x in y. params hold y; `with opt.averaged():` they hold x, but with
    ema_decay the moving average of y, as does `ema`.
    """

    lr: LearningRate = 0.0025
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: float = 0.0
    r: float = 0.0
    weight_lr_power: float = 2.0

    @property
    def options(self) -> frozenset[str]:
        return used(v=True)

    @property
    def _interpolation(self) -> float:
        return self.betas[0]

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        steps, *on = self._averaging(t, lr, *carried)
        beta2, rsqrt_bias2 = self.betas[1], 1 / math.sqrt(self._bias(1, t))
        return *Coefficients(self._sign, beta2, 1 - beta2, rsqrt_bias2, self.eps, self.weight_decay, *steps), *on


@dataclass(frozen=True)
class ScheduleFreeSGD(ScheduleFree):
    """Takes plain gradient steps and averages them: Defazio et al. 2024, equations 6 to 8.

    As the authors' package: weights in the average are t^r·(largest lr so far)^weight_lr_power, so that warmup_steps of
    a linear rise weigh less. momentum is the share of x in y. params hold y; `with opt.averaged():` they hold x, but
    with ema_decay the moving average of y, as does `ema`.
    """

    lr: LearningRate = 1.0
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup_steps: float = 0.0
    r: float = 0.0
    weight_lr_power: float = 2.0

    @property
    def _interpolation(self) -> float:
        return self.momentum

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        steps, *on = self._averaging(t, lr, *carried)
        return *Coefficients(self._sign, 0.0, 0.0, 0.0, 0.0, self.weight_decay, *steps), *on
