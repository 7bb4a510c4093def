"""Measuring: what a step's gradients are like, before it, gradients that come in several parts, and what sums made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastadam.arrays.device import HOST
from fastadam.arrays.host import Array
from fastadam.arrays.tree import Tree
from fastadam.checks import integer
from fastadam.kernels.chores import BLOCK, nodes
from fastadam.kernels.contract import Kernel
from fastadam.kernels.streams import Several
from fastadam.plans.judge import Judge
from fastadam.plans.measured import LeafSums, Measured
from fastadam.replacing import Replacing

ACCUMULATED = object()  # what step and measure take the accumulated gradients for


class Measuring(Replacing):
    """Is the part of an Optimizer that looks at gradients before a step takes them; optimizer.py takes the steps."""

    _judge: Judge
    _kernel: Kernel

    def check_grads(self, grads: Tree) -> None:
        """Raise what `step` raises for these gradients, TypeError or ValueError, and change nothing."""
        for leaf, g in enumerate(self._structure.flatten(grads, "grads")):
            if g is not None:
                self._plan.usable(leaf, g)

    def measure(
        self, grads: Tree = ACCUMULATED, *, starts: Mapping[str, int] | None = None,
        streams: Sequence[Tree] | None = None,
    ) -> dict[str, Measured]:  # fmt: skip
        """Return by path what each leaf's gradient is like; what `step(grads, measured=...)` takes.

        grads: as `step` takes them, before grad_scale; without them what has been accumulated. One that is None
            measures 0.
        starts: {path: where in a larger leaf this one begins}, for leaves that are parts; 0 where a path is not named.
            Multiples of 1,024, but of empty parts; so every part but the last has a multiple of 1,024 elements.
            Measured.joined puts the parts of a leaf together, to the bits of one process that measures all of it.
        streams: several trees in place of grads, whose sum is measured, as `step` takes them.
        Changes nothing. On a device it waits, and needs max_norm, skip_nonfinite or stats.
        Raises TypeError, ValueError as `step` does.
        """
        if streams is not None:
            leaves = self._together(streams, grads)
        elif grads is ACCUMULATED:
            if self._totals.batches == 0:
                raise ValueError("measure() got no grads and nothing has been accumulated: expected one of them")
            leaves = self._totals.sums(self._state)
        else:
            leaves = self._structure.flatten(grads, "grads")
        firsts = self._firsts(starts)
        self._plan.accept(leaves)
        row = np.array([*(-1 if g is None else 0 for g in leaves), 0])
        blocks = self._plan.measure_blocks(row) if leaves else []
        return dict(zip(self.paths, self._measures(blocks, 0, firsts), strict=True))

    def noted(self, starts: Mapping[str, int] | None = None) -> dict[str, tuple[Measured, Measured, Measured]]:
        """Return by path what the last step(measured=...) has noted, with `stats`: of the gradient, of the parameter
        after the step, and of its update, whose largest magnitude stands there; the others' is 0.

        starts: as of `measure`. On the host alone. Raises ValueError where nothing has been noted.
        """
        if self._judge.noted is None:
            raise ValueError("nothing has been noted, expected stats, and step(measured=...) before, on the host")
        columns = [self._measures(self._judge.noted, j, self._firsts(starts)) for j in range(3)]
        gradients, params = ([one._replace(largest=0.0) for one in column] for column in columns[:2])
        return dict(zip(self.paths, zip(gradients, params, columns[2], strict=True), strict=True))

    def join_sums(
        self, join: Callable[[dict[str, tuple[Measured, ...]]], Mapping[str, LeafSums]],
        starts: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        """Let each step of a method that sums over whole leaves first do so over leaves of which these are parts.

        join: called in each step that is taken with {path: for each sum its nodes over the part}, it returns {path:
            LeafSums} of the leaves that these are parts of; see LAMB and `sums_first`. starts: as of `measure`.
        On the host alone; whatever lays the state out anew, as `convert`, drops it.

        >>> opt = fa.LAMB(np.ones(3))
        >>> def alone(parts):
        ...     return {path: fa.LeafSums(3, tuple(x.squares for x in sums)) for path, sums in parts.items()}
        >>> opt.join_sums(alone)
        """
        if self._table.shared:
            raise ValueError(
                f"join_sums: {self.rule.__name__} sums over all leaves, expected a method that does over each"
            )
        if self._backend.home is not HOST:
            raise NotImplementedError(f"join_sums: {self.rule.__name__} on a device sums over whole leaves there")

        def wholes(blocks: Sequence[Array]) -> list[LeafSums]:
            firsts, sums = self._firsts(starts), range(len(self._kernel.sums))
            columns = [self._measures(blocks, j, firsts) for j in sums]
            joined = join(dict(zip(self.paths, zip(*columns, strict=True), strict=True)))
            return [joined[path] for path in self.paths]

        self._judge.join = wholes

    def _firsts(self, starts: Mapping[str, int] | None) -> list[int]:
        """Return where each leaf begins in a larger one."""
        firsts = dict.fromkeys(self.paths, 0)
        for path, start in (starts or {}).items():
            if path not in firsts:
                raise ValueError(f"starts has {path!r}, expected paths of opt.paths")
            firsts[path] = integer(f"starts[{path!r}]", start, low=0)
            if start % BLOCK and self._state.params[self.paths.index(path)].size:
                raise ValueError(f"starts[{path!r}] is {start}, expected a multiple of {BLOCK}")
        return list(firsts.values())

    def _measures(self, blocks_of_leaves: Sequence[Array], column: int, firsts: Sequence[int]) -> list[Measured]:
        """Return per leaf what one column of its blocks' notes makes, and their last."""
        groups = [k for k, group in enumerate(self.groups) for _ in group.leaves]
        return [
            Measured(group, tuple(nodes(blocks[:, column], first // BLOCK)), float(blocks[:, -1].max(initial=0.0)))
            for group, first, blocks in zip(groups, firsts, blocks_of_leaves, strict=True)
        ]

    @property
    def carried(self) -> dict[str, float]:
        """Return what the steps carry on for all leaves at once, as Prodigy's "d", 0 before the first step; waits for a
        device. Empty for methods that carry nothing, or something for each leaf, which state_dict has.

        >>> opt = fa.Prodigy(np.ones(3), d0=0.5)
        >>> opt.step(np.ones(3)).skipped, opt.carried["d"]
        (False, 0.5)
        """
        self._plan.settle()
        table = self._table
        return dict(zip(self.rule.carried, table.carried[-1].tolist(), strict=True)) if table.shared else {}

    def _check_measured(self, measured: Any) -> None:
        """Refuse what `measure` cannot have returned, and all of it where other sums than gradients' count."""
        if self._table.shared:
            raise ValueError(f"measured is given, expected None: {self.rule.__name__} sums over all leaves itself")
        if not isinstance(measured, Mapping):
            raise TypeError(f"measured is {type(measured).__name__}, expected {{path: Measured}}")
        for path, one in measured.items():
            if not isinstance(one, Measured):
                raise TypeError(f"measured[{path!r}] is {type(one).__name__}, expected a Measured")
            integer(f"measured[{path!r}].group", one.group, low=0, most=len(self.groups) - 1)
            try:
                _ = one.squares
            except ValueError as error:
                raise ValueError(f"measured[{path!r}]: {error}") from None

    @property
    def counts_accumulated(self) -> Array:
        """Return, as it lies, how much has been accumulated; see Totals.counts."""
        return self._totals.counts

    def _together(self, streams: Sequence[Tree], grads: Tree) -> list[Any]:
        """Return by leaf the gradients of several trees, as plans take them; None where all are."""
        if grads is not ACCUMULATED:
            raise ValueError("grads and streams are given, expected one of them")
        if not streams:
            raise ValueError("streams is empty, expected at least one tree of gradients")
        self._totals.check_empty()
        trees = [self._structure.flatten(tree, f"streams[{k}]") for k, tree in enumerate(streams)]
        if len(trees) == 1:
            return trees[0]
        leaves = zip(*trees, strict=True)
        return [None if all(g is None for g in of_leaf) else Several(of_leaf) for of_leaf in leaves]
