"""Is what every rule has: hyperparameters that are checked when it is made, and the parts that coefficients share."""

import math
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar

from fastadam.checks import flag, number
from fastadam.kernels.contract import Slot

LearningRate = float | Callable[[int], float]


def used(**options: bool) -> frozenset[str]:
    """Return the names of the options that are True."""
    return frozenset(name for name, wanted in options.items() if wanted)


_AT_LEAST_0 = {
    "eps",
    "weight_decay",
    "momentum",
    "alpha",
    "lr_decay",
    "initial_accumulator_value",
    "momentum_decay",
    "trust_coefficient",
    "t_alpha",
    "t_beta3",
    "warmup_steps",
    "r",
    "weight_lr_power",
}


_HYPERFIELDS: dict[type[Any], dict[str, Field[Any]]] = {}


def hyperfields(rule: type[Any]) -> dict[str, Field[Any]]:
    """Return a rule's fields by their names, worked out once: every look at a group asks for them."""
    if rule not in _HYPERFIELDS:
        _HYPERFIELDS[rule] = {each.name: each for each in fields(rule)}
    return _HYPERFIELDS[rule]


@dataclass(frozen=True)
class Rule:
    """Is what every method has. A rule is checked when it is made; all numbers become floats."""

    kernel: ClassVar[str]
    logs: ClassVar[tuple[float, ...]]  # each instance's own: the logarithms of its betas
    averages: ClassVar[tuple[str, ...]] = ()  # the slots that betas, in their order, are the decay rates of
    carried: ClassVar[dict[str, float]] = {}  # numbers that each leaf accumulates from step to step, and their start

    carried_least: ClassVar[float] = 0.0  # the smallest and the largest number that may be
    carried_most: ClassVar[float] = math.inf
    shares: ClassVar[tuple[str, ...]] = ("alpha", "momentum")  # hyperparameters that are decay rates, beside betas
    averaged_slot: ClassVar[str | None] = None  # the slot beyond p from which the method's own average lies
    cancels: ClassVar[bool] = False  # whether coefficients hold a difference that grows as 1/(1 - β) by cancellation

    maximize: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for each in hyperfields(type(self)).values():
            value = getattr(self, each.name)
            if each.name == "lr":
                checked: Any = value if callable(value) else number("lr", value, low=0)
            elif each.name == "betas":
                many = len(each.default)  # type: ignore[arg-type]
                if not isinstance(value, (tuple, list)) or len(value) != many:
                    raise TypeError(f"betas is {value!r}, expected {'a pair' if many == 2 else 'a triple'} of numbers")
                checked = tuple(number(f"betas[{k}]", beta, low=0, below=1) for k, beta in enumerate(value))
                object.__setattr__(self, "logs", tuple(math.log(beta) if beta else -math.inf for beta in checked))
            elif each.type is bool:
                checked = flag(each.name, value)
            elif value is None and each.default is None:
                checked = None
            else:
                checked = number(each.name, value, low=0 if each.name in _AT_LEAST_0 else -math.inf)
            object.__setattr__(self, each.name, checked)

    @property
    def options(self) -> frozenset[str]:
        """Return the kernel's optional slots and its switches that this rule uses."""
        return frozenset()

    @property
    def idle(self) -> frozenset[str]:
        """Return the slots that need no memory: their decay rate is 0, so nothing depends on what they held."""
        return frozenset(name for name, rate in zip(self.averages, self._rates, strict=False) if rate == 0)

    @property
    def _rates(self) -> tuple[float, ...]:
        """Return the decay rates of `averages`."""
        return getattr(self, "betas", ())

    def uses(self, slot: Slot) -> bool:
        """Return whether a slot of the kernel is this rule's, be it idle or not."""
        return not slot.optional or slot.name in self.averages or slot.name in self.options

    def keeps(self, slot: Slot) -> bool:
        """Return whether a slot needs memory: it is this rule's, and not idle."""
        return self.uses(slot) and slot.name not in self.idle

    def initial(self) -> dict[str, float]:
        """Return the value with which a slot starts, where that is not 0."""
        return {}

    @property
    def extrapolation(self) -> float:
        """Return e of the method's own average, p + e·(averaged_slot - p)."""
        raise NotImplementedError

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        """Return the kernel's numbers at the leaf's count t = 1, 2, ... and this step's lr; then the new carried
        numbers."""
        raise NotImplementedError

    @property
    def judging(self) -> tuple[float, ...]:
        """Return what the kernel's judge must know where its sums go over all leaves; of all groups the same."""
        return ()

    def _bias(self, k: int, t: int) -> float:
        """Return 1 - betas[k]^t, whose difference would lose the digits that betas[k] shares with 1."""
        return -math.expm1(t * self.logs[k])

    @property
    def _sign(self) -> float:
        return -1.0 if self.maximize else 1.0

    def _decay(self, lr: float, decoupled: bool) -> tuple[float, float]:
        """Return (l2, decay): weight decay coupled into the gradient, or decoupled from it."""
        return (0.0, 1 - lr * self.weight_decay) if decoupled else (self.weight_decay, 1.0)  # type: ignore[attr-defined]
