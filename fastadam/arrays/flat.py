"""Packs trees of named arrays into one aligned flat buffer."""

from contextlib import nullcontext
from functools import partial
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from fastadam.arrays.device import DEVICE, HOST, home_of, joined, status, stream_of
from fastadam.arrays.host import Array, describe, memory_order
from fastadam.arrays.tree import Structure, Tree, rebuild
from fastadam.checks import integer
from fastadam.kernels.formats import FLOATS


class FlatBuffer:
    """Holds a tree of arrays packed end to end into one array, and the same tree of views into it.

    An optimizer takes a FlatBuffer wherever it takes an array: a whole model is then one leaf. Gradients for it are
    another FlatBuffer of the same layout, or one flat array.

    A copy (deepcopy, pickle) has memory of its own: take its views from the copy, not from a copied tree of views.

    array:   (n,) floats of one dtype, from the start of a page; on huge pages where Linux offers them.
    views:   the tree, of arrays that share array's memory, in C order.
    names:   the path of each leaf in the tree, such as ['dense1']['weight'].
    shapes:  the shape of each leaf.
    offsets: where each leaf begins in array, in elements; without gaps, so concatenated gradients fit.
    memory:  (m,), array and the zeros behind it, where its length was to be a multiple of something.

    >>> buffer = fa.FlatBuffer({"a": np.zeros((2, 2)), "b": np.ones(3)})
    >>> buffer.array.tolist()
    [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    >>> buffer.views["b"].shape
    (3,)
    """

    def __init__(self, tree: Tree, *, memory: Any = None, multiple: int = 1) -> None:
        """Copy the values of `tree`.

        memory: a flat array to lie in from its start on, such as a part of a shared or of a mapped file; None: new.
        multiple: what the length of `memory` is rounded up to, so that it can be shared out in equal parts.
        Raises TypeError unless all leaves are floats of one dtype, ValueError where memory does not fit.
        """
        structure = Structure(tree)
        home = home_of(structure.leaves)
        leaves = [
            home.read(leaf, f"tree{name}") if home.is_array(leaf) else leaf
            for name, leaf in zip(structure.names, structure.leaves, strict=True)
        ]
        kind = "a numpy.ndarray" if home is HOST else "an array on a CUDA device"
        for name, leaf in zip(structure.names, leaves, strict=True):
            if not home.is_array(leaf) or leaf.dtype.name not in FLOATS:
                raise TypeError(f"tree{name} is {describe(leaf)}, expected {kind} of {', '.join(FLOATS)}")
            if leaf.dtype != leaves[0].dtype:
                first = f"tree{structure.names[0]} is {describe(leaves[0])}"
                raise TypeError(f"tree{name} is {describe(leaf)}, {first}: expected one dtype")
        self.names = structure.names
        self.shapes = [leaf.shape for leaf in leaves]
        sizes = [leaf.size for leaf in leaves]
        self.offsets = [0, *accumulate(sizes)][:-1]
        self._multiple = integer("multiple", multiple, low=1)
        n, dtype = sum(sizes), leaves[0].dtype if sizes else np.dtype(np.float32)
        length = -(-n // self._multiple) * self._multiple
        with home.near(leaves):
            self.memory = home.allocate(length, dtype) if memory is None else lent(memory, home, length, dtype)
            self.memory[n:] = 0
        self.array = self.memory[:n]
        pieces = iter(zip(leaves, self.offsets, strict=True))

        def view(_: Any) -> Array:
            leaf, offset = next(pieces)
            piece = self.array[offset : offset + leaf.size].reshape(leaf.shape)
            piece[...] = leaf
            return piece

        with home.near(leaves), nullcontext() if home is HOST else joined(map(stream_of, structure.leaves)):
            self.views = rebuild(tree, view)

    def within(self, first: int, stop: int) -> list[tuple[str, int, int]]:
        """Return what of each leaf lies in array[first:stop]: (path, first, stop) among its own elements.

        >>> buffer = fa.FlatBuffer({"a": np.zeros((2, 2)), "b": np.ones(3)})
        >>> buffer.within(3, 6)
        [("['a']", 3, 4), ("['b']", 0, 2)]
        """
        first, stop = (integer(name, x, low=0, most=self.array.size) for name, x in (("first", first), ("stop", stop)))
        parts = []
        for name, offset, shape in zip(self.names, self.offsets, self.shapes, strict=True):
            low, high = max(first, offset), min(stop, offset + prod(shape))
            if low < high:
                parts.append((name, low - offset, high - offset))
        return parts

    def to(self, where: str) -> "FlatBuffer":
        """Return a copy on "cuda" (the current device) or on the "cpu"; itself where it lies there.

        Raises RuntimeError where CUDA cannot run: fastadam.backends() says why.
        """
        return move(self, where)  # type: ignore[no-any-return]

    def zeros_like(self) -> "FlatBuffer":
        """Return another buffer of this layout, filled with zeros: a home for gradients."""
        other = FlatBuffer(self.views, multiple=self._multiple)
        with home_of([other]).near([other.array]):
            other.array[:] = 0
        return other

    def same_layout(self, other: "FlatBuffer") -> bool:
        """Return whether both hold leaves of the same names and shapes in the same order, in one dtype."""
        return self.layout() == other.layout()

    def layout(self) -> list[str]:
        """Return what must agree between two buffers, a text for each leaf: its name, dtype and shape."""
        return [f"{name}: {self.array.dtype}{shape}" for name, shape in zip(self.names, self.shapes, strict=True)]

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(FlatBuffer, multiple=self._multiple), (self.views,)

    def __repr__(self) -> str:
        return f"FlatBuffer({len(self.names)} arrays in {describe(self.array)})"


def lent(memory: Any, home: Any, length: int, dtype: Any) -> Array:
    """Return the first elements of memory that was given, flat and writable; refuse what does not fit."""
    if not home.is_array(memory):
        raise TypeError(f"memory is {describe(memory)}, expected an array where the tree's leaves lie")
    array: Array = home.to_write("memory", memory)
    if array.dtype != dtype or array.ndim != 1 or array.size < length or not array.flags.c_contiguous:
        raise ValueError(f"memory is {describe(memory)}, expected {length} elements of {dtype} or more, without gaps")
    return array[:length]


def move(leaf: Any, where: str) -> Any:
    """Return an array or FlatBuffer, copied to "cuda" or to the "cpu"; itself where it lies there."""
    if where not in ("cuda", "cpu"):
        raise ValueError(f"where is {where!r}, expected 'cuda' or 'cpu'")
    if where == "cuda" and (missing := status()) != "ready":
        raise RuntimeError(f"where is {where!r}, which cannot run here: {missing}")
    if (home_of([leaf]) is DEVICE) == (where == "cuda"):
        return leaf
    if isinstance(leaf, FlatBuffer):
        return FlatBuffer(rebuild(leaf.views, lambda x: move(x, where)), multiple=leaf._multiple)
    if where == "cuda":
        return DEVICE.put(leaf)
    on_device_leaf = DEVICE.read(leaf)
    order = memory_order(on_device_leaf)
    with stream_of(leaf) or nullcontext():
        return DEVICE.get(on_device_leaf.transpose(order)).transpose(np.argsort(order).tolist())
