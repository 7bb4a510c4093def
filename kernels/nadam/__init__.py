"""The NAdam kernel: Adam with Nesterov's look-ahead.

    g  <- grad_scale·g + l2·p                         scale the gradient, add coupled decay
    m  <- β1·m + (1-β1)·g                             first moment; where absent, β1 being 0, g takes its place
    v  <- β2·v + (1-β2)·g²                            second moment; where absent, β2 being 0, g² does
    u  <- grad_step·g + momentum_step·m               cautious: 0 where u·g <= 0, else u·factor, with
                                                      factor = 1 / the share of the leaf where u·g > 0
    p  <- decay·p - u / (√v·rsqrt_bias2 + eps)

Dozat 2016, Algorithm 2; cautious: Liang et al. 2024, Algorithm 1. The momentum schedule lives in the rule.
"""

from typing import NamedTuple

import numpy as np

from ..contract import NonNegative, Signed, Total, agreement, inverse_share

SLOTS = (Signed("m", optional=True), NonNegative("v", optional=True))
SUMS = (Total("agree", optional=True),)


class Coefficients(NamedTuple):
    """What the kernel must know of one step; filled by a rule in float64, rounded once by the backend."""

    grad_scale: float  # multiplies g first: 1/loss scale; negative to maximize
    l2: float  # coupled weight decay, added to g
    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    grad_step: float  # lr·(1 - μ_t) / (1 - μ_1…μ_t)
    momentum_step: float  # lr·μ_{t+1} / (1 - μ_1…μ_{t+1})
    rsqrt_bias2: float  # 1 / √(1 - β2^t)
    eps: float  # added after the bias correction; units of g
    decay: float  # 1 - lr·λ; 1 where decay is coupled or absent
    factor: float = 1.0  # of the elements where the step and g agree


def nadam(p, g, m, v, agree, c):
    """One element, or whole arrays, of one step: (p, g, m, v) -> (p, m, v), and what is added up before."""
    g = c.grad_scale * g + c.l2 * p
    mean = g
    if m is not None:
        m = c.beta1 * m + c.one_minus_beta1 * g
        mean = m
    bound = g * g
    if v is not None:
        v = c.beta2 * v + c.one_minus_beta2 * (g * g)
        bound = v
    update = c.grad_step * g + c.momentum_step * mean
    if agree is not None:
        agree = agreement(update, g)
        update = update * (agree * c.factor)
    p = c.decay * p - update / (np.sqrt(bound) * c.rsqrt_bias2 + c.eps)
    return p, m, v, agree


def judged(n, agree, c):
    """Return 1 over the share of elements that agree."""
    return inverse_share(n, agree)
