"""The plan of arrays on a CUDA device: one launch per signature, through CuPy; nothing waits for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import starmap
from operator import call, setitem
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam.arrays import Array, describe, extent, flat_like, shaped_like
from fastadam.device import DEVICE, on_device, stream_of
from fastadam.plan import Plan
from fastadam.signature import NO_WINDOW, Signature, function

if TYPE_CHECKING:
    from fastadam.window import Window


class CudaPlan(Plan):
    """Arrays on one device; steps run on the current stream of whoever owns the parameters."""

    def __init__(self, kernel: Any, names: Any, params: Sequence[Any], *rest: Any) -> None:
        import cupy

        self._cupy = cupy
        # Where another library owns a parameter: how to look at it again, since its memory may move.
        self._foreign = {k: p for k, p in enumerate(params) if not hasattr(p, "views") and type(p) is not cupy.ndarray}
        viewed = [DEVICE.own(names[k][0], p) if k in self._foreign else p for k, p in enumerate(params)]
        super().__init__(kernel, names, viewed, *rest)
        first: Any = self._params[0] if self._params else None
        self._device = cupy.cuda.Device() if first is None else first.device
        for labels, streams in zip(names, self._streams, strict=True):
            for label, x in zip(labels, streams, strict=True):
                if x is not None and x.device.id != self._device.id:
                    raise ValueError(
                        f"{label} is {describe(x)}, {names[0][0]} is {describe(first)}: expected one device"
                    )
        self._index = self._device.id
        self._width = len(kernel.Coefficients._fields)
        slots = 2 + len(kernel.slots)
        groups: dict[int, list[int]] = {}
        for leaf, k in self._signature_of.items():
            groups.setdefault(k, []).append(leaf)
        own = [streams[:slots] for streams in self._streams]
        with self._device:
            self._signatures = [
                Signature(kernel.name, leaves, own, len(self._rows), self._width) for leaves in groups.values()
            ]
            cupy.cuda.get_current_stream().synchronize()  # zeros and tables are there, whichever stream steps first
        self._signatures = [one for one in self._signatures if one.blocks]
        # Where the address of a leaf's gradient goes.
        self._home = {int(leaf): (one.words, k) for one in self._signatures for k, leaf in enumerate(one.leaves)}
        # What a gradient was like that was accepted before: (shape, strides, dtype, address).
        self._known: list[Any] = [None] * len(self._params)
        self._others: list[Any] = []  # the streams of gradients whose owners name one
        self.window: Window | None = None

    def accept(self, grads: list[Any]) -> int:
        ndarray, known, missing, new = self._cupy.ndarray, self._known, 0, []
        for leaf, g in enumerate(grads):
            if g is None:
                missing += 1
            elif type(g) is not ndarray or (g.data.ptr, g.shape, g.strides, g.dtype) != known[leaf]:
                new.append(leaf)
        for leaf in self._foreign:
            self._check_unmoved(leaf)
        usable = [(leaf, self._usable(leaf, grads[leaf])) for leaf in new]
        self._others = [s for s in map(stream_of, (grads[leaf] for leaf in new)) if s is not None]
        for leaf, g in usable:
            self._take(leaf, g)
        return missing

    def _take(self, leaf: int, g: Any) -> None:
        p, straight = self._params[leaf], flat_like(g, self._params[leaf])
        if straight is None:  # other strides than p's: copied, in memory kept for the next step
            if leaf not in self._scratch:
                self._scratch[leaf] = self._cupy.empty(p.size, p.dtype)
            straight = self._scratch[leaf]
            with self.on_stream():
                shaped_like(straight, p)[...] = g
            self._known[leaf] = None
        else:
            self._known[leaf] = g.data.ptr, g.shape, g.strides, g.dtype
        self._place(leaf, straight)

    def _place(self, leaf: int, g: Array) -> None:
        if leaf in self._home:
            words, k = self._home[leaf]
            words[k] = extent(g)[0]

    def _check_unmoved(self, leaf: int) -> None:
        p, anchor = self._params[leaf], self._anchors[leaf]
        name = self._names[leaf][0]
        if leaf in self._foreign:
            p = DEVICE.own(name, self._foreign[leaf])
        now, then = [(extent(x) if x.size else 0, x.dtype, x.shape, x.strides) for x in (p, anchor)]
        if now != then:
            raise ValueError(f"{name} is {describe(p)} and was {describe(anchor)}: expected the memory of construction")

    def _as_array(self, both: str, g: Any) -> Array:
        if not on_device(g):
            raise TypeError(f"{both}, expected an array on a CUDA device or None: cupy.asarray(...) makes one")
        here: Any = DEVICE.read(g)
        if here.device.id != self._index:
            raise ValueError(f"{both}, expected one device")
        return here  # type: ignore[no-any-return]

    def accept_rows(self, leaf: int, indices: Any, values: Any) -> Any:
        raise only_on_host("step_rows")

    def launch_some(self, *_: Any) -> None:
        raise only_on_host("step_rows")

    def accumulate(self, *_: Any) -> None:
        raise only_on_host("accumulate")

    def on_stream(self) -> AbstractContextManager[Any]:
        """Within it CuPy works on the parameters' device and their owner's stream, which waits for the gradients'."""
        if not (self._foreign or self._others):
            return self._cupy.cuda.Device(self._index)  # type: ignore[no-any-return]
        stack = ExitStack()
        stack.enter_context(self._device)
        if (stream := stream_of(next(iter(self._foreign.values()), None))) is not None:
            stack.enter_context(stream)
        for other in self._others:
            here = self.stream()
            if other.ptr != here.ptr:
                here.wait_event(other.record())
                stack.callback(_wait, other, here)
        return stack

    def load(self) -> None:
        """Compile or load what a step with a window launches: impossible while a graph is captured."""
        with self.on_stream():
            function(self._index, None)
            for one in self._signatures:
                one.load(0)

    def stream(self) -> Any:
        """The current stream, within on_stream the parameters' owner's."""
        return self._cupy.cuda.get_current_stream()

    @property
    def reals(self) -> set[Any]:
        """The dtypes in which steps are worked out."""
        return {one.real for one in self._signatures}

    def launch(self) -> None:
        with self.on_stream():
            if self.window is not None:
                calls = [one.launch(self._row, self._rows, self.window.of[one.real]) for one in self._signatures]
                calls.append((function(self._index, None), (1,), (1,), (self.window.at,)))
            else:
                calls = [one.launch(self._row, self._rows, NO_WINDOW) for one in self._signatures]
                calls += [(setitem, *one) for one in self._counted()]
            # In C from the first launch to the last count: no signal handler runs between.
            deque(starmap(call, calls), maxlen=0)

    def _counted(self) -> list[tuple[Any, ...]]:
        """The counts after this step: (array, where, values)."""
        live: Any = slice(None) if self._row.min(initial=0) >= 0 else np.flatnonzero(self._row >= 0)
        done = [(self._counts, live, self._counts[live] + 1)]
        if self._carried.size:
            carried = slice(self._width, self._width + self._carried.shape[1])
            done.append((self._carried, live, self._rows[self._row[live], carried]))
        return done


def only_on_host(what: str) -> NotImplementedError:
    """The error for what arrays on a device cannot have yet."""
    return NotImplementedError(f"{what}: on the CPU backends only, and these parameters lie on a CUDA device")


def _wait(first: Any, second: Any) -> None:
    """Let what comes next on one stream come after what another has to do."""
    first.wait_event(second.record())
