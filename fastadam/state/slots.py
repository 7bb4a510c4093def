"""Holds the memory that an optimizer keeps beside its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastadam.arrays.host import Array, Host, describe, flat, memory_order, shaped_like
from fastadam.group import Group, sums_first
from fastadam.kernels.codes import codes_and_scales
from fastadam.kernels.contract import Kernel, Slot, Weights
from fastadam.kernels.formats import CODES, REMAINDER, Format, decoded, encoded, format_of
from fastadam.plans.storage import Storage
from fastadam.plans.streams import Streams, labels
from fastadam.rule import Rule


class Leaves(NamedTuple):
    """Holds what the user gave for each leaf.

    paths:  its path in the user's tree, such as ['w'].
    owners: what holds it: an array, a FlatBuffer around it, another library's array.
    params: its array.
    copies: copy_to's array, flat; None without copy_to.
    """

    paths: Sequence[str]
    owners: Sequence[Any]
    params: Sequence[Array]
    copies: Sequence[Array] | None = None


class State:
    """Holds the memory of every leaf: slots, averages, masters and remainders, beside the parameters that they belong
    to.

    paths, owners, params: see Leaves. streams: per leaf, its memory by name.
    """

    def __init__(
        self, kernel: Kernel, groups: Sequence[Group], leaves: Leaves, home: Host, storage: Storage, averages: bool
    ) -> None:
        """Allocate all of it. averages: whether there are any."""
        self.kernel, self.home, self.storage = kernel, home, storage
        self.paths, self.owners, self.params, copies = leaves
        self.groups = groups
        self._formats = [format_of(p.dtype) for p in self.params]
        for path, p, kind in zip(self.paths, self.params, self._formats, strict=True):
            storage.check(f"params{path}", kind, describe(p))
            if copies is not None and storage.has_master(kind):
                difference = f"copy_to{path} is given, expected None with master='float32': params{path} is that copy"
                raise ValueError(difference)
        self.streams = [Streams(flat(p)) for p in self.params]
        for streams, x in zip(self.streams, copies or (), strict=False):
            streams.copy = x
        everyone = range(len(self.params))
        split = [k for k in everyone if storage.has_remainder(self._formats[k])]
        mastered = [k for k in everyone if storage.has_master(self._formats[k])]
        with self.on_stream():
            self._make_slots()
            for leaf, x in self._beside("ema", everyone if averages else (), wide):
                self.streams[leaf].ema = x
                x[:] = self.streams[leaf].p
            for leaf, x in self._beside("low", split, lambda p: REMAINDER):
                self.streams[leaf].low = x
            for leaf, x in self._beside("master", mastered, wide):
                self.streams[leaf].master = x
                x[:] = self.streams[leaf].p

    def _make_slots(self) -> None:
        """Allocate the slots, and fill them with what each leaf's rule begins with."""
        slots: list[list[Array | None]] = [[None] * len(self.kernel.slots) for _ in self.params]
        for k, slot in enumerate(self.kernel.slots):
            having = [leaf for group in self.groups for leaf in group.leaves if group.has(slot)]
            for leaf, x in self._beside(slot.name, having, partial(self.storage.slot_format, slot=slot)):
                slots[leaf][k] = x
        for streams, of_leaf in zip(self.streams, slots, strict=True):
            streams.slots = of_leaf
        for group in self.groups:
            for leaf in group.leaves:
                self._begin_slots(leaf, group.rule)

    def _begin_slots(self, leaf: int, rule: Rule) -> None:
        """Fill a leaf's slots with what its rule begins with, where that is not 0."""
        initial = rule.initial()
        for slot, x in zip(self.kernel.slots, self.streams[leaf].slots, strict=True):
            if x is not None and isinstance(slot, Weights):
                x[:] = self.streams[leaf].p
            elif x is not None and slot.name in initial:
                start = np.full(self.params[leaf].size, initial[slot.name], self._formats[leaf].compute)
                self.home.write(x, encoded(start, x, slot))

    def renew(self, leaf: int) -> None:
        """Let a leaf's memory be as construction would leave it beside the parameter as it is now."""
        streams = self.streams[leaf]
        with self.on_stream():
            for x in (*streams.slots, streams.low):
                if x is not None:
                    x[:] = 0
            for x in (streams.ema, streams.master):
                if x is not None:
                    x[:] = streams.p
            self._begin_slots(leaf, next(group.rule for group in self.groups if leaf in group.leaves))

    def _beside(
        self, name: str, leaves: Sequence[int], format_for: Callable[[Format], Format]
    ) -> Iterator[tuple[int, Array]]:
        """Yield (leaf, zeros) of a stream of these leaves, one piece of memory for all that rest alike."""
        column = [*(slot.name for slot in self.kernel.slots), "ema", "copy", "low", "master"].index(name)
        for of_p in {self._formats[leaf] for leaf in leaves}:
            alike, kind = [leaf for leaf in leaves if self._formats[leaf] is of_p], format_for(of_p)
            params = [self.params[leaf] for leaf in alike]
            sizes = [kind.length(p.size) for p in params]
            yield from zip(alike, self.home.allocate_beside(params, column, kind.dtype, sizes), strict=True)

    def on_stream(self) -> AbstractContextManager[Any]:
        """Within it, work on this memory comes after the steps before, and before those after."""
        return self.home.near(self.params, self.owners)

    @property
    def draws(self) -> bool:
        """Return whether anything is rounded by random bits."""
        return any(format_of(x.dtype).draws for streams in self.streams for x in streams if x is not None)

    def views(self, leaf: int) -> dict[str, Array]:
        """Return the state of one leaf by name, in its parameter's shape and memory order.

        A slot of 8 bits is two arrays: its codes (blocks, 1024), and under name_scales (blocks, 16) float32; see order.
        """
        arrays: dict[str, Array] = {}
        for name, x in zip(labels(self.kernel).kept, self.streams[leaf].kept, strict=True):
            if x is not None and format_of(x.dtype).block > 1:
                arrays[name], arrays[f"{name}_scales"] = codes_and_scales(x)
            elif x is not None:
                arrays[name] = shaped_like(x, self.params[leaf])
        return arrays

    def order(self, leaf: int) -> dict[str, list[int]]:
        """Return {"order": a leaf's axes from the slowest in memory to the fastest}, which blocks of 8 bits follow, if
        any."""
        coded = any(x is not None and format_of(x.dtype).block > 1 for x in self.streams[leaf].slots)
        return {"order": list(memory_order(self.params[leaf]))} if coded else {}

    def read(self, leaf: int, copied: bool = True) -> dict[str, Any]:
        """Return what views and order say of one leaf, as NumPy's arrays; copied=False: the views themselves."""
        with self.on_stream():
            arrays = {name: self.home.get(x) if copied else x for name, x in self.views(leaf).items()}
        return {**self.order(leaf), **arrays}

    def write(self, leaf: int, values: dict[str, Any]) -> None:
        """Take over what `read` gave of a leaf of this shape; blocks of another order of axes are rounded anew."""
        with self.on_stream():
            values = self._in_order(leaf, values)
            for name, x in self.views(leaf).items():
                if name in values:
                    self.home.write(x, values[name])
                else:  # what was idle there
                    x[...] = 0

    def _in_order(self, leaf: int, values: dict[str, Any]) -> dict[str, Any]:
        """Return a leaf's state with its blocks of 8 bits in p's order in memory, if they are in another."""
        p = self.params[leaf]
        orders = values.get("order", ()), memory_order(p)
        before, now = ([axis for axis in axes if p.shape[axis] > 1] for axes in orders)
        if "order" not in values or before == now:
            return values
        turned, shape = dict(values), [p.shape[axis] for axis in values["order"]]
        for slot in self.kernel.slots:
            scales = f"{slot.name}_scales"
            if scales in values:
                coded = np.empty(CODES.length(p.size), CODES.dtype)
                for part, given in zip(codes_and_scales(coded), (values[slot.name], values[scales]), strict=True):
                    part[...] = given
                straight = CODES.decode(coded, slot, p.size).reshape(shape).transpose(np.argsort(values["order"]))
                coded = CODES.encode(straight.transpose(memory_order(p)).reshape(-1), slot, None)
                turned[slot.name], turned[scales] = codes_and_scales(coded)
        return turned

    def moments(self) -> dict[str, dict[str, Array]]:
        """Return each leaf's slots by name, in its parameter's shape and compute dtype; see Optimizer.moments."""
        slots: dict[str, dict[str, Array]] = {f"params{path}": {} for path in self.paths}
        for of_leaf, p, streams, kind in zip(slots.values(), self.params, self.streams, self._formats, strict=True):
            for slot, x in zip(self.kernel.slots, streams.slots, strict=True):
                if x is not None and format_of(x.dtype) is not wide(kind):
                    with self.on_stream():
                        x = self.home.put(self.values(x, slot, p))
                if x is not None:
                    of_leaf[slot.name] = shaped_like(x, p)
        return slots

    def values(self, x: Array, slot: Slot, p: Array) -> Array:
        """Return a slot's values in the compute dtype, on the host."""
        with np.errstate(all="ignore"):
            values: Array = decoded(self.home.get(x), slot, p.size, format_of(p.dtype).compute)
            return values

    def converted(self, moments: str | None) -> State:
        """Return a state whose slots rest in another format, rounded to nearest, and which shares all else."""
        other = copy(self)
        other.storage = replace(self.storage, moments=moments)
        for path, p, kind in zip(self.paths, self.params, self._formats, strict=True):
            other.storage.check(f"params{path}", kind, describe(p))
        other.streams = [replace(streams, g=None) for streams in self.streams]
        with np.errstate(all="ignore"), self.on_stream():
            other._make_slots()
            for p, old, new in zip(self.params, self.streams, other.streams, strict=True):
                for slot, x, y in zip(self.kernel.slots, old.slots, new.slots, strict=True):
                    if x is not None:
                        self.home.write(y, encoded(self.values(x, slot, p), y, slot))
        return other

    def fill_copies(self, leaves: Iterable[int]) -> None:
        """Round the parameters of some leaves into copy_to's arrays."""
        with np.errstate(all="ignore"), self.on_stream():
            for streams in (self.streams[leaf] for leaf in leaves):
                if streams.copy is not None:
                    values = self.home.get(streams.p).astype(np.float32)
                    self.home.write(streams.copy, values.astype(streams.copy.dtype))

    @property
    def nbytes(self) -> int:
        """Return the bytes of slots, averages, masters and remainders."""
        return sum(x.nbytes for streams in self.streams for x in streams.kept if x is not None)

    def bytes_per_step(self, gradients: int) -> int:
        """Return the bytes that a step reads and writes which passes over the gradients so many times."""
        total = 0
        for group in self.groups:
            for streams in self.streams[group.leaves.start : group.leaves.stop]:
                row, p = streams.columns, streams.p.nbytes
                summed, read, written = self.kernel.walked(group.rule.options, [x is not None for x in row.slots])
                total += p * (gradients + summed.g) + (0 if streams.copy is None else streams.copy.nbytes)
                parts = [x.nbytes for x in (row.p, row.low, row.rounded) if x is not None]  # read and written together
                total += sum(parts) * (2 + summed.p) + (0 if row.ema is None else 2 * row.ema.nbytes)
                walks = zip(summed.slots, read.slots, written.slots, strict=True)
                for x, (in_sums, in_step, changes) in zip(row.slots, walks, strict=True):
                    if x is not None:
                        coded = format_of(x.dtype).block > 1  # blocks are decoded by every walk
                        in_sums = in_sums or (coded and sums_first(group))
                        total += x.nbytes * ((in_step or coded) + in_sums + changes)
        return total


def wide(p: Format) -> Format:
    """Return what averages and masters of a parameter in this format rest in: that of the arithmetic."""
    return format_of(p.compute)
