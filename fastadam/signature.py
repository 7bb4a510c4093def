"""What one launch needs: the leaves of one signature, their chunks on the device, and the table of a step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from fastadam.arrays import Array
from fastadam.kernels.cuda import OPTIONS, THREADS, WORDS, Step, source
from fastadam.upload import Uploaded

log = logging.getLogger("fastadam")

CHUNK = np.dtype([("first", "i8"), ("leaf", "i4"), ("n", "i4")])
BY_VALUE = np.dtype([("leaves", "i8"), ("words", "u8", WORDS)])
UPLOADED = np.dtype([("leaves", "i8"), ("words", "u8")])
WINDOW = np.dtype([("rows", "u8"), ("at", "u8"), ("width", "i8")])
NO_WINDOW = np.zeros((), WINDOW)


@cache
def function(device: int, step: Step | None) -> Any:
    """The compiled step, or `advance` for None. CuPy keeps what it compiled on disk; a module belongs to one device."""
    import cupy

    log.debug("compiling or loading %s for cuda:%d", step.name if step else "advance", device)
    module = cupy.RawModule(code=source([step] if step else []), options=OPTIONS)
    return module.get_function(step.name if step else "advance")


def chunk_table(sizes: Sequence[int], heads: Sequence[int], most: int) -> Array:
    """The chunks of at most `most` elements of leaves of these sizes, the first of each shorter by its head.

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


class Signature:
    """The leaves of one dtype with the same slots: what one launch steps.

    The table of a step holds a gradient's address and a row's number for each leaf, then the rows. It travels as a
    kernel parameter where it fits, else it is uploaded.
    """

    def __init__(
        self, kernel: str, leaves: list[int], streams: Sequence[Sequence[Any]], most_rows: int, width: int
    ) -> None:
        import cupy

        first = streams[leaves[0]]
        dtypes = tuple(None if x is None else x.dtype for x in (first[0], first[0], *first[2:]))
        self._steps = Step(kernel, "ByValue", dtypes), Step(kernel, "Uploaded", dtypes)
        self._functions: list[Any] = [None, None]
        self.leaves, self.width, self.real = np.array(leaves), width, self._steps[0].real
        own = [[0 if x is None else x.data.ptr for x in (p, *slots)] for p, _, *slots in (streams[k] for k in leaves)]
        heads = [p // first[0].itemsize % (self._steps[0].chunk // THREADS) for p, *_ in own]
        chunks = chunk_table([streams[leaf][0].size for leaf in leaves], heads, self._steps[0].chunk)
        self.blocks = len(chunks)
        self._chunks, self._own = cupy.asarray(chunks.view(np.uint8)), cupy.asarray(np.array(own, np.uint64))
        n = len(leaves)
        self._rows_at = n + (n + 1) // 2
        self._here, self._there = np.zeros((), BY_VALUE), np.zeros((), UPLOADED)
        self._here["leaves"] = self._there["leaves"] = n
        self._most = self._words(most_rows)
        self.words = self._here["words"] if self._most <= WORDS else np.zeros(self._most, np.uint64)
        self._row = self.words[n : self._rows_at].view(np.int32)[:n]
        rest = self.words[self._rows_at :].view(self.real)
        self._coefficients = rest[: len(rest) // width * width].reshape(-1, width)
        self._upload: Any = None
        self._seen, self._used, self._device = b"", 0, self._chunks.device.id

    def _words(self, rows: int) -> int:
        """How many words of 8 bytes a table with so many rows takes."""
        return self._rows_at + -(-rows * self.width * int(self.real.itemsize) // 8)

    def launch(self, row: Array, rows: Array, window: Any) -> tuple[Any, ...]:
        """The call that steps these leaves: (function, grid, block, arguments). Uploads what does not fit into it."""
        if (seen := row.tobytes()) != self._seen:
            self._seen, self._row[:] = seen, row[self.leaves]
            self._used = int(self._row.max(initial=-1)) + 1
        used = self._used if window is NO_WINDOW else 0
        self._coefficients[:used] = rows[:used, : self.width]
        step, table, words = self.load(used)
        if table is self._there:
            self._upload(self.words[:words])
        elif self._most > WORDS:
            table["words"][:words] = self.words[:words]
        return step, (self.blocks,), (THREADS,), (self._chunks, self._own, table, window)

    def load(self, rows: int) -> tuple[Any, Array, int]:
        """The function for a table with so many rows, compiled or loaded; that table, with memory for it; its words."""
        words = self._words(rows)
        table = self._here if words <= WORDS else self._there
        if table is self._there and self._upload is None:
            self._upload = Uploaded(8 * self._most)
            table["words"] = self._upload.address
        place = int(table is self._there)
        if self._functions[place] is None:
            self._functions[place] = function(self._device, self._steps[place])
        return self._functions[place], table, words
