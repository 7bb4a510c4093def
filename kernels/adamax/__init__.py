"""The Adamax kernel: Adam under the infinity norm.

    g  <- grad_scale·g + l2·p                         scale the gradient, add coupled decay
    m  <- β1·m + (1-β1)·g                             first moment; where absent, β1 being 0, g takes its place
    u  <- max(β2·u, |g| + eps)                        the exponentially weighted infinity norm; absent where β2 is 0
    p  <- p - step_size·m / (u + divisor_eps)

Kingma & Ba 2015, Algorithm 2; one of the two eps keeps the divisor from zero, the other is 0: as in PyTorch, or Keras.
"""

from typing import NamedTuple

import numpy as np

from ..contract import RunningMax, Signed, maximum

SLOTS = (Signed("m", optional=True), RunningMax("u", optional=True))


class Coefficients(NamedTuple):
    """What the kernel must know of one step; filled by a rule in float64, rounded once by the backend."""

    grad_scale: float  # multiplies g first: 1/loss scale; negative to maximize
    l2: float  # coupled weight decay, added to g
    beta1: float
    one_minus_beta1: float
    beta2: float
    step_size: float  # lr / (1 - β1^t)
    eps: float  # inside the maximum; units of g
    divisor_eps: float  # beside u; units of g


def adamax(p, g, m, u, c):
    """One element, or whole arrays, of one step: (p, g, m, u) -> (p, m, u)."""
    g = c.grad_scale * g + c.l2 * p
    mean = g
    if m is not None:
        m = c.beta1 * m + c.one_minus_beta1 * g
        mean = m
    bound = np.abs(g) + c.eps
    if u is not None:
        u = maximum(c.beta2 * u, bound)
        bound = u
    p = p - c.step_size * mean / (bound + c.divisor_eps)
    return p, m, u
