"""The schedule-free kernel: steps from z, gradients at y, which is p, and their average x in between.

    g  <- grad_scale·g                                scale the gradient
    v  <- β2·v + (1-β2)·g²                            second moment; only with v
    u  <- g / (√v·rsqrt_bias2 + eps)                  g itself without v
    u  <- u + λ·p                                     decay, of y
    p  <- p + average·(z - p) - y_step·u
    z  <- z - z_step·u

Defazio et al. 2024, Algorithm 1 and equations 6 to 8, with x told from y and z: of y = (1-β)·z + β·x only y is kept.
"""

from typing import NamedTuple

import numpy as np

from ..contract import NonNegative, Weights

SLOTS = (Weights("z"), NonNegative("v", optional=True))


class Coefficients(NamedTuple):
    """What the kernel must know of one step; filled by a rule in float64, rounded once by the backend."""

    grad_scale: float  # multiplies g first: 1/loss scale; negative to maximize
    beta2: float
    one_minus_beta2: float
    rsqrt_bias2: float  # 1 / √(1 - β2^t)
    eps: float  # added after the bias correction; units of g
    weight_decay: float
    average: float  # c, the share of this step's z in the average
    y_step: float  # lr·(1 - β·(1 - c))
    z_step: float  # lr


def schedulefree(p, g, z, v, c):
    """One element, or whole arrays, of one step: (p, g, z, v) -> (p, z, v)."""
    g = c.grad_scale * g
    u = g
    if v is not None:
        v = c.beta2 * v + c.one_minus_beta2 * (g * g)
        u = g / (np.sqrt(v) * c.rsqrt_bias2 + c.eps)
    u = u + c.weight_decay * p
    p = p + c.average * (z - p) - c.y_step * u
    z = z - c.z_step * u
    return p, z, v
