"""Takes one step on arrays that the caller keeps: in place, without hidden state.

Every function takes p, g and the kernel's slots, arrays of one shape, all float64 or none, dense in the same order of
axes (where p has no dimension, g may be a number); `t`, the count of this step from 1; and by name the hyperparameters
of the method it is named after (see fastadam.Adam and so on), with the same defaults. Slots start at zeros. An
Optimizer does the same with less overhead, and with random bits of its own for each element of a tree: what rounds
bfloat16 here is seed 0's from index 0 on, the same for every array. For many steps a fastadam.Stepper is planned once.
"""

from typing import Any

import numpy as np

from fastadam import rules
from fastadam.arrays.host import Array
from fastadam.checks import number
from fastadam.stepping import hyperparameters_of, refuse_decided, step_once


@hyperparameters_of(rules.Adam, "amsgrad", "decoupled_weight_decay")
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
    refuse_decided(hyperparameters, amsgrad="vmax", decoupled_weight_decay="decoupled")
    rule = rules.Adam(amsgrad=vmax is not None, decoupled_weight_decay=decoupled, **hyperparameters)
    step_once(rule, p, g, {"m": m, "v": v, "vmax": vmax}, t, grad_scale, backend)


@hyperparameters_of(rules.NAdam)
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
    step_once(rules.NAdam(**hyperparameters), p, g, {"m": m, "v": v}, t, grad_scale, backend, mu_product=product)
    return product.item()


@hyperparameters_of(rules.Adamax)
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
    step_once(rules.Adamax(**hyperparameters), p, g, {"m": m, "u": u}, t, grad_scale, backend)


@hyperparameters_of(rules.AdaBelief)
def adabelief_step(
    p: Array, g: Array, m: Array, s: Array, *,
    t: int, grad_scale: float = 1.0, backend: str = "auto", **hyperparameters: Any,
) -> None:  # fmt: skip
    """Take one step of AdaBelief.

    >>> p, g, m, s = np.ones(3), np.ones(3), np.zeros(3), np.zeros(3)
    >>> fa.adabelief_step(p, g, m, s, t=1)
    """
    step_once(rules.AdaBelief(**hyperparameters), p, g, {"m": m, "s": s}, t, grad_scale, backend)


@hyperparameters_of(rules.ADOPT)
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
    step_once(rules.ADOPT(**hyperparameters), p, g, {"m": m, "v": v}, t, grad_scale, backend)


@hyperparameters_of(rules.AdEMAMix)
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
    step_once(rules.AdEMAMix(**hyperparameters), p, g, {"m1": m1, "m2": m2, "v": v}, t, grad_scale, backend)


@hyperparameters_of(rules.ScheduleFreeAdamW)
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
    step_once(rule, p, g, {"z": z, "v": v}, t, grad_scale, backend, **carried)
    return carried["weight_sum"].item(), carried["lr_max"].item()


@hyperparameters_of(rules.Lion)
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
    step_once(rules.Lion(**hyperparameters), p, g, {"m": m}, t, grad_scale, backend)


@hyperparameters_of(rules.LAMB)
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
    step_once(rules.LAMB(**hyperparameters), p, g, {"m": m, "v": v}, t, grad_scale, backend)


@hyperparameters_of(rules.LARS)
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
    step_once(rules.LARS(**hyperparameters), p, g, {"m": m}, t, grad_scale, backend)


@hyperparameters_of(rules.StableAdamW)
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
    step_once(rules.StableAdamW(**hyperparameters), p, g, {"m": m, "v": v}, t, grad_scale, backend)


@hyperparameters_of(rules.Prodigy)
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
    step_once(
        rules.Prodigy(**hyperparameters), p, g, {"m": m, "v": v, "s": s, "p0": p0}, t, grad_scale, backend, **carried
    )
    return carried["d"].item(), carried["d_max"].item(), carried["d_numerator"].item()


@hyperparameters_of(rules.SGD)
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
    step_once(rules.SGD(**hyperparameters), p, g, {"m": m}, t, grad_scale, backend)


@hyperparameters_of(rules.RMSprop, "centered")
def rmsprop_step(
    p: Array, g: Array, v: Array, mean: Array | None = None, m: Array | None = None, *,
    t: int = 1, grad_scale: float = 1.0, backend: str = "auto", **hyperparameters: Any,
) -> None:  # fmt: skip
    """Take one step of RMSprop, centered with mean; m where momentum is not 0. It does not depend on t unless lr does.

    >>> p, g, v = np.ones(3), np.ones(3), np.zeros(3)
    >>> fa.rmsprop_step(p, g, v)
    """
    refuse_decided(hyperparameters, centered="mean")
    rule = rules.RMSprop(centered=mean is not None, **hyperparameters)
    step_once(rule, p, g, {"v": v, "mean": mean, "m": m}, t, grad_scale, backend)


@hyperparameters_of(rules.Adagrad, "initial_accumulator_value")
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
    step_once(rules.Adagrad(**hyperparameters), p, g, {"sum": sum}, t, grad_scale, backend)
