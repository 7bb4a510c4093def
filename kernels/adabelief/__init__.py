"""The AdaBelief kernel: Adam whose second moment is that of the surprise g - m.

    g  <- grad_scale·g + l2·p                         scale the gradient, add coupled decay
    m  <- β1·m + (1-β1)·g                             first moment; where absent, β1 being 0, g takes its place
    s  <- β2·s + (1-β2)·(g - m)² + eps                how far gradients stray from their mean; absent where β2 is 0
    p  <- decay·p - step_size·m / (√s·rsqrt_bias2 + eps)

Zhuang et al. 2020, Algorithm 2; eps stands in both places, as there.
"""

from typing import NamedTuple

import numpy as np

from ..contract import NonNegative, Signed

SLOTS = (Signed("m", optional=True), NonNegative("s", optional=True))


class Coefficients(NamedTuple):
    """What the kernel must know of one step; filled by a rule in float64, rounded once by the backend."""

    grad_scale: float  # multiplies g first: 1/loss scale; negative to maximize
    l2: float  # coupled weight decay, added to g
    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    step_size: float  # lr / (1 - β1^t)
    rsqrt_bias2: float  # 1 / √(1 - β2^t)
    eps: float  # units of g² inside s, of g beside its root: the paper uses one number
    decay: float  # 1 - lr·λ; 1 where decay is coupled or absent


def adabelief(p, g, m, s, c):
    """One element, or whole arrays, of one step: (p, g, m, s) -> (p, m, s)."""
    g = c.grad_scale * g + c.l2 * p
    mean = g
    if m is not None:
        m = c.beta1 * m + c.one_minus_beta1 * g
        mean = m
    surprise = g - mean
    bound = surprise * surprise + c.eps
    if s is not None:
        s = c.beta2 * s + c.one_minus_beta2 * (surprise * surprise) + c.eps
        bound = s
    p = c.decay * p - c.step_size * mean / (np.sqrt(bound) * c.rsqrt_bias2 + c.eps)
    return p, m, s
