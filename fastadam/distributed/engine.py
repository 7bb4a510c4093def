"""Engine: what a sharded step asks of whoever carries bytes between processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastadam.arrays.host import Array

Wait = Callable[[], None]  # returns once what was begun has arrived
Part = Any  # a flat array, or None for nothing


class Engine:
    """Stands for the processes that step together. Each of its calls is made by all of them, in the same order.

    rank, size: this process among them. carries: where arrays lie that it takes, "host" or "device" or both.

    >>> class OneProcess(fa.distributed.Engine):
    ...     def everyone(self, x):
    ...         return [x]
    ...     def swap(self, sends, receives):
    ...         return lambda: None
    >>> opt = fa.distributed.Sharded(fa.SGD, np.ones(3, np.float32), OneProcess(), lr=0.5)
    >>> opt.step(np.ones(3, np.float32)).skipped
    False
    """

    rank = 0
    size = 1
    carries: tuple[str, ...] = ("host",)

    def swap(self, sends: Sequence[Part], receives: Sequence[Part]) -> Wait:
        """Begin to send sends[k] to rank k and to receive from it into receives[k]; None, or no element, for nothing.

        Neither may be touched before the returned function has been called; what a rank has for itself is None.
        """
        raise NotImplementedError

    def reduce(self, parts: Sequence[Part], total: Part) -> Wait:
        """Begin to add up what all ranks have as parts[rank] into `total`, in whatever order is fastest."""
        raise NotImplementedError

    def everyone(self, x: Any) -> list[Any]:
        """Return a small object of every rank, in their order."""
        raise NotImplementedError

    def words(self, x: Array) -> Array:
        """Return (size, n) what each rank gives, (n,) numbers of 8 bytes: int64 on all or float64, as many on all."""
        return np.stack(self.everyone(x))

    def share(self, x: Part) -> Wait:
        """Begin to give every rank what each has; x: for every rank, a part of the same array, this rank's own full."""
        sent = x[self.rank]
        sends = [None if k == self.rank else sent for k in range(self.size)]
        return self.swap(sends, [None if k == self.rank else part for k, part in enumerate(x)])


class Alone(Engine):
    """Is one process: nothing is carried anywhere."""

    carries = "host", "device"

    def swap(self, sends: Sequence[Part], receives: Sequence[Part]) -> Wait:
        return nothing

    def reduce(self, parts: Sequence[Part], total: Part) -> Wait:
        total[...] = parts[0]
        return nothing

    def everyone(self, x: Any) -> list[Any]:
        return [x]


def nothing() -> None:
    """Wait for what is there already."""
