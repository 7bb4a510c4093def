"""Says the order of a leaf's streams once: NumPy's walk, compiled code and CUDA's tables all follow `Columns`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple


class Several(tuple[Any, ...]):
    """Is several arrays in the place of one, whose elements are added in their order in the compute type."""


class Columns(NamedTuple):
    """Holds one thing for each stream of a leaf, such as its array, its address, its name or its place in a row of
    them.

    p:       what is stepped.
    g:       its gradient, which is only read, or zeroed; or Several.
    slots:   one for each of the kernel's slots.
    ema:     the average of p.
    copy:    p in a short format, which is only written.
    low:     the 16 bits that p, in bfloat16, lacks.
    rounded: p rounded to nearest in a short format; where it is not, it was set from outside, and p takes its value.

    None stands for an absent stream. The fields are in the order of columns, the slots spread out: see `row`.
    """

    p: Any
    g: Any
    slots: tuple[Any, ...] = ()
    ema: Any = None
    copy: Any = None
    low: Any = None
    rounded: Any = None

    @property
    def row(self) -> tuple[Any, ...]:
        """Return all of them, in the order of columns."""
        return self.p, self.g, *self.slots, self.ema, self.copy, self.low, self.rounded

    @classmethod
    def of(cls, row: Iterable[Any]) -> Columns:
        """Return the inverse of `row`; of range(n), the places of a row's n streams."""
        p, g, *slots, ema, copy, low, rounded = row
        return cls(p, g, tuple(slots), ema, copy, low, rounded)
