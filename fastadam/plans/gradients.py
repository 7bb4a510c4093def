"""Takes the gradients of a step: each is checked against its parameter, and placed where the step reads it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import zip_longest
from typing import Any

import numpy as np

from fastadam.arrays.flat import FlatBuffer
from fastadam.arrays.host import Array, Host, Memory, describe, flat_like, shaped_like
from fastadam.kernels.chores import Flags
from fastadam.kernels.formats import FLOATS, compute, format_of
from fastadam.plans.rows import RowGradient, check_indices, check_values, distinct
from fastadam.plans.streams import Streams


class Gradients:
    """Is the part of a plan that takes this step's gradients: see fastadam.plans.plan.Plan, which knows the rest."""

    home = Host()  # where the arrays lie
    unread: list[tuple[Any, Any, Any]]  # gradients to clear that were copied, and so not cleared yet
    _flags: Flags
    _names: Sequence[Streams]
    _owners: Sequence[Any]
    _params: list[Array]
    _anchors: list[Array]
    _streams: Sequence[Streams]
    _memory: Memory
    _scratch: dict[int, Array]
    _g_dtypes: list[Any]
    copies: Sequence[Array] = ()  # per leaf, the user's array that each step copies p into

    def on_stream(self) -> AbstractContextManager[Any]:
        """Within it, work on the parameters comes after the steps before, and before those after."""
        raise NotImplementedError

    def _lay_out(self, g_dtypes: Sequence[Any]) -> None:
        """Sort the leaves into signatures, now that gradients come in these dtypes."""
        raise NotImplementedError

    def accept(self, grads: list[Any]) -> int:
        """Take this step's gradients, one per leaf, None among them; returns how many are None.

        For a parameter of no dimension a number is a gradient too, Python's or NumPy's.

        Raises TypeError, ValueError naming the leaf and both sides; then nothing has changed.
        """
        usable = [None if g is None else self.usable(leaf, g) for leaf, g in enumerate(grads)]
        self.unread = []
        if self._flags.clear:
            self.check_clearable(usable)
        dtypes = [
            dtype_before if g is None else g.dtype for g, dtype_before in zip(usable, self._g_dtypes, strict=True)
        ]
        if dtypes != self._g_dtypes:
            self._lay_out(dtypes)
        for leaf, g in enumerate(usable):
            if g is not None:
                p = self._params[leaf]
                straight = flat_like(g, p)
                if straight is None:  # other strides than p's: copied, in memory kept for the next step
                    if leaf not in self._scratch or self._scratch[leaf].dtype != g.dtype:
                        self._scratch[leaf] = np.empty(p.size, g.dtype)
                    straight = self._scratch[leaf]
                    np.copyto(shaped_like(straight, p), g)
                    self.unread += [(g, ..., 0)] * self._flags.clear
                self._place(leaf, straight)
        return sum(g is None for g in usable)

    def check_unmoved(self, leaf: int) -> None:
        """Refuse a parameter that is not what it was at construction."""
        p_name, p, anchor = self._names[leaf].p, self._params[leaf], self._anchors[leaf]
        if (p.ctypes.data, p.dtype, p.shape, p.strides) != (
            anchor.ctypes.data, anchor.dtype, anchor.shape, anchor.strides
        ):  # fmt: skip
            raise ValueError(
                f"{p_name} is {describe(p)} and was {describe(anchor)}: expected the memory of construction"
            )
        if not p.flags.writeable:
            raise ValueError(f"{p_name} has become read-only, expected an array that can be updated in place")
        if self.copies and not self.copies[leaf].flags.writeable:
            name = "copy_to" + p_name.removeprefix("params")
            raise ValueError(f"{name} has become read-only, expected an array that can be written")

    def usable(self, leaf: int, g: Any) -> Array:
        """Return a leaf's gradient as an array. Raises TypeError, ValueError naming the leaf and both sides."""
        names, p, owner = self._names[leaf], self._params[leaf], self._owners[leaf]
        p_name, g_name = names.p, names.g
        both = f"{g_name} is {describe(g)}, {p_name} is {describe(owner)}"
        self.check_unmoved(leaf)
        if isinstance(g, FlatBuffer):
            if not isinstance(owner, FlatBuffer):
                raise ValueError(both)
            for expected, other in zip_longest(owner.layout(), g.layout(), fillvalue="nothing"):
                if expected != other:
                    raise ValueError(f"{g_name} holds {other} where {p_name} holds {expected}")
            g = g.array
        number = isinstance(g, (np.generic, float, int)) and not isinstance(g, bool)
        g = self._kept(leaf, g, both) if number and p.shape == () else self._as_array(g_name, both, g)
        if g.dtype.name not in FLOATS or not g.dtype.isnative:
            raise TypeError(f"{both}, expected one of {', '.join(FLOATS)}, in native byte order")
        if g.shape != p.shape:
            raise ValueError(both)
        if (touched := self._memory.touched_by(g)) is not None:
            raise ValueError(f"{g_name} and {touched} share memory, expected separate arrays")
        return g  # type: ignore[no-any-return]

    def _as_array(self, name: str, both: str, g: Any) -> Array:
        """Return g where it lies; `both` begins the error if that is nowhere that this plan reaches."""
        if not isinstance(g, np.ndarray) or isinstance(g, np.ma.MaskedArray):
            raise TypeError(f"{both}, expected a numpy.ndarray or None")
        array: Array = g
        return array

    def _kept(self, leaf: int, g: Any, both: str) -> Array:
        """Return a number, which is what NumPy gives for arrays of no dimension, as an array that lives until the next
        one."""
        if self._flags.clear:
            raise TypeError(f"{both}, expected an array with zero_grads=True: no number can be zeroed in place")
        with np.errstate(over="ignore"), self.on_stream():
            x = g if isinstance(g, np.generic) else compute(self._params[leaf].dtype).type(g)
            self._scratch[leaf] = self.home.put(np.asarray(x))
        return self._scratch[leaf]

    def _place(self, leaf: int, g: Array) -> None:
        self._streams[leaf].g = g

    def check_clearable(self, grads: Sequence[Array | None]) -> None:
        """Refuse gradients that are to be zeroed and cannot be written, or share memory."""
        arrays = [(self._names[leaf].g, getattr(g, "array", g)) for leaf, g in enumerate(grads)]
        Memory([(name, self.home.to_write(name, g)) for name, g in arrays if self.home.is_array(g)])

    def accept_rows(self, leaf: int, indices: Any, values: Any) -> RowGradient:
        """Check and sort the gradient of some rows of a leaf.

        Raises IndexError, TypeError, ValueError naming the leaf; then nothing has changed.
        """
        p_name = self._names[leaf].p
        g_name = "rows" + p_name.removeprefix("params")
        self.check_unmoved(leaf)
        rows = self.accept_indices(leaf, indices)
        if any(x is not None and format_of(x.dtype).block > 1 for x in self._streams[leaf].slots):
            raise ValueError(f"{g_name} are rows, {p_name} has moments of 8 bits, expected others: 64 share a scale")
        array = check_values(p_name, g_name, self._owners[leaf], rows, values, self.home)
        if (touched := self._memory.touched_by(array)) is not None:
            raise ValueError(f"{g_name}'s values and {touched} share memory, expected separate arrays")
        return self._by_row(leaf, rows, values)

    def accept_indices(self, leaf: int, indices: Any) -> Array:
        """Return some rows of a leaf, checked, on the host."""
        p_name = self._names[leaf].p
        check_indices(p_name, "rows" + p_name.removeprefix("params"), self._owners[leaf], indices)
        rows: Array = indices
        return rows

    def _by_row(self, leaf: int, indices: Array, values: Any) -> RowGradient:
        wide = compute(self._params[leaf].dtype)  # what they are summed in
        if self._g_dtypes[leaf] != wide:
            self._lay_out([*self._g_dtypes[:leaf], wide, *self._g_dtypes[leaf + 1 :]])
        return distinct(indices, values.astype(wide, copy=False), self._params[leaf])

    def place_rows(self, leaf: int, values: Any) -> None:
        """Let a leaf's gradient be these values, of some rows only."""
        self._place(leaf, values)
