"""Collective: what all ranks keep, saved as one checkpoint or as one state_dict."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fastadam.arrays.host import Array
from fastadam.arrays.tree import Structure
from fastadam.checkpoint import Folder, Loading
from fastadam.distributed.agreement import agree, together
from fastadam.distributed.buffers import Buffers
from fastadam.distributed.engine import Engine
from fastadam.distributed.pieces import Pieces
from fastadam.kernels.chores import BLOCK
from fastadam.optimizer import Optimizer


class Collective:
    """Is the part of Sharded that saves and loads: each of its calls is made by all ranks."""

    _engine: Engine
    _buffers: Buffers
    _pieces: Pieces
    _opt: Optimizer

    def save(self, folder: Folder, extra: Any = None) -> None:
        """Save a checkpoint into a Folder that all ranks see: every rank its file, there whole or not at all.

        It is that of a tree: any number of ranks loads it, and so does an optimizer of one process. Gradients that
        were accumulated are not in it. Raises as Folder.save does.
        """
        engine = self._engine
        folder.save(
            self._opt, extra, shards=self._pieces.shards, rank=engine.rank, size=engine.size, gather=engine.everyone
        )

    def load(self, folder: Folder) -> Any:
        """Load the newest checkpoint of a Folder, and return its extra; None where there is none yet.

        Raises as Folder.load does, on the other ranks RuntimeError that names the rank; ValueError where ranks found
        different ones, or some none. Nothing has changed on any rank then.
        """
        loadings: list[Loading | None] = []

        def read() -> Any:
            loadings[:] = [folder.prepared(self._opt, shards=self._pieces.shards)]
            loading = loadings[0]
            if loading is None:
                return [("found", f"no checkpoint in {folder.path}")]
            return [("found", os.path.basename(loading.path)), ("t", loading.t), ("extra", loading.extra)]

        agree(together(self._engine, read))
        (loading,) = loadings
        if loading is None:
            return None
        extra = loading.take()
        self._pieces.refresh()
        self._pieces.spread()
        return extra

    def state_dict(self) -> dict[str, Any] | None:
        """Return on rank 0 the state_dict of one process over one flat array for each group and dtype, None elsewhere.

        Its leaves are called params[k], k in the order of dtypes, or params[g][k] with groups. Beside them rank 0 holds
        one bucket.
        """
        state = self._opt.state_dict(copy=False)
        of_pieces, leaves = iter(state["leaves"].values()), dict[str, Any]()
        names = Structure(self._buffers.by_group([buffer.array for buffer in self._buffers])).names
        for name, buffer, of_buffer in zip(names, self._buffers, self._pieces.cuts, strict=True):
            leaf: dict[str, Any] = {}
            for cut in of_buffer:
                piece = next(of_pieces)
                for key, x in piece.items():  # numbers are alike in all pieces
                    if not hasattr(x, "dtype"):
                        leaf.setdefault(key, x)
                self._collect({key: x for key, x in piece.items() if hasattr(x, "dtype")}, leaf, buffer.n, cut)
            leaves[f"params{name}"] = leaf
        return {**state, "leaves": leaves} if self._engine.rank == 0 else None

    def _collect(self, arrays: dict[str, Array], leaf: dict[str, Any], n: int, cut: list[int]) -> None:
        """Put every rank's piece of one bucket's state into rank 0's arrays of a whole leaf of n elements."""
        engine, get = self._engine, self._buffers.home.get
        shapes = engine.everyone({key: x.shape for key, x in arrays.items()})
        for key, x in arrays.items():
            rows = n if x.ndim == 1 else -(-n // BLOCK)
            parts: list[Any] = [None] * engine.size
            if engine.rank == 0:
                parts[1:] = [np.empty(shape[key], x.dtype) for shape in shapes[1:]]
            sends = [get(x).reshape(-1) if engine.rank and k == 0 else None for k in range(engine.size)]
            engine.swap(sends, [None if part is None else part.reshape(-1) for part in parts])()
            parts[0] = get(x)
            if engine.rank == 0:
                gathered = leaf.setdefault(key, np.empty((rows, *x.shape[1:]), x.dtype))
                for part, first in zip(parts, cut, strict=False):
                    at = first if x.ndim == 1 else first // BLOCK
                    gathered[at : at + len(part)] = part
