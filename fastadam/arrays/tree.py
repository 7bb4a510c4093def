"""Trees of arrays: dicts, lists and tuples of them to any depth, or one array."""

from collections.abc import Callable
from typing import Any

Tree = Any  # dict[str, Tree] | list[Tree] | tuple[Tree, ...] | array, which a type checker cannot follow usefully


class Structure:
    """The shape of one tree, worked out once, so that each later tree of that shape is taken apart quickly.

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
        """A node: None for a leaf, else (dict or list, keys, the nodes below or None if all are leaves)."""
        if isinstance(tree, dict):
            kind, keys = dict, list(tree)
        elif isinstance(tree, (list, tuple)):
            kind, keys = list, list(range(len(tree)))  # type: ignore[assignment]
        else:
            self.names.append(path)
            self.leaves.append(tree)
            return None
        below = [self._read(tree[key], f"{path}[{key!r}]") for key in keys]
        return kind, keys, below if any(node is not None for node in below) else None

    def flatten(self, tree: Tree, name: str, partial: bool = False) -> list[Any]:
        """The leaves of another tree of the same shape, None among them. `name` is what errors call that tree.

        partial: a dict may lack keys, and None may stand for any branch; the leaves there are None.
        Raises TypeError, ValueError where the trees differ; what the leaves are is not looked at.
        """
        leaves: list[Any] = []
        self._collect(self._node, self._filled(self._node, tree) if partial else tree, name, "", leaves)
        return leaves

    def _filled(self, node: Any, given: Tree) -> Tree:
        """The tree with None for every leaf that it lacks."""
        tree: Any = given
        if node is None:
            return tree
        kind, keys, below = node
        if tree is None:
            tree = {} if kind is dict else [None] * len(keys)
        if not isinstance(tree, dict if kind is dict else (list, tuple)) or (kind is list and len(tree) != len(keys)):
            return tree  # for _collect to refuse
        children: Any = list(map(tree.get, keys)) if isinstance(tree, dict) else tree
        full = [self._filled(node, x) for node, x in zip(below or [None] * len(keys), children, strict=True)]
        return {**tree, **dict(zip(keys, full, strict=True))} if isinstance(tree, dict) else full

    def _collect(self, node: Any, tree: Tree, name: str, path: str, leaves: list[Any]) -> None:
        if node is None:
            leaves.append(tree)
            return
        kind, keys, below = node
        if not isinstance(tree, dict if kind is dict else (list, tuple)):
            raise TypeError(f"{name}{path} is {type(tree).__name__}, params{path} is a {kind.__name__}")
        try:
            if len(tree) != len(keys):
                raise KeyError
            if kind is dict and type(tree) is not dict and not all(key in tree for key in keys):
                raise KeyError  # rather than let a defaultdict make one up
            children = tree if kind is list else [tree[key] for key in keys]
        except KeyError:
            present: Any = tree if kind is dict else range(len(tree))
            if missing := [key for key in keys if key not in present]:
                raise ValueError(f"{name}{path} has no {missing[0]!r}, params{path} has") from None
            more = next(key for key in present if key not in keys)
            raise ValueError(f"{name}{path} has {more!r}, params{path} has not") from None
        if below is None:
            leaves.extend(children)
        else:
            for key, node, child in zip(keys, below, children, strict=True):
                self._collect(node, child, name, f"{path}[{key!r}]", leaves)


def rebuild(tree: Tree, leaf: Callable[[Any], Any]) -> Tree:
    """A tree of the same shape with leaf(x) for every leaf x, in the order of the tree."""
    if isinstance(tree, dict):
        return {key: rebuild(value, leaf) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        items = [rebuild(value, leaf) for value in tree]
        if hasattr(tree, "_fields"):
            return type(tree)(*items)
        return tuple(items) if isinstance(tree, tuple) else items
    return leaf(tree)
