"""The AdEMAMix kernel: Adam with a second, slower mean of gradients.

    g  <- grad_scale·g                                scale the gradient
    m1 <- β1·m1 + (1-β1)·g                            fast mean; where absent, β1 being 0, g takes its place
    m2 <- β3·m2 + (1-β3)·g                            slow mean, whose bias is not corrected; absent where β3 is 0
    v  <- β2·v + (1-β2)·g²                            second moment; where absent, β2 being 0, g² takes its place
    p  <- decay·p - (fast_step·m1 + slow_step·m2) / (√v·rsqrt_bias2 + eps)

Pagliardini, Ablin & Grangier 2025, Algorithm 1. The warm-ups of α and β3 live in the rule.
"""

from typing import NamedTuple

import numpy as np

from ..contract import NonNegative, Signed

SLOTS = (Signed("m1", optional=True), Signed("m2", optional=True), NonNegative("v", optional=True))


class Coefficients(NamedTuple):
    """What the kernel must know of one step; filled by a rule in float64, rounded once by the backend."""

    grad_scale: float  # multiplies g first: 1/loss scale; negative to maximize
    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    beta3: float  # of this step
    one_minus_beta3: float
    fast_step: float  # lr / (1 - β1^t)
    slow_step: float  # lr·α of this step
    rsqrt_bias2: float  # 1 / √(1 - β2^t)
    eps: float  # added after the bias correction; units of g
    decay: float  # 1 - lr·λ; 1 where decay is absent


def ademamix(p, g, m1, m2, v, c):
    """One element, or whole arrays, of one step: (p, g, m1, m2, v) -> (p, m1, m2, v)."""
    g = c.grad_scale * g
    fast = g
    if m1 is not None:
        m1 = c.beta1 * m1 + c.one_minus_beta1 * g
        fast = m1
    slow = g
    if m2 is not None:
        m2 = c.beta3 * m2 + c.one_minus_beta3 * g
        slow = m2
    bound = g * g
    if v is not None:
        v = c.beta2 * v + c.one_minus_beta2 * (g * g)
        bound = v
    p = c.decay * p - (c.fast_step * fast + c.slow_step * slow) / (np.sqrt(bound) * c.rsqrt_bias2 + c.eps)
    return p, m1, m2, v
