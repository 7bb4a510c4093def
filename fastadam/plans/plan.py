"""Holds everything about one optimizer that one processor needs and that construction can work out.

A plan takes this step's gradients, then launches.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from fastadam.arrays.flat import FlatBuffer
from fastadam.arrays.host import Array, Memory, plain
from fastadam.group import sums_first
from fastadam.kernels.chores import BLOCK, CHUNK_WORDS, NOTES, TAKEN, in_pairs
from fastadam.kernels.contract import Euclidean, Kernel
from fastadam.kernels.formats import FLOAT32, format_of
from fastadam.kernels.streams import Columns
from fastadam.plans.chores import PLAIN, Chores
from fastadam.plans.gradients import Gradients, Kind
from fastadam.plans.rows import row_chunks
from fastadam.plans.streams import Streams
from fastadam.plans.table import Table

CHUNK = 8_192  # elements: four float32 streams of 32 KiB stay in L2; 4,096 and 16,384 measured the same (2 Zen 4 cores)


class Work(NamedTuple):
    """Holds the chunks of one signature, and (chunks, blocks, NOTES) what to note of each block; (0, ...) for
    nothing."""

    signature: int
    chunks: Array
    notes: Array


def switched(kernel: Kernel, table: Table) -> Kernel:
    """Return the kernel with the switches on that the groups' rules ask for, all of them the same ones."""
    chosen = [kernel.switched(group.rule.options) for group in table.groups] or [kernel]
    for k, other in enumerate(chosen):
        for name in chosen[0].on ^ other.on:
            choices = [f"{table.groups[j].where}{name} is {name in chosen[j].on}" for j in (k, 0)]
            raise ValueError(f"{', '.join(choices)}: expected one choice for all groups, which share a step")
    return chosen[0]


class Plan(Gradients):
    """Is the work of one optimizer on host arrays, laid out once.

    kernel:  the element function.
    names:   per leaf, what errors call its streams: params['w'], grads['w'], m['w'], ...
    owners:  per leaf, the user's array (checked before), or the FlatBuffer that holds it.
    streams: per leaf, its memory by name, flat arrays in p's memory order.
    table:   the coefficients of each step, which it takes as they lie there; it advances the counts.
    chores:  what a step does beside the method's arithmetic.
    firsts:  per leaf, the index of its first element among all, which random bits depend on.

    summed: the leaves over which sums are added up before each step, as their rules ask for.

    A chunk is (leaf, first, n, g_leaf, g_first, missed, taken): n elements of a leaf from `first` on, their gradient
    from g_first on of leaf g_leaf's, where the leaf after the last has zeros; how many steps with zeros as the gradient
    it takes before, whose coefficients lie in the rows before the leaf's own; and, written by a step over a master, how
    many elements were set from outside: see fastadam.kernels.formats.followed.
    """

    def __init__(
        self,
        kernel: Kernel,
        names: Sequence[Streams],
        owners: Sequence[Any],
        streams: Sequence[Streams],
        table: Table,
        chores: Chores = PLAIN,
        firsts: Sequence[int] = (0,),
    ) -> None:
        self._flags, self._firsts = chores.flags, firsts
        self.unread = []
        self._kernel, self._names = switched(kernel, table), names
        table.judging()  # raises where groups differ in it
        self.table = table
        self._scratch: dict[tuple[int, int], Array] = {}
        self._numbers: dict[tuple[int, int], Array] = {}
        self._zeros = np.zeros(CHUNK)  # the gradient of a missed step: as float64, enough for a chunk of any dtype
        self._walk_over(owners, streams)
        self._lay_out([Kind(p.dtype) for p in self._params])

    def _walk_over(self, owners: Sequence[Any], streams: Sequence[Streams]) -> None:
        """Take this for the memory to walk over. Raises ValueError, before anything has changed, where it overlaps."""
        named = (pair for of_leaf in zip(self._names, streams, strict=True) for pair in zip(*of_leaf, strict=True))
        self._memory = Memory((name, x) for name, x in named if x is not None)
        self._owners, self._streams = owners, streams
        self._params: list[Array] = [p.array if isinstance(p, FlatBuffer) else p for p in owners]
        self._anchors = [plain(p)[...] for p in self._params]  # what each was like when it was taken

    movable = True  # whether `move` may be called

    def move(self, owners: Sequence[Any], streams: Sequence[Streams]) -> None:
        """Walk over other memory from now on, of the same sizes and formats. Raises ValueError where it overlaps."""
        self._walk_over(owners, streams)

    def _lay_out(self, kinds: Sequence[Kind]) -> None:
        """Sort the leaves into signatures: those whose streams, g's as it comes now, have the same formats.

        A signature is one table of chunks, one compiled walk, one native call.
        """
        self._kinds = list(kinds)
        signatures: dict[Any, list[int]] = {}
        summed = {leaf: sums_first(group) for group in self.table.groups for leaf in group.leaves}
        for leaf, (dtype, arrays) in enumerate(kinds):
            signatures.setdefault((self._formats_of(leaf, dtype), summed[leaf], arrays > 1), []).append(leaf)
        self._formats = [formats for formats, *_ in signatures]
        self._flags_of = [self._flags._replace(summed=sums, several=several) for _, sums, several in signatures]
        self.summed = np.array([leaf for leaf in range(len(kinds)) if summed[leaf]], np.int64)
        self.mastered = any(formats.rounded is not None for formats in self._formats)
        sizes = self._sizes()
        self.elements_of, self._narrow = np.array(sizes, np.float64), np.zeros(len(sizes), bool)
        for (formats, *_), leaves in signatures.items():
            self._narrow[leaves] = formats.p.compute is FLOAT32.compute
        chunks = [
            np.array(
                [
                    (leaf, first, min(CHUNK, sizes[leaf] - first), leaf, first, 0, 0)
                    for leaf in leaves
                    for first in range(0, sizes[leaf], CHUNK)
                ],
                np.int64,
            ).reshape(-1, CHUNK_WORDS)
            for leaves in signatures.values()
        ]
        self._first_leaves = [leaves[0] for leaves in signatures.values()]
        self._signature_of = {leaf: k for k, leaves in enumerate(signatures.values()) for leaf in leaves}
        self.everything = [Work(k, chunk, self._notes(chunk, self._flags.stats)) for k, chunk in enumerate(chunks)]
        self._measured: list[Work] = []
        self._summing = [
            one._replace(notes=self._notes(one.chunks, True))
            for one, flags in zip(self.everything, self._flags_of, strict=True)
            if flags.summed
        ]

    def _formats_of(self, leaf: int, g_dtype: Any) -> Columns:
        """Return what a leaf's columns rest in where its gradient is of this dtype."""
        columns = self._streams[leaf].columns._replace(g=None)  # the last step's, which may be Several
        formats = Columns.of(None if x is None else format_of(x.dtype) for x in columns.row)
        return formats._replace(g=format_of(g_dtype))

    def _sizes(self) -> Sequence[int]:
        """Return how many elements each leaf has."""
        return [p.size for p in self._params]

    def row_chunks(self, leaf: int, rows: Array, place: Any, missed: Array | int) -> Any:
        """Return the chunks of some rows of a leaf; see fastadam.plans.rows.row_chunks."""
        p = self._params[leaf]
        g_leaf = len(self._params) if place is None else leaf
        return row_chunks(leaf, rows, g_leaf, place, missed, p.size // max(1, len(p)))

    def dense_chunks(self, leaf: int) -> Array:
        """Return the chunks of a whole leaf."""
        chunks = self.everything[self._signature_of[leaf]].chunks
        chunks_of_leaf: Array = chunks[chunks[:, 0] == leaf]
        return chunks_of_leaf

    def work(self, chunks: Sequence[Any]) -> Any:
        """Return what a walk over these chunks, each array of one leaf, has to do: at least one signature, of no
        chunk."""
        chunks_of_signature: dict[int, list[Array]] = {}
        for chunk in chunks:
            if len(chunk):
                chunks_of_signature.setdefault(self._signature_of[int(chunk[0, 0])], []).append(chunk)
        pieces = {k: np.concatenate(each) for k, each in chunks_of_signature.items()} or {
            0: np.empty((0, CHUNK_WORDS), np.int64)
        }
        return [Work(k, chunk, self._notes(chunk, self._flags.stats)) for k, chunk in pieces.items()]

    def _notes(self, chunks: Array, wanted: bool) -> Array:
        return np.zeros((len(chunks) if wanted else 0, CHUNK // BLOCK, NOTES))

    def on_stream(self) -> AbstractContextManager[Any]:
        """Within it, work on the parameters comes after the steps before, and before those after."""
        return nullcontext()

    def launch(self, after: Sequence[tuple[Any, Any, Any]] = ()) -> None:
        """Step every leaf whose row is not -1 and advance the counts; then `after` as in launch_some."""
        self.launch_some(self.everything, self.table.row, self.table.rows, [*self.unread, *after])

    def launch_some(
        self, work: Sequence[Work], row: Array, rows: Array, after: Sequence[tuple[Any, Any, Any]], counted: bool = True
    ) -> None:
        """Step the leaves whose row is not -1, and advance their counts if the step is counted; then x[where] = values
        for each (x, where, values) of `after`; all of it or, if a signal comes before, nothing."""
        raise NotImplementedError

    def measure(self, work: Sequence[Work], row: Array, squares: bool, largest: bool) -> Array:
        """Return (leaves, NOTES): first each gradient's sum of squares, last its largest magnitude; 0 where the row is
        -1."""
        if work is self.everything:
            self._measured = self._measured or [one._replace(notes=self._notes(one.chunks, True)) for one in work]
            noted = self._measured
        else:
            noted = [one._replace(notes=self._notes(one.chunks, True)) for one in work]
        self._measure(noted, row, squares, largest)
        return self.sums(noted, row)

    def measure_blocks(self, row: Array) -> list[Array]:
        """Return per leaf (blocks, NOTES) of its gradient: see measure; of no block where the row is -1."""
        noted = [one._replace(notes=self._notes(one.chunks, True)) for one in self.everything]
        self._measure(noted, row, True, True)
        return self.blocks(noted, row)

    def blocks(self, noted: Sequence[Work], row: Array) -> list[Array]:
        """Return per leaf (blocks, NOTES): what a walk has noted of each of its blocks."""
        blocks = [np.zeros((0, NOTES))] * len(self._params)
        for _, chunks, notes in noted:
            leaves, starts, counts = np.unique(chunks[:, 0], return_index=True, return_counts=True)
            for leaf, first, count in zip(leaves.tolist(), starts, counts, strict=True):
                if row[leaf] >= 0:
                    blocks[leaf] = notes[first : first + count].reshape(-1, NOTES)[: -(-self._sizes()[leaf] // BLOCK)]
        return blocks

    def _measure(self, work: Sequence[Work], row: Array, squares: bool, largest: bool) -> None:
        raise NotImplementedError

    def sum_up(self) -> Array:
        """Return (leaves, NOTES): what the kernel adds up over each leaf before a step by the table; change nothing."""
        self._sum_up(self._summing)
        return self.sums(self._summing, self.table.row)

    def sum_up_blocks(self) -> list[Array]:
        """Return per leaf (blocks, NOTES) of what the kernel adds up: see sum_up; of no block where nothing is."""
        self._sum_up(self._summing)
        return self.blocks(self._summing, self.table.row)

    def _sum_up(self, work: Sequence[Work]) -> None:
        raise NotImplementedError

    def judged(self, leaves: Array, elements: Array, sums: Array, rows: Array) -> Array:
        """Return (leaves,) float64: the factors of leaves with so many elements, these sums and rows, by the kernel's
        own formula."""
        kernel, numbers, narrow = self._kernel, rows[:, : self.table.width].copy(), self._narrow[leaves]
        assert kernel.judged is not None
        with np.errstate(all="ignore"):
            numbers[narrow] = numbers[narrow].astype(FLOAT32.compute)  # as the walk rounds them
            values = [
                np.sqrt(x) if isinstance(each, Euclidean) else x for each, x in zip(kernel.sums, sums.T, strict=False)
            ]
            factors: Array = kernel.judged(elements, *values, kernel.Coefficients(*numbers.T))
        return factors

    def judged_together(self, sums: Array) -> list[float]:
        """Return what is carried on by a step whose leaves have these sums, by the kernel's own formula."""
        kernel = self._kernel
        assert kernel.judged is not None
        assert kernel.Judging is not None
        totals = np.array([in_pairs(x.tolist()) for x in sums.T[: len(kernel.sums)]])
        with np.errstate(all="ignore"):
            values = [
                np.sqrt(x) if isinstance(each, Euclidean) else x for each, x in zip(kernel.sums, totals, strict=True)
            ]
            judging = kernel.Judging(*map(np.float64, self.table.judging()))
            return [float(x) for x in kernel.judged(*values, *self.table.carried[-1], judging)]

    def settle(self) -> None:
        """Let the table hold what is carried, where a device knows it; waits for the device."""

    def carry(self) -> None:
        """Carry on what the table says from here on, where a device knows better."""

    def accumulate(self, totals: Sequence[Array], row: Array, after: Sequence[tuple[Any, Any, Any]]) -> None:
        """Store the gradients in flat arrays where a leaf's row is 0, add them where it is 1; then as launch_some."""
        raise NotImplementedError

    def taken_over(self, work: Sequence[Work], row: Array) -> int:
        """Return how many elements of parameters with a master the step over this work found set from outside."""
        return sum(int(one.chunks[row[one.chunks[:, 0]] >= 0, TAKEN].sum()) for one in work)

    def sums(self, work: Sequence[Work], row: Array) -> Array:
        """Return (leaves, NOTES): each leaf's notes, added up, of the last column the largest; 0 where the row is
        -1."""
        raise NotImplementedError
