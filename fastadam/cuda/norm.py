"""Holds the notes that steps on a CUDA device take of gradients and updates, and the passes over them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import starmap
from operator import call
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam.arrays.host import Array
from fastadam.cuda.nvrtc import function
from fastadam.cuda.signature import NO_WINDOW, chunk_table
from fastadam.cuda.upload import Uploaded
from fastadam.kernels.chores import BLOCK, LANES, NOTES
from fastadam.kernels.cuda import Pass, text_of
from fastadam.kernels.formats import format_of
from fastadam.plans.chores import Chores

if TYPE_CHECKING:
    from fastadam.cuda.signature import Signature
    from fastadam.plans.judge import Verdict
    from fastadam.plans.table import Table

THREADS, SPAN = 256, 512  # of a block of ADD_UP; the notes that one adds up
CASE = np.dtype(
    [("leaves", "i8"), ("groups", "i8")]
    + [(name, "u8") for name in ("notes_of", "group_from", "asked", "notes", "room", "rulings", "found")]
)
RULING, JUDGED = 40, 3  # bytes, and which of its numbers is what sums gave
WEIGHED = np.dtype([("n", "i8"), ("note", "i8"), ("ruling", "u8")])
COMMON = np.dtype(
    [("leaves", "i8"), *((name, "u8") for name in ("notes_of", "notes", "room", "rulings", "carried", "asked"))]
)


class Norm:
    """Holds the notes of every block of every leaf, and the passes over them.

    rulings: per leaf, what the step multiplies the gradient by, or that it is to be skipped.
    """

    def __init__(
        self, chores: Chores, table: Table, carried: Any, signatures: Sequence[list[int]], sizes: list[int]
    ) -> None:  # fmt: skip
        """Hold notes for the leaves of these signatures. carried: what is carried, on the device, where leaves share
        it."""
        import cupy

        groups = table.groups
        self._cupy, self._chores, self._groups, self._sizes = cupy, chores, groups, sizes
        self._table, self._carried = table, carried
        self.clipping = chores.max_norm is not None or any(group.max_norm for group in groups)
        self.raising, self.skipping = chores.skip_nonfinite == "raise", chores.skip_nonfinite is True
        self.scaled, self.noted = self.clipping or self.skipping, chores.stats is not None
        self.measured = self.scaled or self.raising
        counts = [-(-n // BLOCK) for n in sizes]
        first, total = np.full(len(sizes) + 1, -1), 0
        self._first_of_signature = []
        for leaves in signatures:
            self._first_of_signature.append(total)
            for leaf in leaves:
                if counts[leaf]:
                    first[leaf], total = total, total + counts[leaf]
        self.notes = cupy.empty(max(1, total) * NOTES, np.float64)
        self.rulings = cupy.zeros((max(1, len(sizes)), RULING // 8), np.int64)
        self._first, self._from = (
            cupy.asarray(first),
            cupy.asarray(np.array([g.leaves.start for g in groups] + [len(sizes)])),
        )
        self._room = cupy.empty(2 * len(sizes) + 1, np.float64)
        self._asked, self._sent = Uploaded(8 * (4 + len(groups))), b""
        self._told = None if carried is None else Uploaded(8 * len(table.judging()))
        self._told_before = b""
        self._findings = cupy.empty(2 + len(groups) + len(sizes), np.float64)  # where a captured graph leaves it
        self._totals = cupy.empty(max(1, len(sizes)) * NOTES, np.float64)
        self._levels, apart = [], 1
        while apart < max(counts, default=0):
            pieces = [
                (first[leaf] + k, min(count - k, apart * SPAN))
                for leaf, count in enumerate(counts)
                for k in range(0, count, apart * SPAN)
                if count - k > apart
            ]
            self._levels.append((cupy.asarray(np.array(pieces)), len(pieces), np.array(apart)))
            apart *= SPAN
        self._blocks = [
            cupy.asarray(chunk_table([sizes[leaf] for leaf in leaves], [0] * len(leaves), BLOCK).view(np.uint8))
            for leaves in signatures
        ]
        weighed = np.zeros(len(sizes), WEIGHED)
        weighed["n"], weighed["note"] = sizes, first[:-1]
        weighed["ruling"] = self.rulings.data.ptr + RULING * np.arange(len(sizes))
        self._weighed = [cupy.asarray(weighed[leaves].view(np.uint8)) for leaves in signatures]
        self._device = self.notes.device.id

    @property
    def flags(self) -> tuple[bool, bool]:
        """Return what steps must be compiled with."""
        return self.scaled, self.noted

    def columns(self, signature: int, leaf: int) -> list[int]:
        """Return what a leaf's line in the table of addresses ends with."""
        return [self.rulings.data.ptr + RULING * leaf, self._notes_of(signature).data.ptr]

    def _notes_of(self, signature: int) -> Any:
        return self.notes[self._first_of_signature[signature] * NOTES :]

    def load(self, signatures: Sequence[Signature]) -> None:
        """Compile or load the passes over what steps of a window are given."""
        for one in signatures:
            self._measure(one, one.load(0)[1])
            if one.summed:
                one.load_sums(one.load(0)[1])
                if self._carried is None:
                    self._weigh(one, one.load(0)[1], NO_WINDOW)
                else:
                    self._weigh_together(one)
        for macro in ("ADD_UP", "JUDGE", "TOTALS", "ADVANCE_UNLESS"):
            self._function(macro)

    def _function(self, macro: str, *arguments: str) -> Any:
        return function(self._device, Pass(macro, arguments))

    def send(self, scale: float, of_rows: float) -> None:
        """Let the device know this step's scale and limits, unless it does already."""
        limits = [self._chores.max_norm, *(group.max_norm for group in self._groups)]
        asked = np.array([abs(scale), of_rows, self.skipping, *(limit or 0.0 for limit in limits)])
        if asked.tobytes() != self._sent:
            self._asked(asked)
            self._sent = asked.tobytes()
        if self._told is not None and (told := np.array(self._table.judging())).tobytes() != self._told_before:
            self._told(told)
            self._told_before = told.tobytes()

    def spread(self) -> None:
        """Let the next sums be taken by what is carried now."""
        self.rulings.view(np.float64)[:, JUDGED] = self._carried[:1]

    def room(self, captured: bool) -> tuple[Any, Any]:
        """Return memory for what a step finds, and for each leaf's totals: the same for all steps of captured
        graphs."""
        empty = self._cupy.empty
        findings = self._findings if captured else empty(self._findings.size, np.float64)
        return findings, self._totals if captured or not self.noted else empty(self._totals.size, np.float64)

    def measure(self, signatures: Sequence[Signature], steps: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Return the calls that note what the gradients of these steps, one call for each signature, are like."""
        calls = [self._measure(one, table) for one, (*_, (_, _, table, _)) in zip(signatures, steps, strict=True)]
        return [*calls, *self._add_up()]

    def decide(self, findings: Any) -> tuple[Any, ...]:
        """Return the call that lets the device decide on what was measured, and write down in `findings` what it
        finds."""
        return self._function("JUDGE"), (1,), (THREADS,), (self._case(findings),)

    def rule(self, verdict: Verdict, of_rows: float, findings: Any) -> None:
        """Write down what the host has decided, as `decide` does on the device."""
        skipped = verdict.bad is not None
        factors = np.ones(len(self._sizes)) if verdict.factors is None else verdict.factors
        rulings = np.zeros((max(1, len(self._sizes)), RULING // 8))
        rulings[:, 0], rulings[: len(factors), 1], rulings.view(np.int64)[:, 2] = of_rows, factors, skipped
        values = np.zeros(findings.size)
        values[:2] = verdict.norm or 0.0, skipped
        values[2 : 2 + len(self._groups)] = 1.0 if verdict.clips is None else verdict.clips
        self.rulings[:, :JUDGED] = self._cupy.asarray(rulings.view(np.int64)[:, :JUDGED])
        findings[...] = self._cupy.asarray(values)

    def blocks(self, signatures: Sequence[Signature], steps: Sequence[tuple[Any, ...]]) -> list[Array]:
        """Return per leaf (blocks, NOTES) of these steps' gradients, not yet added up; wait for the device."""
        calls = [self._measure(one, table) for one, (*_, (_, _, table, _)) in zip(signatures, steps, strict=True)]
        deque(starmap(call, calls), maxlen=0)
        notes = self.notes.get().reshape(-1, NOTES)
        firsts = zip(self._first.get().tolist(), self._sizes, strict=False)
        return [notes[first : first + -(-n // BLOCK)] if first >= 0 else notes[:0] for first, n in firsts]

    def weigh(self, signatures: Sequence[Signature], steps: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Return the calls that add up what these steps, one call a signature, must know first, and judge it.

        What adds up has a block for each piece of memory that MEASURE has one for.
        """
        calls, later = [], []
        for one, (*_, (_, leaves, table, window)) in zip(signatures, steps, strict=True):
            if one.summed:
                blocks = self._blocks[one.number]
                add = one.load_sums(table)
                calls.append((add, (len(blocks) // 16,), (one.threads_of_sums,), (blocks, leaves, table, window)))
                if self._carried is None:
                    later.append(self._weigh(one, table, window))
                else:  # once for all, whichever of them asks
                    later = [self._weigh_together(one)]
        return [*calls, *self._add_up(), *later]

    def _weigh_together(self, one: Signature) -> tuple[Any, ...]:
        assert self._told is not None
        homes = self._first, self.notes, self._room, self.rulings, self._carried, self._told.memory
        common = np.array((len(self._sizes), *(x.data.ptr for x in homes)), COMMON)
        return self._function("WEIGH_TOGETHER", one.type), (1,), (THREADS,), (common,)

    def _weigh(self, one: Signature, table: Array, window: Any) -> tuple[Any, ...]:
        weigh = self._function("WEIGH", _where(table), one.type, text_of(format_of(one.real)))
        grid = (-(-len(one.leaves) // THREADS),)
        return weigh, grid, (THREADS,), (self._weighed[one.number], table, window, np.array(one.width), self.notes)

    def total(self, findings: Any, totals: Any) -> list[Any]:
        """Return the calls that add up what a step has noted down, for each leaf."""
        return [*self._add_up(), (self._function("TOTALS"), (1,), (THREADS,), (self._case(findings), totals))]

    def _measure(self, signature: Signature, table: Array) -> tuple[Any, ...]:
        measure = self._function("MEASURE", _where(table), text_of(format_of(signature.real)), signature.gradient)
        blocks = self._blocks[signature.number]
        return measure, (len(blocks) // 16,), (LANES,), (blocks, table, self._notes_of(signature.number))

    def _add_up(self) -> list[Any]:
        add_up = self._function("ADD_UP")
        return [(add_up, (n,), (THREADS,), (pieces, self.notes, apart)) for pieces, n, apart in self._levels]

    def _case(self, findings: Any) -> Array:
        homes = self._first, self._from, self._asked.memory, self.notes, self._room, self.rulings, findings
        return np.array((len(self._sizes), len(self._groups), *(x.data.ptr for x in homes)), CASE)


def _where(table: Array) -> str:
    """Return where a step's table lies, as CUDA's text calls it."""
    return "ByValue" if table.dtype["words"].shape else "Uploaded"
