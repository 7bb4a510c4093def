"""Buffers: a tree of parameters as one flat array for each group and dtype, and gradients in the same order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fastadam.arrays.device import home_of
from fastadam.arrays.flat import FlatBuffer
from fastadam.arrays.host import Array, Memory, describe
from fastadam.arrays.tree import Structure, Tree, container_of, rebuild
from fastadam.distributed.agreement import shown
from fastadam.group import is_grouped
from fastadam.kernels.formats import FLOATS
from fastadam.plans.chores import check_copies


class Buffer:
    """Holds the parameters of one group that have one dtype, end to end.

    group:  the number of their group.
    leaves: their numbers in the order of the tree.
    name:   what errors call them all. paths, shapes: of each array in it, a FlatBuffer's among them.
    array:  (n,), on every rank the parameters as all hold them. borrowed: whether it is the user's.
    first:  the index of its first element among those of all buffers.
    """

    def __init__(self, group: int, leaves: list[int], names: Sequence[str], arrays: Sequence[Any], first: int) -> None:
        self.group, self.leaves, self.first = group, leaves, first
        self.paths: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        for leaf in leaves:
            x = arrays[leaf]
            inner = zip(x.names, x.shapes, strict=True) if isinstance(x, FlatBuffer) else [("", x.shape)]
            for name, shape in inner:
                self.paths.append(names[leaf] + name)
                self.shapes.append(tuple(shape))
        self._names = [names[leaf] for leaf in leaves]
        self.name = self._names[0] + (f" to {names[leaves[-1]]}" if len(leaves) > 1 else "")
        self._owners = [arrays[leaf] for leaf in leaves]
        self._sizes = [flat_of(x).size for x in self._owners]
        self.n = sum(self._sizes)
        self._packed: Array | None = None  # where gradients are put end to end
        self.home = home_of(self._owners)
        self.borrowed = len(leaves) == 1 and is_straight(self._owners[0])
        if self.borrowed:
            self.array = flat_of(self._owners[0])  # where it lies: nothing is copied
            self.views = self._owners
        else:
            with self.home.near(list(map(flat_of, self._owners))):
                self.array = self.home.allocate(self.n, flat_of(self._owners[0]).dtype)
            self.views = [view.reshape(getattr(x, "shape", (-1,))) for view, x in self._pieces(self.array)]
            for view, x in zip(self.views, self._owners, strict=True):
                view[...] = flat_of(x).reshape(view.shape)

    def _pieces(self, array: Array) -> list[tuple[Array, Any]]:
        """Return what of a flat array belongs to each leaf, and that leaf."""
        ends = np.cumsum(self._sizes).tolist()
        return [(array[end - n : end], x) for end, n, x in zip(ends, self._sizes, self._owners, strict=True)]

    def hold(self, values: Array) -> None:
        """Hold these values, of another dtype than before, from here on."""
        self.array = values
        self.views = [view.reshape(getattr(x, "shape", (-1,))) for view, x in self._pieces(self.array)]

    @property
    def nbytes(self) -> int:
        """Return the bytes of the parameters, and of the room that gradients are put end to end in."""
        return self.array.nbytes + (0 if self._packed is None else self._packed.nbytes)

    def flatten(self, leaves: Sequence[Any], name: str) -> Array | None:
        """Return these leaves end to end, where they lie if they are one array, else copied; None if all are None.

        leaves: of the whole tree, of one dtype. Raises TypeError, ValueError that name what does not fit.
        """
        values = [leaves[leaf] for leaf in self.leaves]
        missing = [x is None for x in values]
        if all(missing):
            return None
        if any(missing):
            lacking, present = (self._names[missing.index(flag)] for flag in (True, False))
            difference = f"{name}{lacking} is None and {name}{present} is not"
            raise ValueError(
                f"{difference}: expected arrays for all parameters of a group and a dtype, or for none of them"
            )
        arrays = [self._checked(k, x, name) for k, x in enumerate(values)]
        for k, x in enumerate(arrays):
            if x.dtype != arrays[0].dtype:
                difference = f"{name}{self._names[k]} is {describe(x)}, {name}{self._names[0]} is {describe(arrays[0])}"
                raise TypeError(f"{difference}: expected one dtype for all parameters of a group and a dtype")
        if len(arrays) == 1:
            return arrays[0]
        if self._packed is None or self._packed.dtype != arrays[0].dtype:
            self._packed = self.home.allocate(self.n, arrays[0].dtype)
        for (piece, _), x in zip(self._pieces(self._packed), arrays, strict=True):
            piece[...] = x
        return self._packed

    def straight_leaf(self, leaf: int, g: Any) -> tuple[Array, int]:
        """Return one leaf's gradient as a flat array, and where in the buffer it belongs."""
        k = self.leaves.index(leaf)
        return self._checked(k, g, "grads"), sum(self._sizes[:k])

    def leaves_within(self, first: int, stop: int) -> set[int]:
        """Return which leaves have elements between these places."""
        ends = np.cumsum(self._sizes).tolist()
        places = zip(self.leaves, self._sizes, ends, strict=True)
        return {leaf for leaf, n, end in places if n and end > first and end - n < stop}

    def _checked(self, k: int, g: Any, name: str) -> Array:
        """Return a leaf's values as a flat array in C order."""
        owner = self._owners[k]
        difference = f"{name}{self._names[k]} is {describe(g)}, params{self._names[k]} is {describe(owner)}"
        if isinstance(g, FlatBuffer):
            if not isinstance(owner, FlatBuffer) or (g.names, g.shapes) != (owner.names, owner.shapes):
                raise ValueError(difference)
            g = g.array
        elif (
            getattr(owner, "shape", None) == () and isinstance(g, np.generic | float | int) and not isinstance(g, bool)
        ):
            g = self.home.put(np.asarray(g, flat_of(owner).dtype))
        if self.home.is_array(g) and g.shape != (owner.array.shape if isinstance(owner, FlatBuffer) else owner.shape):
            raise ValueError(difference)
        return self._floats(g, difference)

    def straight(self, g: Any, name: str) -> Array:
        """Return checked values of the whole buffer in one array of its length."""
        return self._floats(g, f"{name} is {describe(g)}, params is {describe(self.array)}")

    def _floats(self, g: Any, difference: str) -> Array:
        if not self.home.is_array(g) or g.dtype.name not in FLOATS or not g.dtype.isnative:
            raise TypeError(f"{difference}, expected an array of {', '.join(FLOATS)}")
        straight: Array = g.reshape(-1)
        return straight


def flat_of(x: Any) -> Array:
    """Return an array, or a FlatBuffer's, in C order."""
    straight: Array = (x.array if isinstance(x, FlatBuffer) else x).reshape(-1)
    return straight


def is_straight(x: Any) -> bool:
    """Tell whether a leaf can be stepped where it lies."""
    return isinstance(x, FlatBuffer) or bool(x.flags.c_contiguous)


class Buffers:
    """Holds all buffers of a tree of parameters: group by group, and in a group by dtype in order of appearance.

    apart: let each leaf have a buffer of its own, in the order of the tree.
    structure: of the tree given, without what else a group has. home: where the arrays lie.
    """

    def __init__(self, params: Tree, apart: bool = False) -> None:
        self._grouped = is_grouped(params)
        trees = [item["params"] for item in params] if self._grouped else params
        self.structure = Structure(trees)
        names, leaves = self.structure.names, self.structure.leaves
        home = home_of(leaves)
        for name, leaf in zip(names, leaves, strict=True):
            home.owned(f"params{name}", leaf.array if isinstance(leaf, FlatBuffer) else leaf)
        arrays = [getattr(leaf, "array", leaf) for leaf in leaves]
        Memory((f"params{name}", x) for name, x in zip(names, arrays, strict=True))  # no two share any
        of_groups = [len(Structure(tree).leaves) for tree in trees] if self._grouped else [len(leaves)]
        self._buffers: list[Buffer] = []
        leaf = first = 0
        for group, count in enumerate(of_groups):
            alike: dict[Any, list[int]] = {}
            for k in range(leaf, leaf + count):
                alike.setdefault(k if apart else flat_of(leaves[k]).dtype.name, []).append(k)
            for numbers in alike.values():
                self._buffers.append(Buffer(group, numbers, names, leaves, first))
                first += self._buffers[-1].n
            leaf += count
        self._groups = [dict(item) for item in params] if self._grouped else [{}]
        self._given, self.home, self._arrays = trees, home, arrays
        self._beside: tuple[Tree, list[Buffer]] | None = None
        self._before: list[tuple[Array, Array]] = []  # arrays beside the parameters, and what they held when given

    def beside(self, tree: Tree, name: str) -> list[Buffer]:
        """Return other arrays like the parameters, of 16 bits each, as a buffer beside each of these.

        The user's dicts and lists hold views of them after `show`. Raises TypeError, ValueError naming what does not
        fit.
        """
        names, leaves = self.structure.names, self.structure.flatten(tree, name)
        check_copies(self.home, names, self.structure.leaves, self._arrays, leaves)
        trees = [("params", self._arrays), (name, [getattr(leaf, "array", leaf) for leaf in leaves])]
        Memory((f"{what}{path}", x) for what, of in trees for path, x in zip(names, of, strict=True))
        for buffer in self:
            for leaf in buffer.leaves:
                one, other = (flat_of(leaves[k]).dtype for k in (buffer.leaves[0], leaf))
                if one != other:
                    difference = f"{name}{names[leaf]} is {other}, {name}{names[buffer.leaves[0]]} is {one}"
                    raise TypeError(f"{difference}: expected one dtype beside all parameters of a group and a dtype")
        others = [Buffer(buffer.group, buffer.leaves, names, leaves, buffer.first) for buffer in self]
        self._beside = tree, others
        self._before = [(other.array, other.array.copy()) for other in others if other.borrowed]
        return others

    def undo(self) -> None:
        """Give the user's arrays of `beside`, which an optimizer's constructor fills, their values back."""
        for array, before in self._before:
            array[...] = before

    def __iter__(self) -> Iterator[Buffer]:
        return iter(self._buffers)

    def rounded(self, x: Array, dtype: Any) -> Array:
        """Return a copy of x in float32, and that in a dtype, rounded to nearest; where the parameters lie."""
        with np.errstate(all="ignore"), self.near():
            return self.home.put(self.home.get(x).astype(np.float32).astype(dtype))

    def near(self) -> AbstractContextManager[Any]:
        """Let, within it, what is allocated lie where the parameters do."""
        return self.home.near([buffer.array for buffer in self])

    def flatten(self, tree: Tree, name: str) -> list[Array | None]:
        """Return a tree like the parameters as one flat array for each buffer, None where all its leaves are.

        One flat array or FlatBuffer stands for a tree of one buffer. Raises TypeError, ValueError naming the leaf.
        """
        flat_array: Any = getattr(tree, "array", tree)
        if isinstance(tree, FlatBuffer) and len(self._buffers) == 1:
            buffer = self._buffers[0]
            if (tree.names, [*map(tuple, tree.shapes)]) != (buffer.paths, buffer.shapes):
                expected = f"expected {buffer.paths} of {buffer.shapes}"
                raise ValueError(f"{name} has the leaves {tree.names} of {tree.shapes}, {expected}")
        if len(self._buffers) == 1 and self.home.is_array(flat_array) and flat_array.shape == (self._buffers[0].n,):
            return [self._buffers[0].straight(flat_array, name)]
        leaves = self.structure.flatten(tree, name)
        return [buffer.flatten(leaves, name) for buffer in self]

    def show(self) -> Tree:
        """Let the user's dicts and lists hold the views; returns a tree like the one given that does."""
        tree = hold(self._given, self)
        if self._beside is not None:
            hold(*self._beside)
        self._before = []
        return [{**group, "params": x} for group, x in zip(self._groups, tree, strict=True)] if self._grouped else tree

    def by_group(self, of_buffers: Sequence[Any]) -> Any:
        """Return one thing for each buffer as a tree of gradients: a list, or a list of the groups' lists."""
        trees: list[list[Any]] = [[] for _ in self._groups]
        for buffer, x in zip(self, of_buffers, strict=True):
            trees[buffer.group].append(x)
        return trees if self._grouped else trees[0]

    def as_params(self, of_buffers: Sequence[Any]) -> Any:
        """Return one thing for each buffer as a constructor takes parameters: with the groups' hyperparameters."""
        trees = self.by_group(of_buffers)
        if not self._grouped:
            return trees
        return [{**group, "params": tree} for group, tree in zip(self._groups, trees, strict=True)]

    @property
    def described(self) -> list[tuple[str, Any]]:
        """Return what ranks must agree on: (what, value)."""
        described: list[tuple[str, Any]] = []
        for buffer in self:
            dtype = buffer.array.dtype.name
            of_buffer = zip(buffer.paths, buffer.shapes, strict=True)
            described += [("params", f"{path} is {dtype}{shape}") for path, shape in of_buffer]
        free = [{key: x for key, x in group.items() if key != "params"} for group in self._groups]
        return [*described, ("groups with", [shown(group) for group in free])]


def hold(given: Tree, buffers: Iterable[Buffer]) -> Tree:
    """Let dicts and lists hold the views of these buffers; returns a tree like the one given that does."""
    of_leaves = {k: view for buffer in buffers for k, view in zip(buffer.leaves, buffer.views, strict=True)}
    views = iter([of_leaves[k] for k in range(len(of_leaves))])
    tree = rebuild(given, lambda _: next(views))
    put(given, tree)
    return tree


def put(tree: Tree, views: Tree) -> None:
    """Let dicts and lists hold these views in the place of their arrays, within tuples too."""
    if type(tree) not in (dict, list, tuple):
        return
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        if container_of(tree[key]) is not None:
            put(tree[key], views[key])
        elif not isinstance(tree, tuple):
            tree[key] = views[key]
