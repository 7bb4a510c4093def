"""The Adagrad kernel.

    g   <- grad_scale·g + l2·p                        scale the gradient, add coupled decay
    sum <- sum + g²                                   all squares so far
    p   <- p - step_size·g / (√(sum + root_eps) + eps)

Duchi et al. 2011, Figure 1, diagonal; one of the two eps is 0: as in PyTorch, or Keras.
"""

from typing import NamedTuple

import numpy as np

from ..contract import NonNegative

SLOTS = (NonNegative("sum"),)


class Coefficients(NamedTuple):
    """What the kernel must know of one step; filled by a rule in float64, rounded once by the backend."""

    grad_scale: float  # multiplies g first: 1/loss scale; negative to maximize
    l2: float  # coupled weight decay, added to g
    step_size: float  # lr / (1 + (t - 1)·lr_decay)
    root_eps: float  # inside the root; units of g²
    eps: float  # beside the root; units of g


def adagrad(p, g, sum, c):
    """One element, or whole arrays, of one step: (p, g, sum) -> (p, sum)."""
    g = c.grad_scale * g + c.l2 * p
    sum = sum + g * g
    p = p - c.step_size * g / (np.sqrt(sum + c.root_eps) + c.eps)
    return p, sum
