"""The RMSprop kernel.

    g    <- grad_scale·g + l2·p                       scale the gradient, add coupled decay
    v    <- α·v + (1-α)·g²                            second moment
    mean <- α·mean + (1-α)·g                          centered only; then v - mean², not below 0, takes v's place below
    m    <- momentum·m + g / (√v + eps)               with momentum; then takes the quotient's place below
    p    <- p - lr·g / (√v + eps)

Tieleman & Hinton 2012, lecture 6.5; centered: Graves 2013, eq. 38-45; eps and momentum as in PyTorch. The clamp at 0 is
ours: rounding makes v - mean² negative under a constant gradient, and its root NaN.
"""

from typing import NamedTuple

import numpy as np

from ..contract import NonNegative, Signed, maximum

SLOTS = (NonNegative("v"), Signed("mean", optional=True), Signed("m", optional=True))


class Coefficients(NamedTuple):
    """What the kernel must know of one step; filled by a rule in float64, rounded once by the backend."""

    grad_scale: float  # multiplies g first: 1/loss scale; negative to maximize
    l2: float  # coupled weight decay, added to g
    alpha: float
    one_minus_alpha: float
    momentum: float
    eps: float  # beside the root; units of g
    lr: float


def rmsprop(p, g, v, mean, m, c):
    """One element, or whole arrays, of one step: (p, g, v, mean, m) -> (p, v, mean, m)."""
    g = c.grad_scale * g + c.l2 * p
    v = c.alpha * v + c.one_minus_alpha * (g * g)
    variance = v
    if mean is not None:
        mean = c.alpha * mean + c.one_minus_alpha * g
        variance = maximum(v - mean * mean, 0)
    update = g / (np.sqrt(variance) + c.eps)
    if m is not None:
        m = c.momentum * m + update
        update = m
    p = p - c.lr * update
    return p, v, mean, m
