"""Turns hyperparameters, a count t and this step's lr into the numbers a kernel needs, a rule a method.

Nothing else in the library depends on t. Everything here is Python's float64; a backend rounds each number once. Powers
are taken of the integer t, never by a running product (NAdam's excepted), so a resumed run equals an uninterrupted one.

What float32 cannot hold: a decay rate that it rounds to 1 is refused. Below that, a float32 v under a steady gradient
stands still as soon as a step would move it by less than half its spacing, up to u/(1 - β2) away from its mean, u =
2^-24: 6e-5 at β2 = 0.999, 6 % at 1 - 1e-6. No form of the equation changes that, nor does a short format, which rounds
this very float32 number: only float64 parameters, whose arithmetic is float64, do.

What float32 arithmetic takes for β2 and 1 - β2 are both rounded once, as in PyTorch, so the first steps' v is right to
a rounding. They do not add up to 1: the mean of v is off by up to u/2/(1 - β2), half of how far from it v stands still
anyway: 1.3e-5 at β2 = 0.999, 1.3 % at 0.999999. A pair that adds up would put as much into v's first steps, 216 u at
0.999, and no float32 pair does both; a β2 that float32 holds, such as float(np.float32(0.999999)), has neither.

A slot whose decay rate is 0, such as Adam's m with β1 = 0, is not kept at all: the gradient stands in its place, which
it would equal. It would not where what it held is infinite or NaN, times 0 a NaN for ever; and of a gradient of -0 it
would be 0, which tells only where the parameter is -0 itself. RMSprop's mean and ScheduleFreeAdamW's v are kept all the
same: their kernels take other steps where these are absent.

A term that a method does without is multiplied by 0, not skipped, because many methods share a kernel. So an infinite
parameter, an infinite gradient, or in RAdam's first steps one whose square overflows, can give NaN where PyTorch, which
skips the term, keeps an infinity.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from fastadam.descent import ADOPT, SGD, Adagrad, Lion, RMSprop
from fastadam.kernels.adam import Coefficients as AdamCoefficients
from fastadam.kernels.nadam import Coefficients as NAdamCoefficients
from fastadam.layerwise import LAMB, LARS, StableAdamW
from fastadam.moments import AdaBelief, Adamax, AdEMAMix
from fastadam.rule import LearningRate, Rule, used
from fastadam.unscheduled import ScheduleFreeAdamW, ScheduleFreeSGD
from fastadam.untuned import Prodigy

__all__ = [
    "ADOPT",
    "LAMB",
    "LARS",
    "SGD",
    "AdEMAMix",
    "AdaBelief",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "NAdam",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "StableAdamW",
]


@dataclass(frozen=True)
class Adam(Rule):
    """Divides a mean of gradients by the root of a mean of their squares: Kingma & Ba 2015, Algorithm 1; weight decay
    as L2; amsgrad: Reddi et al. 2018, Algorithm 2.

    AMSGrad takes the maximum of the biased v, then corrects it, as PyTorch does. eps_hat=True is the form of the end of
    the paper's section 2, which TensorFlow and Keras use: √v + eps with lr·√(1-β2^t)/(1-β1^t).
    cautious_decay: decoupled decay only of the elements that the step moves towards 0, or leaves where they are:
    L. Chen et al. 2025, Algorithm 1.
    cautious: move only the elements whose step agrees with the gradient, by as much more as those are fewer: Liang et
    al. 2024, Algorithm 1, whose authors' code takes their share of each array for no less than 1/1000. Before each step
    a walk counts them; step_rows is refused. A NaN among them makes their share NaN, and so all of that array.
    """

    lr: LearningRate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    decoupled_weight_decay: bool = field(default=False, kw_only=True)
    eps_hat: bool = field(default=False, kw_only=True)
    cautious_decay: bool = field(default=False, kw_only=True)
    cautious: bool = field(default=False, kw_only=True)

    kernel: ClassVar[str] = "adam"
    averages: ClassVar[tuple[str, ...]] = ("m", "v")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cautious_decay and not self.decoupled_weight_decay:
            raise ValueError(
                "cautious_decay is True with decoupled_weight_decay False, expected True: coupled decay is part of g"
            )

    @property
    def options(self) -> frozenset[str]:
        return used(vmax=self.amsgrad, cautious_decay=self.cautious_decay, agree=self.cautious)

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        root = math.sqrt(self._bias(1, t))
        step_size = lr / self._bias(0, t)
        step_size, rsqrt_bias2 = (step_size * root, 1.0) if self.eps_hat else (step_size, 1 / root)
        return self._adam(lr, step_size, rsqrt_bias2, self.eps)

    def _adam(self, lr: float, step_size: float, rsqrt_bias2: float, eps: float) -> AdamCoefficients:
        (beta1, beta2), (l2, decay) = self.betas, self._decay(lr, self.decoupled_weight_decay)
        return AdamCoefficients(self._sign, l2, beta1, 1 - beta1, beta2, 1 - beta2, step_size, rsqrt_bias2, eps, decay)


@dataclass(frozen=True)
class AdamW(Adam):
    """Is Adam with weight decay apart from the gradient, Loshchilov & Hutter 2019, Algorithm 2: p·(1 - lr·λ) of the old
    p; η_t lies in lr."""

    weight_decay: float = 1e-2
    decoupled_weight_decay: bool = field(default=True, init=False)


@dataclass(frozen=True)
class RAdam(Rule):
    """Is Adam that takes plain momentum steps until the variance of 1/√v is tractable.

    Liu et al. 2020, Algorithm 2. Departs from the paper as its authors' code and PyTorch do:
    the threshold is 5, not 4, and eps is added before the bias correction.
    """

    lr: LearningRate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False

    kernel: ClassVar[str] = "adam"
    averages: ClassVar[tuple[str, ...]] = ("m", "v")
    cancels: ClassVar[bool] = True

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        (beta1, beta2), (l2, decay) = self.betas, self._decay(lr, self.decoupled_weight_decay)
        step_size, rsqrt_bias2, eps = lr / self._bias(0, t), 0.0, 1.0  # the denominator is 1: plain momentum
        most, length = (1 + beta2) / (1 - beta2), self._length(t)
        if length > 5:
            tractable = (length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)
            step_size, rsqrt_bias2, eps = step_size * math.sqrt(tractable * self._bias(1, t)), 1.0, self.eps
        return AdamCoefficients(self._sign, l2, beta1, 1 - beta1, beta2, 1 - beta2, step_size, rsqrt_bias2, eps, decay)

    def _length(self, t: int) -> float:
        """Return the paper's ρ_t = ρ_∞ - 2t·β2^t/(1 - β2^t), whose terms cancel where t is small beside 1/(1 - β2).

        With x = -log β2 it is coth(x/2) - 2t/(e^tx - 1), and so t·(1 - L(tx/2)) + L(x/2), where L(z) = coth z - 1/z.
        """
        x = -self.logs[1]
        if t * x > 1:
            return (1 + self.betas[1]) / (1 - self.betas[1]) - 2 * t * math.exp(-t * x) / self._bias(1, t)
        return t * (1 - _langevin(t * x / 2)) + _langevin(x / 2)


def _langevin(z: float) -> float:
    """Return coth z - 1/z for 0 <= z <= 1/2, by its continued fraction z/(3 + z²/(5 + z²/(7 + ...)))."""
    fraction = 15.0
    for odd in (13, 11, 9, 7, 5, 3):
        fraction = odd + z * z / fraction
    return z / fraction


@dataclass(frozen=True)
class NAdam(Rule):
    """Is Adam with Nesterov's momentum: Dozat 2016 with PyTorch's momentum schedule β1·(1 - ½·0.96^(t·ψ)), ψ =
    momentum_decay.

    cautious: see Adam. The product of the momenta so far is carried in float64 (PyTorch keeps it in float32).
    """

    lr: LearningRate = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum_decay: float = 4e-3
    decoupled_weight_decay: bool = False

    cautious: bool = field(default=False, kw_only=True)

    kernel: ClassVar[str] = "nadam"
    averages: ClassVar[tuple[str, ...]] = ("m", "v")
    carried: ClassVar[dict[str, float]] = {"mu_product": 1.0}
    carried_most: ClassVar[float] = 1.0

    @property
    def options(self) -> frozenset[str]:
        return used(agree=self.cautious)

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        (beta1, beta2), (l2, decay) = self.betas, self._decay(lr, self.decoupled_weight_decay)
        momentum = beta1 * (1 - 0.5 * 0.96 ** (t * self.momentum_decay))
        following = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * self.momentum_decay))
        product = self._product(carried[0], momentum)
        grad_step = lr * (1 - momentum) / (1 - product)
        momentum_step = lr * following / (1 - product * following)
        rsqrt_bias2 = 1 / math.sqrt(self._bias(1, t))
        decays = self._sign, l2, beta1, 1 - beta1, beta2, 1 - beta2
        return *NAdamCoefficients(*decays, grad_step, momentum_step, rsqrt_bias2, self.eps, decay), product

    def _product(self, before: float, momentum: float) -> float:
        """Return the product of all momenta up to this step's."""
        return before * momentum
