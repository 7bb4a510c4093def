"""Exchange: gradients that each rank collects, swapped in buckets, handed to their owners in one order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from fastadam.arrays.host import Array
from fastadam.checks import integer
from fastadam.distributed.buffers import Buffers
from fastadam.distributed.engine import Engine, Wait
from fastadam.kernels.formats import DTYPES, FLOATS, compute

NO_GRADIENT = "no gradient"  # what a buffer's gradients are where all are None
Owned = list[list[Array] | None]  # per buffer, of each bucket what one rank owns; None without a gradient


class Item(NamedTuple):
    """Holds gradients that are exchanged together.

    order:   their place among those of all ranks, in which they are added; None for that of their rank.
    batches: of how many micro-batches they are the sum.
    flats:   per buffer, a flat array, or None.
    """

    order: int | None
    batches: int
    flats: list[Array | None]


class Exchange:
    """Holds what a rank has collected for the next step, and carries it to its owners."""

    def __init__(self, engine: Engine, buffers: Buffers, cuts: list[list[list[int]]], reproducible: str | bool) -> None:
        self._engine, self._buffers, self._cuts, self._reproducible = engine, buffers, cuts, reproducible
        self._items: list[Item] = []
        self._room: dict[Any, Array] = {}  # what is received into

    @property
    def nbytes(self) -> int:
        """Return the bytes that others' gradients are received into, and of what has been accumulated."""
        collected = [x for item in self._items for x in item.flats if x is not None]
        return sum(x.nbytes for x in (*self._room.values(), *collected))

    def add(self, grads: Any, index: int | None) -> None:
        """Keep a micro-batch's gradients for the next step."""
        flats = self._buffers.flatten(grads, "grads")
        if self._reproducible == "micro":
            number = integer("index", index, low=0)
            if any(item.order == number for item in self._items):
                raise ValueError(f"index is {number} for the second time, expected another for each micro-batch")
            self._items.append(Item(number, 1, [None if x is None else x.copy() for x in flats]))
            return
        if index is not None:
            raise ValueError(f"index is {index!r}, expected None without reproducible='micro'")
        wide = [None if x is None else compute(x.dtype) for x in flats]
        if not self._items:
            totals = [None if x is None else np.array(x, w) for x, w in zip(flats, wide, strict=True)]
            self._items = [Item(None, 1, totals)]
            return
        (before,) = self._items
        for k, (total, x) in enumerate(zip(before.flats, flats, strict=True)):
            if total is None and x is not None:
                before.flats[k] = np.array(x, wide[k])
            elif total is not None and x is not None:
                with np.errstate(all="ignore"):
                    total += x.astype(total.dtype, copy=False)
        self._items = [before._replace(batches=before.batches + 1)]

    def take(self, grads: Any) -> list[Item]:
        """Return what this rank gives to the next step: these gradients, or without them what has been collected."""
        if grads is None:
            if not self._items and self._reproducible != "micro":
                raise ValueError("step() got no grads and nothing has been accumulated: expected one of them")
            return self._items
        if self._items:
            raise ValueError("grads are given, and some have been accumulated: expected step() for these, or forget()")
        if self._reproducible == "micro":
            raise ValueError("grads are given, expected accumulate(grads, index=...) with reproducible='micro'")
        return [Item(None, 1, self._buffers.flatten(grads, "grads"))]

    def forget(self) -> None:
        """Drop what has been collected."""
        self._items = []

    def kinds(self, items: Sequence[Item]) -> list[tuple[str, Any]] | None:
        """Return what ranks must agree on, (what, value) for each buffer; None where this rank has nothing to give."""
        kinds: list[tuple[str, Any]] = []
        for buffer, *flats in zip(self._buffers, *(item.flats for item in items), strict=True) if items else ():
            dtypes = {NO_GRADIENT if x is None else x.dtype.name for x in flats}
            if len(dtypes) > 1:
                raise ValueError(f"grads{buffer.name} are {' and '.join(sorted(dtypes))}, expected one kind of them")
            if self._reproducible is False and not dtypes & {NO_GRADIENT, *(dtype.name for dtype in DTYPES)}:
                difference = f"grads{buffer.name} are {min(dtypes)} and reproducible is False"
                raise TypeError(f"{difference}: expected float32 or float64, which engines add")
            kinds.append((f"as grads{buffer.name}", min(dtypes)))
        return kinds if items else None

    def swap(
        self, items: Sequence[Item], said: Sequence[Sequence[tuple[int | None, int]]], kinds: Sequence[tuple[str, Any]]
    ) -> list[tuple[int, Owned]]:
        """Return (micro-batches, what this rank owns of their gradients) of all ranks, in the order of addition.

        said: per rank, (order, batches) of each of its items. kinds: what they have agreed on.
        """
        everyone = [[(rank if k is None else k, n) for k, n in of_rank] for rank, of_rank in enumerate(said)]
        dtypes = [None if kind == NO_GRADIENT else FLOATS[kind].dtype for _, kind in kinds]
        if self._reproducible is False:
            return [(sum(batches for ((_, batches),) in everyone), self._reduced(items[0]))]
        orders = [order for of_rank in everyone for order, _ in of_rank]
        if len(set(orders)) < len(orders):
            twice = next(order for order in orders if orders.count(order) > 1)
            raise ValueError(f"index is {twice} on two ranks, expected another for each micro-batch")
        arrivals: dict[int, tuple[int, Owned]] = {}
        waits = []
        for turn in range(max(map(len, everyone))):
            senders = {rank: of_rank[turn] for rank, of_rank in enumerate(everyone) if turn < len(of_rank)}
            flats = items[turn].flats if turn < len(items) else [None] * len(dtypes)
            for order, batches in senders.values():
                arrivals[order] = batches, [None if dtype is None else [] for dtype in dtypes]
            for k, (dtype, flat, of_buffer) in enumerate(zip(dtypes, flats, self._cuts, strict=True)):
                for at, cut in enumerate(of_buffer if dtype is not None else ()):
                    wait, parts = self.swap_bucket((turn, k, at), cut, flat, senders, dtype)
                    waits.append(wait)
                    for rank, (order, _) in senders.items():
                        arrivals[order][1][k] += [parts[rank]]  # type: ignore[operator]
        for wait in waits:
            wait()
        return [arrivals[order] for order in sorted(arrivals)]

    def swap_bucket(
        self, key: tuple[int, ...], cut: list[int], flat: Array | None, senders: Iterable[int], dtype: Any
    ) -> tuple[Wait, dict[int, Array]]:
        """Begin to exchange one bucket; return the wait for it, and where each sender's part for this rank goes."""
        rank, size = self._engine.rank, self._engine.size
        n = cut[rank + 1] - cut[rank]
        parts = {sender: self._space((*key, sender), n, dtype) for sender in senders if sender != rank}
        receives = [parts.get(sender) for sender in range(size)]
        sends: list[Any] = [None] * size
        if flat is not None:
            parts[rank] = flat[cut[rank] : cut[rank + 1]]
            sends = [None if to == rank else flat[cut[to] : cut[to + 1]] for to in range(size)]
        return self._engine.swap(sends, receives), parts

    def _space(self, key: Any, n: int, dtype: Any) -> Array:
        """Return memory to receive n elements into, kept for the next step."""
        if key not in self._room or self._room[key].dtype != dtype:
            with self._buffers.near():
                self._room[key] = self._buffers.home.allocate(n, dtype)
        return self._room[key]

    def _reduced(self, item: Item) -> Owned:
        """Return what this rank owns of the sums that the engine makes."""
        rank, waits = self._engine.rank, []
        pieces: Owned = []
        for k, (flat, of_buffer) in enumerate(zip(item.flats, self._cuts, strict=True)):
            if flat is None:
                pieces.append(None)
                continue
            totals = []
            for at, cut in enumerate(of_buffer):
                parts = [flat[a:b] for a, b in pairwise(cut)]
                totals.append(self._space((k, at), cut[rank + 1] - cut[rank], flat.dtype))
                waits.append(self._engine.reduce(parts, totals[-1]))
            pieces.append(totals)
        for wait in waits:
            wait()
        return pieces
