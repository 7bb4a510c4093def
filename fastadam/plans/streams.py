"""Names each part of one leaf's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastadam.kernels.contract import Kernel
from fastadam.kernels.streams import Columns


@dataclass(slots=True)
class Streams:
    """Holds one leaf's memory by name: flat arrays in p's order in memory, or one thing for each, such as its format.

    p:      the parameter.
    g:      its gradient, in the step that takes it.
    slots:  one for each of the kernel's slots.
    ema:    the average of the parameter.
    copy:   copy_to's array.
    low:    the 16 bits that a bfloat16 parameter lacks of a float32 one.
    master: the float32 parameter that is stepped in p's place, which holds it rounded.

    None stands for what a leaf does not have.
    """

    p: Any
    g: Any = None
    slots: Sequence[Any] = ()
    ema: Any = None
    copy: Any = None
    low: Any = None
    master: Any = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.p, self.g, *self.slots, self.ema, self.copy, self.low, self.master))

    @property
    def kept(self) -> tuple[Any, ...]:
        """Return those that an optimizer keeps: the slots, the average, the bits that p lacks, the master."""
        return *self.slots, self.ema, self.low, self.master

    @property
    def columns(self) -> Columns:
        """Return those that a step walks over, as the columns of its table: a master in p's place, and p as that
        rounded."""
        p, rounded = (self.p, None) if self.master is None else (self.master, self.p)
        return Columns(p, self.g, tuple(self.slots), self.ema, self.copy, self.low, rounded)

    def map(self, function: Callable[..., Any], *others: Streams) -> Streams:
        """Return function(x) of each that is there, given those in the same place of other streams, too."""
        p, g, *slots, ema, copy, low, master = (
            None if x is None else function(x, *more) for x, *more in zip(self, *others, strict=True)
        )
        return Streams(p, g, slots, ema, copy, low, master)


def labels(kernel: Kernel, path: str = "", p: str = "params", g: str = "grads") -> Streams:
    """Return what errors, and a state_dict, call each stream of a leaf at this path, such as ['w']."""
    slots = [slot.name for slot in kernel.slots]
    return Streams(p, g, slots, "ema", "copy_to", "remainder", "master").map(lambda name: name + path)
