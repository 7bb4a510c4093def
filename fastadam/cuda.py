"""The plan of arrays on a CUDA device: one launch per signature, through CuPy; nothing waits for the device."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cache
from itertools import starmap
from operator import call, setitem
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam.arrays import Array, describe, extent, flat_like, shaped_like
from fastadam.device import DEVICE, on_device, one_device, stream_of
from fastadam.kernels.cuda import OPTIONS, THREADS, WORDS, Step, source
from fastadam.plan import Plan
from fastadam.upload import Uploaded

if TYPE_CHECKING:
    from fastadam.window import Window

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
        self.by_value, self.uploaded = Step(kernel, "ByValue", dtypes), Step(kernel, "Uploaded", dtypes)
        self.leaves, self.width, self.real = np.array(leaves), width, self.by_value.real
        own = [[0 if x is None else x.data.ptr for x in (p, *slots)] for p, _, *slots in (streams[k] for k in leaves)]
        heads = [p // first[0].itemsize % (self.by_value.chunk // THREADS) for p, *_ in own]
        chunks = chunk_table([streams[leaf][0].size for leaf in leaves], heads, self.by_value.chunk)
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
        step, words = self.load(used)
        if step is self.by_value:
            if self._most > WORDS:
                self._here["words"][:words] = self.words[:words]
            table = self._here
        else:
            self._upload(self.words[:words])
            table = self._there
        return function(self._device, step), (self.blocks,), (THREADS,), (self._chunks, self._own, table, window)

    def load(self, rows: int) -> tuple[Step, int]:
        """Which step takes a table with so many rows, compiled or loaded and with memory for it; the table's words."""
        words = self._words(rows)
        step = self.by_value if words <= WORDS else self.uploaded
        if step is self.uploaded and self._upload is None:
            self._upload = Uploaded(8 * self._most)
            self._there["words"] = self._upload.address
        function(self._device, step)
        return step, words


class CudaPlan(Plan):
    """Arrays on one device; steps run on the current stream of whoever owns the parameters."""

    def __init__(self, kernel: Any, names: Any, params: Sequence[Any], *rest: Any) -> None:
        import cupy

        self._cupy = cupy
        # Where another library owns a parameter: how to look at it again, since its memory may move.
        self._foreign = {k: p for k, p in enumerate(params) if not hasattr(p, "views") and type(p) is not cupy.ndarray}
        viewed = [DEVICE.own(names[k][0], p) if k in self._foreign else p for k, p in enumerate(params)]
        super().__init__(kernel, names, viewed, *rest)
        self._device = one_device(self._params)
        for labels, streams in zip(names, self._streams, strict=True):
            for label, x in zip(labels, streams, strict=True):
                if x is not None and x.device.id != self._device.id:
                    raise ValueError(
                        f"{label} is {describe(x)}, {names[0][0]} is {describe(self._params[0])}: expected one device"
                    )
        self._index = self._device.id
        self._width = len(kernel.Coefficients._fields)
        slots = 2 + len(kernel.slots)
        groups: dict[int, list[int]] = {}
        for leaf, k in self._signature_of.items():
            groups.setdefault(k, []).append(leaf)
        own = [streams[:slots] for streams in self._streams]
        with self._device:
            self._signatures = [
                Signature(kernel.name, leaves, own, len(self._rows), self._width) for leaves in groups.values()
            ]
            cupy.cuda.get_current_stream().synchronize()  # zeros and tables are there, whichever stream steps first
        self._signatures = [one for one in self._signatures if one.blocks]
        # Where the address of a leaf's gradient goes.
        self._home = {int(leaf): (one.words, k) for one in self._signatures for k, leaf in enumerate(one.leaves)}
        # What a gradient was like that was accepted before: (shape, strides, dtype, address).
        self._known: list[Any] = [None] * len(self._params)
        self._others: list[Any] = []  # the streams of gradients whose owners name one
        self.window: Window | None = None

    def accept(self, grads: list[Any]) -> int:
        ndarray, known, missing, new = self._cupy.ndarray, self._known, 0, []
        for leaf, g in enumerate(grads):
            if g is None:
                missing += 1
            elif type(g) is not ndarray or (g.data.ptr, g.shape, g.strides, g.dtype) != known[leaf]:
                new.append(leaf)
        for leaf in self._foreign:
            self._check_unmoved(leaf)
        usable = [(leaf, self._usable(leaf, grads[leaf])) for leaf in new]
        self._others = [s for s in map(stream_of, (grads[leaf] for leaf in new)) if s is not None]
        for leaf, g in usable:
            self._take(leaf, g)
        return missing

    def _take(self, leaf: int, g: Any) -> None:
        p, straight = self._params[leaf], flat_like(g, self._params[leaf])
        if straight is None:  # other strides than p's: copied, in memory kept for the next step
            if leaf not in self._scratch:
                self._scratch[leaf] = self._cupy.empty(p.size, p.dtype)
            straight = self._scratch[leaf]
            with self.on_stream():
                shaped_like(straight, p)[...] = g
            self._known[leaf] = None
        else:
            self._known[leaf] = g.data.ptr, g.shape, g.strides, g.dtype
        self._place(leaf, straight)

    def _place(self, leaf: int, g: Array) -> None:
        if leaf in self._home:
            words, k = self._home[leaf]
            words[k] = extent(g)[0]

    def _check_unmoved(self, leaf: int) -> None:
        p, anchor = self._params[leaf], self._anchors[leaf]
        name = self._names[leaf][0]
        if leaf in self._foreign:
            p = DEVICE.own(name, self._foreign[leaf])
        now, then = [(extent(x) if x.size else 0, x.dtype, x.shape, x.strides) for x in (p, anchor)]
        if now != then:
            raise ValueError(f"{name} is {describe(p)} and was {describe(anchor)}: expected the memory of construction")

    def _as_array(self, both: str, g: Any) -> Array:
        if not on_device(g):
            raise TypeError(f"{both}, expected an array on a CUDA device or None: cupy.asarray(...) makes one")
        here: Any = DEVICE.read(g)
        if here.device.id != self._index:
            raise ValueError(f"{both}, expected one device")
        return here  # type: ignore[no-any-return]

    def accept_rows(self, leaf: int, indices: Any, values: Any) -> Any:
        raise only_on_host("step_rows")

    def launch_some(self, *_: Any) -> None:
        raise only_on_host("step_rows")

    def accumulate(self, *_: Any) -> None:
        raise only_on_host("accumulate")

    def on_stream(self) -> AbstractContextManager[Any]:
        """Within it CuPy works on the parameters' device and their owner's stream, which waits for the gradients'."""
        if not (self._foreign or self._others):
            return self._cupy.cuda.Device(self._index)  # type: ignore[no-any-return]
        stack = ExitStack()
        stack.enter_context(self._device)
        if (stream := stream_of(next(iter(self._foreign.values()), None))) is not None:
            stack.enter_context(stream)
        for other in self._others:
            here = self.stream()
            if other.ptr != here.ptr:
                here.wait_event(other.record())
                stack.callback(_wait, other, here)
        return stack

    def load(self) -> None:
        """Compile or load what a step with a window launches: impossible while a graph is captured."""
        with self.on_stream():
            function(self._index, None)
            for one in self._signatures:
                one.load(0)

    def stream(self) -> Any:
        """The current stream, within on_stream the parameters' owner's."""
        return self._cupy.cuda.get_current_stream()

    @property
    def reals(self) -> set[Any]:
        """The dtypes in which steps are worked out."""
        return {one.real for one in self._signatures}

    def launch(self) -> None:
        with self.on_stream():
            if self.window is not None:
                calls = [one.launch(self._row, self._rows, self.window.of[one.real]) for one in self._signatures]
                calls.append((function(self._index, None), (1,), (1,), (self.window.at,)))
            else:
                calls = [one.launch(self._row, self._rows, NO_WINDOW) for one in self._signatures]
                calls += [(setitem, *one) for one in self._counted()]
            # In C from the first launch to the last count: no signal handler runs between.
            deque(starmap(call, calls), maxlen=0)

    def _counted(self) -> list[tuple[Any, ...]]:
        """The counts after this step: (array, where, values)."""
        live: Any = slice(None) if self._row.min(initial=0) >= 0 else np.flatnonzero(self._row >= 0)
        done = [(self._counts, live, self._counts[live] + 1)]
        if self._carried.size:
            carried = slice(self._width, self._width + self._carried.shape[1])
            done.append((self._carried, live, self._rows[self._row[live], carried]))
        return done


def only_on_host(what: str) -> NotImplementedError:
    """The error for what arrays on a device cannot have yet."""
    return NotImplementedError(f"{what}: on the CPU backends only, and these parameters lie on a CUDA device")


def _wait(first: Any, second: Any) -> None:
    """Let what comes next on one stream come after what another has to do."""
    first.wait_event(second.record())
