"""The Prodigy kernel: Adam whose learning rate is d, an estimate of how far from the start the solution is.

    g  <- grad_scale·g + l2·p                         scale the gradient, add coupled decay
    m  <- β1·m + (1-β1)·d·g                           first moment; where absent, β1 being 0, d·g takes its place
    v  <- β2·v + (1-β2)·(d·g)²                        second moment; where absent, β2 being 0, (d·g)² does
    s  <- β3·s + d²·s_rate·g                          weighted sum of gradients, whose weights the numerator shares
    p  <- p - d·rate·(m / (√v + eps·factor) + λ·p)    factor = d after this step

Before each step two sums over all leaves make the next d, numerator = Σ rate·g·(p0-p) and denominator = Σ |s|: see
`judged`. Mishchenko & Defazio 2024, Algorithm 4, its sums divided by (1-β3)·d0 both, as in the authors' code.
"""

from typing import NamedTuple

import numpy as np

from ..contract import Exact, NonNegative, Signed, Total, Weights, where

SLOTS = (Signed("m", optional=True), NonNegative("v", optional=True), Exact("s"), Weights("p0"))
SUMS = (Total("numerator"), Total("denominator"))


class Coefficients(NamedTuple):
    """What the kernel must know of one step; filled by a rule in float64, rounded once by the backend."""

    grad_scale: float  # multiplies g first: 1/loss scale; negative to maximize
    l2: float  # coupled decay; units of g / p
    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    beta3: float
    rate: float  # lr, times √(1 - β2^t) / (1 - β1^t) with bias correction
    s_rate: float  # rate / d0; 1 / d0 where a warm-up is safeguarded
    eps: float  # units of g
    weight_decay: float  # decoupled; a share of p for each unit of d·rate
    d: float  # units of p
    factor: float = 1.0  # d after this step


class Judging(NamedTuple):
    """Holds what the judge must know of one step, of all leaves at once, in float64."""

    d0: float  # the first d; units of p
    beta3: float
    d_coef: float  # multiplies the estimate
    growth_rate: float  # d grows by this factor at the most; infinity for no limit


def prodigy(p, g, m, v, s, p0, numerator, denominator, c):
    """One element, or whole arrays, of one step: (p, g, m, v, s, p0) -> the same but g, and what is added up before."""
    g = c.grad_scale * g + c.l2 * p
    numerator = c.rate * g * (p0 - p)
    g = c.d * g
    mean = g
    if m is not None:
        m = c.beta1 * m + c.one_minus_beta1 * g
        mean = m
    bound = g * g
    if v is not None:
        v = c.beta2 * v + c.one_minus_beta2 * (g * g)
        bound = v
    s = c.beta3 * s + c.s_rate * c.d * g
    denominator = np.abs(s)
    p = p - c.rate * c.d * (mean / (np.sqrt(bound) + c.eps * c.factor) + c.weight_decay * p)
    return p, m, v, s, p0, numerator, denominator


def judged(numerator, denominator, d, d_max, d_numerator, c):
    """Return d, the largest estimate and the numerator's running sum after this step, from those before: 0 at first.

    A numerator that is not finite is left out, and all stays where every s is 0.
    """
    d = where(d > 0, d, c.d0)
    d_max = where(d_max > 0, d_max, c.d0)
    total = c.beta3 * d_numerator + d / c.d0 * d * numerator
    total = where(total - total != 0, d_numerator, total)
    hat = where(denominator > 0, c.d_coef * total / denominator, 0)
    d_numerator = where(denominator > 0, total, d_numerator)
    d_max = where(hat > d_max, hat, d_max)
    d = where(d > c.d0, d, where(hat > d, hat, d))
    d = where(d * c.growth_rate > d_max, d_max, d * c.growth_rate)
    return d, d_max, d_numerator
