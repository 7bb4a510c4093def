"""Plans the steps of the NumPy backend, the reference that the others must equal."""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import starmap
from operator import setitem
from typing import Any

import numpy as np

from fastadam.arrays.host import Array
from fastadam.kernels import reference
from fastadam.kernels.chores import NOTES, Flags
from fastadam.kernels.streams import Columns
from fastadam.plans.plan import Plan, Work


class NumpyPlan(Plan):
    """Is the reference: it steps by whole-array arithmetic, chunk by chunk."""

    def _columns(self) -> list[Columns]:
        """Return each leaf's streams, then the zeros that are the gradient of a missed step."""
        return [*(streams.columns for streams in self._streams), Columns(None, self._zeros)]

    def _walk(self, work: Work, columns: Any, row: Array, rows: Array, flags: Flags) -> Iterator[tuple[Any, Any]]:
        """Walk over the chunks of one signature; see fastadam.kernels.reference."""
        return reference.step(self._kernel, columns, work.chunks, row, rows, flags, work.notes, self._firsts)

    def launch_some(
        self, work: Sequence[Work], row: Array, rows: Array, after: Sequence[tuple[Any, Any, Any]], counted: bool = True
    ) -> None:
        # Worked out first, then copied in by C from the first array to the last: neither Ctrl-C nor a lack of memory
        # for a temporary leaves a step half done.
        columns = self._columns()
        done: list[Any] = []
        for one in work:
            done += [(old, ..., new) for old, new in self._walk(one, columns, row, rows, self._flags_of[one.signature])]
        done += self.table.counted(row, rows) if counted else ()
        deque(starmap(setitem, [*done, *after]), maxlen=0)
        for streams in self._streams if counted else ():
            streams.g = None  # a gradient lives no longer than its step

    def _measure(self, work: Sequence[Work], row: Array, squares: bool, largest: bool) -> None:
        for one in work:
            reference.measure(self._columns(), one.chunks, row, one.notes)

    def _sum_up(self, work: Sequence[Work]) -> None:
        columns = self._columns()
        for one in work:
            flags = self._flags_of[one.signature]._replace(summing=True, clear=False, stats=False)
            deque(self._walk(one, columns, self.table.row, self.table.rows, flags), maxlen=0)

    def accumulate(self, totals: Sequence[Array], row: Array, after: Sequence[tuple[Any, Any, Any]]) -> None:
        with np.errstate(all="ignore"):
            sums = [
                streams.g if r == 0 else x + streams.g.astype(x.dtype, copy=False)
                for x, streams, r in zip(totals, self._streams, row, strict=False)
                if r >= 0
            ]
        live = np.flatnonzero(row[:-1] >= 0).tolist()
        done: list[Any] = [(totals[leaf], ..., x) for leaf, x in zip(live, sums, strict=True)]
        done += [(self._streams[leaf].g, ..., 0) for leaf in live if self._flags.clear]
        deque(starmap(setitem, [*done, *self.unread, *after]), maxlen=0)

    def sums(self, work: Sequence[Work], row: Array) -> Array:
        notes_of_leaves = np.zeros((len(self._params), NOTES))
        for one in work:
            reference.sums(one.chunks, one.notes, row, notes_of_leaves)
        return notes_of_leaves
