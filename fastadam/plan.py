"""Plans: everything about one optimizer that one processor needs and that construction can work out.

A plan takes this step's gradients, then launches.
"""

from collections import deque
from collections.abc import Sequence
from itertools import starmap, zip_longest
from operator import call, setitem
from struct import Struct
from typing import Any

import numpy as np

from fastadam.arrays import Array, Memory, describe, flat, flat_like, shaped_like
from fastadam.flat import FlatBuffer
from fastadam.kernels.contract import Kernel

CHUNK = 8_192  # elements: four float32 streams of 32 KiB stay in L2; 4,096 and 16,384 measured the same (2 Zen 4 cores)


class Plan:
    """The work of one optimizer on host arrays, laid out once.

    kernel:  the element function.
    names:   per leaf, what errors call its streams: params['w'], grads['w'], m['w'], ...
    params:  per leaf, the user's array (checked before), or the FlatBuffer that holds it.
    slots:   per leaf, a flat array for each slot in p's memory order; None for an absent one.
    row:     (leaves + 1,) int64: which row of `rows` each leaf takes this step, -1 to leave it alone.
    rows:    (rows, coefficients + carried) float64.
    counts:  (leaves + 1,) int64: the steps that each leaf has taken; the last is the optimizer's own count.
    carried: (leaves + 1, carried) float64: what the rule accumulates for each leaf, copied from its row by each step.
    """

    def __init__(
        self,
        kernel: Kernel,
        names: Sequence[Sequence[str]],
        params: Sequence[Any],
        slots: Sequence[Sequence[Array | None]],
        row: Array,
        rows: Array,
        counts: Array,
        carried: Array,
    ) -> None:
        self._kernel, self._names, self._owners = kernel, names, params
        self._row, self._rows, self._counts, self._carried = row, rows, counts, carried
        self._params: list[Array] = [p.array if isinstance(p, FlatBuffer) else p for p in params]
        self._streams: list[list[Any]] = [[flat(p), None, *own] for p, own in zip(self._params, slots, strict=True)]
        owned = [
            (label, x)
            for labels, streams in zip(names, self._streams, strict=True)
            for label, x in zip(labels, streams, strict=True)
            if x is not None
        ]
        self._memory = Memory(owned)
        self._scratch: dict[int, Array] = {}
        self._anchors = [p.view(np.ndarray) for p in self._params]  # what each was like at construction
        # Leaves of one dtype with the same slots are one signature: one chunk table, one native call.
        signatures: dict[Any, list[int]] = {}
        for leaf, streams in enumerate(self._streams):
            key = tuple(None if x is None else x.dtype for x in streams)
            signatures.setdefault(key, []).append(leaf)
        self._chunks = [
            np.array(
                [
                    (leaf, first, min(CHUNK, self._params[leaf].size - first))
                    for leaf in leaves
                    for first in range(0, self._params[leaf].size, CHUNK)
                ],
                np.int64,
            ).reshape(-1, 3)
            for leaves in signatures.values()
        ]
        self._first_leaves = [leaves[0] for leaves in signatures.values()]
        # The last call of a step advances the counts; without any leaf there is nothing to call.
        self._advancing = [counts[: len(counts) * (k == len(signatures) - 1)] for k in range(len(signatures))]

    def accept(self, grads: list[Any]) -> int:
        """Take this step's gradients, one per leaf, None among them; returns how many are None.

        Raises TypeError, ValueError naming the leaf and both sides; then nothing has changed.
        """
        usable = [None if g is None else self._usable(leaf, g) for leaf, g in enumerate(grads)]
        for leaf, g in enumerate(usable):
            if g is not None:
                p = self._params[leaf]
                straight = flat_like(g, p)
                if straight is None:  # other strides than p's: copied, in memory kept for the next step
                    if leaf not in self._scratch:
                        self._scratch[leaf] = np.empty(p.size, p.dtype)
                    straight = self._scratch[leaf]
                    np.copyto(shaped_like(straight, p), g)
                self._place(leaf, straight)
        return sum(g is None for g in usable)

    def _usable(self, leaf: int, g: Any) -> Array:
        (p_name, g_name, *_), p, owner = self._names[leaf], self._params[leaf], self._owners[leaf]
        both = f"{g_name} is {describe(g)}, {p_name} is {describe(owner)}"
        anchor = self._anchors[leaf]
        if (p.ctypes.data, p.dtype, p.shape, p.strides) != (
            anchor.ctypes.data, anchor.dtype, anchor.shape, anchor.strides
        ):  # fmt: skip
            raise ValueError(
                f"{p_name} is {describe(p)} and was {describe(anchor)}: expected the memory of construction"
            )
        if not p.flags.writeable:
            raise ValueError(f"{p_name} has become read-only, expected an array that can be updated in place")
        if isinstance(g, FlatBuffer):
            if not isinstance(owner, FlatBuffer):
                raise ValueError(both)
            for own, other in zip_longest(owner.layout(), g.layout(), fillvalue="nothing"):
                if own != other:
                    raise ValueError(f"{g_name} holds {other} where {p_name} holds {own}")
            g = g.array
        if not isinstance(g, np.ndarray) or isinstance(g, np.ma.MaskedArray):
            raise TypeError(f"{both}, expected a numpy.ndarray or None")
        if g.dtype != p.dtype:
            raise TypeError(both)
        if g.shape != p.shape:
            raise ValueError(both)
        if (touched := self._memory.touched_by(g)) is not None:
            raise ValueError(f"{g_name} and {touched} share memory, expected separate arrays")
        return g

    def _place(self, leaf: int, g: Array) -> None:
        self._streams[leaf][1] = g

    def launch(self) -> None:
        """Step every leaf whose row is not -1 and advance the counts."""
        raise NotImplementedError


class NumpyPlan(Plan):
    """The reference: whole-array arithmetic, chunk by chunk."""

    def launch(self) -> None:
        from fastadam.kernels.reference import walk

        # Worked out on copies, then copied in by C from the first array to the last: neither Ctrl-C nor a lack of
        # memory for a temporary leaves a step half done.
        streams = [[x if k == 1 or x is None else x.copy() for k, x in enumerate(own)] for own in self._streams]
        counts, carried = self._counts.copy(), self._carried.copy()
        last = len(self._chunks) - 1
        for k, chunks in enumerate(self._chunks):
            walk(self._kernel, streams, chunks, self._row, self._rows, counts[: len(counts) * (k == last)], carried)
        done = [(self._counts, ..., counts), (self._carried, ..., carried)]
        for own, new in zip(self._streams, streams, strict=True):
            done += [(x, ..., y) for x, y in zip(own, new, strict=True) if x is not y]
            own[1] = None  # a gradient lives no longer than its step
        deque(starmap(setitem, done), maxlen=0)


class NumbaPlan(Plan):
    """Addresses in a table, and one native call per signature, which also advances the counts."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        from fastadam.kernels.cpu import ndarray, threads, traversal
        from fastadam.kernels.cpu.elements import TAGS

        self._threads, self._traversal = threads, traversal
        self._table = np.array(
            [[0 if x is None else x.ctypes.data for x in streams] for streams in self._streams], np.uint64
        ).reshape(len(self._streams), 2 + len(self._kernel.slots))
        self._tags = [
            TAGS[self._kernel.name](p[:0], p[:0], *(None if x is None else x[:0] for x in slots))
            for p, _, *slots in (self._streams[leaf] for leaf in self._first_leaves)
        ]
        self._size = sum(p.size for p in self._params)
        self._calls: dict[int, list[tuple[Any, ...]]] = {}
        self._glance = (
            np.array([id(p) for p in self._params], np.int64),
            np.array([id(anchor) for anchor in self._anchors], np.int64),
            np.array([p.nbytes for p in self._params], np.int64),
            id(None),
            id(np.ndarray),
            self._memory.starts,
            self._memory.ends,
            self._table,
        )
        self._objects, self._format = np.zeros(len(self._params), np.int64), Struct(f"{len(self._params)}q")
        self._natively = (
            traversal.compiled_for(ndarray.place, (self._objects, *self._glance)) if ndarray.readable() else None
        )
        threads.refresh()
        self._prepare(1)  # the way out in a forked child, or while another thread walks, must not wait for a compiler
        self._prepare(threads.threads_for(self._size))

    def _prepare(self, workers: int) -> list[tuple[Any, ...]]:
        """The native calls of a step on so many threads, compiled or loaded."""
        if workers in self._calls:
            return self._calls[workers]
        walk = self._traversal.walk_for(workers)
        calls = []
        for tag, chunks, counts in zip(self._tags, self._chunks, self._advancing, strict=True):
            args = (self._table, tag, chunks, _spans(chunks, workers), self._row, self._rows, counts, self._carried)
            calls.append((self._traversal.compiled_for(walk, args), *args))
        self._calls[workers] = calls
        return calls

    def accept(self, grads: list[Any]) -> int:
        if self._natively is not None:
            self._format.pack_into(self._objects.data, 0, *map(id, grads))
            missing: int = self._natively(self._objects, *self._glance)
            if missing >= 0:
                return missing
        return super().accept(grads)

    def _place(self, leaf: int, g: Array) -> None:
        self._table[leaf, 1] = g.ctypes.data

    def launch(self) -> None:
        workers = self._threads.threads_for(self._size)
        if workers == 1:
            self._run(1)
        else:
            self._threads.exclusively(self._run, workers)

    def _run(self, workers: int) -> None:
        calls = self._calls.get(workers) or self._prepare(workers)
        if len(calls) == 1:
            walk, *args = calls[0]
            walk(*args)
        else:  # in C from the first call to the last: no signal handler runs between two signatures of one step
            deque(starmap(call, calls), maxlen=0)


def _spans(chunks: Array, workers: int) -> Array:
    """(workers, 8) int64, a cache line each: next, first and last + 1 chunk of a worker's share, equal in elements."""
    before = np.concatenate([[0], np.cumsum(chunks[:, 2])])
    cuts = np.searchsorted(before, before[-1] * np.arange(workers + 1) / workers)
    spans = np.zeros((workers, 8), np.int64)
    spans[:, 1], spans[:, 2] = cuts[:-1], cuts[1:]
    return spans
