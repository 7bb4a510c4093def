"""Takes gradients on a CUDA device: what a plan takes from other libraries and streams of their own, and where it
lies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

from fastadam.arrays.device import DEVICE, foreign, joined, on_device, stream_of
from fastadam.arrays.host import Array, Memory, describe, extent, flat_like, memory_order, shaped_like
from fastadam.kernels.streams import Several
from fastadam.plans.gradients import Gradients
from fastadam.plans.rows import RowGradient, by_row

if TYPE_CHECKING:
    from fastadam.cuda.norm import Norm
    from fastadam.cuda.signature import Signature


class GradientsOnDevice(Gradients):
    """Takes the gradients of a step for a plan of arrays on one device. Its launches know them by the words of their
    tables."""

    home = DEVICE
    norm: Norm | None
    _home: dict[int, tuple[Signature, int]]  # who steps a leaf, and as the how-manieth of its leaves

    def __init__(self, kernel: Any, names: Any, owners: Sequence[Any], *rest: Any) -> None:
        import cupy

        self._cupy = cupy
        # Where another library owns a parameter: how to look at it again, since its memory may move.
        self._foreign = {k: p for k, p in enumerate(owners) if foreign(p)}
        viewed = [DEVICE.owned(names[k].p, p) if k in self._foreign else p for k, p in enumerate(owners)]
        super().__init__(kernel, names, viewed, *rest)  # type: ignore[call-arg]  # of the plan
        first: Any = self._params[0] if self._params else None
        self._device = cupy.cuda.Device() if first is None else first.device
        for labels, streams in zip(names, self._streams, strict=True):
            for label, x in zip(labels, streams, strict=True):
                if x is not None and x.device.id != self._device.id:
                    raise ValueError(
                        f"{label} is {describe(x)}, {names[0].p} is {describe(first)}: expected one device"
                    )
        self._index = self._device.id
        self._values: dict[int, Any] = {}  # the gradients of rows
        # What a gradient was like that was accepted before: (shape, strides, dtype, address).
        self._accepted: list[Any] = [None] * len(self._params)
        self._separate: list[Any] = []  # where the gradients began that were last found separate
        self._others: list[Any] = []  # the streams of gradients whose owners name one

    def accept(self, grads: list[Any]) -> int:
        ndarray, addresses, missing, new = self._cupy.ndarray, self._accepted, 0, []
        for leaf, g in enumerate(grads):
            if g is None:
                missing += 1
            elif type(g) is not ndarray or (g.data.ptr, g.shape, g.strides, g.dtype) != addresses[leaf]:
                new.append(leaf)
        for leaf in self._foreign:
            self.check_unmoved(leaf)
        usable = {leaf: self._arrays_of(leaf, grads[leaf]) for leaf in new}
        self.unread = []
        if self._flags.clear:
            self._check_separate(grads, usable)
        others = [(leaf, s) for leaf in new for s in map(stream_of, parts_of(grads[leaf])) if s is not None]
        self._others = []
        if (self._foreign or others) and self.capturing():
            self._check_captured(others)
        elif self._foreign and any(ndarray in map(type, parts_of(g)) for g in grads):
            self._others = [self.stream()]  # of CuPy's gradients, where steps run on another
        self._others += [stream for _, stream in others]
        kinds = self._kinds.copy()
        for leaf, arrays in usable.items():
            kinds[leaf] = self._kind(leaf, arrays)
        if kinds != self._kinds:
            self._lay_out(kinds)
        for leaf, arrays in usable.items():
            straight = [self._straight(leaf, j, g, kinds[leaf].dtype) for j, g in enumerate(arrays)]
            copied = any(x is self._scratch.get((leaf, j)) for j, x in enumerate(straight))
            first: Any = arrays[0]
            alone = len(arrays) == 1 and not copied
            self._accepted[leaf] = (first.data.ptr, first.shape, first.strides, first.dtype) if alone else None
            self._place(leaf, straight[0] if len(straight) == 1 else Several(straight))
        return missing

    def _straight(self, leaf: int, j: int, g: Any, dtype: Any) -> Any:
        p, straight = self._params[leaf], flat_like(g, self._params[leaf])
        if straight is not None and g.dtype == dtype:
            return straight
        if (leaf, j) not in self._scratch or self._scratch[leaf, j].dtype != dtype:
            self._scratch[leaf, j] = self._cupy.empty(p.size, dtype)  # kept for the next step
        with self.on_stream():
            shaped_like(self._scratch[leaf, j], p)[...] = g
        self.unread += [(g, ..., 0)] * self._flags.clear
        return self._scratch[leaf, j]

    def _check_separate(self, grads: Sequence[Any], usable: dict[int, list[Array]]) -> None:
        """Refuse gradients that are to be zeroed and cannot be written, or share memory."""
        for leaf in usable:
            for g in parts_of(grads[leaf]):
                DEVICE.to_write(self._names[leaf].g, getattr(g, "array", g))
        now: list[Any] = [usable.get(leaf, parts_of(g)) for leaf, g in enumerate(grads)]
        places = [[g.data.ptr for g in arrays] for arrays in now]
        if usable or places != self._separate:  # else those of the last time, all of them
            Memory((self._names[leaf].g, g) for leaf, arrays in enumerate(now) for g in arrays)
            self._separate = places

    def _place(self, leaf: int, g: Any) -> None:
        if leaf in self._home:
            one, k = self._home[leaf]
            one.place(k, [extent(x)[0] for x in parts_of(g)])

    def check_unmoved(self, leaf: int) -> None:
        p, anchor = self._params[leaf], self._anchors[leaf]
        name = self._names[leaf].p
        if leaf in self._foreign:
            p = DEVICE.owned(name, self._foreign[leaf])
        now, then = [(extent(x) if x.size else 0, x.dtype, x.shape, x.strides) for x in (p, anchor)]
        if now != then:
            raise ValueError(f"{name} is {describe(p)} and was {describe(anchor)}: expected the memory of construction")

    def _as_array(self, name: str, difference: Callable[[], str], g: Any) -> Array:
        if not on_device(g):
            raise TypeError(f"{difference()}, expected an array on a CUDA device or None: cupy.asarray(...) makes one")
        array: Any = DEVICE.read(g, name)
        if array.device.id != self._index:
            raise ValueError(f"{difference()}, expected one device")
        return array  # type: ignore[no-any-return]

    def accept_indices(self, leaf: int, indices: Any) -> Array:
        """Return indices on the host: from a device they are fetched, on their owner's stream, which is waited for."""
        if on_device(indices):
            with stream_of(indices) or nullcontext():
                indices = DEVICE.get(DEVICE.read(indices))
        return super().accept_indices(leaf, indices)

    def _by_row(self, leaf: int, indices: Array, values: Any) -> RowGradient:
        if self.norm is not None:
            raise only_on_host("step_rows with max_norm, skip_nonfinite or stats, which look at all rows first")
        array: Any = DEVICE.read(values)
        if array.device.id != self._index:
            name, p = self._names[leaf].p, self._params[leaf]
            raise ValueError(
                f"rows{name.removeprefix('params')}'s values are {describe(array)}, {name} is {describe(p)}: "
                "expected one device"
            )
        groups = by_row(indices)
        return RowGradient(groups.rows, values, groups)

    def place_rows(self, leaf: int, values: Any) -> None:
        if (stream := stream_of(values)) is not None:
            self._others.append(stream)
        array, p = DEVICE.read(values), self._params[leaf]
        self._values[leaf] = flat_like(array, p)
        if self._values[leaf] is None:  # another order of axes than p's, or gaps
            order = memory_order(p)
            with self.on_stream():
                home = self._cupy.empty([array.shape[axis] for axis in order], array.dtype)
                home[...] = array.transpose(order)
            self._values[leaf] = home.reshape(-1)

    def on_stream(self) -> AbstractContextManager[Any]:
        """Within it CuPy works on the parameters' device and their owner's stream, which waits for the gradients'."""
        if not (self._foreign or self._others):
            return self._cupy.cuda.Device(self._index)  # type: ignore[no-any-return]
        stack = ExitStack()
        stack.enter_context(self._device)
        if (stream := stream_of(next(iter(self._foreign.values()), None))) is not None:
            stack.enter_context(stream)
        stack.enter_context(joined(self._others))
        return stack

    def capturing(self) -> bool:
        """Return whether what is launched now goes into a graph."""
        with self.on_stream():
            return bool(self.stream().is_capturing())

    def _check_captured(self, others: Iterable[tuple[int, Any]]) -> None:
        """Raise RuntimeError for a gradient whose stream a graph's would have to wait for: CUDA lets none that is
        captured do so."""
        with self.on_stream():
            captured = self.stream().ptr
        for leaf, stream in others:
            if stream.ptr != captured:
                raise RuntimeError(
                    f"{self._names[leaf].g}'s library works on stream {stream.ptr:#x} while a graph is captured on "
                    f"stream {captured:#x}: expected one stream"
                )

    def stream(self) -> Any:
        """Return the current stream, within on_stream the parameters' owner's."""
        return self._cupy.cuda.get_current_stream()


def only_on_host(what: str) -> NotImplementedError:
    """Return the error for what arrays on a device cannot have yet."""
    return NotImplementedError(f"{what}: on the CPU backends only, and these parameters lie on a CUDA device")


def parts_of(g: Any) -> list[Any]:
    """Return what a leaf's gradient comes as: nothing for None, one array, or several."""
    return [one for one in (g if isinstance(g, Several) else [g]) if one is not None]
