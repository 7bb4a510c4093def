"""Pieces: what one rank owns of the buffers, and how the parameters of all ranks are kept alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any
from zlib import crc32

import numpy as np

from fastadam.arrays.host import Array
from fastadam.arrays.tree import Structure, Tree
from fastadam.checkpoint import Shard
from fastadam.distributed.buffers import Buffers
from fastadam.distributed.cuts import cuts
from fastadam.distributed.engine import Engine
from fastadam.group import is_grouped
from fastadam.kernels.chores import BLOCK, nodes
from fastadam.kernels.formats import FLOAT64, FLOATS, format_of
from fastadam.plans.measured import LeafSums, Measured


class Pieces:
    """Holds the part of every bucket of every buffer that this rank steps.

    cuts:    per buffer and bucket, where the ranks' pieces begin and the last ends.
    params:  what the method's constructor takes: for each buffer a list of its pieces.
    owned:   per buffer, these pieces.
    copies:  as params, of what all ranks hold rounded, in the parameters' place or beside them; else None.
    beside:  per buffer, the whole of the copies beside the parameters; nothing where they are in their place.
    starts:  by a piece's path in params, where in its buffer it begins.
    offsets: by path, the index of its first element among those of all buffers. shards: what fa.checkpoint takes.
    """

    def __init__(
        self, buffers: Buffers, engine: Engine, bucket: int, copies: str | None, init: Tree, copy_to: Tree
    ) -> None:  # fmt: skip
        self._buffers, self._engine = buffers, engine
        turns = accumulate((-(-buffer.n // BLOCK) for buffer in buffers), initial=0)
        self.cuts = [cuts(buffer.n, engine.size, bucket, turn) for buffer, turn in zip(buffers, turns, strict=False)]
        self._trees = [
            [nodes(np.zeros(-(-(cut[k + 1] - cut[k]) // BLOCK)), cut[k] // BLOCK) for of in self.cuts for cut in of]
            for k in range(engine.size)
        ]
        values = [buffer.array for buffer in buffers]
        if init is not None:
            tree_of_init = Structure(init)
            for name, x in zip(tree_of_init.names, tree_of_init.leaves, strict=True):
                if x is None:
                    raise ValueError(f"init{name} is None, expected an array for each parameter")
            values = [x for x in buffers.flatten(init, "init") if x is not None]
        self.described: list[tuple[str, Any]] = [
            ("values with the checksum", crc32(buffers.home.get(x).view(np.uint8).data)) for x in values
        ]
        self.owned = self._of_rank(values)
        self.copies: Any = None
        if copies is not None:
            for buffer in buffers:
                if format_of(buffer.array.dtype) is FLOAT64:
                    difference = f"params{buffer.paths[0]} is float64 and copies is {copies!r}"
                    raise TypeError(f"{difference}: expected float32 or less, as owners keep float32")
            self.owned = [[buffers.rounded(x, np.float32) for x in pieces] for pieces in self.owned]
            for buffer, start in zip(buffers, values, strict=True):
                buffer.hold(buffers.rounded(start, FLOATS[copies].dtype))
            self.copies = buffers.by_group(self._of_rank([buffer.array for buffer in buffers]))
        self._in_place = copies is not None
        self.beside: list[Array] = []
        if copy_to is not None:
            self.beside = [buffer.array for buffer in buffers.beside(copy_to, "copy_to")]
            self.copies = buffers.by_group(self._of_rank(self.beside))
            self.described += [("copy_to", x.dtype.name) for x in self.beside]
        self.params = buffers.as_params(self.owned)
        tree = [item["params"] for item in self.params] if is_grouped(self.params) else self.params
        paths = iter(Structure(tree).names)
        self.starts, self.offsets = dict[str, int](), dict[str, int]()
        self.shards = dict[str, Shard]()
        for buffer, of_buffer in zip(buffers, self.cuts, strict=True):
            layout = list(zip(buffer.paths, buffer.shapes, strict=True))
            for cut in of_buffer:
                path, first = next(paths), cut[engine.rank]
                self.starts[path], self.offsets[path] = first, buffer.first + first
                self.shards[path] = Shard(layout, first)

    def _of_rank(self, arrays: Any) -> list[list[Array]]:
        """Return this rank's pieces of one array for each buffer."""
        rank = self._engine.rank
        pairs = zip(arrays, self.cuts, strict=True)
        return [[x[cut[rank] : cut[rank + 1]] for cut in of_buffer] for x, of_buffer in pairs]

    def owned_of(self, flats: Any) -> list[Any]:
        """Return this rank's pieces of one flat array for each buffer, None where that is None."""
        return [None if x is None else self._of_rank_one(x, cut) for x, cut in zip(flats, self.cuts, strict=True)]

    def _of_rank_one(self, x: Array, of_buffer: list[list[int]]) -> list[Array]:
        return [x[cut[self._engine.rank] : cut[self._engine.rank + 1]] for cut in of_buffer]

    def spread(self) -> None:
        """Give every rank the parameters of all pieces, and what is rounded from them, as their owners have them."""
        waits = []
        for arrays in ([buffer.array for buffer in self._buffers], self.beside):
            for x, of_buffer in zip(arrays, self.cuts, strict=False):
                waits += [self._engine.share([x[a:b] for a, b in pairwise(cut)]) for cut in of_buffer]
        for wait in waits:
            wait()

    def refresh(self) -> None:
        """Round this rank's own pieces into what all hold, where that is a copy, after they changed outside a step."""
        if self._in_place:
            held = self._of_rank([buffer.array for buffer in self._buffers])
            for pieces, copies in zip(self.owned, held, strict=True):
                for x, y in zip(pieces, copies, strict=True):
                    y[...] = self._buffers.rounded(x, y.dtype)

    @property
    def nbytes(self) -> int:
        """Return the bytes of this rank's float32 parameters, where all hold rounded ones in their place."""
        return sum(x.nbytes for pieces in self.owned for x in pieces) if self._in_place else 0

    def wholes(self, parts: Mapping[str, Sequence[Measured]]) -> dict[str, LeafSums]:
        """Return by a piece's path what its buffer adds up to, from what every rank's pieces do: see join_sums."""
        columns = [list(self.joined(column).values()) for column in zip(*parts.values(), strict=True)]
        sums = [LeafSums(buffer.n, tuple(of[k].squares for of in columns)) for k, buffer in enumerate(self._buffers)]
        of_pieces = (one for one, of_buffer in zip(sums, self.cuts, strict=True) for _ in of_buffer)
        return dict(zip(parts, of_pieces, strict=True))

    def joined(self, measures: Sequence[Measured]) -> dict[str, Measured]:
        """Return by buffer what all of it is like, from what every rank has measured of each piece of its own.

        What travels are the sums of nodes, whose places all know, and the largest magnitudes: 8 bytes each.
        """
        sums_of_rank: list[float] = []
        for one, tree in zip(measures, self._trees[self._engine.rank], strict=True):
            sums_of_rank += [*([node.sum for node in one.nodes] or [0.0] * len(tree)), one.largest]
        room = max(sum(len(tree) + 1 for tree in trees) for trees in self._trees)
        numbers = [
            iter(x) for x in self._engine.words(np.array(sums_of_rank + [0.0] * (room - len(sums_of_rank)))).tolist()
        ]
        measured, at = {}, 0
        for buffer, of_buffer in zip(self._buffers, self.cuts, strict=True):
            parts = [
                Measured(buffer.group, tuple(node._replace(sum=next(x)) for node in tree), next(x))
                for x, trees in zip(numbers, self._trees, strict=True)
                for tree in trees[at : at + len(of_buffer)]
            ]
            measured[buffer.name] = parts[0].joined(parts[1:])
            at += len(of_buffer)
        return measured
