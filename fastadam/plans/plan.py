"""Plans: everything about one optimizer that one processor needs and that construction can work out.

A plan takes this step's gradients, then launches.
"""

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import starmap, zip_longest
from operator import setitem
from typing import Any, NamedTuple

import numpy as np

from fastadam.arrays.flat import FlatBuffer
from fastadam.arrays.host import FLOATS, Array, Host, Memory, describe, flat, flat_like, plain, shaped_like
from fastadam.kernels.chores import BLOCK, NOTES, Flags, Numbers
from fastadam.kernels.contract import Kernel
from fastadam.kernels.formats import compute
from fastadam.state.sparse import RowGradient, check_indices, check_values, distinct, row_chunks

CHUNK = 8_192  # elements: four float32 streams of 32 KiB stay in L2; 4,096 and 16,384 measured the same (2 Zen 4 cores)


class Work(NamedTuple):
    """The chunks of one signature, and (chunks, blocks, NOTES) what to note of each block; (0, ...) for nothing."""

    signature: int
    chunks: Array
    notes: Array


class Plan:
    """The work of one optimizer on host arrays, laid out once.

    kernel:  the element function.
    names:   per leaf, what errors call its streams: params['w'], grads['w'], m['w'], ...
    params:  per leaf, the user's array (checked before), or the FlatBuffer that holds it.
    slots:   per leaf, a flat array in p's memory order for each slot, the average, the copy and the remainder; None for
             an absent one; as uint8 the blocks of a slot of 8 bits.
    row:     (leaves + 1,) int64: which row of `rows` each leaf takes this step, -1 to leave it alone.
    rows:    (rows, coefficients + carried + chores' numbers) float64.
    counts:  (leaves + 1,) int64: the steps that each leaf has taken; the last is the optimizer's own count.
    carried: (leaves + 1, carried) float64: what the rule accumulates for each leaf, copied from its row by each step.
    flags:   the chores that are not streams.
    firsts:  per leaf, the index of its first element among all, which random bits depend on.
    masters: per leaf, the flat float32 array to step in p's place, which is then its copy; or None.

    A chunk is (leaf, first, n, g_leaf, g_first, missed): n elements of a leaf from `first` on, their gradient from
    g_first on of leaf g_leaf's, where the leaf after the last has zeros; and how many steps with zeros as the gradient
    it takes before, whose coefficients lie in the rows before the leaf's own.
    """

    home = Host()  # where the arrays lie
    norm: Any = None  # what measures where the arrays lie, if it is not the plan itself

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
        flags: Flags = Flags(),  # noqa: B008  a tuple
        firsts: Sequence[int] = (0,),
        masters: Sequence[Array | None] = (None,),
    ) -> None:
        self._flags, self._firsts = flags, firsts
        self.unread: list[tuple[Any, Any, Any]] = []  # gradients to clear that were copied, and so not cleared yet
        self._kernel, self._names, self._owners = kernel, names, params
        self._row, self._rows, self._counts, self._carried = row, rows, counts, carried
        self._params: list[Array] = [p.array if isinstance(p, FlatBuffer) else p for p in params]
        self._streams: list[list[Any]] = [
            [flat(p) if master is None else master, None, *own]
            for p, own, master in zip(self._params, slots, masters, strict=True)
        ]
        owned = []
        for labels, streams, master in zip(names, self._streams, masters, strict=True):
            if master is not None:  # params are its copy
                labels = ["master", *labels[1:-2], labels[0], labels[-1]]
            owned += [(label, x) for label, x in zip(labels, streams, strict=True) if x is not None]
        self._memory = Memory(owned)
        self._scratch: dict[int, Array] = {}
        self._anchors = [plain(p)[...] for p in self._params]  # what each was like at construction
        self._zeros = np.zeros(CHUNK)  # the gradient of a missed step: as float64, enough for a chunk of any dtype
        self._lay_out([p.dtype for p in self._params])

    def _lay_out(self, g_dtypes: Sequence[Any]) -> None:
        """Sort the leaves into signatures: those whose streams, g's as it comes now, have the same formats.

        A signature is one table of chunks, one compiled walk, one native call.
        """
        self._g_dtypes = list(g_dtypes)
        signatures: dict[Any, list[int]] = {}
        for leaf, (p, _, *own) in enumerate(self._streams):
            key = p.dtype, g_dtypes[leaf], *(None if x is None else x.dtype for x in own)
            signatures.setdefault(key, []).append(leaf)
        sizes = self._sizes()
        chunks = [
            np.array(
                [
                    (leaf, first, min(CHUNK, sizes[leaf] - first), leaf, first, 0)
                    for leaf in leaves
                    for first in range(0, sizes[leaf], CHUNK)
                ],
                np.int64,
            ).reshape(-1, 6)
            for leaves in signatures.values()
        ]
        self._first_leaves = [leaves[0] for leaves in signatures.values()]
        self._signature_of = {leaf: k for k, leaves in enumerate(signatures.values()) for leaf in leaves}
        self.everything = [Work(k, some, self._notes(some, self._flags.stats)) for k, some in enumerate(chunks)]
        self._measured: list[Work] = []

    def _sizes(self) -> Sequence[int]:
        """How many elements each leaf has."""
        return [p.size for p in self._params]

    def accept(self, grads: list[Any]) -> int:
        """Take this step's gradients, one per leaf, None among them; returns how many are None.

        Raises TypeError, ValueError naming the leaf and both sides; then nothing has changed.
        """
        usable = [None if g is None else self._usable(leaf, g) for leaf, g in enumerate(grads)]
        self.unread = []
        if self._flags.clear:
            self.check_clearable(usable)
        dtypes = [known if g is None else g.dtype for g, known in zip(usable, self._g_dtypes, strict=True)]
        if dtypes != self._g_dtypes:
            self._lay_out(dtypes)
        for leaf, g in enumerate(usable):
            if g is not None:
                p = self._params[leaf]
                straight = flat_like(g, p)
                if straight is None:  # other strides than p's: copied, in memory kept for the next step
                    if leaf not in self._scratch or self._scratch[leaf].dtype != g.dtype:
                        self._scratch[leaf] = np.empty(p.size, g.dtype)
                    straight = self._scratch[leaf]
                    np.copyto(shaped_like(straight, p), g)
                    self.unread += [(g, ..., 0)] * self._flags.clear
                self._place(leaf, straight)
        return sum(g is None for g in usable)

    def _check_unmoved(self, leaf: int) -> None:
        """The parameter is what it was at construction."""
        p_name, p, anchor = self._names[leaf][0], self._params[leaf], self._anchors[leaf]
        if (p.ctypes.data, p.dtype, p.shape, p.strides) != (
            anchor.ctypes.data, anchor.dtype, anchor.shape, anchor.strides
        ):  # fmt: skip
            raise ValueError(
                f"{p_name} is {describe(p)} and was {describe(anchor)}: expected the memory of construction"
            )
        if not p.flags.writeable:
            raise ValueError(f"{p_name} has become read-only, expected an array that can be updated in place")

    def _usable(self, leaf: int, g: Any) -> Array:
        (p_name, g_name, *_), p, owner = self._names[leaf], self._params[leaf], self._owners[leaf]
        both = f"{g_name} is {describe(g)}, {p_name} is {describe(owner)}"
        self._check_unmoved(leaf)
        if isinstance(g, FlatBuffer):
            if not isinstance(owner, FlatBuffer):
                raise ValueError(both)
            for own, other in zip_longest(owner.layout(), g.layout(), fillvalue="nothing"):
                if own != other:
                    raise ValueError(f"{g_name} holds {other} where {p_name} holds {own}")
            g = g.array
        g = self._as_array(g_name, both, g)
        if g.dtype.name not in FLOATS or not g.dtype.isnative:
            raise TypeError(f"{both}, expected one of {', '.join(FLOATS)}, in native byte order")
        if g.shape != p.shape:
            raise ValueError(both)
        if (touched := self._memory.touched_by(g)) is not None:
            raise ValueError(f"{g_name} and {touched} share memory, expected separate arrays")
        return g  # type: ignore[no-any-return]

    def _as_array(self, name: str, both: str, g: Any) -> Array:
        """g where it lies; `both` begins the error if that is nowhere that this plan reaches."""
        if not isinstance(g, np.ndarray) or isinstance(g, np.ma.MaskedArray):
            raise TypeError(f"{both}, expected a numpy.ndarray or None")
        here: Array = g
        return here

    def _place(self, leaf: int, g: Array) -> None:
        self._streams[leaf][1] = g

    def check_clearable(self, grads: Sequence[Array | None]) -> None:
        """Gradients that are to be zeroed can be written, and are separate."""
        arrays = [(self._names[leaf][1], getattr(g, "array", g)) for leaf, g in enumerate(grads)]
        Memory([(name, self.home.to_write(name, g)) for name, g in arrays if self.home.is_array(g)])

    def accept_rows(self, leaf: int, indices: Any, values: Any) -> RowGradient:
        """Check and sort the gradient of some rows of a leaf.

        Raises IndexError, TypeError, ValueError naming the leaf; then nothing has changed.
        """
        p_name = self._names[leaf][0]
        g_name = "rows" + p_name.removeprefix("params")
        self._check_unmoved(leaf)
        rows = self.accept_indices(leaf, indices)
        if any(x is not None and x.dtype == np.uint8 for x in self._streams[leaf]):
            raise ValueError(f"{g_name} are rows, {p_name} has moments of 8 bits, expected others: 64 share a scale")
        here = check_values(p_name, g_name, self._owners[leaf], rows, values, self.home)
        if (touched := self._memory.touched_by(here)) is not None:
            raise ValueError(f"{g_name}'s values and {touched} share memory, expected separate arrays")
        return self._by_row(leaf, rows, values)

    def accept_indices(self, leaf: int, indices: Any) -> Array:
        """Some rows of a leaf, checked, on the host."""
        p_name = self._names[leaf][0]
        check_indices(p_name, "rows" + p_name.removeprefix("params"), self._owners[leaf], indices)
        rows: Array = indices
        return rows

    def _by_row(self, leaf: int, indices: Array, values: Any) -> RowGradient:
        wide = compute(self._params[leaf].dtype)  # what they are summed in
        if self._g_dtypes[leaf] != wide:
            self._lay_out([*self._g_dtypes[:leaf], wide, *self._g_dtypes[leaf + 1 :]])
        return distinct(indices, values.astype(wide, copy=False), self._params[leaf])

    def row_chunks(self, leaf: int, rows: Array, place: Any, missed: Array | int) -> Any:
        """The chunks of some rows of a leaf; see fastadam.state.sparse.row_chunks."""
        p = self._params[leaf]
        g_leaf = len(self._params) if place is None else leaf
        return row_chunks(leaf, rows, g_leaf, place, missed, p.size // max(1, len(p)))

    def dense_chunks(self, leaf: int) -> Array:
        """The chunks of a whole leaf."""
        chunks = self.everything[self._signature_of[leaf]].chunks
        own: Array = chunks[chunks[:, 0] == leaf]
        return own

    def place_rows(self, leaf: int, values: Any) -> None:
        """Let a leaf's gradient be these values, of some rows only."""
        self._place(leaf, values)

    def work(self, chunks: Sequence[Any]) -> Any:
        """What a walk over these chunks, each array of one leaf, has to do: at least one signature, of no chunk."""
        found: dict[int, list[Array]] = {}
        for some in chunks:
            if len(some):
                found.setdefault(self._signature_of[int(some[0, 0])], []).append(some)
        pieces = {k: np.concatenate(each) for k, each in found.items()} or {0: np.empty((0, 6), np.int64)}
        return [Work(k, some, self._notes(some, self._flags.stats)) for k, some in pieces.items()]

    def _notes(self, chunks: Array, wanted: bool) -> Array:
        return np.zeros((len(chunks) if wanted else 0, CHUNK // BLOCK, NOTES))

    def on_stream(self) -> AbstractContextManager[Any]:
        """Within it, work on the parameters comes after the steps before, and before those after."""
        return nullcontext()

    def launch(self, after: Sequence[tuple[Any, Any, Any]] = ()) -> None:
        """Step every leaf whose row is not -1 and advance the counts; then `after` as in launch_some."""
        self.launch_some(self.everything, self._row, self._rows, self._counts, [*self.unread, *after])

    def launch_some(
        self, work: Sequence[Work], row: Array, rows: Array, counts: Array, after: Sequence[tuple[Any, Any, Any]]
    ) -> None:
        """Step the leaves whose row is not -1, advance `counts` (may be empty), then x[where] = values for each
        (x, where, values) of `after`; all of it or, if a signal comes before, nothing."""
        raise NotImplementedError

    def measure(self, work: Sequence[Work], row: Array, squares: bool, largest: bool) -> Array:
        """(leaves, NOTES): first each gradient's sum of squares, last its largest magnitude; 0 where the row is -1."""
        if work is self.everything:
            self._measured = self._measured or [one._replace(notes=self._notes(one.chunks, True)) for one in work]
            noted = self._measured
        else:
            noted = [one._replace(notes=self._notes(one.chunks, True)) for one in work]
        self._measure(noted, row, squares, largest)
        return self.sums(noted, row)

    def _measure(self, work: Sequence[Work], row: Array, squares: bool, largest: bool) -> None:
        raise NotImplementedError

    def accumulate(self, totals: Sequence[Array], row: Array, after: Sequence[tuple[Any, Any, Any]]) -> None:
        """Store the gradients in flat arrays where a leaf's row is 0, add them where it is 1; then as launch_some."""
        raise NotImplementedError

    def sums(self, work: Sequence[Work], row: Array) -> Array:
        """(leaves, NOTES): each leaf's notes, added up, of the last column the largest; 0 where the row is -1."""
        raise NotImplementedError


class NumpyPlan(Plan):
    """The reference: whole-array arithmetic, chunk by chunk."""

    def launch_some(
        self, work: Sequence[Work], row: Array, rows: Array, counts: Array, after: Sequence[tuple[Any, Any, Any]]
    ) -> None:
        from fastadam.kernels.reference import step

        # Worked out first, then copied in by C from the first array to the last: neither Ctrl-C nor a lack of memory
        # for a temporary leaves a step half done.
        streams = [*self._streams, [None, self._zeros]]
        done: list[Any] = []
        for one in work:
            walked = step(self._kernel, streams, one.chunks, row, rows, self._flags, one.notes, self._firsts)
            done += [(old, ..., new) for old, new in walked]
        if counts.size:
            live, last = np.flatnonzero(row >= 0), rows.shape[1] - len(Numbers._fields)
            done += [(counts, live, counts[live] + 1)]
            done += [(self._carried, live, rows[row[live], last - self._carried.shape[1] : last])]
        deque(starmap(setitem, [*done, *after]), maxlen=0)
        for own in self._streams if counts.size else ():
            own[1] = None  # a gradient lives no longer than its step

    def _measure(self, work: Sequence[Work], row: Array, squares: bool, largest: bool) -> None:
        from fastadam.kernels.reference import measure

        for one in work:
            measure([*self._streams, [None, self._zeros]], one.chunks, row, one.notes)

    def accumulate(self, totals: Sequence[Array], row: Array, after: Sequence[tuple[Any, Any, Any]]) -> None:
        with np.errstate(all="ignore"):
            sums = [
                g if r == 0 else x + g.astype(x.dtype, copy=False)
                for x, (_, g, *_), r in zip(totals, self._streams, row, strict=False)
                if r >= 0
            ]
        live = np.flatnonzero(row[:-1] >= 0).tolist()
        done: list[Any] = [(totals[leaf], ..., x) for leaf, x in zip(live, sums, strict=True)]
        done += [(self._streams[leaf][1], ..., 0) for leaf in live if self._flags.clear]
        deque(starmap(setitem, [*done, *self.unread, *after]), maxlen=0)

    def sums(self, work: Sequence[Work], row: Array) -> Array:
        from fastadam.kernels.reference import sums

        found = np.zeros((len(self._params), NOTES))
        for one in work:
            sums(one.chunks, one.notes, row, found)
        return found
