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
    """

    def __init__(self, opt: Optimizer, plan: CudaPlan) -> None:
        self._opt, self._plan = opt, plan
        self.of: dict[Any, Array] = {}
        self._rows: dict[Any, Uploaded] = {}
        self._steps = self._launched = 0  # of those ready, how many the host has launched itself
        self._room = 0  # the steps that there is memory for
        self._captured = False  # whether a graph may replay steps that the host does not see
        with plan.on_stream():
            self._place = Uploaded(24)
        self.at = self._place.memory.view(np.int64)
        plan.load()
        self._start(STEPS)
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
        if scale != 1.0 and (norm is None or not norm.scaled or self._capturing()):
            raise ValueError(f"grad_scale is {scale!r}, expected 1 with capturable=True: it would be frozen in a graph")
        if self._capturing():
            self._captured = True
        elif self._launched < self._steps:
            self._launched += 1
        elif self._captured:
            raise RuntimeError(f"the {self._steps} steps that were prepared may be used up: call prepare() first")
        else:  # no step was taken that the host did not see: it knows the device's count
            self._advance(self._collect()[0] if norm is not None and norm.skipping else self._steps)
            self._start(self._steps)
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
        asked = self._steps if steps is None else integer("steps", steps, low=1)
        if self._captured and asked > self._room:
            raise ValueError(f"steps is {asked}, expected at most {self._room}, whose place captured graphs know")
        if self._capturing():
            raise RuntimeError("the window cannot be refilled while a graph is captured")
        prepared = self._steps
        taken, beyond = self._collect()
        self._advance(taken)
        self._start(asked)
        if beyond:
            raise RuntimeError(
                f"{beyond} steps were replayed beyond the {prepared} that were prepared, and were not taken: "
                "call prepare() in time"
            )

    def rewrite(self) -> None:
        """Take changed hyperparameters over from the next step on; waits only if the rule carries numbers."""
        if self._capturing():
            raise RuntimeError("hyperparameters cannot be changed while a graph is captured")
        if self._opt.rule.carried:  # what steps already taken carry must not be worked out anew
            self.refill()
        else:
            self._fill(self._steps)
        if self._plan.norm is not None:
            with self._plan.on_stream():
                self._plan.norm.send(1.0, 1.0)

    def restart(self) -> None:
        """Begin at the host's counts, which were set anew."""
        self._start(self._steps)

    def _capturing(self) -> bool:
        with self._plan.on_stream():
            return bool(self._plan.stream().is_capturing())

    def _advance(self, taken: int) -> None:
        """Let the host's counts be those after so many steps."""
        self._opt._counts += taken
        if taken and self._opt.rule.carried:
            self._opt._carried[:] = self._carried[taken - 1]

    def _start(self, steps: int) -> None:
        self._fill(steps)
        with self._plan.on_stream():
            self._place(np.array([0, steps, 0]))
        self._steps, self._launched = steps, 0

    def _fill(self, steps: int) -> None:
        """Work out the rows of the steps after the host's counts, and send them. Raises before anything has changed."""
        opt = self._opt
        if not opt._even:
            raise ValueError("leaves of one group have different counts, expected one count with capturable=True")
        before, width = (opt._counts.copy(), opt._carried.copy()), len(opt._kernel.Coefficients._fields)  # type: ignore[attr-defined]
        table, carried = np.empty((steps, len(opt.groups), len(self._plan.columns))), []
        try:
            for k in range(steps):
                opt._one_row_per_group(opt._counts.item(-1) + 1, 1.0)
                table[k] = opt._rows[: len(opt.groups), self._plan.columns]
                opt._counts += 1
                if opt.rule.carried:
                    opt._carried[:] = opt._rows[opt._row, width : width + opt._carried.shape[1]]
                    carried.append(opt._carried.copy())
        finally:
            opt._counts[:], opt._carried[:] = before
        self._carried = carried
        with self._plan.on_stream():
            for real in self._plan.reals:
                packed = self._plan.packed(table, real)
                if steps > self._room:
                    self._rows[real] = Uploaded(packed.nbytes)
                    where = self._rows[real].address, self._place.address, packed[0].size
                    self.of[real] = np.array(where, WINDOW)
                self._rows[real](packed)
        self._room = max(self._room, steps)
