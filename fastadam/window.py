"""The coefficients of the steps to come, on the device: what lets a CUDA graph replay correct steps.

A captured launch has its parameters frozen. So with capturable=True the rows of the next steps lie on the device, and a
counter there, which every step advances, picks this step's. Beyond the last row steps leave everything alone, and the
next refill is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam.arrays import Array
from fastadam.checks import integer
from fastadam.chores import NOTHING
from fastadam.rows import one_per_group
from fastadam.signature import WINDOW
from fastadam.upload import Uploaded

if TYPE_CHECKING:
    from fastadam.cuda import CudaPlan
    from fastadam.optimizer import Optimizer

STEPS = 1_024  # of which the rows lie ready, unless prepare asks for others


class Window:
    """The rows of the steps that follow `opt`'s counts as the host knows them.

    of: by compute dtype, what a launch takes: the rows' address, the counter's, and the numbers of one step.
    at: three int64 on the device: how many of the steps have been taken, how many there are, how many were skipped.

    The window ends early where a schedule raises; the step at which it does raises that error.
    """

    def __init__(self, opt: Optimizer, plan: CudaPlan) -> None:
        self._opt, self._plan = opt, plan
        self.of: dict[Any, Array] = {}
        self._rows: dict[Any, Uploaded] = {}
        self._steps = self._launched = 0  # of those ready, how many the host has launched itself
        self._room = 0  # the steps that there is memory for
        self._wanted = STEPS  # what the window is to hold
        self._error: Exception | None = None  # what a schedule raised beyond its end
        self._captured = False  # whether a graph may replay steps that the host does not see
        with plan.on_stream():
            self._place = Uploaded(24)
        self.at = self._place.memory.view(np.int64)
        plan.load()
        self._start()
        plan.window = self

    def taken(self) -> int:
        """The steps since the last refill; waits for the device."""
        taken, steps, _ = self.at.get().tolist()  # type: ignore[attr-defined]
        return int(min(taken, steps))

    def skipped(self) -> int:
        """The steps skipped since the last refill; waits for the device."""
        return int(self.at.get()[2])  # type: ignore[attr-defined]

    def step(self, grads: list[Any], scale: float, after: Sequence[Any]) -> Any:
        """Launch a step by the device's own count."""
        opt, norm = self._opt, self._plan.norm
        if missing := [name for name, g in zip(opt._structure.names, grads, strict=True) if g is None]:
            raise ValueError(
                f"grads{missing[0]} is None, expected a gradient for every leaf where the device counts the steps"
            )
        if scale != 1.0 and opt._capturable:
            raise ValueError(
                f"grad_scale is {scale!r}, or the mean of accumulated gradients asks for it: expected 1 with "
                "capturable=True, where it would be frozen in a graph"
            )
        if self._capturing():
            self._captured = True
        elif self._launched < self._steps:
            self._launched += 1
        elif self._captured:
            raise RuntimeError(f"the {self._steps} steps that were prepared may be used up: call prepare() first")
        else:  # no step was taken that the host did not see: it knows the device's count
            self._advance(self._collect()[0] if norm is not None and norm.skipping else self._steps)
            self._start()
            if self._steps == 0:
                raise self._error  # type: ignore[misc]
            self._launched = 1
        if norm is not None:
            return norm.launch(self._plan, opt, scale, after)
        self._plan.launch()
        for x, where, values in after:
            x[where] = values
        return NOTHING

    def _collect(self) -> tuple[int, int]:
        """The steps taken, and those asked for beyond the window's end; what was skipped is the host's now."""
        taken, steps, skipped = self.at.get().tolist()  # type: ignore[attr-defined]
        self._opt._skipped += skipped
        return min(taken, steps), max(0, taken - steps)

    def refill(self, steps: int | None = None) -> None:
        """Let the window begin at the device's count; waits for the device.

        Raises RuntimeError if steps were asked of the device beyond the window's end; they were not taken.
        """
        asked = self._wanted if steps is None else integer("steps", steps, low=1)
        if self._captured and asked > self._room:
            raise ValueError(f"steps is {asked}, expected at most {self._room}, whose place captured graphs know")
        if self._capturing():
            raise RuntimeError("the window cannot be refilled while a graph is captured")
        prepared, self._wanted = self._steps, asked
        taken, beyond = self._collect()
        self._advance(taken)
        self._start()
        if beyond:
            raise RuntimeError(
                f"{beyond} steps were replayed beyond the {prepared} that were prepared, and were not taken: "
                "call prepare() in time"
            )
        if steps is not None and self._error is not None:
            raise self._error

    def rewrite(self) -> None:
        """Take changed hyperparameters over from the next step on; waits only if the rule carries numbers."""
        if self._capturing():
            raise RuntimeError("hyperparameters cannot be changed while a graph is captured")
        if (error := self._work_out(1)[-1]) is not None:
            raise error
        table: Any = () if self._opt.rule.carried else self._work_out(self._steps)[0]
        if self._error or len(table) < self._steps:  # or carried: what steps taken carry must not be worked out anew
            self.refill()
        else:
            self._send(table)
        self._plan.send()

    def restart(self) -> None:
        """Begin at the host's counts, which were set anew."""
        self._start()

    def _capturing(self) -> bool:
        with self._plan.on_stream():
            return bool(self._plan.stream().is_capturing())

    def _advance(self, taken: int) -> None:
        """Let the host's counts be those after so many steps."""
        self._opt._counts += taken
        if taken and self._opt.rule.carried:
            self._opt._carried[:] = self._carried[taken - 1]

    def _start(self) -> None:
        """Let the window begin after the host's counts."""
        table, self._carried, self._error = self._work_out(self._wanted)
        self._send(table)
        self._steps, self._launched = len(table), 0
        with self._plan.on_stream():
            self._place(np.array([0, self._steps, 0]))

    def _work_out(self, steps: int) -> tuple[Array, list[Array], Exception | None]:
        """The rows of the steps after the host's counts, what the rule carries after each, what ended them early."""
        opt = self._opt
        if not opt._even:
            raise ValueError("leaves of one group have different counts, expected one count with capturable=True")
        before, groups = (opt._counts.copy(), opt._carried.copy()), len(opt.groups)
        first = len(opt._kernel.Coefficients._fields)  # type: ignore[attr-defined]
        table, carried = np.empty((steps, groups, opt._rows.shape[1])), []
        error: Exception | None = None
        rows, counts = opt._rows[:groups], opt._counts
        start = counts.item(-1)
        try:
            for k in range(steps):
                one_per_group(opt, start + k + 1, 1.0)
                table[k] = rows
                counts += 1
                if opt.rule.carried:
                    opt._carried[:] = opt._rows[opt._row, first : first + opt._carried.shape[1]]
                    carried.append(opt._carried.copy())
        except Exception as raised:
            error, table = raised, table[:k]
        finally:
            opt._counts[:], opt._carried[:] = before
        return table[:, :, self._plan.columns], carried, error

    def _send(self, table: Array) -> None:
        """Let the device have these rows of steps."""
        room = max(self._room, self._wanted)
        with self._plan.on_stream():
            for real in self._plan.reals:
                packed = self._plan.packed(table, real)
                if room > self._room:
                    self._rows[real] = Uploaded(room * packed[:1].nbytes or 8)
                    where = self._rows[real].address, self._place.address, packed.shape[1] * packed.shape[2]
                    self.of[real] = np.array(where, WINDOW)
                self._rows[real](packed)
        self._room = room
