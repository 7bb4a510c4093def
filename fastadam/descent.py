"""Holds the rules that correct no bias: gradient descent, its momentum, its sign, and steps of a running scale.

See rules.py, where all rules are to be had.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from fastadam.kernels.adagrad import Coefficients as AdagradCoefficients
from fastadam.kernels.adopt import Coefficients as AdoptCoefficients
from fastadam.kernels.lion import Coefficients as LionCoefficients
from fastadam.kernels.momentum import Coefficients as MomentumCoefficients
from fastadam.kernels.rmsprop import Coefficients as RMSpropCoefficients
from fastadam.rule import LearningRate, Rule, used

UNLIMITED = 3e38  # a limit that no quotient in float32 reaches which a step survives


@dataclass(frozen=True)
class ADOPT(Rule):
    """Divides each gradient by the root of the second moment before it: Taniguchi et al. 2024, Algorithm 2.

    The first step only fills that, and decays nothing. clip: limit the quotient to ±(t-1)^¼, as the authors came to do.
    """

    lr: LearningRate = 1e-3
    betas: tuple[float, float] = (0.9, 0.9999)
    eps: float = 1e-6
    weight_decay: float = 0.0
    clip: bool = True
    decoupled_weight_decay: bool = field(default=False, kw_only=True)

    kernel: ClassVar[str] = "adopt"
    averages: ClassVar[tuple[str, ...]] = ("m",)  # not v, which is the step before's

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        (beta1, beta2), (l2, decay) = self.betas, self._decay(lr, self.decoupled_weight_decay)
        if t == 1:
            return AdoptCoefficients(self._sign, l2, 0.0, beta1, 0.0, 0.0, 1.0, 0.0, self.eps, 1.0)
        limit = (t - 1) ** 0.25 if self.clip else UNLIMITED
        return AdoptCoefficients(self._sign, l2, limit, beta1, 1 - beta1, beta2, 1 - beta2, lr, self.eps, decay)


@dataclass(frozen=True)
class Lion(Rule):
    """Steps by the sign of an interpolated momentum: Chen et al. 2023, Algorithm 2.

    cautious_decay: decay only of the elements that the step moves towards 0, or leaves where they are: L. Chen et al.
    2025, Algorithm 1. cautious: see Adam.
    """

    lr: LearningRate = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    cautious_decay: bool = field(default=False, kw_only=True)
    cautious: bool = field(default=False, kw_only=True)

    kernel: ClassVar[str] = "lion"
    averages: ClassVar[tuple[str, ...]] = ("m",)  # which the next step alone reads, times β1

    @property
    def options(self) -> frozenset[str]:
        return used(cautious_decay=self.cautious_decay, agree=self.cautious)

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        beta1, beta2 = self.betas
        return LionCoefficients(self._sign, beta1, 1 - beta1, beta2, 1 - beta2, lr, 1 - lr * self.weight_decay)


@dataclass(frozen=True)
class SGD(Rule):
    """Is gradient descent with PyTorch's momentum: lr multiplies it, and the first step is not dampened.

    lr_in_momentum=True is the form of Sutskever et al. 2013, which Keras uses: momentum gathers -lr·g, and is added.
    """

    lr: LearningRate = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    lr_in_momentum: bool = field(default=False, kw_only=True)

    kernel: ClassVar[str] = "momentum"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                f"nesterov is True with momentum {self.momentum} and dampening {self.dampening}, "
                "expected momentum above 0 and dampening 0"
            )

    @property
    def options(self) -> frozenset[str]:
        return used(m=self.momentum > 0)

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        kept, taken = (0.0, 1.0) if t == 1 else (self.momentum, 1 - self.dampening)
        grad_step, momentum_step = lr, 0.0
        if self.momentum:
            grad_step, momentum_step = (lr, lr * self.momentum) if self.nesterov else (0.0, lr)
            if self.lr_in_momentum:
                taken, momentum_step = -lr * taken, -self.momentum if self.nesterov else -1.0
        return MomentumCoefficients(self._sign, self.weight_decay, kept, taken, grad_step, momentum_step)


@dataclass(frozen=True)
class RMSprop(Rule):
    """Divides the gradient by the root of a mean of its squares: Tieleman & Hinton 2012; centered: Graves 2013; eps
    beside the root and momentum as in PyTorch.

    eps_hat=True is Graves's form, which Keras uses: eps inside the root, and lr inside the momentum.
    """

    lr: LearningRate = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False
    eps_hat: bool = field(default=False, kw_only=True)

    kernel: ClassVar[str] = "rmsprop"
    averages: ClassVar[tuple[str, ...]] = ("v",)

    @property
    def _rates(self) -> tuple[float, ...]:
        return (self.alpha,)

    @property
    def options(self) -> frozenset[str]:
        return used(mean=self.centered, m=self.momentum > 0)

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        both_eps, steps = ((self.eps, 0.0), (lr, 1.0)) if self.eps_hat else ((0.0, self.eps), (1.0, lr))
        return RMSpropCoefficients(
            self._sign, self.weight_decay, self.alpha, 1 - self.alpha, self.momentum, *both_eps, *steps
        )


@dataclass(frozen=True)
class Adagrad(Rule):
    """Divides the gradient by the root of the sum of all its squares: Duchi et al. 2011; lr decays as lr / (1 + (t -
    1)·lr_decay), as in PyTorch.

    eps stands beside the root, or with eps_hat=True inside, as in Keras.
    """

    lr: LearningRate = 1e-2
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10
    eps_hat: bool = field(default=False, kw_only=True)

    kernel: ClassVar[str] = "adagrad"

    def initial(self) -> dict[str, float]:
        return {"sum": self.initial_accumulator_value}

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        both_eps = (self.eps, 0.0) if self.eps_hat else (0.0, self.eps)
        return AdagradCoefficients(self._sign, self.weight_decay, lr / (1 + (t - 1) * self.lr_decay), *both_eps)
