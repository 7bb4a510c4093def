"""The plan of arrays on a CUDA device: one launch per signature, through CuPy; nothing waits for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import starmap
from operator import call, setitem
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam.arrays import Array
from fastadam.cuda_gradients import GradientsOnDevice, only_on_host
from fastadam.kernels.chores import Numbers
from fastadam.kernels.cuda import Pass
from fastadam.norm import Norm
from fastadam.nvrtc import function
from fastadam.signature import NO_WINDOW, Signature, Touched
from fastadam.sparse import ByRow
from fastadam.upload import AnySize

if TYPE_CHECKING:
    from fastadam.window import Window


class CudaPlan(GradientsOnDevice):
    """Arrays on one device; steps run on the current stream of whoever owns the parameters."""

    def __init__(self, kernel: Any, names: Any, params: Sequence[Any], *rest: Any, asked: Any = None) -> None:
        """asked: (chores, groups), where anything is measured."""
        super().__init__(kernel, names, params, *rest)
        cupy = self._cupy
        self._width = len(kernel.Coefficients._fields)
        for labels, streams in zip(names, self._streams, strict=True):
            for label, x in zip(labels, streams[:-2], strict=False):
                if x is not None and x.dtype not in (np.float32, np.float64):
                    raise only_on_host(f"{label} in {x.dtype}")
        # What kernels read of a row: not what the rule carries, and the chores' numbers only where there are any.
        riding = (
            asked is not None or any(self._flags) or any(x is not None for own in self._streams for x in own[-3:-1])
        )
        first = self._rows.shape[1] - len(Numbers._fields)
        numbers = range(first, self._rows.shape[1] - 1) if riding else ()
        self.columns = np.array([*range(self._width), *numbers])
        groups: dict[int, list[int]] = {}
        for leaf, k in self._signature_of.items():
            groups.setdefault(k, []).append(leaf)
        with self._device:
            own = [sorted(leaves) for leaves in groups.values()]
            self.norm = None if asked is None else Norm(asked[0], asked[1], own, [p.size for p in self._params])
            scaled, noted = self.norm.flags if self.norm else (False, False)
            flags = self._flags.limit, self._flags.clear, scaled, noted
            self.signatures, streams = [], [own[:-1] for own in self._streams]
            for k, leaves in enumerate(own):
                more = [self.norm.columns(k, j) if self.norm else [0, 0] for j in range(len(self._params))]
                self.signatures.append(
                    Signature(
                        kernel.name, leaves, streams, len(self._rows), self.columns, flags, k,
                        more if riding else (),
                    )
                )  # fmt: skip
            cupy.cuda.get_current_stream().synchronize()  # zeros and tables are there, whichever stream steps first
        self.signatures = [one for one in self.signatures if one.blocks]
        # Who steps a leaf, and as the how-manieth of its leaves.
        self._home = {int(leaf): (one, k) for one in self.signatures for k, leaf in enumerate(one.leaves)}
        self._upload = AnySize()
        self.window: Window | None = None
        self._adding: list[Signature] = []  # as signatures, for accumulation

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

    def put_gradients(self, addresses: Sequence[int]) -> None:
        """Where each leaf's gradient begins, kept and checked by its owner; no matter what where the row is -1."""
        table = np.array(addresses, np.uint64)
        for one in self.signatures:
            one.words[: len(one.leaves)] = table[one.leaves]

    def load(self) -> None:
        """Compile or load what a step with a window launches: impossible while a graph is captured."""
        with self.on_stream():
            function(self._index, None)
            for one in self.signatures:
                one.load(0, ahead=True)
            if self.norm is not None:
                self.norm.load(self.signatures)

    @property
    def reals(self) -> set[Any]:
        """The dtypes in which steps are worked out."""
        return {one.real for one in self.signatures}

    def packed(self, rows: Array, real: Any) -> Array:
        """Rows as kernels of this dtype read them."""
        return next(one for one in self.signatures if one.real == real).packed(rows).astype(real, copy=False)

    def launch(self, after: Sequence[tuple[Any, Any, Any]] = ()) -> None:
        with self.on_stream():
            # In C from the first launch to the last count: no signal handler runs between.
            later = [(setitem, *one) for one in after]
            deque(starmap(call, [*self.steps(), *self.counting(), *later]), maxlen=0)

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
