"""The NAdam kernel: Adam with Nesterov's look-ahead.

    g  <- grad_scale·g + l2·p                         scale the gradient, add coupled decay
    m  <- β1·m + (1-β1)·g                             first moment; where absent, β1 being 0, g takes its place
    v  <- β2·v + (1-β2)·g²                            second moment; where absent, β2 being 0, g² does
    p  <- decay·p - (grad_step·g + momentum_step·m) / (√v·rsqrt_bias2 + eps)

Dozat 2016, Algorithm 2. The momentum schedule lives in the rule.
"""

from typing import NamedTuple

import numpy as np

from ..contract import NonNegative, Signed

SLOTS = (Signed("m", optional=True), NonNegative("v", optional=True))


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


def nadam(p, g, m, v, c):
    """One element, or whole arrays, of one step: (p, g, m, v) -> (p, m, v)."""
    g = c.grad_scale * g + c.l2 * p
    mean = g
    if m is not None:
        m = c.beta1 * m + c.one_minus_beta1 * g
        mean = m
    bound = g * g
    if v is not None:
        v = c.beta2 * v + c.one_minus_beta2 * (g * g)
        bound = v
    p = c.decay * p - (c.grad_step * g + c.momentum_step * mean) / (np.sqrt(bound) * c.rsqrt_bias2 + c.eps)
    return p, m, v
