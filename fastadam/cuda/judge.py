"""Says what becomes of a step on a CUDA device: measured, decided on, launched or skipped there, reported when asked.

Nothing waits for the device but skip_nonfinite="raise", which must know before it goes on, and whoever reads a report.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import starmap
from operator import call, setitem
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam.arrays.host import Array
from fastadam.kernels.chores import NOTES
from fastadam.plans import judge
from fastadam.plans.chores import NOTHING, StepInfo
from fastadam.plans.judge import Changes, Part, Verdict
from fastadam.plans.measured import Measured

if TYPE_CHECKING:
    from fastadam.cuda.norm import Norm
    from fastadam.cuda.plan import CudaPlan


class Judge(judge.Judge):
    """Is the judge of a CUDA plan: the device decides, and multiplies gradients in the step's own walk."""

    _plan: CudaPlan
    apart = False  # the device keeps each leaf's factor beside the rows

    def step(
        self, scale: float, grads: Sequence[Any] = (), after: Changes = (), used: Changes = (),
        part: Part | None = None, measured: Mapping[str, Measured] | None = None,
    ) -> StepInfo:  # fmt: skip
        plan, norm = self._plan, self._plan.norm
        if part is not None and norm is None:  # the plan refuses rows that are measured: else it is of whole leaves
            plan.launch_some(*part, [*plan.unread, *after])
            return NOTHING
        if norm is None or not self._names:
            plan.launch(after)
            return self.nothing(scale) if norm else NOTHING
        with plan.on_stream():
            norm.send(scale, 1.0 if plan.window is None else scale)
            findings, totals = norm.room(captured=plan.window is not None and plan.stream().is_capturing())
            steps = plan.steps()
            if measured is not None and norm.measured:
                self._rule(self.decide_on(measured, scale), findings, scale, used)
            elif norm.measured:
                deque(starmap(call, [*norm.measure(plan.signatures, steps), norm.decide(findings)]), maxlen=0)
            if measured is None and norm.raising and (values := findings.get())[1] > 0:
                deque(starmap(setitem, used), maxlen=0)
                raise self.refuse(self._names[int(np.argmin(np.isfinite(values[2 + len(self._table.groups) :])))])
            if plan.summed.size:
                deque(starmap(call, norm.weigh(plan.signatures, steps)), maxlen=0)
            noted = norm.total(findings, totals) if norm.noted else []
            rest = [(setitem, *one) for one in after]
            deque(starmap(call, [*steps, *noted, *plan.counting(), *rest]), maxlen=0)
            return DeviceInfo(self, norm, findings, totals, scale, plan.stream())  # type: ignore[return-value]

    def _rule(self, verdict: Verdict, findings: Any, scale: float, used: Changes) -> None:
        """Let the device act on a verdict of the host. Raises RuntimeError while a graph is captured."""
        plan = self._plan
        if plan.window is not None and plan.stream().is_capturing():
            raise RuntimeError("measured is given while a graph is captured, expected None: it is frozen there")
        if verdict.bad is not None and self._chores.skip_nonfinite == "raise":
            deque(starmap(setitem, used), maxlen=0)
            raise self.refuse(verdict.bad)
        assert plan.norm is not None
        plan.norm.rule(verdict, 1.0 if plan.window is None else scale, findings)

    def read(self, norm: Norm, findings: Array, totals: Array, scale: float) -> StepInfo:
        """Return the report of a step from what it has found, now on the host."""
        if norm.skipping and findings[1] > 0:
            return StepInfo(skipped=True)
        n, groups = len(self._names), len(self._table.groups)
        verdict = Verdict(None, findings.item(0), findings[2 : 2 + groups].tolist()) if norm.clipping else Verdict()
        return self.report(verdict, totals.reshape(-1, NOTES)[:n] if norm.noted else None, scale)


class DeviceInfo:
    """Is a StepInfo whose numbers lie on a device: whoever asks for one waits until the step has been taken."""

    def __init__(self, judge: Judge, norm: Norm, findings: Any, totals: Any, scale: float, stream: Any) -> None:
        self._judge, self._norm, self._findings, self._totals = judge, norm, findings, totals
        self._scale, self._stream = scale, stream

    def read(self) -> StepInfo:
        """Return everything; waits for the device."""
        norm = self._norm
        findings = self._findings.get(stream=self._stream) if norm.measured else np.zeros(self._findings.size)
        totals = self._totals.get(stream=self._stream) if norm.noted else np.zeros(self._totals.size)
        return self._judge.read(norm, findings, totals, self._scale)

    def __getattr__(self, name: str) -> Any:
        if not hasattr(StepInfo, name):
            raise AttributeError(f"StepInfo has no {name!r}")
        return getattr(self.read(), name)

    def __getitem__(self, where: Any) -> Any:
        return self.read()[where]

    def __len__(self) -> int:
        return len(StepInfo._fields)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.read())

    def __eq__(self, other: object) -> bool:
        return self.read() == (other.read() if isinstance(other, DeviceInfo) else other)

    __hash__ = None  # type: ignore[assignment]  # as a StepInfo with statistics has none

    def __reduce__(self) -> tuple[Any, ...]:
        return StepInfo, tuple(self.read())

    def __repr__(self) -> str:
        return repr(self.read())
