"""The RMSprop kernel.

    g    <- grad_scale·g + l2·p                       scale the gradient, add coupled decay
    v    <- α·v + (1-α)·g²                            second moment; where absent, α being 0, g² takes its place
    mean <- α·mean + (1-α)·g                          centered only; then v - mean², not below 0, takes v's place below
    m    <- momentum·m + grad_step·g / (√(v + root_eps) + eps)    with momentum; then takes the quotient's place below
    p    <- p - step_size·grad_step·g / (√(v + root_eps) + eps)

Tieleman & Hinton 2012, lecture 6.5; centered: Graves 2013, eq. 38-45. One of the two eps is 0, and one of the two steps
is 1: as in PyTorch, or Keras. The clamp at 0 is ours: rounding makes v - mean² negative under a constant gradient, and
its root NaN.
"""

from typing import NamedTuple

import numpy as np

from ..contract import NonNegative, Signed, maximum

SLOTS = (NonNegative("v", optional=True), Signed("mean", optional=True), Signed("m", optional=True))


class Coefficients(NamedTuple):
    """What the kernel must know of one step; filled by a rule in float64, rounded once by the backend."""

    grad_scale: float  # multiplies g first: 1/loss scale; negative to maximize
    l2: float  # coupled weight decay, added to g
    alpha: float
    one_minus_alpha: float
    momentum: float
    root_eps: float  # inside the root; units of g²
    eps: float  # beside the root; units of g
    grad_step: float  # lr where momentum gathers steps; 1 where it gathers gradients
    step_size: float  # the other way round


def rmsprop(p, g, v, mean, m, c):
    """One element, or whole arrays, of one step: (p, g, v, mean, m) -> (p, v, mean, m)."""
    g = c.grad_scale * g + c.l2 * p
    variance = g * g
    if v is not None:
        v = c.alpha * v + c.one_minus_alpha * (g * g)
        variance = v
    if mean is not None:
        mean = c.alpha * mean + c.one_minus_alpha * g
        variance = maximum(variance - mean * mean, 0)
    update = c.grad_step * g / (np.sqrt(variance + c.root_eps) + c.eps)
    if m is not None:
        m = c.momentum * m + update
        update = m
    p = p - c.step_size * update
    return p, v, mean, m
