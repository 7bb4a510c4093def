"""Plans the steps of arrays on a CUDA device: one launch per signature, through CuPy; nothing waits for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import starmap
from operator import call, setitem
from typing import Any, NamedTuple

import numpy as np

from fastadam.arrays.host import Array
from fastadam.cuda.gradients import GradientsOnDevice
from fastadam.cuda.norm import Norm
from fastadam.cuda.nvrtc import function
from fastadam.cuda.signature import NO_WINDOW, Ahead, Notes, RowTable, Signature, Touched
from fastadam.cuda.upload import AnySize
from fastadam.group import sums_first
from fastadam.kernels.chores import Numbers
from fastadam.kernels.contract import Kernel
from fastadam.kernels.cuda import Pass, Riding
from fastadam.kernels.formats import format_of, is_drawn
from fastadam.kernels.streams import Columns
from fastadam.plans.chores import PLAIN, Chores
from fastadam.plans.gradients import Kind
from fastadam.plans.plan import Plan
from fastadam.plans.rows import ByRow
from fastadam.plans.table import Table


class Laid(NamedTuple):
    """Holds what steps gradients of certain dtypes; the signatures for accumulation are made when first asked for."""

    signatures: list[Signature]
    norm: Norm | None
    home: dict[int, tuple[Signature, int]]
    adding: list[Signature]


def draws(kernel: Kernel, at: Columns) -> bool:
    """Return whether any of a leaf's streams is rounded stochastically."""
    rounded = [x for slot, x in zip(kernel.slots, at.slots, strict=True) if x is not None and is_drawn(slot)]
    return any(format_of(x.dtype).draws for x in (*rounded, *([at.p] if at.low is None else [])))


class CudaPlan(GradientsOnDevice, Plan):
    """Steps arrays on one device; steps run on the current stream of whoever owns the parameters."""

    movable = False  # signatures hold addresses on the device

    def __init__(
        self, kernel: Any, names: Any, owners: Any, streams: Any, table: Table, chores: Chores = PLAIN, *rest: Any
    ) -> None:
        limits = [group.max_norm for group in table.groups]
        measured = chores.max_norm or chores.skip_nonfinite or chores.stats or any(limits)
        self._asked = measured or any(map(sums_first, table.groups))
        self._chores = chores
        self._carried: Any = None  # what is carried, on the device, where leaves share it
        self._laid: dict[Any, Laid] = {}  # by the gradients' dtypes; all are kept, since captured graphs know theirs
        self.window: Ahead | None = None
        super().__init__(kernel, names, owners, streams, table, chores, *rest)
        self._width = len(kernel.Coefficients._fields)
        # What kernels read of a row: not what the rule carries, and the chores' numbers only where there are any; the
        # key of random bits where any are drawn.
        stepped = [streams.columns for streams in self._streams]
        riding = [x is not None for at in stepped for x in (at.ema, at.copy, at.rounded)]
        self._riding = bool(self._asked) or any(self._flags) or any(riding)
        self._drawing = any(draws(kernel, at) for at in stepped)
        numbers = range(self.table.rows.shape[1] - len(Numbers._fields), self.table.rows.shape[1] - 1)
        key = [self.table.rows.shape[1] - 1] * self._drawing
        self.columns = np.array([*range(self._width), *(numbers if self._riding else ()), *key])
        self._upload = AnySize()
        self.counter: Any = None  # of what masters take over in this step
        if self.mastered:
            with self.on_stream():
                self.counter = self._cupy.zeros(1, np.int64)
        if self.table.shared:
            with self.on_stream():
                self._carried = self._cupy.asarray(self._begun())
        self._begin()

    def _lay_out(self, kinds: Sequence[Kind]) -> None:
        if self.window is not None:
            with self.on_stream():
                if self.stream().is_capturing():
                    leaf = next(k for k, kind in enumerate(self._kinds) if kind != kinds[k])
                    raise TypeError(
                        f"{self._names[leaf].g} is {kinds[leaf].dtype} and was {self._kinds[leaf].dtype}: expected "
                        "what the step before had, while a graph is captured"
                    )
        before = getattr(self, "_kinds", ())
        super()._lay_out(kinds)
        try:
            if self._laid:
                self._begin()
        except BaseException:  # no memory, or no compiler: the next step must not take these for laid out
            super()._lay_out(before)
            self._begin()
            raise

    def _begin(self) -> None:
        """Step from here on by what was laid out for these dtypes of gradients."""
        before = self._home if self._laid else {}
        key = tuple((kind.dtype.name, kind.arrays) for kind in self._kinds)
        if key not in self._laid:
            self._laid[key] = self._layout()
        self.signatures, self.norm, self._home, self._adding = self._laid[key]
        for leaf in before.keys() & self._home.keys():
            (old, at), (new, k) = before[leaf], self._home[leaf]
            new.words[k] = old.words[at]
        if self.window is not None:
            self.load()
        if self._carried is not None:
            with self.on_stream():
                self.norm.spread()  # type: ignore[union-attr]

    def _layout(self) -> Laid:
        """Return signatures and norm for gradients of the dtypes as they come now."""
        cupy = self._cupy
        leaves_of: dict[int, list[int]] = {}
        for leaf, k in self._signature_of.items():
            leaves_of.setdefault(k, []).append(leaf)
        with self.on_stream():  # whose work alone gets the tables' memory once they are freed
            leaves_of_signatures = [sorted(leaves) for leaves in leaves_of.values()]
            norm = None
            if self._asked:
                sizes = [p.size for p in self._params]
                norm = Norm(self._chores, self.table, self._carried, leaves_of_signatures, sizes)
            scaled, noted = norm.flags if norm else (False, False)
            stepped = [streams.columns for streams in self._streams]
            rows = RowTable(len(self.table.rows), self.columns, self._firsts if self._drawing else ())
            riding, signatures = Riding(self._flags.limit, self._flags.clear, scaled, noted), []
            for k, leaves in enumerate(leaves_of_signatures):
                asked = riding._replace(summed=self._flags_of[k].summed)
                addresses = [norm.columns(k, j) if norm else [0, 0] for j in range(len(self._params))]
                notes = Notes(k, addresses if self._riding else (), self.counter.data.ptr if self.mastered else 0)
                signatures.append(Signature(self._kernel, leaves, stepped, self._kinds[leaves[0]], rows, asked, notes))
            cupy.cuda.get_current_stream().synchronize()  # zeros and tables are there, whichever stream steps first
        signatures = [one for one in signatures if one.blocks]
        # Who steps a leaf, and as the how-manieth of its leaves.
        home = {int(leaf): (one, k) for one in signatures for k, leaf in enumerate(one.leaves)}
        return Laid(signatures, norm, home, [])

    def row_chunks(self, leaf: int, rows: Array, place: ByRow | None, missed: Array | int) -> Touched:
        p = self._params[leaf]
        width, values = p.size // max(1, len(p)), self._values.pop(leaf, None)
        _, order, start = place or ByRow(rows, rows[:0], np.zeros(len(rows), np.int64))
        missed = np.broadcast_to(missed, len(rows))
        return Touched(leaf, width, values, rows * width, missed, np.append(start, len(order)), order * width)

    def dense_chunks(self, leaf: int) -> Any:
        """Return nothing: whole leaves are launched by their rows of coefficients."""

    def work(self, chunks: Sequence[Any]) -> list[Touched]:
        return [one for one in chunks if one is not None]

    def launch_some(
        self, work: Sequence[Any], row: Array, rows: Array, after: Sequence[Any], counted: bool = True
    ) -> None:
        touched = [one for one in work if isinstance(one, Touched)]
        row_of_others = row.copy()
        row_of_others[[one.leaf for one in touched]] = -1
        # Not rows without elements: CuPy makes one block of a grid of none, whose threads would be 0 a row.
        filled = [one for one in touched if len(one.first) and one.width and one.leaf in self._home]
        stepped = [(*self._home[one.leaf], one) for one in filled]
        tables = [one.table(chunk, int(row[chunk.leaf]), rows) for one, _, chunk in stepped]
        with self.on_stream():
            calls = [each for one in self.signatures for each in one.launch_some(row_of_others, rows)]
            at = self._upload(np.concatenate(tables)) if tables else 0
            for (one, k, chunk), table in zip(stepped, tables, strict=True):
                calls.append(one.launch_rows(k, chunk, at))
                at += table.nbytes
            calls += [(setitem, *one) for one in [*(self.table.counted(row, rows) if counted else ()), *after]]
            deque(starmap(call, calls), maxlen=0)  # as in launch

    def accumulate(self, totals: Sequence[Array], row: Array, after: Sequence[tuple[Any, Any, Any]]) -> None:
        clear, rows = self._flags.clear, np.array([[0.0, 0, 0], [1.0, 0, 0]])
        with self.on_stream():
            if not self._adding:
                streams = [Columns(x, None) for x in totals]
                told = RowTable(2, np.arange(3 if clear else 1))
                notes = Notes(addresses=[[0, 0]] * len(totals) if clear else ())
                parts_of_all = [(one.leaves.tolist(), streams, one.kind) for one in self.signatures]
                self._adding += [Signature(None, *parts, told, Riding(clear=clear), notes) for parts in parts_of_all]
            for one, parts in zip(self._adding, self.signatures, strict=True):
                one.words[: len(one.leaves)] = parts.words[: len(one.leaves)]
            calls = [one.launch(row, rows, NO_WINDOW) for one in self._adding]
            deque(starmap(call, [*calls, *((setitem, *one) for one in (*self.unread, *after))]), maxlen=0)

    def measure_blocks(self, row: Array) -> list[Array]:
        if self.norm is None:
            raise ValueError(
                "measure needs an optimizer with max_norm, skip_nonfinite or stats on a device, expected one"
            )
        with self.on_stream():
            blocks = self.norm.blocks(self.signatures, self.steps(row))
        return [x[: len(x) if r >= 0 else 0] for x, r in zip(blocks, row.tolist(), strict=False)]

    def carry(self) -> None:
        """Let the device carry on what the table says."""
        if self._carried is not None:
            with self.on_stream():
                self._carried[...] = self._cupy.asarray(self._begun())
                self.norm.spread()  # type: ignore[union-attr]

    def _begun(self) -> Array:
        """Return what the table carries, the first number as steps take it."""
        carried: Array = self.table.carried[-1].copy()
        carried[0] = self.table.groups[0].rule.coefficients(1, 1.0, *carried.tolist())[self._width - 2]
        return carried

    def settle(self) -> None:
        if self._carried is not None:
            with self.on_stream():
                self.table.carried[:] = self._carried.get()

    def put_gradients(self, addresses: Sequence[int]) -> None:
        """Take the address of each leaf's gradient, kept and checked by its owner; no matter what where the row is
        -1."""
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
                self.norm.send(1.0, 1.0)  # not first while a graph is captured, which would send it again and again

    def send(self) -> None:
        """Let the device know of changed limits, for captured graphs too."""
        with self.on_stream():
            for each in self._laid.values():
                if each.norm is not None:
                    each.norm.send(1.0, 1.0)

    @property
    def reals(self) -> set[Any]:
        """Return the dtypes in which steps are worked out."""
        return {one.real for one in self.signatures}

    def packed(self, rows: Array, real: Any) -> Array:
        """Return rows as kernels of this dtype read them."""
        return next(one for one in self.signatures if one.real == real).packed(rows).astype(real, copy=False)

    def launch(self, after: Sequence[tuple[Any, Any, Any]] = ()) -> None:
        with self.on_stream():
            # In C from the first launch to the last count: no signal handler runs between.
            later = [(setitem, *one) for one in after]
            deque(starmap(call, [*self.steps(), *self.counting(), *later]), maxlen=0)

    def begin_counting(self, captured: bool) -> Any:
        """Let the device count anew what masters take over; returns where `taken` is to leave that, None for nowhere.

        captured: whether a graph is captured, whose steps leave it where they count it.
        """
        if not self.mastered:
            return None
        counter = self.counter if captured else self._cupy.empty(1, np.int64)
        self.counter[...] = 0
        return counter

    def taken(self, counter: Any) -> Any:
        """Let what the step before has taken over be left there, in stream order; returns that array."""
        if counter is not None and counter is not self.counter:
            counter[...] = self.counter
        return counter

    def steps(self, row: Array | None = None) -> list[tuple[Any, ...]]:
        """Return the calls that step every signature. row: which row each leaf takes, where it is not the table's."""
        window, row = self.window, self.table.row if row is None else row
        return [
            one.launch(row, self.table.rows, window.of[one.real] if window else NO_WINDOW) for one in self.signatures
        ]

    def counting(self) -> list[tuple[Any, ...]]:
        """Return the calls that advance the counts, and clear what was copied."""
        calls: list[tuple[Any, ...]] = [(setitem, *one) for one in self.unread]
        if self.window is None:
            return calls + [(setitem, *one) for one in self.table.counted(self.table.row, self.table.rows)]
        if self.norm is not None and self.norm.skipping:
            advance, arguments = function(self._index, Pass("ADVANCE_UNLESS")), [self.window.at, self.norm.rulings]
        else:
            advance, arguments = function(self._index, None), [self.window.at]
        return [*calls, (advance, (1,), (1,), tuple(arguments))]
