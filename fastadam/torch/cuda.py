"""Walks over CUDA tensors: the same leaves and counts, and one launch for each of their signatures."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import torch

from fastadam.arrays.device import DEVICE
from fastadam.backend import BACKENDS
from fastadam.cuda.gradients import only_on_host
from fastadam.cuda.signature import Touched
from fastadam.plans.chores import StepInfo
from fastadam.plans.streams import Streams
from fastadam.torch.formats import FORMATS
from fastadam.torch.walk import Walk


def current_stream(x: Any) -> int:
    """Return the stream on which torch works with a tensor, as __cuda_array_interface__ names it."""
    return torch.cuda.current_stream(x.device).cuda_stream or 1


class Exposed:
    """Shows a dense tensor's memory as one dimension of real numbers, which CuPy views as it views a tensor of that
    dtype."""

    def __init__(self, x: Any, dtype: Any = None) -> None:
        self._x, self.dtype = x.detach(), dtype or x.dtype

    def view(self, dtype: Any) -> Exposed:
        """Return the same memory in a dtype of the same size."""
        return Exposed(self._x, dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        size = self._x.numel() * (2 if self._x.is_complex() else 1)
        return {
            "shape": (size,), "typestr": FORMATS[self.dtype].dtype.str, "data": (self._x.data_ptr(), False),
            "strides": None, "stream": current_stream(self._x), "version": 3,
        }  # fmt: skip


class CudaWalk(Walk):
    """Walks by a plan of CuPy's arrays over torch's memory, made anew when some of that is not where it was.

    Not yet: sparse gradients where all gradients are looked at first, and captured CUDA graphs.
    """

    backend = "cuda"

    def _make_plan(self, formats: list[Streams]) -> Any:
        self._carried_on: list[float] = []  # what a device was left with, where leaves share it
        self._placed: dict[int, list[int]] = {}  # per leaf with a state, where the plan knows its tensors
        for format in {format for of_leaf in formats for format in of_leaf if format is not None}:
            _ = format.dtype  # while nothing has changed: raises where there is no such dtype
        return None

    def _place(self, k: int) -> None:
        if self._placed.get(k) != self.leaves[k].addresses:
            self._placed[k], self._plan = self.leaves[k].addresses, None

    def _step(self, scale: float) -> StepInfo:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a step of fastadam.torch cannot be captured in a CUDA graph: its counts are the host's")
        return super()._step(scale)

    def _settle(self) -> None:
        if self._plan is not None:
            return
        import cupy

        owners: list[Any] = []
        streams = []
        with cupy.cuda.Device(self.leaves[0].memory[0].device.index):
            for leaf in self.leaves:
                if leaf.addresses:
                    views = (DEVICE.to_write(leaf.name, Exposed(x)) for x in leaf.memory)
                    streams.append(leaf.streams(self._kernel, views))
                    owners.append(Exposed(leaf.memory[0]))
                else:  # without a state
                    owners.append(cupy.empty(0, leaf.wide))
                    streams.append(Streams(owners[-1], slots=[None] * len(self._kernel.slots)))
            firsts = self._storage.firsts(self._names_of_leaves, [leaf.size for leaf in self.leaves])
            cuda = BACKENDS["cuda"]
            self._plan = cuda.plan(
                self._kernel, self._labels(), owners, streams, self._table, self._chores, firsts,
            )  # fmt: skip
            self._judge = cuda.judge(self._plan, self._chores, self._names_of_leaves)

    def _sparse(self, grads: list[Any]) -> dict[int, tuple[Any, int, Any]]:
        by_rows, chosen = super()._sparse(grads), self._chores
        limits = [chosen.max_norm, *(group.max_norm for group in self.groups)]
        if by_rows and (any(limits) or chosen.skip_nonfinite or chosen.stats):
            name = self.leaves[min(by_rows)].name
            raise only_on_host(f"the sparse gradient of {name} with max_norm, skip_nonfinite or stats")
        return by_rows

    def _work(self, sparse: dict[int, tuple[Any, int, Any]]) -> Any:
        return [
            Touched(
                k, width, DEVICE.read(Exposed(values)), rows * width, np.zeros_like(rows), np.arange(len(rows) + 1),
                np.arange(len(rows)) * width,
            )
            for k, (rows, width, values) in sparse.items()
        ]  # fmt: skip

    def _launch(self, scale: float, sparse: dict[int, Any], after: list[Any]) -> StepInfo:
        changed = [(array, at) for array, at, _ in after]
        changed += [(self._table.counts, ...), (self._table.carried, ...)]
        waiting = self._chores.skip_nonfinite is True  # for the device, which alone knows
        before = [(array, at, copy(array[at])) for array, at in changed] if waiting else []
        shared = self._table.shared
        if shared and self._table.carried[-1].tolist() != self._carried_on:
            self._plan.carry()
        info: Any = super()._launch(scale, sparse, after)
        if waiting and info.skipped:
            for array, at, value in before:
                array[at] = value
            return StepInfo(skipped=True)
        if shared:  # the groups say it, so the host waits
            self._plan.settle()
            self._carried_on = self._table.carried[-1].tolist()
            for group in self._opt.param_groups:
                group.update(zip(self._opt.rule.carried, self._carried_on, strict=True))
        return info  # type: ignore[no-any-return]
