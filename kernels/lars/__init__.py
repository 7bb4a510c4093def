"""The LARS kernel: momentum whose learning rate is each leaf's own.

    g  <- grad_scale·g                                scale the gradient
    u  <- lr·factor·(g + λ·p)                         factor = η·‖p‖ / (‖g‖ + λ·‖p‖) over the leaf
    m  <- momentum·m + u                              where absent, momentum being 0, u takes its place
    p  <- p - m

You, Gitman & Ginsburg 2017, Algorithm 1.
"""

from typing import NamedTuple

from ..contract import Euclidean, Signed, where

SLOTS = (Signed("m", optional=True),)
SUMS = (Euclidean("norm_p"), Euclidean("norm_g"))


class Coefficients(NamedTuple):
    """What the kernel must know of one step; filled by a rule in float64, rounded once by the backend."""

    grad_scale: float  # multiplies g first: 1/loss scale; negative to maximize
    momentum: float
    weight_decay: float
    trust_coefficient: float  # η
    lr: float
    factor: float = 1.0  # of the leaf's learning rate


def lars(p, g, m, norm_p, norm_g, c):
    """One element, or whole arrays, of one step: (p, g, m) -> (p, m), and what is added up before."""
    g = c.grad_scale * g
    norm_p = p
    norm_g = g
    u = c.lr * c.factor * (g + c.weight_decay * p)
    if m is not None:
        m = c.momentum * m + u
        u = m
    p = p - u
    return p, m, norm_p, norm_g


def judged(n, norm_p, norm_g, c):
    """Return the trust ratio; 1 where p or g is 0, or g too small for a ratio in float32."""
    return where(
        (norm_p > 0) & (norm_g * 1e30 > norm_p),
        c.trust_coefficient * norm_p / (norm_g + c.weight_decay * norm_p),
        1,
    )
