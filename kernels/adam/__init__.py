"""The Adam kernel.

    g  <- grad_scale·g + l2·p                         scale the gradient, add coupled decay
    m  <- β1·m + (1-β1)·g                             first moment; where absent, β1 being 0, g takes its place
    v  <- β2·v + (1-β2)·g²                            second moment; where absent, β2 being 0, g² does
    vmax <- max(vmax, v)                              AMSGrad only; then takes the place of v below
    u  <- m                                           cautious: 0 where m·g <= 0, else m·factor, with
                                                      factor = 1 / the share of the leaf where m·g > 0
    p  <- decay·p - step_size·u / (√v·rsqrt_bias2 + eps)
                                                      cautious_decay: p itself in place of decay·p where u·p < 0

Adam, AdamW, RAdam and AMSGrad are this one kernel under different coefficients; see fastadam/rules.py.
Kingma & Ba 2015, Algorithm 1; Reddi et al. 2018, Algorithm 2; L. Chen et al. 2025, Algorithm 1; cautious: Liang et
al. 2024, Algorithm 1. Nothing here knows the step count.
"""

from typing import NamedTuple

import numpy as np

from ..contract import NonNegative, RunningMax, Signed, Total, agreement, inverse_share, maximum, select

SLOTS = (Signed("m", optional=True), NonNegative("v", optional=True), RunningMax("vmax", optional=True))
SWITCHES = ("cautious_decay",)
SUMS = (Total("agree", optional=True),)


class Coefficients(NamedTuple):
    """What the kernel must know of one step; filled by a rule in float64, rounded once by the backend."""

    grad_scale: float  # multiplies g first: 1/loss scale; negative to maximize
    l2: float  # coupled weight decay, added to g
    beta1: float
    one_minus_beta1: float  # ready made: 1.0f - 0.999f is wrong in the fifth digit
    beta2: float
    one_minus_beta2: float
    step_size: float  # lr / (1 - β1^t)
    rsqrt_bias2: float  # 1 / √(1 - β2^t)
    eps: float  # added after the bias correction, as in Algorithm 1; units of g
    decay: float  # 1 - lr·λ; 1 where decay is coupled or absent
    factor: float = 1.0  # of the elements where m and g agree


def adam(p, g, m, v, vmax, agree, c, cautious_decay=False):
    """One element, or whole arrays, of one step: (p, g, m, v, vmax) -> (p, m, v, vmax), and what is added up before."""
    g = c.grad_scale * g + c.l2 * p
    mean = g
    if m is not None:
        m = c.beta1 * m + c.one_minus_beta1 * g
        mean = m
    bound = g * g
    if v is not None:
        v = c.beta2 * v + c.one_minus_beta2 * (g * g)
        bound = v
    if vmax is not None:
        vmax = maximum(vmax, bound)
        bound = vmax
    update = mean
    if agree is not None:
        agree = agreement(mean, g)
        update = mean * (agree * c.factor)
    kept = c.decay * p
    if cautious_decay:
        kept = select(update * p, kept, p)
    p = kept - c.step_size * update / (np.sqrt(bound) * c.rsqrt_bias2 + c.eps)
    return p, m, v, vmax, agree


def judged(n, agree, c):
    """Return 1 over the share of elements that agree."""
    return inverse_share(n, agree)
