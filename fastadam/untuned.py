"""Holds the rule that tunes its own learning rate: the optimizer estimates how far from the start the solution is.

See rules.py, where all rules are to be had, and kernels/prodigy for what is summed and how the estimate is made.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from fastadam.kernels.prodigy import Coefficients as ProdigyCoefficients
from fastadam.kernels.prodigy import Judging
from fastadam.rule import LearningRate, Rule


@dataclass(frozen=True)
class Prodigy(Rule):
    """Is Adam that finds its learning rate, d·lr, by itself: Mishchenko & Defazio 2024, Algorithm 4.

    d begins as d0 and grows by an estimate of the distance to the solution, one for all groups, made of two sums over
    all arrays before each step; step_rows is refused. lr is a factor, 1 or a schedule of it. beta3=None is √β2 and
    growth_rate=None no limit. As in the authors' package: eps is multiplied by the d after the step (the paper: before
    it), and safeguard_warmup leaves lr out of the estimate's denominator. Apart from it: each group's own lr and each
    array's own count are taken, without a first moment the d before the step multiplies the gradient, and gradients
    that are not finite leave d alone. d0, beta3, d_coef and growth_rate are the same for all groups.
    """

    lr: LearningRate = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    beta3: float | None = None
    eps: float = 1e-8
    weight_decay: float = 0.0
    decouple: bool = True
    use_bias_correction: bool = False
    safeguard_warmup: bool = False
    d0: float = 1e-6
    d_coef: float = 1.0
    growth_rate: float | None = None

    kernel: ClassVar[str] = "prodigy"
    averages: ClassVar[tuple[str, ...]] = ("m", "v")
    carried: ClassVar[dict[str, float]] = {"d": 0.0, "d_max": 0.0, "d_numerator": 0.0}  # 0 stands for d0
    carried_least: ClassVar[float] = -math.inf

    def __post_init__(self) -> None:
        if self.growth_rate == math.inf:
            object.__setattr__(self, "growth_rate", None)
        super().__post_init__()
        for name, low in (("d0", 0.0), ("d_coef", 0.0)):
            if not getattr(self, name) > low:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected a number above 0")
        if self.growth_rate is not None and self.growth_rate < 1:
            raise ValueError(f"growth_rate is {self.growth_rate!r}, expected a number of at least 1, or None")
        if self.beta3 is not None and not 0 <= self.beta3 < 1:
            raise ValueError(f"beta3 is {self.beta3!r}, expected a number of at least 0 and below 1, or None")

    @property
    def judging(self) -> tuple[float, ...]:
        growth_rate = math.inf if self.growth_rate is None else self.growth_rate
        return Judging(self.d0, self._beta3, self.d_coef, growth_rate)

    @property
    def _beta3(self) -> float:
        return math.sqrt(self.betas[1]) if self.beta3 is None else self.beta3

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        beta1, beta2 = self.betas
        l2, decay = (0.0, self.weight_decay) if self.decouple else (self.weight_decay, 0.0)
        rate = lr
        if self.use_bias_correction:
            rate = lr * math.sqrt(self._bias(1, t)) / self._bias(0, t)
        s_rate = (1.0 if self.safeguard_warmup else rate) / self.d0
        decays = beta1, 1 - beta1, beta2, 1 - beta2, self._beta3
        d = carried[0] or self.d0
        return *ProdigyCoefficients(self._sign, l2, *decays, rate, s_rate, self.eps, decay, d), *carried
