"""The layout of the state: in which array of the state, and where in it, each stream of each parameter rests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastadam.kernels.contract import Kernel, Weights
from fastadam.kernels.formats import Format, format_of
from fastadam.kernels.streams import Columns
from fastadam.plans.streams import Streams
from fastadam.state.given import Asked

POOLED = 4_096  # elements below which parameters share arrays of the state: each array costs XLA and JAX microseconds
LINE = 64  # bytes: two leaves of a pool share no cache line


class StreamPlace(NamedTuple):
    """Says where a stream of a leaf rests: in which of the state's arrays of that stream, from which byte on."""

    array: int
    first: int
    format: Format
    pooled: bool


@dataclass(frozen=True)
class Lie:
    """Holds what XLA must know of an array of the state: its shape and dtype, and the leaf that alone it belongs to."""

    shape: tuple[int, ...]
    dtype: Any
    leaf: int | None  # None: a pool


class StateLayout:
    """Lays the state of some parameters out.

    leaves: arrays, or what has their shape and dtype. names: of the leaves, for errors. pool_below: leaves of fewer
    elements share one array for each stream and dtype.

    places: per leaf, by the stream's name in a state_dict. arrays: by stream, those of the state.
    """

    def __init__(
        self, kernel: Kernel, asked: Asked, leaves: Sequence[Any], names: Sequence[str], pool_below: int
    ) -> None:
        self.kernel, self.leaves = kernel, leaves
        self.shapes = [tuple(x.shape) for x in leaves]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.formats = [format_of(np.dtype(x.dtype)) for x in leaves]
        self.places: list[dict[str, StreamPlace]] = [{} for _ in leaves]
        self.arrays: dict[str, list[Lie]] = {}
        wanted = [asked.formats(f"params{name}", x) for name, x in zip(names, leaves, strict=True)]
        for stream in dict.fromkeys([*asked.slots, *(name for of_leaf in wanted for name in of_leaf)]):
            lies: list[Lie] = []
            pools: dict[Any, list[int]] = {}
            for leaf, formats in enumerate(wanted):
                if stream not in formats:
                    continue
                format = formats[stream]
                if self.sizes[leaf] < pool_below:
                    pools.setdefault(format.name, []).append(leaf)
                    continue
                shape = self.shapes[leaf] if format.block == 1 else (format.length(self.sizes[leaf]),)
                self.places[leaf][stream] = StreamPlace(len(lies), 0, format, False)
                lies.append(Lie(shape, format.dtype, leaf))
            for of_pool in pools.values():
                format = wanted[of_pool[0]][stream]
                firsts = [0, *accumulate(-(-format.bytes_of(self.sizes[leaf]) // LINE) * LINE for leaf in of_pool)]
                for leaf, first in zip(of_pool, firsts, strict=False):
                    self.places[leaf][stream] = StreamPlace(len(lies), first, format, True)
                lies.append(Lie((firsts[-1] // format.dtype.itemsize,), format.dtype, None))
            self.arrays[stream] = lies

    def formats_of(self, leaf: int, g: Any) -> Columns:
        """Return what a leaf's columns rest in where its gradient is of this dtype."""
        at = {name: place.format for name, place in self.places[leaf].items()}
        slots = [at.get(slot.name) for slot in self.kernel.slots]
        streams = Streams(self.formats[leaf], None, slots, at.get("ema"), None, at.get("remainder"), at.get("master"))
        return streams.columns._replace(g=format_of(np.dtype(g)))

    def begin(self, params: Sequence[Any], initial: dict[str, float]) -> dict[str, list[Any]]:
        """Return the state's arrays by stream as they are before the first step of these parameters."""
        return {
            stream: [self._begun(stream, k, params, initial) for k in range(len(lies))]
            for stream, lies in self.arrays.items()
        }

    def _begun(self, stream: str, k: int, params: Sequence[Any], initial: dict[str, float]) -> Any:
        """Return array k of a stream: copies of the parameters, or what the rule begins with."""
        lie = self.arrays[stream][k]
        weights = [slot.name for slot in self.kernel.slots if isinstance(slot, Weights)]
        copied, start = stream in ("ema", "master", *weights), initial.get(stream, 0.0)
        if lie.leaf is not None and copied:
            return jnp.array(params[lie.leaf], lie.dtype, copy=True)
        if lie.leaf is not None and lie.shape == self.shapes[lie.leaf]:
            return jnp.full_like(params[lie.leaf], start, dtype=lie.dtype)  # on the devices where the parameter lies
        homes = [(leaf, at[stream]) for leaf, at in enumerate(self.places) if stream in at and at[stream].array == k]
        array = jnp.zeros(lie.shape, lie.dtype)
        for leaf, place in homes if copied or start else ():
            format, n = place.format, self.sizes[leaf]
            if copied:
                values = params[leaf].reshape(-1).astype(lie.dtype)
            else:
                slot = next(slot for slot in self.kernel.slots if slot.name == stream)
                values = format.encode(np.full(n, start, format.compute), slot, None)
            first = place.first // lie.dtype.itemsize
            array = array.at[first : first + format.length(n)].set(values)
        return array

    def taken_apart(self, stream: str, arrays: Sequence[Any]) -> list[Any]:
        """Return each leaf's part of a stream, in its shape, or flat blocks of 8 bits; None where it has none."""
        parts: list[Any] = []
        for leaf, of_leaf in enumerate(self.places):
            if stream not in of_leaf:
                parts.append(None)
                continue
            array, first, format, pooled = of_leaf[stream]
            x = arrays[array]
            if pooled:
                start = first // x.dtype.itemsize
                x = x[start : start + format.length(self.sizes[leaf])]
                x = x.reshape(self.shapes[leaf]) if format.block == 1 else x
            parts.append(x)
        return parts


def avals(arrays: Sequence[Any]) -> tuple[Any, ...]:
    """Return shapes and dtypes, by which a layout may be remembered."""
    return tuple((tuple(x.shape), np.dtype(x.dtype)) for x in arrays)


def structs(arrays: Sequence[Any]) -> list[Any]:
    """Return what JAX takes for the results that are like some arrays."""
    return [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
