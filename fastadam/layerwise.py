"""Holds the rules whose steps need sums over whole leaves first: each leaf's step has a length of its own.

See rules.py, where all rules are to be had, and kernels/contract.py for what is summed and made of the sums.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from fastadam.kernels.lamb import Coefficients as LambCoefficients
from fastadam.kernels.lars import Coefficients as LarsCoefficients
from fastadam.kernels.stableadamw import Coefficients as StableAdamWCoefficients
from fastadam.rule import LearningRate, Rule


@dataclass(frozen=True)
class LAMB(Rule):
    """Steps in Adam's direction, decay included, as far as its array is long: You et al. 2020, Algorithm 2.

    The trust ratio ‖p‖/‖u‖ is that of each array, not bounded (φ(x) = x), and 1 where either norm is 0. Before each
    step a walk adds both up; step_rows is refused. bias_correction=False leaves both moments as they are, as apex can.
    """

    lr: LearningRate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 1e-2
    bias_correction: bool = field(default=True, kw_only=True)

    kernel: ClassVar[str] = "lamb"
    averages: ClassVar[tuple[str, ...]] = ("m", "v")

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        beta1, beta2 = self.betas
        rbias1, rsqrt_bias2 = 1.0, 1.0
        if self.bias_correction:
            rbias1, rsqrt_bias2 = 1 / self._bias(0, t), 1 / math.sqrt(self._bias(1, t))
        decays = self._sign, beta1, 1 - beta1, beta2, 1 - beta2
        return LambCoefficients(*decays, rbias1, rsqrt_bias2, self.eps, self.weight_decay, lr)


@dataclass(frozen=True)
class LARS(Rule):
    """Is momentum with a learning rate for each array: You, Gitman & Ginsburg 2017, Algorithm 1.

    The local rate η‖p‖/(‖g‖ + λ‖p‖), η = trust_coefficient, is 1 where either norm is 0, as in timm. lr multiplies what
    momentum gathers, as in the paper. Before each step a walk adds both norms up; step_rows is refused.
    """

    lr: LearningRate = 1.0
    momentum: float = 0.9
    weight_decay: float = 0.0
    trust_coefficient: float = 1e-3

    kernel: ClassVar[str] = "lars"
    averages: ClassVar[tuple[str, ...]] = ("m",)

    @property
    def _rates(self) -> tuple[float, ...]:
        return (self.momentum,)

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        return LarsCoefficients(self._sign, self.momentum, self.weight_decay, self.trust_coefficient, lr)


@dataclass(frozen=True)
class StableAdamW(Rule):
    """Is AdamW that steps less where gradients surprise it: Wortsman et al. 2023, Algorithm 2.

    The root mean square of g/max(√v, eps) over each array, where it is above 1, divides that array's learning rate, its
    weight decay's too. Before each step a walk adds it up; step_rows is refused. A NaN in the gradient makes it NaN,
    and so all of that array.
    """

    lr: LearningRate = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-6
    weight_decay: float = 1e-2

    kernel: ClassVar[str] = "stableadamw"
    averages: ClassVar[tuple[str, ...]] = ("m", "v")

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        (beta1, rest1), (beta2, rest2) = (self._debiased(k, t) for k in (0, 1))
        return StableAdamWCoefficients(self._sign, beta1, rest1, beta2, rest2, self.eps, self.weight_decay, lr)

    def _debiased(self, k: int, t: int) -> tuple[float, float]:
        """Return β·(1 - β^(t-1))/(1 - β^t), with which no moment is biased, and its complement."""
        beta, bias = self.betas[k], self._bias(k, t)
        return beta * (self._bias(k, t - 1) if t > 1 else 0.0) / bias, (1 - beta) / bias
