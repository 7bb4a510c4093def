"""The walk over CUDA tensors: the same leaves and counts, and one launch for each of their signatures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastadam.backend import BACKENDS
from fastadam.chores import StepInfo
from fastadam.device import DEVICE
from fastadam.torch.leaf import Leaf
from fastadam.torch.walk import Walk


def current_stream(x: Any) -> int:
    """The stream on which torch works with a tensor, as __cuda_array_interface__ names it."""
    return torch.cuda.current_stream(x.device).cuda_stream or 1


class Exposed:
    """A dense tensor's memory as one dimension of real numbers, for CuPy."""

    def __init__(self, x: Any, leaf: Leaf) -> None:
        self._x, self._leaf = x.detach(), leaf

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": (self._leaf.size,), "typestr": self._leaf.real.str, "data": (self._x.data_ptr(), False),
            "strides": None, "stream": current_stream(self._x), "version": 3,
        }  # fmt: skip


class CudaWalk(Walk):
    """A plan of CuPy's arrays over torch's memory, made anew when some of that is not where it was.

    Not yet: 16-bit parameters, moments of 16 and of 8 bits, sparse gradients, copy_to, and captured CUDA graphs.
    """

    backend = "cuda"

    def _make_plan(self, formats: list[list[Any]]) -> Any:
        for leaf in self.leaves:
            if leaf.short:
                raise NotImplementedError(f"{leaf.name} is {leaf.dtype} and lies on a CUDA device")
            if leaf.copied:
                raise NotImplementedError(f"copy_to for {leaf.name}, which lies on a CUDA device")
            if torch.uint8 in leaf.kinds.values() or torch.bfloat16 in leaf.kinds.values():
                raise NotImplementedError(f"moments of fewer bits for {leaf.name}, which lies on a CUDA device")
        self._formats = formats
        return None

    def _place(self, k: int) -> None:
        self._plan = None

    def _step(self, scale: float) -> StepInfo:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a step of fastadam.torch cannot be captured in a CUDA graph: its counts are the host's")
        return super()._step(scale)

    def _settle(self) -> None:
        if self._plan is not None:
            return
        params, slots = [], []
        for leaf, formats, columns in zip(self.leaves, self._formats, self._columns, strict=True):
            own: list[Any] = [None] * (len(formats) + 1)  # p, g, the slots, the average, the copy, the remainder
            if leaf.addresses:  # has a state
                for column, x in zip(columns, leaf.found, strict=False):
                    own[column] = Exposed(x, leaf)
            else:
                import cupy

                with cupy.cuda.Device(leaf.found[0].device.index):
                    empty = [None if dtype is None else cupy.empty(0, dtype) for dtype in formats]
                own = [empty[0], None, *empty[1:]]
            params.append(own[0])
            slots.append([DEVICE.own(leaf.name, x) if isinstance(x, Exposed) else x for x in own[2:]])
        self._plan = BACKENDS["cuda"].plan_for(
            self, self._kernel, self._labels(), params, slots, self._row, self._rows, self._counts,
            np.zeros((1, len(self._opt.rule.carried))), self._chores.flags, [0] * len(params), [None] * len(params),
        )  # fmt: skip

    def _sparse(self, grads: list[Any]) -> dict[int, tuple[Any, int, Any]]:
        for leaf, g in zip(self.leaves, grads, strict=True):
            if g is not None:
                self._opt._check_layout(leaf, g)
                if g.layout is not torch.strided:
                    raise NotImplementedError(f"{leaf.name} lies on a CUDA device and has a sparse gradient")
        return {}

    def _launch(self, sparse: dict[int, Any], after: list[Any]) -> StepInfo:
        before = [(array, at, array[at]) for array, at, _ in after] if self._chores.skip_nonfinite is True else []
        info: Any = super()._launch(sparse, after)
        if before and info.skipped:  # waits for the device, which alone knows
            for array, at, value in before:
                array[at] = value
            self.forget()
            return StepInfo(skipped=True)
        return info  # type: ignore[no-any-return]
