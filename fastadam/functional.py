"""Takes one step on arrays that the caller keeps: in place, without hidden state.

Every function takes p, g and the kernel's slots, arrays of one shape, all float64 or none, dense in the same order of
axes (where p has no dimension, g may be a number); `t`, the count of this step from 1; and by name the hyperparameters
of the method it is named after (see fastadam.Adam and so on), with the same defaults. Slots start at zeros. An
Optimizer does the same with less overhead, and with random bits of its own for each element of a tree: what rounds
bfloat16 here is seed 0's from index 0 on, the same for every array. For many steps a fastadam.Stepper is planned once.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from fastadam import kernels, rules
from fastadam.arrays.host import Array
from fastadam.backend import choose
from fastadam.checks import number
from fastadam.kernels.formats import compute
from fastadam.rule import Rule
from fastadam.stepper import Stepper

Function = TypeVar("Function", bound=Callable[..., Any])


def _step(
    rule: Rule, p: Array, g: Array, slots: dict[str, Array | None],
    t: int, grad_scale: float, backend: str, **carried: Any,
) -> None:  # fmt: skip
    """Check everything, then step once, by a Stepper of this one call."""
    home = choose(backend, [p]).home
    wide = compute(home.owned("p", p).dtype)
    used = [slot.name for slot in kernels.ALL[rule.kernel].slots if rule.uses(slot) and slots[slot.name] is not None]
    dtypes = {name: home.owned(name, slots[name]).dtype for name in used}
    moments = {name: dtype.name for name, dtype in dtypes.items() if compute(dtype) is wide}
    stepper = Stepper(rule, p, backend=backend, moments=moments)
    stepper(p, g, slots=slots, t=t, grad_scale=grad_scale, **carried)


def _hyperparameters_of(rule: type[Rule], *decided: str) -> Callable[[Function], Function]:
    """Let help() show the method's hyperparameters, but for those that an argument of the function decides."""

    def shown(function: Function) -> Function:
        parameters = inspect.signature(function).parameters.values()
        taken = [p for p in inspect.signature(rule).parameters.values() if p.name not in decided]
        function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p for p in parameters if p.kind is not p.VAR_KEYWORD] + [p.replace(kind=p.KEYWORD_ONLY) for p in taken],
            return_annotation=inspect.signature(function).return_annotation,
        )
        return function

    return shown


def _decided(hyperparameters: dict[str, Any], **by: str) -> None:
    """Refuse an option that an argument of the function decides already."""
    for name, argument in by.items():
        if name in hyperparameters:
            raise TypeError(f"{name} is {hyperparameters[name]!r}, but here {argument} decides it")


@_hyperparameters_of(rules.Adam, "amsgrad", "decoupled_weight_decay")
def adam_step(
    p: Array, g: Array, m: Array, v: Array, vmax: Array | None = None, *,
    t: int, decoupled: bool = False, grad_scale: float = 1.0, backend: str = "auto", **hyperparameters: Any,
) -> None:  # fmt: skip
    """Take one step of Adam; of AdamW with decoupled=True; of AMSGrad with vmax.

    >>> p, g, m, v = np.ones(3), np.ones(3), np.zeros(3), np.zeros(3)
    >>> fa.adam_step(p, g, m, v, t=1, lr=0.25)
    >>> p.round(6).tolist()
    [0.75, 0.75, 0.75]
    """
    _decided(hyperparameters, amsgrad="vmax", decoupled_weight_decay="decoupled")
    rule = rules.Adam(amsgrad=vmax is not None, decoupled_weight_decay=decoupled, **hyperparameters)
    _step(rule, p, g, {"m": m, "v": v, "vmax": vmax}, t, grad_scale, backend)


@_hyperparameters_of(rules.NAdam)
def nadam_step(
    p: Array, g: Array, m: Array, v: Array, *,
    t: int, mu_product: float = 1.0, grad_scale: float = 1.0, backend: str = "auto", **hyperparameters: Any,
) -> float:  # fmt: skip
    """Take one step of NAdam. mu_product: 1 at the first step, then what the step before returned.

    >>> p, g, m, v = np.ones(3), np.ones(3), np.zeros(3), np.zeros(3)
    >>> mu_product = fa.nadam_step(p, g, m, v, t=1)
    >>> mu_product = fa.nadam_step(p, g, m, v, t=2, mu_product=mu_product)
    """
    product = np.array(number("mu_product", mu_product, low=0, most=1))
    _step(rules.NAdam(**hyperparameters), p, g, {"m": m, "v": v}, t, grad_scale, backend, mu_product=product)
    return product.item()


@_hyperparameters_of(rules.Adamax)
def adamax_step(
    p: Array, g: Array, m: Array, u: Array, *,
    t: int, grad_scale: float = 1.0, backend: str = "auto", **hyperparameters: Any,
) -> None:  # fmt: skip
    """Take one step of Adamax.

    >>> p, g, m, u = np.ones(3), np.ones(3), np.zeros(3), np.zeros(3)
    >>> fa.adamax_step(p, g, m, u, t=1, lr=0.25)
    >>> p.round(6).tolist()
    [0.75, 0.75, 0.75]
    """
    _step(rules.Adamax(**hyperparameters), p, g, {"m": m, "u": u}, t, grad_scale, backend)


@_hyperparameters_of(rules.AdaBelief)
def adabelief_step(
    p: Array, g: Array, m: Array, s: Array, *,
    t: int, grad_scale: float = 1.0, backend: str = "auto", **hyperparameters: Any,
) -> None:  # fmt: skip
    """Take one step of AdaBelief.

    >>> p, g, m, s = np.ones(3), np.ones(3), np.zeros(3), np.zeros(3)
    >>> fa.adabelief_step(p, g, m, s, t=1)
    """
    _step(rules.AdaBelief(**hyperparameters), p, g, {"m": m, "s": s}, t, grad_scale, backend)


@_hyperparameters_of(rules.ADOPT)
def adopt_step(
    p: Array, g: Array, m: Array, v: Array, *,
    t: int, grad_scale: float = 1.0, backend: str = "auto", **hyperparameters: Any,
) -> None:  # fmt: skip
    """Take one step of ADOPT, whose first only fills v.

    >>> p, g, m, v = np.ones(3), np.full(3, 2.0), np.zeros(3), np.zeros(3)
    >>> fa.adopt_step(p, g, m, v, t=1)
    >>> fa.adopt_step(p, g, m, v, t=2, lr=0.5, betas=(0.5, 0.9999))
    >>> p.tolist(), v.tolist()
    ([0.75, 0.75, 0.75], [4.0, 4.0, 4.0])
    """
    _step(rules.ADOPT(**hyperparameters), p, g, {"m": m, "v": v}, t, grad_scale, backend)


@_hyperparameters_of(rules.AdEMAMix)
def ademamix_step(
    p: Array, g: Array, m1: Array, m2: Array, v: Array, *,
    t: int, grad_scale: float = 1.0, backend: str = "auto", **hyperparameters: Any,
) -> None:  # fmt: skip
    """Take one step of AdEMAMix.

    >>> p, g, m1, m2, v = np.ones(3), np.ones(3), np.zeros(3), np.zeros(3), np.zeros(3)
    >>> fa.ademamix_step(p, g, m1, m2, v, t=1, lr=0.25, alpha=0.0)
    >>> p.round(6).tolist()
    [0.75, 0.75, 0.75]
    """
    _step(rules.AdEMAMix(**hyperparameters), p, g, {"m1": m1, "m2": m2, "v": v}, t, grad_scale, backend)


@_hyperparameters_of(rules.ScheduleFreeAdamW)
def schedulefree_step(
    p: Array, g: Array, z: Array, v: Array | None = None, *,
    t: int, weight_sum: float = 0.0, lr_max: float = 0.0,
    grad_scale: float = 1.0, backend: str = "auto", **hyperparameters: Any,
) -> tuple[float, float]:  # fmt: skip
    """Take one step of ScheduleFreeAdamW; without v of ScheduleFreeSGD, with the hyperparameters of that.

    z: at first a copy of p. weight_sum, lr_max: what the step before returned.

    >>> p, g, v = np.ones(3), np.ones(3), np.zeros(3)
    >>> z = p.copy()
    >>> weight_sum, lr_max = fa.schedulefree_step(p, g, z, v, t=1, lr=0.25)
    >>> z.round(6).tolist(), lr_max
    ([0.75, 0.75, 0.75], 0.25)
    """
    rule = (rules.ScheduleFreeSGD if v is None else rules.ScheduleFreeAdamW)(**hyperparameters)
    given = {"weight_sum": weight_sum, "lr_max": lr_max}
    carried = {name: np.array(number(name, x, low=0)) for name, x in given.items()}
    _step(rule, p, g, {"z": z, "v": v}, t, grad_scale, backend, **carried)
    return carried["weight_sum"].item(), carried["lr_max"].item()


@_hyperparameters_of(rules.Lion)
def lion_step(
    p: Array, g: Array, m: Array, *,
    t: int = 1, grad_scale: float = 1.0, backend: str = "auto", **hyperparameters: Any,
) -> None:  # fmt: skip
    """Take one step of Lion, which does not depend on t unless lr does.

    >>> p, g, m = np.ones(3), np.ones(3), np.zeros(3)
    >>> fa.lion_step(p, g, m, lr=0.25)
    >>> p.tolist()
    [0.75, 0.75, 0.75]
    """
    _step(rules.Lion(**hyperparameters), p, g, {"m": m}, t, grad_scale, backend)


@_hyperparameters_of(rules.LAMB)
def lamb_step(
    p: Array, g: Array, m: Array, v: Array, *,
    t: int, grad_scale: float = 1.0, backend: str = "auto", **hyperparameters: Any,
) -> None:  # fmt: skip
    """Take one step of LAMB, whose trust ratio is that of p.

    >>> p, g, m, v = np.ones(4), np.ones(4), np.zeros(4), np.zeros(4)
    >>> fa.lamb_step(p, g, m, v, t=1, lr=0.25, weight_decay=0.0)
    >>> p.round(6).tolist()
    [0.75, 0.75, 0.75, 0.75]
    """
    _step(rules.LAMB(**hyperparameters), p, g, {"m": m, "v": v}, t, grad_scale, backend)


@_hyperparameters_of(rules.LARS)
def lars_step(
    p: Array, g: Array, m: Array, *,
    t: int = 1, grad_scale: float = 1.0, backend: str = "auto", **hyperparameters: Any,
) -> None:  # fmt: skip
    """Take one step of LARS, whose local rate is that of p. It does not depend on t unless lr does.

    >>> p, g, m = np.ones(4), np.ones(4), np.zeros(4)
    >>> fa.lars_step(p, g, m, lr=0.25, trust_coefficient=1.0)
    >>> p.tolist()
    [0.75, 0.75, 0.75, 0.75]
    """
    _step(rules.LARS(**hyperparameters), p, g, {"m": m}, t, grad_scale, backend)


@_hyperparameters_of(rules.StableAdamW)
def stableadamw_step(
    p: Array, g: Array, m: Array, v: Array, *,
    t: int, grad_scale: float = 1.0, backend: str = "auto", **hyperparameters: Any,
) -> None:  # fmt: skip
    """Take one step of StableAdamW, whose surprise is that over p.

    >>> p, g, m, v = np.ones(4), np.ones(4), np.zeros(4), np.zeros(4)
    >>> fa.stableadamw_step(p, g, m, v, t=1, lr=0.25, weight_decay=0.0)
    >>> p.round(6).tolist()
    [0.75, 0.75, 0.75, 0.75]
    """
    _step(rules.StableAdamW(**hyperparameters), p, g, {"m": m, "v": v}, t, grad_scale, backend)


@_hyperparameters_of(rules.Prodigy)
def prodigy_step(
    p: Array, g: Array, m: Array, v: Array, s: Array, p0: Array, *,
    t: int, d: float = 0.0, d_max: float = 0.0, d_numerator: float = 0.0,
    grad_scale: float = 1.0, backend: str = "auto", **hyperparameters: Any,
) -> tuple[float, float, float]:  # fmt: skip
    """Take one step of Prodigy, whose estimate is that of p alone.

    p0: a copy of p as it was at first. d, d_max, d_numerator: 0 at the first step, then what the step before returned.

    >>> p, g, m, v, s, p0 = np.ones(3), np.ones(3), *np.zeros((3, 3)), np.ones(3)
    >>> fa.prodigy_step(p, g, m, v, s, p0, t=1, d0=0.25)
    (0.25, 0.25, 0.0)
    """
    given = {"d": d, "d_max": d_max, "d_numerator": d_numerator}
    carried = {name: np.array(number(name, x)) for name, x in given.items()}
    _step(rules.Prodigy(**hyperparameters), p, g, {"m": m, "v": v, "s": s, "p0": p0}, t, grad_scale, backend, **carried)
    return carried["d"].item(), carried["d_max"].item(), carried["d_numerator"].item()


@_hyperparameters_of(rules.SGD)
def momentum_step(
    p: Array, g: Array, m: Array | None = None, *,
    t: int, grad_scale: float = 1.0, backend: str = "auto", **hyperparameters: Any,
) -> None:  # fmt: skip
    """Take one step of SGD; m where momentum is not 0.

    >>> p, g = np.ones(3), np.ones(3)
    >>> fa.momentum_step(p, g, t=1, lr=0.25)
    >>> p.tolist()
    [0.75, 0.75, 0.75]
    """
    _step(rules.SGD(**hyperparameters), p, g, {"m": m}, t, grad_scale, backend)


@_hyperparameters_of(rules.RMSprop, "centered")
def rmsprop_step(
    p: Array, g: Array, v: Array, mean: Array | None = None, m: Array | None = None, *,
    t: int = 1, grad_scale: float = 1.0, backend: str = "auto", **hyperparameters: Any,
) -> None:  # fmt: skip
    """Take one step of RMSprop, centered with mean; m where momentum is not 0. It does not depend on t unless lr does.

    >>> p, g, v = np.ones(3), np.ones(3), np.zeros(3)
    >>> fa.rmsprop_step(p, g, v)
    """
    _decided(hyperparameters, centered="mean")
    rule = rules.RMSprop(centered=mean is not None, **hyperparameters)
    _step(rule, p, g, {"v": v, "mean": mean, "m": m}, t, grad_scale, backend)


@_hyperparameters_of(rules.Adagrad, "initial_accumulator_value")
def adagrad_step(
    p: Array, g: Array, sum: Array, *,
    t: int, grad_scale: float = 1.0, backend: str = "auto", **hyperparameters: Any,
) -> None:  # fmt: skip
    """Take one step of Adagrad.

    >>> p, g, sum = np.ones(3), np.ones(3), np.zeros(3)
    >>> fa.adagrad_step(p, g, sum, t=1, lr=0.25)
    >>> p.round(6).tolist()
    [0.75, 0.75, 0.75]
    """
    _step(rules.Adagrad(**hyperparameters), p, g, {"sum": sum}, t, grad_scale, backend)
