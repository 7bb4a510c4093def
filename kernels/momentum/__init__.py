"""The momentum kernel: gradient descent, plain, heavy-ball or Nesterov.

    g  <- grad_scale·g + l2·p                         scale the gradient, add coupled decay
    m  <- momentum·m + one_minus_dampening·g          only with momentum
    p  <- p - (grad_step·g + momentum_step·m)         one of the two steps is 0 but for Nesterov

Sutskever et al. 2013, in PyTorch's form (lr outside the momentum).
"""

from typing import NamedTuple

from ..contract import Signed

SLOTS = (Signed("m", optional=True),)


class Coefficients(NamedTuple):
    """What the kernel must know of one step; filled by a rule in float64, rounded once by the backend."""

    grad_scale: float  # multiplies g first: 1/loss scale; negative to maximize
    l2: float  # coupled weight decay, added to g
    momentum: float  # 0 at the first step, when m is g itself
    one_minus_dampening: float  # 1 at the first step
    grad_step: float  # lr; 0 for heavy-ball
    momentum_step: float  # lr; lr·momentum for Nesterov; unused without momentum


def momentum(p, g, m, c):
    """One element, or whole arrays, of one step: (p, g, m) -> (p, m)."""
    g = c.grad_scale * g + c.l2 * p
    update = c.grad_step * g
    if m is not None:
        m = c.momentum * m + c.one_minus_dampening * g
        update = update + c.momentum_step * m
    p = p - update
    return p, m
