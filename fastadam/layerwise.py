"""Holds the rules whose steps need sums over whole leaves first: each leaf's step has a length of its own.

See rules.py, where all rules are to be had, and kernels/contract.py for what is summed and made of the sums.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from fastadam.kernels.lamb import Coefficients as LambCoefficients
from fastadam.rule import LearningRate, Rule

FACTOR = 1.0  # what the judge's stands in the place of


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

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        beta1, beta2 = self.betas
        rbias1, rsqrt_bias2 = 1.0, 1.0
        if self.bias_correction:
            rbias1, rsqrt_bias2 = 1 / self._bias(0, t), 1 / math.sqrt(self._bias(1, t))
        decays = self._sign, beta1, 1 - beta1, beta2, 1 - beta2
        return LambCoefficients(*decays, rbias1, rsqrt_bias2, self.eps, self.weight_decay, lr, FACTOR)
