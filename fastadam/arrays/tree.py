"""Takes trees of arrays apart and builds them: containers of them to any depth, or one array.

Containers are dicts, lists, tuples, named tuples, OrderedDict, defaultdict, UserDict, dataclasses, attrs classes, and
what register_container adds. Dicts keep the order in which keys were inserted.
"""

from collections import UserDict
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import fields, is_dataclass
from itertools import count
from operator import is_
from typing import Any, NamedTuple

Tree = Any  # dict[str, Tree] | list[Tree] | tuple[Tree, ...] | array, which a type checker cannot follow usefully


class Container(NamedTuple):
    """Says how one class of containers is taken apart and put together.

    fits: the classes that another tree may have in its place.
    keys: what its children are called, in order.
    children: those of a container, by the keys; only where it is neither a mapping nor a sequence.
    make: a container like another one, around other children.
    shown: how a path shows a key.
    """

    name: str
    fits: type | tuple[type, ...]
    keys: Callable[[Any], list[Any]]
    make: Callable[[Any, list[Any]], Any]
    children: Callable[[Any, list[Any]], list[Any]] | None = None
    shown: str = "[{!r}]"


def _mapping_like(tree: Any, children: list[Any]) -> Any:
    if type(tree) is dict:
        return dict(zip(tree, children, strict=True))
    new = copy(tree)  # which keeps a default_factory, and runs no constructor
    values = new if isinstance(new, dict) else new.data
    for key, child in zip(tree, children, strict=True):
        dict.__setitem__(values, key, child)  # not a subclass's own, which may copy
    return new


def _sequence_like(tree: Any, children: list[Any]) -> Any:
    if isinstance(tree, list):
        if type(tree) is list:
            return children
        new = copy(tree)
        list.__setitem__(new, slice(None), children)
        return new
    return type(tree)._make(children) if hasattr(tree, "_make") else tuple(children)


def _by_attributes(kind: type) -> Container:
    """Return the container of a dataclass or an attrs class; fields marked static, as JAX and Flax mark them, are no
    leaves.

    It is copied around its new children, so that neither __init__ nor __post_init__ runs.
    """
    every = fields(kind) if is_dataclass(kind) else kind.__attrs_attrs__  # type: ignore[attr-defined]
    names = [f.name for f in every if not f.metadata.get("static") and f.metadata.get("pytree_node", True)]

    def make(tree: Any, children: list[Any]) -> Any:
        new = copy(tree)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(new, name, child)  # frozen ones too
        return new

    def children(tree: Any, names: list[Any]) -> list[Any]:
        return [getattr(tree, name) for name in names]

    return Container(kind.__name__, kind, lambda tree: names, make, children, ".{}")


MAPPING = Container("dict", (dict, UserDict), list, _mapping_like)
SEQUENCE = Container("list", (list, tuple), lambda tree: list(range(len(tree))), _sequence_like)


class ByPath(dict[str, Any]):
    """Holds some leaves of a tree by their paths there, which stay their paths."""


REGISTERED: dict[type, Container] = {
    dict: MAPPING, UserDict: MAPPING, list: SEQUENCE, tuple: SEQUENCE, ByPath: MAPPING._replace(shown="{}")
}  # fmt: skip


def register_container(
    kind: type, items: Callable[[Any], Mapping[Any, Tree]], make: Callable[[Any, dict[Any, Tree]], Any]
) -> None:
    """Let objects of a class, and of its subclasses, hold parameters and gradients wherever a dict may.

    items: a container -> its children by key, in a fixed order. Keys are shown in paths: ['w'].
    make: a container and a dict of other children by the same keys -> another container like it, around the very
        objects of that dict.
    Raises TypeError where kind is no class, ValueError where it is registered already.

    >>> class Layer:
    ...     def __init__(self, w, b):
    ...         self.w, self.b = w, b
    >>> fa.register_container(Layer, vars, lambda layer, children: Layer(**children))
    >>> fa.Adam(Layer(np.ones(2), np.ones(2))).paths
    ["['w']", "['b']"]
    """
    if not isinstance(kind, type):
        raise TypeError(f"kind is {kind!r}, expected a class")
    if kind in REGISTERED:
        raise ValueError(f"kind is {kind.__name__}, which is registered already: expected a class that is not")

    def children(tree: Any, keys: list[Any]) -> list[Any]:
        present = items(tree)
        if len(present) != len(keys):
            raise KeyError
        return [present[key] for key in keys]

    def remake(tree: Any, children: list[Any]) -> Any:
        return make(tree, dict(zip(items(tree), children, strict=True)))

    REGISTERED[kind] = Container(kind.__name__, kind, lambda tree: list(items(tree)), remake, children)


def container_of(tree: Tree) -> Container | None:
    """Return how a tree's outermost container is taken apart; None for a leaf."""
    kind = type(tree)
    for base in kind.__mro__:
        if base in REGISTERED:
            return REGISTERED[base]
    return _by_attributes(kind) if is_dataclass(kind) or hasattr(kind, "__attrs_attrs__") else None


def children_of(container: Container, tree: Tree, keys: list[Any]) -> Any:
    """Return the children of a container that fits. Raises KeyError where it lacks a key or has more."""
    if container.children is not None:
        return container.children(tree, keys)
    if len(tree) != len(keys):
        raise KeyError
    if container is SEQUENCE:
        return tree
    if type(tree) is not dict and not all(key in tree for key in keys):
        raise KeyError  # rather than let a defaultdict make one up
    return [tree[key] for key in keys]


class Structure:
    """Is the shape of one tree, worked out once, so that each later tree of that shape is taken apart quickly.

    names: one per leaf, as Python would index it, such as ['dense1']['weight']; the empty text for a single array.
    leaves: the leaves themselves, in the order of the tree.
    """

    def __init__(self, tree: Tree) -> None:
        self.names: list[str] = []
        self.leaves: list[Any] = []
        self._node = self._read(tree, "")
        if len(set(self.names)) < len(self.names):
            twice = next(name for k, name in enumerate(self.names) if name in self.names[:k])
            raise ValueError(f"two leaves are called {twice}, expected keys that print differently")

    def _read(self, tree: Tree, path: str) -> Any:
        """Return a node: None for a leaf, else (container, keys, the nodes below or None if all are leaves, path)."""
        container = container_of(tree)
        if container is None:
            self.names.append(path)
            self.leaves.append(tree)
            return None
        keys = container.keys(tree)
        children = children_of(container, tree, keys)
        below = [
            self._read(child, path + container.shown.format(key)) for key, child in zip(keys, children, strict=True)
        ]
        return container, keys, below if any(node is not None for node in below) else None, path

    def flatten(self, tree: Tree, name: str, partial: bool = False) -> list[Any]:
        """Return the leaves of another tree of the same shape, None among them. `name` is what errors call that tree.

        partial: a dict may lack keys, and None may stand for any branch; the leaves there are None.
        Raises TypeError, ValueError where the trees differ; what the leaves are is not looked at.
        """
        leaves: list[Any] = []
        self._collect(self._node, tree, name, leaves, partial)
        return leaves

    def _collect(self, node: Any, tree: Tree, name: str, leaves: list[Any], partial: bool) -> None:
        if node is None:
            leaves.append(tree)
            return
        container, keys, below, path = node
        try:
            if partial and (tree is None or (container is MAPPING and isinstance(tree, MAPPING.fits))):
                children: Any = [None if tree is None or key not in tree else tree[key] for key in keys]
                if not all(key in keys for key in tree or ()):
                    raise _difference(
                        container, keys, dict.fromkeys([*keys, *(tree or ())]), f"{name}{path}", f"params{path}"
                    )
            elif type(tree) is dict and container is MAPPING and len(tree) == len(keys):  # as children_of, but sooner
                children = [tree[key] for key in keys]
            elif not isinstance(tree, container.fits):
                raise TypeError(f"{name}{path} is {type(tree).__name__}, params{path} is a {container.name}")
            else:
                children = children_of(container, tree, keys)
        except KeyError:
            raise _difference(container, keys, tree, f"{name}{path}", f"params{path}") from None
        if below is None:
            leaves.extend(children)
        else:
            for node, child in zip(below, children, strict=True):
                self._collect(node, child, name, leaves, partial)


def _difference(container: Container, keys: list[Any], tree: Tree, name: str, expected: str) -> ValueError:
    """Return the error for a container that has other keys than the expected one."""
    present = container.keys(tree)
    if missing := [key for key in keys if key not in present]:
        return ValueError(f"{name} has no {missing[0]!r}, {expected} has")
    more = next(key for key in present if key not in keys)
    return ValueError(f"{name} has {more!r}, {expected} has not")


def named(paths: list[str], wanted: Iterable[str] | None, argument: str = "leaves") -> list[int]:
    """Return which leaves are meant: those whose path is one of `wanted` or lies below one; None: all.

    argument: what errors call `wanted`. Raises TypeError where a path is no text, ValueError naming one below which no
    leaf lies.
    """
    if wanted is None:
        return list(range(len(paths)))
    chosen: set[int] = set()
    if not isinstance(wanted, Iterable):
        raise TypeError(f"{argument} is {wanted!r}, expected a path of opt.paths, several, or None for all")
    such = f" such as {paths[0]!r}" if paths else ""
    for start in [wanted] if isinstance(wanted, str) else wanted:
        if not isinstance(start, str):
            raise TypeError(f"{argument} has {start!r}, expected paths{such}")
        below = [k for k, path in enumerate(paths) if path == start or path.startswith((f"{start}[", f"{start}."))]
        if not below:
            raise ValueError(f"{argument} has {start!r}, expected a path of opt.paths{such}, or the beginning of one")
        chosen.update(below)
    return sorted(chosen)


def rebuild(tree: Tree, leaf: Callable[[Any], Any]) -> Tree:
    """Return a tree of the same shape with leaf(x) for every leaf x, in the order of the tree.

    Raises ValueError where a container, rebuilt, holds anything but what it was given.
    """
    container = container_of(tree)
    if container is None:
        return leaf(tree)
    keys = container.keys(tree)
    children = [rebuild(child, leaf) for child in children_of(container, tree, keys)]
    new = container.make(tree, children)
    if not all(map(is_, children_of(container, new, keys), children)):
        raise ValueError(f"a {type(tree).__name__} holds other objects than it was rebuilt from, expected the same")
    return new


def replaced(tree: Tree, at: int, leaf: Any) -> Tree:
    """Return a tree of the same shape with one leaf, counted in the order of the tree, in place of the one there."""
    leaves = count()
    return rebuild(tree, lambda x: leaf if next(leaves) == at else x)
