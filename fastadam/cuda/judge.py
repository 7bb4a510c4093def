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
        if norm is None or not self._names:
            if plan.mastered:
                with plan.on_stream():
                    return self._counted(after, part)  # type: ignore[no-any-return]
            self._launch(after, part)
            return self.nothing(scale) if norm else NOTHING
        with plan.on_stream():
            norm.send(scale, 1.0 if plan.window is None else scale)
            captured = plan.window is not None and plan.stream().is_capturing()
            findings, totals = norm.room(captured)
            counter = plan.begin_counting(captured)
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
            taken = plan.taken(counter)
            return DeviceInfo(self, norm, findings, totals, taken, scale, plan.stream())  # type: ignore[return-value]

    def _launch(self, after: Changes, part: Part | None) -> None:
        """Step as nothing was measured for. A plan whose gradients are refuses rows: else a part is of whole leaves."""
        if part is not None and self._plan.norm is None:
            self._plan.launch_some(*part, [*self._plan.unread, *after])
        else:
            self._plan.launch(after)

    def _counted(self, after: Changes, part: Part | None) -> Any:
        """Take a step of parameters with masters, of which the device counts those set from outside."""
        plan = self._plan
        counter = plan.begin_counting(plan.window is not None and plan.stream().is_capturing())
        self._launch(after, part)
        return DeviceInfo(self, None, None, None, plan.taken(counter), 1.0, plan.stream())

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

    def read(self, norm: Norm, findings: Array, totals: Array, taken_over: int | None, scale: float) -> StepInfo:
        """Return the report of a step from what it has found, now on the host."""
        if norm.skipping and findings[1] > 0:
            return StepInfo(skipped=True)
        n, groups = len(self._names), len(self._table.groups)
        verdict = Verdict(None, findings.item(0), findings[2 : 2 + groups].tolist()) if norm.clipping else Verdict()
        sums = totals.reshape(-1, NOTES)[:n] if norm.noted else None
        return self.report(verdict, sums, scale, taken_over)


class DeviceInfo:
    """Is a StepInfo whose numbers lie on a device: whoever asks for one waits until the step has been taken."""

    def __init__(
        self, judge: Judge, norm: Norm | None, findings: Any, totals: Any, taken: Any, scale: float, stream: Any
    ) -> None:  # fmt: skip
        """norm: None where only `taken` was counted, how many parameters with masters were set from outside."""
        self._judge, self._norm, self._findings, self._totals = judge, norm, findings, totals
        self._taken, self._scale, self._stream = taken, scale, stream

    def read(self) -> StepInfo:
        """Return everything; waits for the device."""
        norm = self._norm
        taken = None if self._taken is None else int(self._taken.get(stream=self._stream)[0])
        if norm is None:
            return StepInfo(taken_over=taken)
        findings = self._findings.get(stream=self._stream) if norm.measured else np.zeros(self._findings.size)
        totals = self._totals.get(stream=self._stream) if norm.noted else np.zeros(self._totals.size)
        return self._judge.read(norm, findings, totals, taken, self._scale)

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
