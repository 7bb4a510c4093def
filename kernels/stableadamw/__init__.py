"""The StableAdamW kernel: AdamW whose step shrinks where the second moment has not yet seen such gradients.

    g  <- grad_scale·g                                scale the gradient
    m  <- β1·m + (1-β1)·g                             first moment; where absent, β1 being 0, g takes its place
    v  <- β2·v + (1-β2)·g²                            second moment; where absent, β2 being 0, g² does
    r  <- g / max(√v, eps)                            how surprising the gradient is
    p  <- p - lr·factor·(m / (√v + eps) + λ·p)        factor = 1 / max(1, √mean(r²)) over the leaf

Wortsman et al. 2023, Algorithm 2; the rule corrects both βs, so nothing else is corrected.
"""

from typing import NamedTuple

import numpy as np

from ..contract import Euclidean, NonNegative, Signed, maximum

SLOTS = (Signed("m", optional=True), NonNegative("v", optional=True))
SUMS = (Euclidean("surprise"),)


class Coefficients(NamedTuple):
    """What the kernel must know of one step; filled by a rule in float64, rounded once by the backend."""

    grad_scale: float  # multiplies g first: 1/loss scale; negative to maximize
    beta1: float  # β1·(1 - β1^(t-1)) / (1 - β1^t)
    one_minus_beta1: float
    beta2: float  # β2·(1 - β2^(t-1)) / (1 - β2^t)
    one_minus_beta2: float
    eps: float  # units of g
    weight_decay: float
    lr: float
    factor: float = 1.0  # of the leaf's learning rate


def stableadamw(p, g, m, v, surprise, c):
    """One element, or whole arrays, of one step: (p, g, m, v) -> (p, m, v), and what is added up before."""
    g = c.grad_scale * g
    mean = g
    if m is not None:
        m = c.beta1 * m + c.one_minus_beta1 * g
        mean = m
    bound = g * g
    if v is not None:
        v = c.beta2 * v + c.one_minus_beta2 * (g * g)
        bound = v
    root = np.sqrt(bound)
    surprise = g / maximum(root, c.eps)
    p = p - c.lr * c.factor * (mean / (root + c.eps) + c.weight_decay * p)
    return p, m, v, surprise


def judged(n, surprise, c):
    """Return 1 over the root mean square of the surprise, at most 1."""
    return 1 / maximum(surprise / np.sqrt(n), 1)
