"""The plan of arrays on a CUDA device: one launch per signature, through CuPy; nothing waits for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import starmap
from operator import call, setitem
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam.arrays import Array, Memory, describe, extent, flat_like, memory_order, shaped_like
from fastadam.device import DEVICE, on_device, stream_of
from fastadam.kernels.chores import Numbers
from fastadam.kernels.cuda import Pass
from fastadam.norm import Norm
from fastadam.nvrtc import function
from fastadam.plan import Plan
from fastadam.signature import NO_WINDOW, Signature, Touched
from fastadam.sparse import ByRow, RowGradient, by_row
from fastadam.upload import AnySize

if TYPE_CHECKING:
    from fastadam.window import Window


class CudaPlan(Plan):
    """Arrays on one device; steps run on the current stream of whoever owns the parameters."""

    home = DEVICE

    def __init__(self, kernel: Any, names: Any, params: Sequence[Any], *rest: Any, asked: Any = None) -> None:
        """asked: (chores, groups), where anything is measured."""
        import cupy

        self._cupy = cupy
        # Where another library owns a parameter: how to look at it again, since its memory may move.
        self._foreign = {k: p for k, p in enumerate(params) if not hasattr(p, "views") and type(p) is not cupy.ndarray}
        viewed = [DEVICE.own(names[k][0], p) if k in self._foreign else p for k, p in enumerate(params)]
        super().__init__(kernel, names, viewed, *rest)
        first: Any = self._params[0] if self._params else None
        self._device = cupy.cuda.Device() if first is None else first.device
        for labels, streams in zip(names, self._streams, strict=True):
            for label, x in zip(labels, streams, strict=True):
                if x is not None and x.device.id != self._device.id:
                    raise ValueError(
                        f"{label} is {describe(x)}, {names[0][0]} is {describe(first)}: expected one device"
                    )
        self._index = self._device.id
        self._width = len(kernel.Coefficients._fields)
        # What kernels read of a row: not what the rule carries, and the chores' numbers only where there are any.
        riding = asked is not None or any(self._flags) or any(x is not None for own in self._streams for x in own[-2:])
        first = self._rows.shape[1] - len(Numbers._fields)
        numbers = range(first, self._rows.shape[1]) if riding else ()
        self.columns = np.array([*range(self._width), *numbers])
        groups: dict[int, list[int]] = {}
        for leaf, k in self._signature_of.items():
            groups.setdefault(k, []).append(leaf)
        with self._device:
            own = [sorted(leaves) for leaves in groups.values()]
            self.norm = None if asked is None else Norm(asked[0], asked[1], own, [p.size for p in self._params])
            scaled, noted = self.norm.flags if self.norm else (False, False)
            flags = self._flags.limit, self._flags.clear, scaled, noted
            self.signatures = []
            for k, leaves in enumerate(own):
                more = [self.norm.columns(k, j) if self.norm else [0, 0] for j in range(len(self._params))]
                self.signatures.append(
                    Signature(
                        kernel.name, leaves, self._streams, len(self._rows), self.columns, flags, k,
                        more if riding else (),
                    )
                )  # fmt: skip
            cupy.cuda.get_current_stream().synchronize()  # zeros and tables are there, whichever stream steps first
        self.signatures = [one for one in self.signatures if one.blocks]
        # Who steps a leaf, and as the how-manieth of its leaves.
        self._home = {int(leaf): (one, k) for one in self.signatures for k, leaf in enumerate(one.leaves)}
        self._values: dict[int, Any] = {}  # the gradients of rows
        self._upload = AnySize()
        # What a gradient was like that was accepted before: (shape, strides, dtype, address).
        self._known: list[Any] = [None] * len(self._params)
        self._others: list[Any] = []  # the streams of gradients whose owners name one
        self.window: Window | None = None
        self._adding: list[Signature] = []  # as signatures, for accumulation

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
        self.unread = []
        if self._flags.clear:
            self._check_separate(grads, dict(usable))
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
            self.unread += [(g, ..., 0)] * self._flags.clear
        else:
            self._known[leaf] = g.data.ptr, g.shape, g.strides, g.dtype
        self._place(leaf, straight)

    def _check_separate(self, grads: Sequence[Any], usable: dict[int, Any]) -> None:
        """Gradients that are to be zeroed can be written, and are separate."""
        for leaf in usable:
            DEVICE.to_write(self._names[leaf][1], getattr(grads[leaf], "array", grads[leaf]))
        now = [None if g is None else usable.get(leaf, g) for leaf, g in enumerate(grads)]
        if usable:
            Memory((self._names[leaf][1], g) for leaf, g in enumerate(now) if g is not None)

    def _place(self, leaf: int, g: Array) -> None:
        if leaf in self._home:
            one, k = self._home[leaf]
            one.words[k] = extent(g)[0]

    def _check_unmoved(self, leaf: int) -> None:
        p, anchor = self._params[leaf], self._anchors[leaf]
        name = self._names[leaf][0]
        if leaf in self._foreign:
            p = DEVICE.own(name, self._foreign[leaf])
        now, then = [(extent(x) if x.size else 0, x.dtype, x.shape, x.strides) for x in (p, anchor)]
        if now != then:
            raise ValueError(f"{name} is {describe(p)} and was {describe(anchor)}: expected the memory of construction")

    def _as_array(self, name: str, both: str, g: Any) -> Array:
        if not on_device(g):
            raise TypeError(f"{both}, expected an array on a CUDA device or None: cupy.asarray(...) makes one")
        here: Any = DEVICE.read(g, name)
        if here.device.id != self._index:
            raise ValueError(f"{both}, expected one device")
        return here  # type: ignore[no-any-return]

    def accept_indices(self, leaf: int, indices: Any) -> Array:
        """On the host: from a device they are fetched, on their owner's stream, which is waited for."""
        if on_device(indices):
            with stream_of(indices) or nullcontext():
                indices = DEVICE.get(DEVICE.read(indices))
        return super().accept_indices(leaf, indices)

    def _by_row(self, leaf: int, indices: Array, values: Any) -> RowGradient:
        if self.norm is not None:
            raise only_on_host("step_rows with max_norm, skip_nonfinite or stats, which look at all rows first")
        here: Any = DEVICE.read(values)
        if here.device.id != self._index:
            name, p = self._names[leaf][0], self._params[leaf]
            raise ValueError(
                f"rows{name.removeprefix('params')}'s values are {describe(here)}, {name} is {describe(p)}: "
                "expected one device"
            )
        groups = by_row(indices)
        return RowGradient(groups.rows, values, groups)

    def place_rows(self, leaf: int, values: Any) -> None:
        if (stream := stream_of(values)) is not None:
            self._others.append(stream)
        here, p = DEVICE.read(values), self._params[leaf]
        self._values[leaf] = flat_like(here, p)
        if self._values[leaf] is None:  # another order of axes than p's, or gaps
            order = memory_order(p)
            with self.on_stream():
                home = self._cupy.empty([here.shape[axis] for axis in order], p.dtype)
                home[...] = here.transpose(order)
            self._values[leaf] = home.reshape(-1)

    def row_chunks(self, leaf: int, rows: Array, place: ByRow | None, missed: Array | int) -> Touched:
        p = self._params[leaf]
        width, values = p.size // max(1, len(p)), self._values.pop(leaf, None)
        _, order, start = place or ByRow(rows, rows[:0], np.zeros(len(rows), np.int64))
        missed = np.broadcast_to(missed, len(rows))
        return Touched(leaf, width, values, rows * width, missed, np.append(start, len(order)), order * width)

    def dense_chunks(self, leaf: int) -> Any:
        """Nothing: whole leaves are launched by their rows of coefficients."""

    def work(self, chunks: Sequence[Any]) -> list[Touched]:
        return [one for one in chunks if one is not None]

    def launch_some(self, work: Sequence[Any], row: Array, rows: Array, counts: Array, after: Sequence[Any]) -> None:
        touched = [one for one in work if isinstance(one, Touched)]
        whole = row.copy()
        whole[[one.leaf for one in touched]] = -1
        stepped = [(*self._home[one.leaf], one) for one in touched if len(one.first) and one.leaf in self._home]
        tables = [one.table(some, int(row[some.leaf]), rows) for one, _, some in stepped]
        with self.on_stream():
            calls = [each for one in self.signatures for each in one.launch_some(whole, rows)]
            at = self._upload(np.concatenate(tables)) if tables else 0
            for (one, k, some), table in zip(stepped, tables, strict=True):
                calls.append(one.launch_rows(k, some, at))
                at += table.nbytes
            calls += [(setitem, *one) for one in [*self._counted(row, rows, counts), *after]]
            deque(starmap(call, calls), maxlen=0)  # as in launch

    def accumulate(self, totals: Sequence[Array], row: Array, after: Sequence[tuple[Any, Any, Any]]) -> None:
        clear, rows = self._flags.clear, np.array([[0.0, 0, 0], [1.0, 0, 0]])
        with self.on_stream():
            if not self._adding:
                streams = [[x, None, None, None] for x in totals]
                columns, more = np.arange(3 if clear else 1), [[0, 0]] * len(totals) if clear else ()
                flags = False, clear, False, False
                self._adding = [
                    Signature("accumulate", one.leaves.tolist(), streams, 2, columns, flags, 0, more)
                    for one in self.signatures
                ]
            for one, own in zip(self._adding, self.signatures, strict=True):
                one.words[: len(one.leaves)] = own.words[: len(one.leaves)]
            calls = [one.launch(row, rows, NO_WINDOW) for one in self._adding]
            deque(starmap(call, [*calls, *((setitem, *one) for one in (*self.unread, *after))]), maxlen=0)

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
            for one in self.signatures:
                one.load(0, ahead=True)
            if self.norm is not None:
                self.norm.load(self.signatures)

    def stream(self) -> Any:
        """The current stream, within on_stream the parameters' owner's."""
        return self._cupy.cuda.get_current_stream()

    @property
    def reals(self) -> set[Any]:
        """The dtypes in which steps are worked out."""
        return {one.real for one in self.signatures}

    def packed(self, rows: Array, real: Any) -> Array:
        """Rows as kernels of this dtype read them."""
        return next(one for one in self.signatures if one.real == real).packed(rows).astype(real, copy=False)

    def launch(self) -> None:
        with self.on_stream():
            # In C from the first launch to the last count: no signal handler runs between.
            deque(starmap(call, [*self.steps(), *self.counting()]), maxlen=0)

    def steps(self) -> list[tuple[Any, ...]]:
        """The calls that step every signature."""
        window = self.window
        return [
            one.launch(self._row, self._rows, window.of[one.real] if window else NO_WINDOW) for one in self.signatures
        ]

    def counting(self) -> list[tuple[Any, ...]]:
        """The calls that advance the counts, and clear what was copied."""
        calls: list[tuple[Any, ...]] = [(setitem, *one) for one in self.unread]
        if self.window is None:
            return calls + [(setitem, *one) for one in self._counted(self._row, self._rows, self._counts)]
        if self.norm is not None and self.norm.skipping:
            advance, arguments = function(self._index, Pass("ADVANCE_UNLESS")), [self.window.at, self.norm.rulings]
        else:
            advance, arguments = function(self._index, None), [self.window.at]
        return [*calls, (advance, (1,), (1,), tuple(arguments))]

    def _counted(self, row: Array, rows: Array, counts: Array) -> list[tuple[Any, ...]]:
        """The counts after this step: (array, where, values); nothing where there are no counts."""
        if not counts.size:
            return []
        live: Any = slice(None) if row.min(initial=0) >= 0 else np.flatnonzero(row >= 0)
        done = [(counts, live, counts[live] + 1)]
        if self._carried.size:
            carried = slice(self._width, self._width + self._carried.shape[1])
            done.append((self._carried, live, rows[row[live], carried]))
        return done


def only_on_host(what: str) -> NotImplementedError:
    """The error for what arrays on a device cannot have yet."""
    return NotImplementedError(f"{what}: on the CPU backends only, and these parameters lie on a CUDA device")


def _wait(first: Any, second: Any) -> None:
    """Let what comes next on one stream come after what another has to do."""
    first.wait_event(second.record())
