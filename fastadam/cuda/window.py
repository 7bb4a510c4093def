"""Keeps the coefficients of the steps to come on the device: this lets a CUDA graph replay correct steps.

A captured launch has its parameters frozen. So with capturable=True the rows of the next steps lie on the device, and a
counter there, which every step advances, picks this step's. Beyond the last row steps leave everything alone, and the
next refill is an error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import starmap
from operator import call, setitem
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam.arrays.host import Array
from fastadam.checks import integer
from fastadam.cuda.signature import WINDOW
from fastadam.cuda.upload import Uploaded
from fastadam.plans.table import EVERY

if TYPE_CHECKING:
    from fastadam.cuda.judge import Judge
    from fastadam.cuda.plan import CudaPlan

STEPS = 1_024  # of which the rows lie ready, unless prepare asks for others


class Window:
    """Holds the rows of the steps that follow the table's counts, which are those that the host knows.

    of: by compute dtype, what a launch takes: the rows' address, the counter's, and the numbers of one step.
    at: three int64 on the device: how many of the steps have been taken, how many there are, how many were skipped.

    The window ends early where a schedule raises; the step at which it does raises that error. Any other error, or
    Ctrl-C, leaves the device's window, its counter and the host's counts as they were.
    """

    def __init__(self, plan: CudaPlan, judge: Judge, names: Sequence[str], frozen: bool) -> None:
        """Hold no step yet. names: per leaf, as errors call it. frozen: whether graphs may be captured, which know no
        grad_scale."""
        self._plan, self._table, self._judge, self._names, self._frozen = plan, plan.table, judge, names, frozen
        self.of: dict[Any, Array] = {}
        self._rows: dict[Any, Uploaded] = {}
        self._steps, self._launched = 0, np.zeros((), np.int64)  # those ready, and how many the host has launched
        self._room = 0  # the steps that there is memory for
        self._wanted = STEPS  # what the window is to hold
        self._carried: list[Array] = []  # what the rule carries after each of those ready
        self._error: Exception | None = None  # what a schedule raised beyond its end
        self._captured = False  # whether a graph may replay steps that the host does not see
        with plan.on_stream():
            self._place = Uploaded(24)
        self.at = self._place.memory.view(np.int64)
        plan.load()
        self.restart()
        plan.window = self

    def taken(self) -> int:
        """Return the steps since the last refill; waits for the device."""
        taken, steps, _ = self._read()
        return min(taken, steps)

    @property
    def captured(self) -> bool:
        """Return whether a graph has been captured, which has one row of coefficients for all leaves of a group."""
        return self._captured

    def skipped(self) -> int:
        """Return the steps skipped since the last refill; waits for the device."""
        return self._read()[2]

    def _read(self) -> list[int]:
        with self._plan.on_stream():
            read: list[int] = self.at.get().tolist()  # type: ignore[attr-defined]
        return read

    def step(self, grads: list[Any], scale: float, after: Sequence[Any], measured: Any = None) -> Any:
        """Launch a step by the device's own count."""
        norm = self._plan.norm
        if missing := [name for name, g in zip(self._names, grads, strict=True) if g is None]:
            raise ValueError(
                f"grads{missing[0]} is None, expected a gradient for every leaf where the device counts the steps"
            )
        if scale != 1.0 and self._frozen:
            raise ValueError(
                f"grad_scale is {scale!r}, or the mean of accumulated gradients asks for it: expected 1 with "
                "capturable=True, where it would be frozen in a graph"
            )
        if self._plan.capturing():
            self._captured = True
        else:
            if self._launched >= self._steps:
                self._go_on(norm is not None and norm.skipping)
            after = [*after, (self._launched, ..., self._launched + 1)]
        return self._judge.step(scale, after=after, measured=measured)

    def _go_on(self, counted: bool) -> None:
        """Refill for an eager step. counted: whether only the device knows how many steps it has taken."""
        if self._captured:
            raise RuntimeError(f"the {self._steps} steps that were prepared may be used up: call prepare() first")
        # Else no step was taken that the host did not see: it knows the device's count.
        taken, _, skipped = self._read() if counted else (self._steps, 0, 0)
        self._begin(taken, skipped, self._wanted)
        if self._error is not None and self._steps == 0:
            raise self._error

    def refill(self, steps: int | None = None) -> None:
        """Let the window begin at the device's count; waits for the device.

        Raises RuntimeError if steps were asked of the device beyond the window's end; they were not taken.
        """
        asked = self._wanted if steps is None else integer("steps", steps, low=1)
        if self._captured and asked > self._room:
            raise ValueError(f"steps is {asked}, expected at most {self._room}, whose place captured graphs know")
        if self._plan.capturing():
            raise RuntimeError("the window cannot be refilled while a graph is captured")
        taken, prepared, skipped = self._read()
        self._begin(min(taken, prepared), skipped, asked)
        if taken > prepared:
            raise RuntimeError(
                f"{taken - prepared} steps were replayed beyond the {prepared} that were prepared, and were not taken: "
                "call prepare() in time"
            )
        if steps is not None and self._error is not None:
            raise self._error

    def rewrite(self) -> None:
        """Take changed hyperparameters over from the next step on; waits only if the rule carries numbers."""
        if self._plan.capturing():
            raise RuntimeError("hyperparameters cannot be changed while a graph is captured")
        self._table.judging()  # raises where groups differ in it
        if (error := self._work_out(1)[-1]) is not None:
            raise error
        table: Any = () if self._table.carries else self._work_out(self._steps)[0]
        if self._error or len(table) < self._steps:  # or carried: what steps taken carry must not be worked out anew
            self.refill()
        else:
            with self._plan.on_stream():
                deque(starmap(call, self._sending(table, self._room)[0]), maxlen=0)
        self._plan.send()

    def pause(self) -> None:
        """Let the host's counts be the device's, and no step be ready until the window begins anew."""
        taken, prepared, skipped = self._read()
        self._begin(min(taken, prepared), skipped, 0)

    def restart(self) -> None:
        """Begin at the host's counts, which were set anew."""
        self._begin(0, 0, self._wanted)

    def _begin(self, taken: int, skipped: int, steps: int) -> None:
        """Let the window begin after so many steps of the present one; the host's counts take these over."""
        table = self._table
        rows, carried, error = self._work_out(steps, taken)
        now = self._carried[taken - 1] if taken and table.carries else table.carried.copy()
        room = max(self._room, steps)
        with self._plan.on_stream():
            sending, fields = self._sending(rows, room)
            fields |= {"_steps": len(rows), "_room": room, "_carried": carried, "_error": error}
            fields |= {"_wanted": steps or self._wanted}
            sending += self._place.calls(np.array([0, len(rows), 0]))
            sending += [(setitem, table.counts, ..., table.counts + taken), (setitem, table.carried, ..., now)]
            sending += [(setattr, table, "skipped", table.skipped + skipped)]
            sending += [(setitem, self._launched, ..., 0), (vars(self).update, fields)]
            # In C from the first row to the last count: no signal handler runs between, and all memory is there.
            deque(starmap(call, sending), maxlen=0)

    def _work_out(self, steps: int, taken: int = 0) -> tuple[Array, list[Array], Exception | None]:
        """Return the rows of the steps after those taken, what the rule carries after each, what ended them early."""
        self._table.sort(EVERY)
        ahead = self._table.copy()
        ahead.counts += taken
        if taken and self._carried:
            ahead.carried[:] = self._carried[taken - 1]
        used = len(ahead.cohorts)
        table, carried = np.empty((steps, used, ahead.rows.shape[1])), []
        error: Exception | None = None
        try:
            for k in range(steps):
                ahead.fill(1.0)
                table[k] = ahead.rows[:used]
                ahead.count()
                if ahead.carries:
                    carried.append(ahead.carried.copy())
        except Exception as raised:
            error, table = raised, table[:k]
        return table[:, :, self._plan.columns], carried, error

    def _sending(self, table: Array, room: int) -> tuple[list[Any], dict[str, Any]]:
        """Return the calls that let the device have these rows of steps, and what is known of it then; changes
        nothing."""
        sending: list[Any] = []
        rows, of = dict(self._rows), dict(self.of)
        for real in self._plan.reals:
            packed = self._plan.packed(table, real)
            width = packed.shape[1] * packed.shape[2]
            if room > self._room or int(of[real]["width"]) != width:  # leaves with counts of their own have more rows
                rows[real] = Uploaded(room * width * packed.itemsize)
                of[real] = np.array((rows[real].address, self._place.address, width), WINDOW)
            sending += rows[real].calls(packed)
        return sending, {"_rows": rows, "of": of}
