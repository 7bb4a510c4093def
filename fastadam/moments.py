"""Holds the rules of Adam with another moment: the largest gradient, the surprise, a slower mean beside the first.

See rules.py, where all rules are to be had.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from fastadam.kernels.adabelief import Coefficients as AdaBeliefCoefficients
from fastadam.kernels.adamax import Coefficients as AdamaxCoefficients
from fastadam.kernels.ademamix import Coefficients as AdemamixCoefficients
from fastadam.rule import LearningRate, Rule


@dataclass(frozen=True)
class Adamax(Rule):
    """Is Adam under the infinity norm: Kingma & Ba 2015, Algorithm 2; eps added to |g|, as in PyTorch.

    eps_hat=True adds it to the norm where that divides, as Keras does.
    """

    lr: LearningRate = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    eps_hat: bool = field(default=False, kw_only=True)

    kernel: ClassVar[str] = "adamax"
    averages: ClassVar[tuple[str, ...]] = ("m", "u")

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        (beta1, beta2), step_size = self.betas, lr / self._bias(0, t)
        both_eps = (0.0, self.eps) if self.eps_hat else (self.eps, 0.0)
        return AdamaxCoefficients(self._sign, self.weight_decay, beta1, 1 - beta1, beta2, step_size, *both_eps)


@dataclass(frozen=True)
class AdaBelief(Rule):
    """Is Adam whose second moment is that of the surprise g - m: Zhuang et al. 2020, Algorithm 2. Decay is decoupled
    and eps 1e-16, as in the authors' code."""

    lr: LearningRate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-16
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = True

    kernel: ClassVar[str] = "adabelief"
    averages: ClassVar[tuple[str, ...]] = ("m", "s")

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        (beta1, beta2), (l2, decay) = self.betas, self._decay(lr, self.decoupled_weight_decay)
        step_size, rsqrt_bias2 = lr / self._bias(0, t), 1 / math.sqrt(self._bias(1, t))
        return AdaBeliefCoefficients(
            self._sign, l2, beta1, 1 - beta1, beta2, 1 - beta2, step_size, rsqrt_bias2, self.eps, decay
        )


@dataclass(frozen=True)
class AdEMAMix(Rule):
    """Adds to Adam's mean of gradients α times a slower one: Pagliardini, Ablin & Grangier 2025, Algorithm 1.

    betas: of the fast mean, of the second moment, of the slow mean. t_alpha, t_beta3: in so many steps, usually those
    of the whole training, α rises from 0 in proportion, and β3 from β1 so that its half-life does; in 0 steps: at once.
    """

    lr: LearningRate = 1e-3
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999)
    alpha: float = 5.0
    t_alpha: float = 0.0
    t_beta3: float = 0.0
    eps: float = 1e-8
    weight_decay: float = 0.0

    kernel: ClassVar[str] = "ademamix"
    averages: ClassVar[tuple[str, ...]] = ("m1", "v", "m2")
    shares: ClassVar[tuple[str, ...]] = ()  # alpha multiplies the slow mean

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        beta1, beta2, _ = self.betas
        beta3, kept = self._slow(t)
        alpha = self.alpha * min(t / self.t_alpha, 1.0) if self.t_alpha else self.alpha
        steps = lr / self._bias(0, t), lr * alpha
        decays = self._sign, beta1, 1 - beta1, beta2, 1 - beta2, beta3, kept
        return AdemamixCoefficients(
            *decays, *steps, 1 / math.sqrt(self._bias(1, t)), self.eps, 1 - lr * self.weight_decay
        )

    def _slow(self, t: int) -> tuple[float, float]:
        """Return β3 at t, and 1 - β3: 1/log β3 moves from 1/log β1 in proportion to t, never beyond its end."""
        first, _, last = self.logs
        if t >= self.t_beta3 or first >= last:
            return self.betas[2], 1 - self.betas[2]
        share = t / self.t_beta3
        log_beta3 = 1 / ((1 - share) / first + share / last)
        return math.exp(log_beta3), -math.expm1(log_beta3)
