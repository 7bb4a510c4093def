"""The coefficients of the steps to come, on the device: what lets a CUDA graph replay correct steps.

A captured launch has its parameters frozen. So with capturable=True the rows of the next steps lie on the device, and a
counter there, which every step advances, picks this step's. Beyond the last row steps leave everything alone, and the
next refill is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam.arrays import Array
from fastadam.checks import integer
from fastadam.signature import WINDOW
from fastadam.upload import Uploaded

if TYPE_CHECKING:
    from fastadam.cuda import CudaPlan
    from fastadam.optimizer import Optimizer

STEPS = 1_024  # of which the rows lie ready, unless prepare asks for others


class Window:
    """The rows of the steps that follow `opt`'s counts as the host knows them.

    of: by compute dtype, what a launch takes: the rows' address, the counter's, and the numbers of one step.
    at: two int64 on the device: how many of the steps have been taken, and how many there are.
    """

    def __init__(self, opt: Optimizer, plan: CudaPlan) -> None:
        self._opt, self._plan = opt, plan
        self._width = len(opt._kernel.Coefficients._fields)  # type: ignore[attr-defined]
        self.of: dict[Any, Array] = {}
        self._rows: dict[Any, Uploaded] = {}
        self._steps = self._launched = 0  # of those ready, how many the host has launched itself
        self._room = 0  # the steps that there is memory for
        self._captured = False  # whether a graph may replay steps that the host does not see
        with plan.on_stream():
            self._place = Uploaded(16)
        self.at = self._place.memory.view(np.int64)
        plan.load()
        self._start(STEPS)
        plan.window = self

    def taken(self) -> int:
        """The steps since the last refill; waits for the device."""
        taken, steps = self.at.get().tolist()  # type: ignore[attr-defined]
        return int(min(taken, steps))

    def step(self, grads: list[Any], scale: float) -> None:
        """Launch a step by the device's own count."""
        opt = self._opt
        if missing := [name for name, g in zip(opt._structure.names, grads, strict=True) if g is None]:
            raise ValueError(f"grads{missing[0]} is None, expected a gradient for every leaf with capturable=True")
        if scale != 1.0:
            raise ValueError(f"grad_scale is {scale!r}, expected 1 with capturable=True: it would be frozen in a graph")
        if self._capturing():
            self._captured = True
        elif self._launched < self._steps:
            self._launched += 1
        elif self._captured:
            raise RuntimeError(f"the {self._steps} steps that were prepared may be used up: call prepare() first")
        else:  # no step was taken that the host did not see: it knows the device's count
            self._advance(self._steps)
            self._start(self._steps)
            self._launched = 1
        self._plan.launch()

    def refill(self, steps: int | None = None) -> None:
        """Let the window begin at the device's count; waits for the device.

        Raises RuntimeError if steps were asked of the device beyond the window's end; they were not taken.
        """
        asked = self._steps if steps is None else integer("steps", steps, low=1)
        if self._captured and asked > self._room:
            raise ValueError(f"steps is {asked}, expected at most {self._room}, whose place captured graphs know")
        if self._capturing():
            raise RuntimeError("the window cannot be refilled while a graph is captured")
        taken, prepared = self.at.get().tolist()  # type: ignore[attr-defined]
        self._advance(min(taken, prepared))
        self._start(asked)
        if taken > prepared:
            raise RuntimeError(
                f"{taken - prepared} steps were replayed beyond the {prepared} that were prepared, and were not taken: "
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
            self._place(np.array([0, steps]))
        self._steps, self._launched = steps, 0

    def _fill(self, steps: int) -> None:
        """Work out the rows of the steps after the host's counts, and send them. Raises before anything has changed."""
        opt = self._opt
        if not opt._even:
            raise ValueError("leaves of one group have different counts, expected one count with capturable=True")
        before = opt._counts.copy(), opt._carried.copy()
        table, carried = np.empty((steps, len(opt.groups), self._width)), []
        try:
            for k in range(steps):
                opt._one_row_per_group(opt._counts.item(-1) + 1, 1.0)
                table[k] = opt._rows[: len(opt.groups), : self._width]
                opt._counts += 1
                if opt.rule.carried:
                    opt._carried[:] = opt._rows[opt._row, self._width : self._width + opt._carried.shape[1]]
                    carried.append(opt._carried.copy())
        finally:
            opt._counts[:], opt._carried[:] = before
        self._carried = carried
        with self._plan.on_stream():
            for real in self._plan.reals:
                if steps > self._room:
                    self._rows[real] = Uploaded(steps * table[0].size * real.itemsize)
                    where = self._rows[real].address, self._place.address, table[0].size
                    self.of[real] = np.array(where, WINDOW)
                self._rows[real](table.astype(real))
        self._room = max(self._room, steps)
