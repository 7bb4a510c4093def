"""The plan of compiled kernels on the CPU: addresses in a table, one native call per signature."""

from collections import deque
from collections.abc import Sequence
from itertools import starmap
from operator import call, setitem
from struct import Struct
from typing import Any

import numpy as np

from fastadam.arrays import Array
from fastadam.plan import Plan


class NumbaPlan(Plan):
    """Addresses in a table, and one native call per signature, which also advances the counts."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        from fastadam.kernels.cpu import ndarray, threads, traversal
        from fastadam.kernels.cpu.elements import TAGS

        self._threads, self._traversal = threads, traversal
        self._table = np.array(
            [
                [0 if x is None else x.ctypes.data for x in streams]
                for streams in [*self._streams, [None, self._zeros, *(None for _ in self._kernel.slots)]]
            ],
            np.uint64,
        )
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
        calls = self._calls_for(workers, dict(enumerate(self._chunks)), self._row, self._rows, self._counts)
        self._calls[workers] = calls
        return calls

    def _calls_for(
        self, workers: int, chunks: dict[int, Array], row: Array, rows: Array, counts: Array
    ) -> list[tuple[Any, ...]]:
        walk = self._traversal.walk_for(workers)
        calls: list[tuple[Any, ...]] = []
        for k, some in chunks.items():
            advancing = counts[: len(counts) * (len(calls) == len(chunks) - 1)]  # the last call advances the counts
            args = (self._table, self._tags[k], some, _spans(some, workers), row, rows, advancing, self._carried)
            calls.append((self._traversal.compiled_for(walk, args), *args))
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

    def launch_some(
        self, chunks: Sequence[Array], row: Array, rows: Array, counts: Array, after: Sequence[tuple[Any, Any, Any]]
    ) -> None:
        some = self._by_signature(chunks)
        if not some:  # rows of no leaf: only counts to advance
            some = {0: self._chunks[0][:0]}
        finish = [(setitem, *one) for one in after]
        workers = self._threads.threads_for(sum(int((c[:, 2] * (c[:, 5] + 1)).sum()) for c in some.values()))

        def run(workers: int) -> None:
            deque(starmap(call, [*self._calls_for(workers, some, row, rows, counts), *finish]), maxlen=0)

        if workers == 1:
            run(1)
        else:
            self._threads.exclusively(run, workers)

    def _run(self, workers: int) -> None:
        calls = self._calls.get(workers) or self._prepare(workers)
        if len(calls) == 1:
            walk, *args = calls[0]
            walk(*args)
        else:  # in C from the first call to the last: no signal handler runs between two signatures of one step
            deque(starmap(call, calls), maxlen=0)


def _spans(chunks: Array, workers: int) -> Array:
    """(workers, 8) int64, a cache line each: next, first and last + 1 chunk of a worker's share, equal in elements."""
    before = np.concatenate([[0], np.cumsum(chunks[:, 2] * (chunks[:, 5] + 1))])
    cuts = np.searchsorted(before, before[-1] * np.arange(workers + 1) / workers)
    spans = np.zeros((workers, 8), np.int64)
    spans[:, 1], spans[:, 2] = cuts[:-1], cuts[1:]
    return spans
