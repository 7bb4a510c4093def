"""The NAdam kernel: Adam with Nesterov's look-ahead.

    g  <- grad_scale·g + l2·p                         scale the gradient, add coupled decay
    m  <- β1·m + (1-β1)·g                             first moment
    v  <- β2·v + (1-β2)·g²                            second moment
    p  <- decay·p - (grad_step·g + momentum_step·m) / (√v·rsqrt_bias2 + eps)

Dozat 2016, Algorithm 2. The momentum schedule lives in the rule.
"""

from typing import NamedTuple

import numpy as np

from ..contract import NonNegative, Signed

SLOTS = (Signed("m"), NonNegative("v"))


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
    m = c.beta1 * m + c.one_minus_beta1 * g
    v = c.beta2 * v + c.one_minus_beta2 * (g * g)
    p = c.decay * p - (c.grad_step * g + c.momentum_step * m) / (np.sqrt(v) * c.rsqrt_bias2 + c.eps)
    return p, m, v
