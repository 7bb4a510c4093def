"""Reads hyperparameters as torch's param groups hold them: numbers, tensors and arrays that may change between
steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastadam.group import Group
from fastadam.rule import Rule


def plain(x: Any) -> Any:
    """Return a hyperparameter without tensors and arrays, however deep they lie in tuples and lists."""
    if isinstance(x, (torch.Tensor, np.ndarray, np.generic)):
        x = x.tolist()
    return tuple(map(plain, x)) if isinstance(x, (tuple, list)) else x


def holds_memory(x: Any) -> bool:
    """Return whether a hyperparameter may change in place: in a tensor, an array or a list."""
    return isinstance(x, (torch.Tensor, np.ndarray, list)) or (isinstance(x, tuple) and any(map(holds_memory, x)))


class ParamGroup(Group):
    """Is a group whose lr is torch's: taken over before each step, a number or a tensor of one."""

    def __init__(self, rule: Rule, *rest: Any) -> None:
        super().__init__(rule, *rest)
        self.take(rule.lr, self.max_norm)  # type: ignore[attr-defined]

    def lr_at(self, t: int) -> float:
        lr: Any = self.lr
        return lr.item() if isinstance(lr, torch.Tensor) else lr  # type: ignore[no-any-return]

    def take(self, lr: Any, max_norm: float | None) -> None:
        """Take over what torch's group has of these, which are checked where they are read."""
        self.__dict__.update(lr=lr, max_norm=max_norm)


def differ(now: tuple[Any, ...], before: tuple[Any, ...]) -> bool:
    """Return whether hyperparameters are others than before; arrays in place of numbers are."""
    try:
        return now != before
    except (RuntimeError, ValueError):  # more than one element has no truth value
        return True
