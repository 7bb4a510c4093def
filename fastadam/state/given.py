"""Given: arrays that a caller keeps and lends a step for a leaf's streams, checked, as the step walks over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastadam.arrays.flat import FlatBuffer
from fastadam.arrays.host import Array, Host, describe, flat_like
from fastadam.kernels.codes import codes_and_scales
from fastadam.kernels.formats import FORMATS, REMAINDER, SHORT, Format, format_of
from fastadam.plans.storage import Storage
from fastadam.state.slots import wide

SCALES = "_scales"  # behind a slot's name: what state_dict calls the scales of its codes


@dataclass(frozen=True)
class Asked:
    """Holds what a Stepper was asked for, as far as it decides what the streams of a leaf rest in.

    slots: the names of those that its rule uses. by_slot: the names of formats of some. averaged: whether there are
    averages. copy_to: the name of the copies' format, or None. weights: the names of slots that are no moments.
    """

    storage: Storage
    slots: Sequence[str]
    by_slot: Mapping[str, str]
    averaged: bool
    copy_to: str | None
    weights: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.copy_to is not None and self.copy_to not in SHORT:
            raise ValueError(f"copy_to is {self.copy_to!r}, expected {' or '.join(map(repr, SHORT))}, or None")
        for name, kind in self.by_slot.items():
            if name not in self.slots or kind not in FORMATS or FORMATS[kind] is REMAINDER:
                raise ValueError(f"moments[{name!r}] is {kind!r}, expected a format for {' or '.join(self.slots)}")

    def formats(self, name: str, x: Any) -> dict[str, Format]:
        """Return the format of each stream, by its name in a state_dict, beside a parameter like x, called `name`."""
        p, storage = format_of(x.dtype), self.storage
        storage.check(name, p, describe(x))
        if self.copy_to is not None and storage.has_master(p):
            raise ValueError(f"copy_to is {self.copy_to!r}, expected None: with master='float32' {name} is the copy")
        formats = {slot: wide(p) if slot in self.weights else storage.slot_format(p) for slot in self.slots}
        formats |= {slot: FORMATS[name] for slot, name in self.by_slot.items()}
        for slot, kind in formats.items():
            if kind.compute is not p.compute:
                raise ValueError(
                    f"moments[{slot!r}] is {kind.name!r}, {name} is {describe(x)}: expected both float64 or none"
                )
        formats |= {"ema": wide(p)} if self.averaged else {}
        formats |= {"copy_to": FORMATS[self.copy_to]} if self.copy_to else {}
        formats |= {"remainder": REMAINDER} if storage.has_remainder(p) else {}
        return formats | ({"master": wide(p)} if storage.has_master(p) else {})


class Apart(NamedTuple):
    """Names an array of codes or of scales that lies by itself, and its place in the blocks that a step takes."""

    name: str
    array: Array
    part: Array


class Lender:
    """Checks the arrays that are lent for one leaf's streams.

    home: where they lie. path: the leaf's. p: its parameter.
    """

    def __init__(self, home: Host, path: str, p: Array) -> None:
        self._home, self._path, self._p = home, path, p

    def _array(self, name: str, dtype: Any, shape: Any, x: Any) -> Array:
        """Return an array to write to, of this dtype and shape."""
        x = x.array if isinstance(x, FlatBuffer) else x
        if not self._home.is_array(x):
            raise TypeError(self._difference(name, dtype, shape, x))
        x = self._home.to_write(name + self._path, x)
        if x.dtype != dtype or x.shape != shape or not x.dtype.isnative:
            raise ValueError(self._difference(name, dtype, shape, x))
        return x  # type: ignore[no-any-return]

    def _difference(self, name: str, dtype: Any, shape: Any, x: Any) -> str:
        """Say what came for a stream and what was expected."""
        came = "None" if x is None else describe(x)
        expected = f"p{self._path} is {describe(self._p)}: expected an array of {dtype}{tuple(shape)}"
        return f"{name}{self._path} is {came}, {expected}"

    def straight(self, name: str, format: Format, x: Any) -> Array:
        """Return the array of a stream as a flat one in p's order in memory."""
        dtype, shape = format.dtype, self._p.shape
        straight = flat_like(self._array(name, dtype, shape, x), self._p)
        if straight is None:
            raise ValueError(f"{self._difference(name, dtype, shape, x)} in dense memory in the same order of axes")
        return straight

    def blocks(self, name: str, format: Format, codes: Any, scales: Any) -> tuple[Array, list[Apart]]:
        """Return a slot's blocks; new ones, and what goes there, where codes and scales are no views of such."""
        blocks = self._home.allocate(format.length(self._p.size), format.dtype)
        parts = codes_and_scales(blocks)
        names = name, f"{name}{SCALES}"
        lent = [
            self._array(each, part.dtype, part.shape, x)
            for each, part, x in zip(names, parts, (codes, scales), strict=True)
        ]
        if self._home.is_array(lent[0]) and isinstance(lent[0], np.ndarray):
            codes_at, scales_at, first, second = (x.ctypes.data for x in (*lent, *parts))
            alike = [x.strides for x in lent] == [x.strides for x in parts]
            if alike and scales_at - codes_at == second - first:
                return np.lib.stride_tricks.as_strided(lent[0], blocks.shape, blocks.strides), []
        return blocks, [Apart(each + self._path, x, part) for each, x, part in zip(names, lent, parts, strict=True)]
