"""The ADOPT kernel.

    g  <- grad_scale·g + l2·p                         scale the gradient, add coupled decay
    u  <- clip(g / max(√v, eps), ±clip)               v is the step before's, so g and v are independent
    m  <- β1·m + (1-β1)·u                             where absent, β1 being 0, u takes its place
    p  <- decay·p - step_size·m
    v  <- β2·v + (1-β2)·g²                            second moment, for the next step

Taniguchi et al. 2024, Algorithm 2. The first step only fills v: then clip, 1-β1, β2 and step_size are 0.
"""

from typing import NamedTuple

import numpy as np

from ..contract import NonNegative, Signed, maximum

SLOTS = (Signed("m", optional=True), NonNegative("v"))


class Coefficients(NamedTuple):
    """What the kernel must know of one step; filled by a rule in float64, rounded once by the backend."""

    grad_scale: float  # multiplies g first: 1/loss scale; negative to maximize
    l2: float  # coupled weight decay, added to g
    clip: float  # limit of the normalised gradient
    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    step_size: float
    eps: float  # smallest divisor; units of g
    decay: float  # 1 - lr·λ; 1 where decay is coupled or absent


def adopt(p, g, m, v, c):
    """One element, or whole arrays, of one step: (p, g, m, v) -> (p, m, v)."""
    g = c.grad_scale * g + c.l2 * p
    u = g / maximum(np.sqrt(v), c.eps)
    u = maximum(-maximum(-u, -c.clip), -c.clip)
    mean = c.one_minus_beta1 * u
    if m is not None:
        m = c.beta1 * m + c.one_minus_beta1 * u
        mean = m
    p = c.decay * p - c.step_size * mean
    v = c.beta2 * v + c.one_minus_beta2 * (g * g)
    return p, m, v
