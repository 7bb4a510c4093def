"""Plans the steps of compiled kernels on the CPU: addresses in a table, one native call per signature."""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain, starmap
from operator import call, setitem
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

from fastadam.arrays.host import Array, target
from fastadam.kernels.chores import NOTES
from fastadam.kernels.formats import format_of
from fastadam.kernels.streams import Columns, Several
from fastadam.plans.gradients import Kind
from fastadam.plans.plan import Plan, Work
from fastadam.plans.streams import Streams, labels

G = Columns._fields.index("g")  # its place in a row of addresses
MORE = 2  # rows behind those of spans: room for a set of cores
THERE = np.uint8(1)  # what a tag holds for a flag that is set
PIECES: dict[Any, int] = {}  # of all plans: addresses of compiled code by what it was compiled for


class Calls(NamedTuple):
    """Holds native calls, a function and its arguments each, and the arrays whose addresses they hold."""

    calls: list[tuple[Any, ...]]
    arrays: list[Any]

    def run(self, after: Sequence[tuple[Any, Any, Any]] = ()) -> None:
        """Make the calls, then x[where] = values for each of `after`, in C from the first to the last: no signal
        handler runs between two signatures of one step.

        While this runs, the arrays live: memory that is free a moment too early looks untouched for long.
        """
        deque(chain(starmap(call, self.calls), starmap(setitem, after)), maxlen=0)


class NumbaPlan(Plan):
    """Steps by addresses in a table and by one native call per signature, which also advances the counts."""

    def __init__(self, *args: Any) -> None:
        from fastadam.host import threads
        from fastadam.kernels.cpu import elements, ndarray, norm, traversal

        self._elements, self._ndarray, self._norm = elements, ndarray, norm
        self._threads, self._traversal = threads, traversal
        self._lists: dict[int, Array] = {}  # per leaf, how many arrays its gradient comes as, and where they begin
        self._pieces = PIECES
        super().__init__(*args)
        self._table = self._addresses()
        self._size = sum(self._sizes())
        self._objects, self._format = np.zeros(len(self._params), np.int64), Struct(f"{len(self._params)}q")
        self._look_at_grads()
        threads.refresh_if_old()
        self._prepare(1)  # the way out in a forked child, or while another thread walks, must not wait for a compiler
        self._prepare(threads.threads_for(self._size))

    def _addresses(self) -> Array:
        """Return a row a leaf, and one for the zeros: where streams begin; last, the index of the first element."""
        zeros = Streams(None, self._zeros, [None] * len(self._kernel.slots))
        streams, names = [*self._streams, zeros], [*self._names, labels(self._kernel, " of nothing")]
        written = [x.map(lambda x, name: target(name, x), of_leaf) for x, of_leaf in zip(streams, names, strict=True)]
        firsts = [*self._firsts, 0]
        return np.array(
            [[*(address or 0 for address in x.columns.row), first] for x, first in zip(written, firsts, strict=True)],
            np.uint64,
        )

    def move(self, owners: Sequence[Any], streams: Sequence[Streams]) -> None:
        strides = [p.strides for p in self._params]
        super().move(owners, streams)
        self._table[:] = self._addresses()
        self._look_at_grads(anew=strides != [p.strides for p in self._params])

    def _look_at_grads(self, anew: bool = True) -> None:
        """Lay out what tells at a glance whether gradients are like those before. anew: what they are like, too."""
        if anew:
            dtypes = [kind.dtype for kind in self._kinds]
            self._grads = [_like(p, dtype) for p, dtype in zip(self._params, dtypes, strict=True)]
        ids = [np.array(list(map(id, each)), np.int64) for each in (self._params, self._anchors, self._grads)]
        nbytes = np.array([p.size * g.itemsize for p, g in zip(self._params, self._grads, strict=True)], np.int64)
        starts, ends = (np.ascontiguousarray(x, np.int64) for x in (self._memory.starts, self._memory.ends))
        seen = self._ndarray.Headers(
            leaves=len(self._params), objects=_at(self._objects), params=_at(ids[0]), anchors=_at(ids[1]),
            grads=_at(ids[2]), nbytes=_at(nbytes), none=id(None), ndarray=id(np.ndarray),
            pieces=len(starts), starts=_at(starts), ends=_at(ends),
            table=_at(self._table), columns=self._table.shape[1],
        )  # fmt: skip
        self._glance = np.array(seen, np.int64)
        self._glance_at, self._glanced = _at(self._glance), (*ids, nbytes, starts, ends)

    def _lay_out(self, kinds: Sequence[Kind]) -> None:
        super()._lay_out(kinds)
        # Gradients that will be written need a closer look, and so do those that come as several arrays.
        closely = self._flags.clear or any(flags.several for flags in self._flags_of)
        self._natively = self._ndarray.place() if self._ndarray.readable() and not closely else None
        switches = [THERE if name in self._kernel.on else None for name in self._kernel.switches]
        self._tags = []
        for formats, flags in zip(self._formats, self._flags_of, strict=True):
            marks = [THERE if flag else None for flag in flags]
            self._tags.append(self._elements.TAGS[self._kernel.name](*formats.row, *marks, *switches))
        self._calls: dict[Any, Calls] = {}  # of whole steps, made once
        if hasattr(self, "_table"):
            self._look_at_grads()

    def _prepare(self, workers: int) -> Calls:
        """Return the native calls of a step on so many threads, compiled or loaded."""
        if workers not in self._calls:
            for one in self._summing:
                self._piece(self._summing_tag(one))
            where = self._table, self.table.row, self.table.rows
            self._calls[workers] = self._calls_for(workers, self.everything, self._tags, *where, True)
        return self._calls[workers]

    def _calls_for(
        self, workers: int, work: Sequence[Work], tags: Sequence[Any],
        table: Array, row: Array, rows: Array, counted: bool,
    ) -> Calls:  # fmt: skip
        """Return a native call for each signature; the last advances the counts."""
        walk = self._traversal.walk()
        layer = self._traversal.layer() if workers > 1 else None
        if layer is None and workers > 1:
            self._threads.without_layer()
            workers = 1
        counts, carried = self.table.counts, self.table.carried
        arrays: list[Any] = [table, row, rows, counts, carried]
        table_at, row_at, rows_at, counts_at, carried_at = map(_at, arrays)
        calls: list[tuple[Any, ...]] = []
        for one, tag in zip(work, tags, strict=True):
            chunks, spans = np.ascontiguousarray(one.chunks), _spans(one.chunks, workers)
            job = self._traversal.Job(
                self._piece(tag), *(layer or (0, 0, 0, 0)), workers=workers, spans=_at(spans), chunks=_at(chunks),
                table=table_at, columns=table.shape[1], leaves=len(table) - 1,
                row=row_at, rows=rows_at, numbers=rows.shape[1],
                counts=counts_at, counted=len(counts) * (counted and one is work[-1]),
                carried=carried_at, carries=carried.shape[1], notes=_at(one.notes), blocks=one.notes.shape[1],
            )  # fmt: skip
            words = np.array(job, np.int64)
            arrays += [chunks, spans, one.notes, words]
            calls.append((walk, _at(words)))
        return Calls(calls, arrays)

    def _piece(self, tag: Any) -> int:
        """Return the address of the compiled piece for a tag. To look it up by the types of the tag takes 0.1 ms."""
        kind = type(tag), *tag
        if kind not in self._pieces:
            self._pieces[kind] = self._traversal.piece(tag)
        return self._pieces[kind]

    def _run_all(self, work: Sequence[Work], tags: Sequence[Any], after: Sequence[Any], *where: Any) -> None:
        """Run a walk with these tags over this work, on as many threads as it is worth, then `after`, in one go."""

        def run(workers: int) -> None:
            self._calls_for(workers, work, tags, *where).run(after)

        self._on_threads(run, _elements(work))

    def _on_threads(self, run: Callable[[int], None], size: int) -> None:
        workers = self._threads.threads_for(size)
        if workers == 1:
            run(1)
        else:
            self._threads.exclusively(run, workers)

    def accept(self, grads: list[Any]) -> int:
        if self._natively is not None and not (self.copies and any(not x.flags.writeable for x in self.copies)):
            self._format.pack_into(self._objects.data, 0, *map(id, grads))
            missing: int = self._natively(self._glance_at)
            if missing >= 0:
                return missing
        return super().accept(grads)

    def _place(self, leaf: int, g: Array | Several) -> None:
        if isinstance(g, Several):
            self._lists[leaf] = np.array([len(g), *(x.ctypes.data for x in g)], np.int64)
            self._table[leaf, G] = _at(self._lists[leaf])
        else:
            self._table[leaf, G] = g.ctypes.data

    def launch(self, after: Sequence[tuple[Any, Any, Any]] = ()) -> None:
        if self.unread:
            super().launch(after)
        elif self._size < self._threads.PARALLEL_FROM:
            self._run(1, after)
        else:
            self._on_threads(lambda workers: self._run(workers, after), self._size)

    def _run(self, workers: int, after: Sequence[tuple[Any, Any, Any]]) -> None:
        walks = self._calls.get(workers) or self._prepare(workers)
        if len(walks.calls) == 1 and not after:
            walk, job = walks.calls[0]
            walk(job)
        else:
            walks.run(after)

    def launch_some(
        self, work: Sequence[Work], row: Array, rows: Array, after: Sequence[tuple[Any, Any, Any]], counted: bool = True
    ) -> None:
        tags = [self._tags[one.signature] for one in work]
        self._run_all(work, tags, after, self._table, row, rows, counted)

    def _measure(self, work: Sequence[Work], row: Array, squares: bool, largest: bool) -> None:
        flags = THERE if squares else None, THERE if largest else None

        def make(workers: int) -> Calls:
            of_work = [self._tags[one.signature] for one in work]
            tags = [self._elements.Measure(tag.p, tag.g, *flags, tag.several) for tag in of_work]
            return self._calls_for(workers, work, tags, self._table, row, self.table.rows, False)

        def run(workers: int) -> None:
            key = "measure", squares, largest, workers
            self._once(key, work, row, lambda: make(workers)).run()

        self._on_threads(run, self._size if work[0].chunks is self.everything[0].chunks else _elements(work))

    def _summing_tag(self, work: Work) -> Any:
        """Return the tag of the walk that adds up before a step of this work."""
        return self._tags[work.signature]._replace(summing=THERE, clear=None, stats=None)

    def _sum_up(self, work: Sequence[Work]) -> None:
        def make(workers: int) -> Calls:
            tags = [self._summing_tag(one) for one in work]
            return self._calls_for(workers, work, tags, self._table, self.table.row, self.table.rows, False)

        def run(workers: int) -> None:
            if ("summing", workers) not in self._calls:
                self._calls["summing", workers] = make(workers)
            self._calls["summing", workers].run()

        self._on_threads(run, self._size)

    def _once(self, key: Any, work: Sequence[Work], row: Array, make: Callable[[], Calls]) -> Calls:
        """Return make(), or what it made before for the whole of the parameters: gathering its addresses takes 20
        µs."""
        if row is not self.table.row or work[0].chunks is not self.everything[0].chunks:
            return make()
        if key not in self._calls:
            self._calls[key] = make()
        return self._calls[key]

    def accumulate(self, totals: Sequence[Array], row: Array, after: Sequence[tuple[Any, Any, Any]]) -> None:
        sums = [target("what was accumulated", x) for x in totals]
        table = np.array([sums, self._table[: len(totals), G]], np.uint64).T.copy()
        work = [one._replace(notes=one.notes[:0]) for one in self.everything]
        clear = THERE if self._flags.clear else None
        first = [totals[leaf] for leaf in self._first_leaves]
        tags = [
            self._elements.Accumulate(format_of(x.dtype), tag.g, clear)
            for x, tag in zip(first, self._tags, strict=True)
        ]
        self._run_all(work, tags, [*self.unread, *after], table, row, self.table.rows, False)

    def sums(self, work: Sequence[Work], row: Array) -> Array:
        def make() -> Calls:
            sums, native = np.zeros((len(self._params), NOTES)), self._norm.sums()
            chunks = [np.ascontiguousarray(one.chunks) for one in work]
            calls = [
                (native, _at(chunk), len(chunk), _at(one.notes), one.notes.shape[1], _at(row), _at(sums))
                for one, chunk in zip(work, chunks, strict=True)
            ]
            return Calls(calls, [row, *chunks, *(one.notes for one in work), sums])

        calls = self._once(("sums", id(work[0].notes)), work, row, make)
        sums: Array = calls.arrays[-1]
        sums[:] = 0
        calls.run()
        return sums


def _at(x: Array) -> int:
    """Return where an array's memory begins, which native code takes to be without gaps."""
    assert x.flags.c_contiguous
    assert x.itemsize == 8
    address: int = x.ctypes.data
    return address


def _like(p: Array, dtype: Any) -> Array:
    """Return an array without memory of its own, of p's shape and order of axes in another dtype."""
    strides = [stride // p.itemsize * np.dtype(dtype).itemsize for stride in p.strides]
    return np.lib.stride_tricks.as_strided(np.empty(1, dtype), p.shape, strides)


def _elements(work: Sequence[Work]) -> int:
    """Return how many elements a walk steps, missed steps counted."""
    return sum(int((one.chunks[:, 2] * (one.chunks[:, 5] + 1)).sum()) for one in work)


def _spans(chunks: Array, workers: int) -> Array:
    """Return (workers + MORE, 8) int64, a cache line each: next, first and last + 1 chunk of a worker's share, equal in
    elements; then room for a set of cores, see kernels/cpu/cores.py."""
    before = np.concatenate([[0], np.cumsum(chunks[:, 2] * (chunks[:, 5] + 1))])
    cuts = np.searchsorted(before, before[-1] * np.arange(workers + 1) / workers)
    spans = np.zeros((workers + MORE, 8), np.int64)
    spans[:workers, 1], spans[:workers, 2] = cuts[:-1], cuts[1:]
    return spans
