"""Lets one leaf of an optimizer become another array, of more rows or fewer; optimizer.py takes the steps."""

from __future__ import annotations

from typing import Any

from fastadam.arrays.flat import FlatBuffer
from fastadam.arrays.host import describe, memory_order
from fastadam.arrays.tree import Structure, replaced
from fastadam.backend import Backend
from fastadam.plans.chores import check_copies
from fastadam.state.resized import accept_rows, with_leaf
from fastadam.stateful import Stateful


class Replacing(Stateful):
    """Is the part of an Optimizer that puts other arrays in the place of leaves, as Gaussian splatting needs it."""

    _backend: Backend

    def replace(self, path: str, array: Any, rows: Any = None, copy_to: Any = None) -> None:
        """Step another array from now on in the place of one leaf, which may have more rows or fewer; state follows.

        path: of `paths`. array: of the leaf's dtype, and of its shape but for the first axis. `params` holds it then;
            the tree that the constructor was given does not.
        rows: (len(array),) integers, the row of the leaf that each row of array continues: slots, average, master,
            remainder, accumulated sum, and how far the row is behind. -1, or an index that the leaf has not: the row
            begins as after construction. None: each row continues that of its own index.
        copy_to: where the optimizer has copy_to, the array that is array's copy from now on.
        The leaf's count stays. Moments of 8 bits are decoded, and rounded to nearest in array's blocks. A master or a
        remainder is kept where array has the leaf's bits, and begins anew elsewhere. Random bits are those of the
        elements' new index in the tree.
        Raises IndexError, TypeError, ValueError naming what differs; then nothing has changed.
        """
        self.check_idle("an array replaced inside averaged() would be replaced by an average")
        if path not in self.paths:
            raise ValueError(f"path is {path!r}, expected one of opt.paths")
        leaf, home, copies = self.paths.index(path), self._backend.home, list(self._copies)
        if isinstance(self._structure.leaves[leaf], FlatBuffer):
            raise TypeError(f"params{path} is a FlatBuffer, expected the path of an array: a buffer has no rows")
        new, old = home.owned("array", array), self._state.params[leaf]
        index = accept_rows(f"params{path}", old, new, rows)
        if leaf in self._behind.at and memory_order(new)[0] != 0:
            raise ValueError(
                f"array is {describe(array)}, expected its first axis slowest in memory, or catch_up() before: rows of "
                f"params{path} are behind"
            )
        if (copy_to is None) == bool(copies):
            raise ValueError(f"copy_to is {describe(copy_to)}, expected an array with copy_to, and None without")
        copied = check_copies(home, [path], [array], [new], [copy_to])[0] if copies else None
        copies[leaf : leaf + 1] = [copy_to] if copies else []
        self._plan.check_none_moved()
        totals = self._totals.with_leaf(self._state, leaf, new, index)
        if self._window is not None:
            self._window.refill()
        self._plan.settle()
        self._introduce(with_leaf(self._state, leaf, array, new, index, copied), copies)
        self._behind.replace(leaf, index, int(self._table.counts[leaf]))
        self._totals = totals
        self._state.fill_copies([leaf])
        self._tree = replaced(self._tree, leaf, array)
        self._structure = Structure(self._tree_of_arrays())
        if copies:
            self._copy_to = replaced(self._copy_to, leaf, copy_to)
