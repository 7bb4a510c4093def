"""Says what a kernel is made of: slots, coefficients, an element function; and the two functions NumPy lacks.

An element function is plain Python that runs on NumPy arrays, and on numbers that write down code (cpu/tracing.py),
alike. It may use + - * /, `np.sqrt`, `np.abs`, and `maximum` and `sign` from here: NumPy's own differ from Numba's in
the sign of zero, and CUDA's `fmax` drops NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from .streams import Columns


@dataclass(frozen=True)
class Slot:
    """Is one array of state beside p. Its class says how a storage format may round it."""

    name: str
    optional: bool = False  # the element gets None where a rule does without it


class Signed(Slot):
    """Holds any real number: rounded to nearest."""


class NonNegative(Slot):
    """Is never below zero, and moves by less than a short format's spacing: rounded stochastically, never to zero."""


class RunningMax(Slot):
    """Only grows, or decays between maxima: to nearest, because stochastic rounding would ratchet it up."""


class Kernel(NamedTuple):
    """Is one element function with what it needs."""

    name: str
    element: Callable[..., Any]
    slots: tuple[Slot, ...]
    Coefficients: type

    @property
    def streams(self) -> Columns:
        """Return the name of each stream."""
        return Columns("p", "g", tuple(slot.name for slot in self.slots), "ema", "copy", "low")

    @classmethod
    def of(cls, module: ModuleType) -> "Kernel":
        """Return the kernel that a folder of kernels/ holds: the function bears the folder's name."""
        name = module.__name__.rpartition(".")[2]
        return cls(name, getattr(module, name), module.SLOTS, module.Coefficients)


def maximum(a, b):
    """Return the larger one; NaN if either is NaN; b where they are equal, so maximum(-0.0, 0) is 0.0."""
    return np.where((a > b) | (a != a), a, b)


def sign(x):
    """Return -1, 1, NaN, or +0.0 for either zero."""
    return np.sign(x) + np.zeros_like(x)  # -0.0 + 0.0 is 0.0
