"""Holds what one launch needs: the leaves of one signature, their chunks on the device, and the table of a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastadam.arrays.host import Array
from fastadam.cuda.nvrtc import function
from fastadam.cuda.upload import BY_VALUE, Uploaded
from fastadam.kernels.contract import Kernel
from fastadam.kernels.cuda import THREADS, WORDS, Instantiation, Riding
from fastadam.kernels.formats import FLOAT32, format_of
from fastadam.kernels.streams import Columns
from fastadam.plans.gradients import Kind

CHUNK = np.dtype([("first", "i8"), ("leaf", "i4"), ("n", "i4")])
UPLOADED = np.dtype([("leaves", "i8"), ("arrays", "i8"), ("words", "u8")])
WINDOW = np.dtype([("rows", "u8"), ("at", "u8"), ("width", "i8")])
NO_WINDOW = np.zeros((), WINDOW)
ROWS = np.dtype(
    [(name, "i8") for name in ["count", "width", "threads"]]
    + [(name, "u8") for name in ["leaf", "values", "first", "missed", "start", "place", "last"]]
)


def chunk_table(sizes: Sequence[int], heads: Sequence[int], most: int) -> Array:
    """Return the chunks of at most `most` elements of leaves of these sizes, the first of each shorter by its head.

    A head is the number of elements from the last address before a leaf that allows a whole access: after a shorter
    first chunk, all others begin at such an address.
    """
    counts = -(-(np.array(sizes, np.int64) + heads) // most) * (np.array(sizes, np.int64) > 0)
    table = np.zeros(counts.sum(), CHUNK)
    leaf = np.repeat(np.arange(len(sizes)), counts)
    place = np.arange(len(table)) - np.repeat(np.cumsum(counts) - counts, counts)  # 0, 1, ... within each leaf
    start, head, size = place * most, np.array(heads, np.int64)[leaf], np.array(sizes, np.int64)[leaf]
    first, end = np.maximum(start - head, 0), np.minimum(start + most - head, size)
    table["leaf"], table["first"], table["n"] = leaf, first, end - first
    return table


class Touched(NamedTuple):
    """Holds the rows of one leaf that are stepped, as Rows of traversal.cu holds them.

    values: flat, on the device; None where every gradient is 0. The arrays: int64, on the host.
    """

    leaf: int
    width: int
    values: Any
    first: Array
    missed: Array
    start: Array
    place: Array


class Ahead(Protocol):
    """Is what launches ask of a window.Window, which knows the plan: the rows of steps to come, and the counter."""

    of: dict[Any, Array]
    at: Any


class RowTable(NamedTuple):
    """Says what a launch's table tells of the leaves and of the steps, beside addresses.

    most:    how many rows of coefficients a step has at the most.
    columns: which columns of these rows kernels read; the last is the key of random bits where `firsts` are given.
    firsts:  per leaf, the index of its first element among all, which random bits depend on; nothing without them.
    """

    most: int
    columns: Array
    firsts: Sequence[int] = ()


class Notes(NamedTuple):
    """Says where what one signature's steps and gradients show is noted down.

    number:    which of the norm's signatures it is.
    addresses: per leaf, of its ruling and of its notes; nothing where rows have no numbers of chores.
    counter:   the address of how many values masters take over.
    """

    number: int = 0
    addresses: Sequence[Sequence[int]] = ()
    counter: int = 0


class Signature:
    """Steps by one launch the leaves whose streams have the same formats.

    The table of a step holds, for each leaf, the addresses of the arrays that its gradient comes as and a row's number,
    then the rows. It travels as a kernel parameter where it fits, else it is uploaded.
    """

    def __init__(
        self, kernel: Kernel | None, leaves: list[int], streams: Sequence[Columns], g: Kind, rows: RowTable,
        chores: Riding, notes: Notes,
    ) -> None:  # fmt: skip
        """Lay out the tables. kernel: None adds gradients up. streams: per leaf, what is stepped.

        chores: but for what the streams tell.
        """
        import cupy

        (most_rows, columns, firsts), (number, more, counter) = rows, notes
        name, on = ("accumulate", frozenset[str]()) if kernel is None else (kernel.name, kernel.on)
        kinds = Columns.of(None if x is None else format_of(x.dtype) for x in streams[leaves[0]].row)
        drawn = bool(firsts) and kinds.p.compute is FLOAT32.compute
        followed = kinds.rounded is not None
        copied = kinds.rounded if followed else kinds.copy
        chores = chores._replace(ema=kinds.ema, copy=copied, followed=followed)
        chores = chores._replace(more=bool(more) and not chores.rides, drawn=drawn)
        formats = kinds.p, format_of(g.dtype), *kinds.slots
        self._steps = tuple(
            Instantiation(name, table, formats, chores, kinds.low is not None, on, several=g.arrays > 1)
            for table in ("ByValue", "Uploaded")
        )
        self._functions: list[Any] = [None, None]
        self.type, self.summed = self._steps[0].type, chores.summed
        self.leaves, self.real, self._columns, width = np.array(leaves), self._steps[0].real, columns, len(columns)
        self.number, self.kind, self._unrounded, self._drawn = number, g, chores.scaled, drawn
        self._rounded = width - bool(firsts)
        width = self._rounded + chores.scaled * 8 // self.real.itemsize + drawn
        self.width = width
        columns_of_leaf = []
        for leaf in leaves:
            at = Columns.of(0 if x is None else x.data.ptr for x in streams[leaf].row)
            riding = [at.ema, at.rounded if followed else at.copy, *more[leaf]] if more else []
            of_p = [*([] if kinds.low is None else [at.low]), *([counter] if followed else [])]
            columns_of_leaf.append([at.p, *at.slots, *riding, *of_p, *firsts[leaf : leaf + drawn]])
        self.threads, self.threads_of_sums = self._steps[0].threads, self._steps[0].sums.threads
        self._places = [at // kinds.p.bytes for at, *_ in columns_of_leaf]  # in elements
        heads = [0 if self._steps[0].blocked else place % self._steps[0].width for place in self._places]
        chunks = chunk_table([streams[leaf].p.size for leaf in leaves], heads, self._steps[0].chunk)
        self.blocks = len(chunks)
        self._blocks_before = np.searchsorted(chunks["leaf"], np.arange(len(leaves) + 1))  # each leaf's
        self._chunks, self._addresses = (
            cupy.asarray(chunks.view(np.uint8)),
            cupy.asarray(np.array(columns_of_leaf, np.uint64)),
        )
        n = len(leaves)
        self._rows_at = n * g.arrays + (n + 1) // 2
        self._by_value, self._uploaded = np.zeros((), BY_VALUE), np.zeros((), UPLOADED)
        for table in (self._by_value, self._uploaded):
            table["leaves"], table["arrays"] = n, g.arrays
        self._most = self._words(most_rows)
        self.words = self._by_value["words"] if self._most <= WORDS else np.zeros(self._most, np.uint64)
        self._row = self.words[n * g.arrays : self._rows_at].view(np.int32)[:n]
        rest = self.words[self._rows_at :].view(self.real)
        self._coefficients = rest[: len(rest) // width * width].reshape(-1, width)
        self._upload: Any = None
        self._seen, self._used, self._device = b"", 0, self._chunks.device.id

    @property
    def gradient(self) -> str:
        """Return the CUDA type of its gradients."""
        return self._steps[0].gradient

    def place(self, k: int, addresses: Sequence[int]) -> None:
        """Take the addresses of the arrays that the gradient of the k-th of these leaves comes as."""
        self.words[k : k + len(addresses) * len(self.leaves) : len(self.leaves)] = addresses

    def _words(self, rows: int) -> int:
        """Return how many words of 8 bytes a table with so many rows takes."""
        words: int = self._rows_at + -(-rows * self.width * int(self.real.itemsize) // 8)
        return words

    def launch(self, row: Array, rows: Array, window: Any) -> tuple[Any, ...]:
        """Return the call that steps these leaves: (function, grid, block, arguments). Uploads what does not fit into
        it."""
        if (seen := row.tobytes()) != self._seen:
            self._seen, self._row[:] = seen, row[self.leaves]
            self._used = int(self._row.max(initial=-1)) + 1
        used = self._used if window is NO_WINDOW else 0
        self._coefficients[:used] = self.packed(rows[:used, self._columns])
        step, table, words = self.load(used)
        if table is self._uploaded:
            self._upload(self.words[:words])
        elif words:
            table["words"][:words] = self.words[:words]
        return step, (self.blocks,), (self.threads,), (self._chunks, self._addresses, table, window)

    def packed(self, rows: Array) -> Array:
        """Return rows of float64 as the kernel reads them: rounded; the gradient's scale once more as it was, where
        norm.cu multiplies it; the key of random bits, folded to 32, where any are drawn."""
        if rows.shape[-1] == self._rounded == self.width:
            return rows
        with np.errstate(all="ignore"):
            pieces = [rows[..., : self._rounded].astype(self.real)]
        if self._unrounded:
            pieces.append(rows[..., :1].copy().view(self.real))
        if self._drawn:
            key = rows[..., -1:].astype(np.uint64)
            pieces.append((key ^ key >> np.uint64(32)).astype(np.uint32).view(self.real))
        return np.concatenate(pieces, axis=-1)

    def load(self, rows: int, ahead: bool = False) -> tuple[Any, Array, int]:
        """Return the function for a table with so many rows, compiled or loaded; that table, with memory for it; its
        words if they are to be copied there.

        ahead: whether all that a graph will need is to be loaded, too.
        """
        if self._most <= WORDS:
            return self._functions[0] or self._function(0), self._by_value, 0
        words = self._words(rows)
        table = self._by_value if words <= WORDS else self._uploaded
        if table is self._uploaded and self._upload is None:
            self._upload = Uploaded(8 * self._most)
            table["words"] = self._upload.address
        if ahead and table is self._uploaded:
            self._upload.load()
        return self._function(int(table is self._uploaded)), table, words

    def _function(self, which: int) -> Any:
        """Return the function of whole leaves whose table travels by value (0), or is uploaded (1)."""
        if self._functions[which] is None:
            self._functions[which] = function(self._device, self._steps[which])
        return self._functions[which]

    def load_sums(self, table: Array) -> Any:
        """Return the function that adds up what steps by such a table must know first, compiled or loaded."""
        return function(self._device, self._steps[int(not table.dtype["words"].shape)].sums)

    def launch_some(self, row: Array, rows: Array) -> Iterator[tuple[Any, ...]]:
        """Yield the calls that step these leaves, one for each run of leaves whose row is not -1."""
        edges = np.flatnonzero(np.diff(row[self.leaves] >= 0, prepend=False, append=False))
        runs = [(a, b) for a, b in self._blocks_before[edges].reshape(-1, 2).tolist() if a < b]
        if runs:
            step, _, block, (chunks, *rest) = self.launch(row, rows, NO_WINDOW)
            for a, b in runs:
                yield step, (b - a,), block, (chunks[a * CHUNK.itemsize : b * CHUNK.itemsize], *rest)

    def launch_rows(self, k: int, touched: Touched, at: int) -> tuple[Any, ...]:
        """Return the call that steps rows of the k-th of these leaves; touched.table(...) lies at that address."""
        p, _, *slots = self._steps[0].streams
        g = format_of(self.kind.dtype if touched.values is None else touched.values.dtype)
        step = self._steps[0]._replace(table="Rows", streams=(p, g, *slots), several=False)
        phases = (self._places[k] + touched.first) % step.width
        told = np.zeros((), ROWS)
        told["count"], told["width"] = len(touched.first), touched.width
        told["threads"] = threads = int((-(-(touched.width + phases) // step.width)).max())
        told["leaf"] = self._addresses[k : k + 1].data.ptr
        told["values"] = 0 if touched.values is None else touched.values.data.ptr
        tables = touched.first, touched.missed, touched.start, touched.place
        for name, table in zip(("first", "missed", "start", "place"), tables, strict=True):
            told[name], at = at, at + table.nbytes
        told["last"] = at + int(touched.missed.max()) * self.width * self.real.itemsize
        grid = (-(-len(touched.first) * threads // THREADS),)
        return function(self._device, step), grid, (THREADS,), (told,)

    def table(self, touched: Touched, row: int, rows: Array) -> Array:
        """Return what launch_rows finds on the device, in whole words: the rows, then the coefficients of all their
        steps."""
        numbers = self.packed(rows[row - int(touched.missed.max()) : row + 1, self._columns]).astype(self.real)
        words = np.zeros(-(-numbers.nbytes // 8), np.int64)
        words.view(self.real)[: numbers.size] = numbers.reshape(-1)
        return np.concatenate([touched.first, touched.missed, touched.start, touched.place, words])
