"""Lets parameters hold their averages for a while, and masters follow their parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

from fastadam.plans.chores import Chores
from fastadam.plans.streams import Streams
from fastadam.rule import Rule


class Averaging:
    """Is the part of an optimizer that swaps averages in and takes over parameters, of arrays and of tensors alike."""

    rule: ClassVar[type[Rule]]
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
        if self._chores.ema_decay is None and self.rule.averaged_slot is None:
            raise ValueError("averaged() needs averages: expected an optimizer made with ema_decay")
        if self._averaging:
            raise RuntimeError("averaged() is in use already: params hold the averaged weights")
        with self._on_stream():
            averaged = self._averages()
            before = [copied(streams.p) for streams, _ in averaged]
        try:
            self._averaging = True
            with self._on_stream():
                for streams, average in averaged:
                    streams.p[...] = average
            yield
        finally:
            with self._on_stream():
                for (streams, _), values in zip(averaged, before, strict=True):
                    streams.p[...] = values
            self._averaging = False

    def _averages(self) -> list[tuple[Streams, Any]]:
        """Return what each parameter holds within `averaged`: its average over the steps, else the method's own."""
        if self._chores.ema_decay is not None:
            return [(streams, streams.ema) for streams in self._kept() if streams.ema is not None]
        return [
            (
                streams,
                streams.p + extrapolation * (z - streams.p)
                if streams.master is None
                else streams.master + extrapolation * (z - streams.master),
            )
            for streams, z, extrapolation in self._averaged_slots()
        ]

    def _averaged_slots(self) -> Iterable[tuple[Streams, Any, float]]:
        """Return, for each parameter that has one, the slot that the method's own average is told from; see Rule."""
        raise NotImplementedError

    def refresh_master(self) -> None:
        """Take over parameters of 16 bits that were overwritten from outside: their master gets their values.

        With master="remainder": a remainder left beside other parameters makes them numbers near them, within half of
        bfloat16's last place, and 0 beside 0 or a number that small. With "float32" there is no need: a step takes over
        each value that is not its master rounded to nearest, to the bit; one that is, is no change.
        """
        self.check_idle("masters inside averaged() would be taken from the averages")
        kept = self._kept()
        with self._on_stream():
            for streams in kept:
                if streams.master is not None:
                    streams.master[...] = streams.p
                if streams.low is not None:
                    streams.low[...] = 0

    def check_idle(self, what: str = "a step inside averaged() would be lost") -> None:
        """Raise RuntimeError within `averaged`."""
        if self._averaging:
            raise RuntimeError(f"{what}: params hold the averaged weights there")


def copied(x: Any) -> Any:
    """Return a copy of an array, or of a tensor, in memory of its own."""
    return x.clone() if hasattr(x, "clone") else x.copy()
