"""The Lion kernel: the sign of an interpolated momentum.

    g  <- grad_scale·g                                scale the gradient
    u  <- sign(β1·m + (1-β1)·g)
    u  <- 0 where u·g <= 0, else u·factor             cautious only; factor = 1 / the share of the leaf where u·g > 0
    p  <- decay·p - lr·u                              cautious_decay: p itself in place of decay·p where u·p < 0
    m  <- β2·m + (1-β2)·g                             momentum, after the step; absent where β1 is 0

Chen et al. 2023, Algorithm 2; cautious_decay: L. Chen et al. 2025, Algorithm 1; cautious: Liang et al. 2024,
Algorithm 1. The sign of either zero is +0; of NaN, NaN.
"""

from typing import NamedTuple

from ..contract import Signed, Total, agreement, inverse_share, select, sign

SLOTS = (Signed("m", optional=True),)
SWITCHES = ("cautious_decay",)
SUMS = (Total("agree", optional=True),)


class Coefficients(NamedTuple):
    """What the kernel must know of one step; filled by a rule in float64, rounded once by the backend."""

    grad_scale: float  # multiplies g first: 1/loss scale; negative to maximize
    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    lr: float
    decay: float  # 1 - lr·λ; 1 where decay is absent
    factor: float = 1.0  # of the elements where the step and g agree


def lion(p, g, m, agree, c, cautious_decay=False):
    """One element, or whole arrays, of one step: (p, g, m) -> (p, m), and what is added up before."""
    g = c.grad_scale * g
    mixed = g
    if m is not None:
        mixed = c.beta1 * m + c.one_minus_beta1 * g
        m = c.beta2 * m + c.one_minus_beta2 * g
    u = sign(mixed)
    if agree is not None:
        agree = agreement(mixed, g)
        u = u * (agree * c.factor)
    kept = c.decay * p
    if cautious_decay:
        kept = select(u * p, kept, p)
    p = kept - c.lr * u
    return p, m, agree


def judged(n, agree, c):
    """Return 1 over the share of elements that agree."""
    return inverse_share(n, agree)
