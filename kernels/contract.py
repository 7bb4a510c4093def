"""Says what a kernel is made of: slots, switches, coefficients, an element; and the functions that NumPy lacks.

A kernel with SUMS is one whose step needs sums over a leaf first. Its element has a number more for each of them,
behind the slots: given 0, returned as what is added up over the leaf; given and returned None where a rule does
without. The module's `judged` turns the sums into the last coefficient, `factor`, which a rule leaves at 1.

A kernel with Judging is one whose sums go over all leaves. Its `judged` makes of them, and of what the rule carries,
what is carried on, by numbers of the whole step, Judging: the first of what is carried is the coefficient before
`factor` as it was before the step, and `factor` as it is after.

An element function is plain Python that runs on NumPy arrays, and on numbers that write down code (cpu/tracing.py),
alike. It may use + - * /, `np.sqrt`, `np.abs`, and `maximum`, `sign`, `select` and `agreement` from here: NumPy's own
differ from Numba's in the sign of zero, and CUDA's `fmax` drops NaN.
"""

from collections.abc import Callable, Iterable, Sequence
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


class Exact(Slot):
    """Rests as the arithmetic is, whatever moments rest in: a short format would lose what is added to it."""


class Weights(Exact):
    """Begins as p: another set of parameters."""


@dataclass(frozen=True)
class Summand:
    """Is a number of each element that is added up over a leaf. Its class says how."""

    name: str
    optional: bool = False  # the element gets None where a rule does without it


class Euclidean(Summand):
    """Stands for the square root of the sum of its squares."""


class Total(Summand):
    """Stands for the sum itself."""


class Kernel(NamedTuple):
    """Is one element function with what it needs.

    switches: its arguments behind the coefficients, each True or False: decided when it is compiled, so that a walk
        that does without one is as if there were none. on: those that are True.
    judged: (elements, *sums of a leaf, Coefficients) -> the factor, all of it float64, of many leaves at once as well.
    Judging: where sums go over all leaves, what judged must know: (*sums of all, *what is carried, Judging) -> what is
        carried on.
    """

    name: str
    element: Callable[..., Any]
    slots: tuple[Slot, ...]
    Coefficients: type
    switches: tuple[str, ...] = ()
    sums: tuple[Summand, ...] = ()
    judged: Callable[..., Any] | None = None
    Judging: type | None = None
    on: frozenset[str] = frozenset()

    def switched(self, options: Iterable[str]) -> "Kernel":
        """Return this kernel with those of its switches on that are among the options."""
        return self._replace(on=frozenset(self.switches).intersection(options))

    def step(self, *values: Any) -> Any:
        """Return what the element function makes of (p, g, *slots, *sums, coefficients) under these switches."""
        return self.element(*values, **dict.fromkeys(self.on, True))

    @property
    def streams(self) -> Columns:
        """Return the name of each stream."""
        return Columns("p", "g", tuple(slot.name for slot in self.slots), "ema", "copy", "low", "rounded")

    @classmethod
    def of(cls, module: ModuleType) -> "Kernel":
        """Return the kernel that a folder of kernels/ holds: the function bears the folder's name."""
        name = module.__name__.rpartition(".")[2]
        switches, sums = getattr(module, "SWITCHES", ()), getattr(module, "SUMS", ())
        judged, judging = getattr(module, "judged", None), getattr(module, "Judging", None)
        return cls(name, getattr(module, name), module.SLOTS, module.Coefficients, switches, sums, judged, judging)

    def summed(self, options: frozenset[str]) -> bool:
        """Return whether a rule that uses these options needs the sums: a kernel's are all optional, or none is."""
        return any(not each.optional or each.name in options for each in self.sums)

    def walked(self, options: frozenset[str], present: Sequence[bool]) -> tuple[Columns, Columns, Columns]:
        """Return what the walks of a rule that uses these options read and write: see `reached`."""
        return self.switched(options).reached(self.summed(options), present)

    def reached(self, summing: bool, present: Sequence[bool]) -> tuple[Columns, Columns, Columns]:
        """Return which of p, g and the slots the sums are made of, if `summing`, which a step reads, and which it
        writes, where these slots are present.

        Told from numbers: of NaN in a stream come NaN in what is made of it, and what is not written is not replaced.
        """
        c = self.Coefficients(*[1.0] * len(self.Coefficients._fields))  # type: ignore[attr-defined]
        # Numbers that differ, each an object of its own: a stream that becomes another one's value is written.
        values: list[Any] = [1.0, 2.0, *(3.0 + k if kept else None for k, kept in enumerate(present))]

        def outcome(values: list[Any]) -> tuple[Any, Any, Any]:
            return self.stepped(summing, 0.0, values[0], values[1], values[2:], c)

        def uses(k: int) -> tuple[bool, bool]:
            """Return whether stream k shows in the sums, and in what is stored."""
            with_nan = [*values[:k], np.nan, *values[k + 1 :]]
            p, slots, summands = outcome(with_nan)
            stored = [p, *(y for x, y in zip(with_nan[2:], slots, strict=True) if x is not y)]
            return summing and any(map(np.isnan, summands)), any(map(np.isnan, stored))

        used = [(False, False) if x is None else uses(k) for k, x in enumerate(values)]
        summed, read = (Columns(p, g, tuple(slots)) for p, g, *slots in zip(*used, strict=True))
        written = tuple(x is not y for x, y in zip(values[2:], outcome(values)[1], strict=True))
        return summed, read, Columns(True, False, written)

    def stepped(self, summed: bool, nought: Any, p: Any, g: Any, slots: Sequence[Any], c: Any) -> tuple[Any, Any, Any]:
        """Return p and the slots after a step of one element, or of whole arrays, and what is added up, if `summed`."""
        new, n = self.step(p, g, *slots, *[nought if summed else None] * len(self.sums), c), 1 + len(self.slots)
        return new[0], new[1:n], new[n:]


def maximum(a, b):
    """Return the larger one; NaN if either is NaN; b where they are equal, so maximum(-0.0, 0) is 0.0."""
    return np.where((a > b) | (a != a), a, b)


def where(truth, a, b):
    """Return a where there is truth, else b."""
    return np.where(truth, a, b)


def sign(x):
    """Return -1, 1, NaN, or +0.0 for either zero."""
    return np.sign(x) + np.zeros_like(x)  # -0.0 + 0.0 is 0.0


def select(x, a, b):
    """Return b where x is below 0, else a: where x is either zero or NaN, too."""
    return np.where(x < 0, b, a)


def agreement(u, g):
    """Return 1 where a step u and the gradient g have the same sign, NaN where either is NaN, else 0."""
    return maximum(sign(u) * sign(g), 0)


def inverse_share(n, agree):
    """Return 1 over the share of a leaf's n elements that agree, taken for no less than a thousandth; in float64."""
    return 1 / maximum(agree / n, 0.001)
