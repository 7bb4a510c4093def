"""Arriving: gradients that a program hands in one after the other, whose exchange begins as buckets fill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fastadam.arrays.host import Array
from fastadam.distributed.buffers import Buffers
from fastadam.distributed.engine import Engine, Wait
from fastadam.distributed.exchange import Exchange, Owned
from fastadam.kernels.formats import FLOATS

IN_FLIGHT = 2  # buckets that are under way at once


class Filling(NamedTuple):
    """Holds one bucket's gradients, and which leaves have none there yet."""

    values: Array
    missing: set[int]


class Arriving:
    """Collects the gradients of one step by leaf. A bucket is sent once it is full and those behind it have been sent.

    So all ranks send in one order, from the last bucket to the first, in whatever order gradients come; a program hands
    them in as a backward pass makes them. A bucket's memory is given up once it has been sent.
    """

    def __init__(self, buffers: Buffers, exchange: Exchange, cuts: list[list[list[int]]], engine: Engine) -> None:
        self._buffers, self._exchange, self._cuts = buffers, exchange, cuts
        self._rank, self._ranks = engine.rank, engine.size
        self._waiting = [(k, at) for k, of_buffer in enumerate(cuts) for at in range(len(of_buffer))]
        self._filling: dict[tuple[int, int], Filling] = {}
        self._under_way: list[tuple[int, int, Array, Wait, dict[int, Array]]] = []
        self._parts: dict[tuple[int, int], dict[int, Array]] = {}  # by bucket and rank, what has arrived
        self._dtypes: dict[int, str] = {}  # by buffer
        self.lacking = list(buffers.structure.names)  # the paths of the leaves that are still to come

    def take(self, path: str, g: Any) -> None:
        """Take one leaf's gradient. Raises TypeError, ValueError naming what does not fit, before anything is sent."""
        if path not in self.lacking:
            raise ValueError(f"grads{path} is handed in for the second time, expected once before each step()")
        leaf = self._buffers.structure.names.index(path)
        k, buffer = next((k, buffer) for k, buffer in enumerate(self._buffers) if leaf in buffer.leaves)
        values, first = buffer.straight_leaf(leaf, g)
        if values.dtype.name != self._dtypes.setdefault(k, values.dtype.name):
            difference = f"grads{path} is {values.dtype}, others are {self._dtypes[k]}"
            raise TypeError(f"{difference}: expected one dtype for all parameters of a group and a dtype")
        for at, cut in enumerate(self._cuts[k]):
            low, high = max(cut[0], first), min(cut[-1], first + values.size)
            if low < high:
                bucket = self._bucket(k, at, values.dtype)
                bucket.values[low - cut[0] : high - cut[0]] = values[low - first : high - first]
                bucket.missing.discard(leaf)
        self.lacking.remove(path)
        self._send()

    def _bucket(self, k: int, at: int, dtype: Any) -> Filling:
        if (k, at) not in self._filling:
            cut, buffer = self._cuts[k][at], [*self._buffers][k]
            with self._buffers.near():
                values = self._buffers.home.allocate(cut[-1] - cut[0], dtype)
            self._filling[k, at] = Filling(values, buffer.leaves_within(cut[0], cut[-1]))
        return self._filling[k, at]

    def _send(self) -> None:
        """Begin to exchange what is full, in the one order of all ranks."""
        while self._waiting:
            k, at = self._waiting[-1]
            cut, filling = self._cuts[k][at], self._filling.get((k, at))
            if cut[0] < cut[-1]:
                if filling is None or filling.missing:
                    return
                values = self._filling.pop((k, at)).values
                bounds = [place - cut[0] for place in cut]
                begun = self._exchange.swap_bucket((0, k, at), bounds, values, range(self._ranks), values.dtype)
                self._under_way.append((k, at, values, *begun))
            self._waiting.pop()
            if len(self._under_way) > IN_FLIGHT:
                self._settle()

    def _settle(self) -> None:
        """Wait for the bucket that has been under way longest, and keep of what was sent this rank's own part alone."""
        k, at, _, wait, parts = self._under_way.pop(0)
        wait()
        self._parts[k, at] = {rank: x.copy() if rank == self._rank else x for rank, x in parts.items()}

    @property
    def nbytes(self) -> int:
        """Return the bytes of gradients that wait to be sent, are under way, or are this rank's own part."""
        leaving = [filling.values for filling in self._filling.values()] + [
            values for _, _, values, *_ in self._under_way
        ]
        return sum(x.nbytes for x in (*leaving, *(parts[self._rank] for parts in self._parts.values())))

    @property
    def begun(self) -> dict[tuple[int, int], str]:
        """Return what this rank has begun to send, by bucket in which dtype."""
        sent = {}
        for k, of_buffer in enumerate(self._cuts):
            for at, cut in enumerate(of_buffer):
                if cut[-1] > cut[0] and (k, at) not in self._waiting:
                    sent[k, at] = self._dtypes[k]
        return sent

    def drop(self, everyone: Sequence[dict[tuple[int, int], str]]) -> None:
        """Finish, with all ranks, each bucket that any of them has begun to send, and keep nothing."""
        while self._waiting:
            k, at = self._waiting.pop()
            dtype = next((begun[k, at] for begun in everyone if (k, at) in begun), None)
            if dtype is not None and (k, at) not in everyone[self._rank]:
                cut = self._cuts[k][at]
                values = self._buffers.home.allocate(cut[-1] - cut[0], FLOATS[dtype].dtype)
                bounds = [place - cut[0] for place in cut]
                parts = self._exchange.swap_bucket((0, k, at), bounds, values, range(self._ranks), values.dtype)
                self._under_way.append((k, at, values, *parts))
        while self._under_way:
            self._settle()

    @property
    def kinds(self) -> list[tuple[str, Any]]:
        """Return what ranks must agree on, (what, value) for each buffer. Raises ValueError where a leaf is lacking."""
        if self.lacking:
            raise ValueError(f"grads{self.lacking[0]} has not been handed in, expected the gradients of all parameters")
        return [(f"as grads{buffer.name}", self._dtypes[k]) for k, buffer in enumerate(self._buffers)]

    def arrived(self) -> list[tuple[int, Owned]]:
        """Return (1, what this rank owns of the gradients) of each rank, once all have come."""
        while self._under_way:
            self._settle()
        owned: list[Owned] = [[[] for _ in self._cuts] for _ in range(self._ranks)]
        for k, (buffer, of_buffer) in enumerate(zip(self._buffers, self._cuts, strict=True)):
            for at in range(len(of_buffer)):
                for rank, pieces in enumerate(owned):
                    pieces[k] += [self._parts[k, at][rank] if buffer.n else buffer.array]  # type: ignore[operator]
        return [(1, pieces) for pieces in owned]
