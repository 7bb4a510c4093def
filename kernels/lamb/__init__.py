"""The LAMB kernel: Adam's direction, as long as the parameters of the leaf are.

    g  <- grad_scale·g                                scale the gradient
    m  <- β1·m + (1-β1)·g                             first moment; where absent, β1 being 0, g takes its place
    v  <- β2·v + (1-β2)·g²                            second moment; where absent, β2 being 0, g² does
    u  <- m·rbias1 / (√v·rsqrt_bias2 + eps) + λ·p     the direction, decay included
    p  <- p - lr·factor·u                             factor = ‖p‖ / ‖u‖ over the leaf, the trust ratio

You et al. 2020, Algorithm 2, with φ(x) = x.
"""

from typing import NamedTuple

import numpy as np

from ..contract import Euclidean, NonNegative, Signed, where

SLOTS = (Signed("m", optional=True), NonNegative("v", optional=True))
SUMS = (Euclidean("norm_p"), Euclidean("norm_u"))


class Coefficients(NamedTuple):
    """What the kernel must know of one step; filled by a rule in float64, rounded once by the backend."""

    grad_scale: float  # multiplies g first: 1/loss scale; negative to maximize
    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    rbias1: float  # 1 / (1 - β1^t); 1 without bias correction
    rsqrt_bias2: float  # 1 / √(1 - β2^t); 1 without
    eps: float  # added after the bias correction; units of g
    weight_decay: float  # of the direction; units of p
    lr: float
    factor: float = 1.0  # the leaf's trust ratio


def lamb(p, g, m, v, norm_p, norm_u, c):
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
    norm_p = p
    norm_u = mean * c.rbias1 / (np.sqrt(bound) * c.rsqrt_bias2 + c.eps) + c.weight_decay * p
    p = p - c.lr * c.factor * norm_u
    return p, m, v, norm_p, norm_u


def judged(n, norm_p, norm_u, c):
    """Return the trust ratio; 1 where p or u is 0, or u too small for a ratio in float32."""
    return where((norm_p > 0) & (norm_u * 1e30 > norm_p), norm_p / norm_u, 1)
