"""Takes the gradients of a step: each is checked against its parameter, and placed where the step reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from fastadam.arrays.flat import FlatBuffer
from fastadam.arrays.host import Array, Host, Memory, describe, flat_like, is_array, shaped_like
from fastadam.kernels.chores import Flags
from fastadam.kernels.formats import FLOATS, compute, format_of
from fastadam.kernels.streams import Several
from fastadam.plans.rows import RowGradient, check_indices, check_values, distinct
from fastadam.plans.streams import Streams


class Kind(NamedTuple):
    """Says what a leaf's gradient comes as: so many arrays of a dtype, which are added where they are several."""

    dtype: Any
    arrays: int = 1


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
    _scratch: dict[tuple[int, int], Array]  # by leaf, and by which of its arrays, copies of these
    _numbers: dict[tuple[int, int], Array]  # likewise, numbers that came for parameters of no dimension
    _kinds: list[Kind]
    copies: Sequence[Array] = ()  # per leaf, the user's array that each step copies p into

    def on_stream(self) -> AbstractContextManager[Any]:
        """Within it, work on the parameters comes after the steps before, and before those after."""
        raise NotImplementedError

    def _lay_out(self, kinds: Sequence[Kind]) -> None:
        """Sort the leaves into signatures, now that gradients come as these."""
        raise NotImplementedError

    def _come_as(self, kinds: Sequence[Kind]) -> None:
        """Lay out anew if gradients come otherwise than before: all of it or, if a signal comes between, nothing."""
        if kinds != self._kinds:
            before = dict(vars(self))
            try:
                self._lay_out(kinds)
            except BaseException:
                vars(self).update(before)
                raise

    def accept(self, grads: list[Any]) -> int:
        """Take this step's gradients, one per leaf, None among them; returns how many are None.

        For a parameter of no dimension a number is a gradient too, Python's or NumPy's. Several are added by the walks,
        None among them left out; where their dtypes differ they are copied.

        Raises TypeError, ValueError naming the leaf and both sides; then nothing has changed.
        """
        usable = [self._arrays_of(leaf, g) for leaf, g in enumerate(grads)]
        self.unread = []
        if self._flags.clear:
            self.check_clearable([Several(arrays) for arrays in usable])
        kinds = [
            self._kind(leaf, arrays) if arrays else before
            for leaf, (arrays, before) in enumerate(zip(usable, self._kinds, strict=True))
        ]
        self._come_as(kinds)
        for leaf, arrays in enumerate(usable):
            straight = [self._straight(leaf, j, g, kinds[leaf].dtype) for j, g in enumerate(arrays)]
            if straight:
                self._place(leaf, straight[0] if len(straight) == 1 else Several(straight))
        return sum(not arrays for arrays in usable)

    def _arrays_of(self, leaf: int, g: Any) -> list[Array]:
        """Return the arrays that a leaf's gradient comes as, checked: none for None."""
        if not isinstance(g, Several):
            return [] if g is None else [self.usable(leaf, g)]
        arrays = []
        for j, one in enumerate(g):
            try:
                arrays += [] if one is None else [self.usable(leaf, one, j)]
            except (TypeError, ValueError) as error:
                raise type(error)(f"streams[{j}]: {error}") from None
        return arrays

    def _kind(self, leaf: int, arrays: Sequence[Array]) -> Kind:
        """Return what these arrays are to the walks: of unlike dtypes all are widened to the compute type."""
        alike = all(x.dtype == arrays[0].dtype for x in arrays)
        return Kind(arrays[0].dtype if alike else compute(self._params[leaf].dtype), len(arrays))

    def _straight(self, leaf: int, j: int, g: Array, dtype: Any) -> Array:
        """Return a leaf's j-th gradient as a flat array of a dtype in p's order: where it lies if it is one."""
        p, straight = self._params[leaf], flat_like(g, self._params[leaf])
        if straight is not None and g.dtype == dtype:
            return straight
        if (leaf, j) not in self._scratch or self._scratch[leaf, j].dtype != dtype:
            self._scratch[leaf, j] = np.empty(p.size, dtype)  # kept for the next step
        with np.errstate(all="ignore"):
            np.copyto(shaped_like(self._scratch[leaf, j], p), g, casting="unsafe")
        self.unread += [(g, ..., 0)] * self._flags.clear
        return self._scratch[leaf, j]

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

    def check_none_moved(self) -> None:
        """Refuse, naming the first, parameters that are not what they were at construction."""
        for leaf in range(len(self._params)):
            self.check_unmoved(leaf)

    def usable(self, leaf: int, g: Any, j: int = 0) -> Array:
        """Return a leaf's gradient, the j-th if there are several, as an array.

        Raises TypeError, ValueError naming the leaf and both sides.
        """
        names, p, owner = self._names[leaf], self._params[leaf], self._owners[leaf]
        p_name, g_name = names.p, names.g
        given = g

        def difference() -> str:  # 16 µs (a Xeon), which errors alone spend
            return f"{g_name} is {describe(given)}, {p_name} is {describe(owner)}"

        self.check_unmoved(leaf)
        if isinstance(g, FlatBuffer):
            if not isinstance(owner, FlatBuffer):
                raise ValueError(difference())
            for expected, other in zip_longest(owner.layout(), g.layout(), fillvalue="nothing"):
                if expected != other:
                    raise ValueError(f"{g_name} holds {other} where {p_name} holds {expected}")
            g = g.array
        number = isinstance(g, (np.generic, float, int)) and not isinstance(g, bool)
        g = self._kept(leaf, j, g, difference) if number and p.shape == () else self._as_array(g_name, difference, g)
        if g.dtype.name not in FLOATS or not g.dtype.isnative:
            raise TypeError(f"{difference()}, expected one of {', '.join(FLOATS)}, in native byte order")
        if g.shape != p.shape:
            raise ValueError(difference())
        if (touched := self._memory.touched_by(g)) is not None:
            raise ValueError(f"{g_name} and {touched} share memory, expected separate arrays")
        return g  # type: ignore[no-any-return]

    def _as_array(self, name: str, difference: Callable[[], str], g: Any) -> Array:
        """Return g where it lies; `difference` begins the error if that is nowhere that this plan reaches."""
        if not is_array(g):
            raise TypeError(f"{difference()}, expected a numpy.ndarray or None")
        array: Array = g
        return array

    def _kept(self, leaf: int, j: int, g: Any, difference: Callable[[], str]) -> Array:
        """Return a number, which is what NumPy gives for arrays of no dimension, as an array that lives until the next
        one."""
        if self._flags.clear:
            raise TypeError(f"{difference()}, expected an array with zero_grads=True: no number can be zeroed in place")
        with np.errstate(over="ignore"), self.on_stream():
            x = g if isinstance(g, np.generic) else compute(self._params[leaf].dtype).type(g)
            self._numbers[leaf, j] = self.home.put(np.asarray(x))
        return self._numbers[leaf, j]

    def _place(self, leaf: int, g: Array | Several) -> None:
        self._streams[leaf].g = g

    def check_clearable(self, grads: Sequence[Any]) -> None:
        """Refuse gradients that are to be zeroed and cannot be written, or share memory."""
        each = [g if isinstance(g, Several) else (g,) for g in grads]
        arrays = [(self._names[leaf].g, getattr(g, "array", g)) for leaf, of_leaf in enumerate(each) for g in of_leaf]
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
        self._come_as([*self._kinds[:leaf], Kind(wide), *self._kinds[leaf + 1 :]])
        return distinct(indices, values.astype(wide, copy=False), self._params[leaf])

    def place_rows(self, leaf: int, values: Any) -> None:
        """Let a leaf's gradient be these values, of some rows only."""
        self._place(leaf, values)
