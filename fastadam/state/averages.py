"""Lets parameters hold their averages for a while, and masters follow their parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from fastadam.plans.chores import Chores
from fastadam.plans.streams import Streams


class Averaging:
    """Is the part of an optimizer that swaps averages in and takes over parameters, of arrays and of tensors alike."""

    _chores: Chores
    _averaging: bool

    def _kept(self) -> Iterable[Streams]:
        """Return the parameters, brought to date, and what is kept beside them: all as the processor of each writes
        them."""
        raise NotImplementedError

    def _on_stream(self) -> AbstractContextManager[Any]:
        """Within it, work on the parameters comes after the steps before, and before those after."""
        return nullcontext()

    @property
    def averaging(self) -> bool:
        """Return whether params hold the averaged weights: within `averaged`."""
        return self._averaging

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Swap the averages in: within `with opt.averaged():` params hold the averaged weights, and get their own bits
        back afterwards."""
        if self._chores.ema_decay is None:
            raise ValueError("averaged() needs averages: expected an optimizer made with ema_decay")
        if self._averaging:
            raise RuntimeError("averaged() is in use already: params hold the averaged weights")
        averaged = [streams for streams in self._kept() if streams.ema is not None]
        with self._on_stream():
            before = [copied(streams.p) for streams in averaged]
        try:
            self._averaging = True
            with self._on_stream():
                for streams in averaged:
                    streams.p[...] = streams.ema
            yield
        finally:
            with self._on_stream():
                for streams, values in zip(averaged, before, strict=True):
                    streams.p[...] = values
            self._averaging = False

    def refresh_master(self) -> None:
        """Take over parameters of 16 bits that were overwritten from outside: their master gets their values.

        Without it the next step goes on from the master; a remainder left beside other parameters makes it a number
        near them: within half of bfloat16's last place, and 0 beside 0 or a number that small.
        """
        self._check_idle("masters inside averaged() would be taken from the averages")
        kept = self._kept()
        with self._on_stream():
            for streams in kept:
                if streams.master is not None:
                    streams.master[...] = streams.p
                if streams.low is not None:
                    streams.low[...] = 0

    def _check_idle(self, what: str = "a step inside averaged() would be lost") -> None:
        if self._averaging:
            raise RuntimeError(f"{what}: params hold the averaged weights there")


def copied(x: Any) -> Any:
    """Return a copy of an array, or of a tensor, in memory of its own."""
    return x.clone() if hasattr(x, "clone") else x.copy()
