"""Pieces: what one rank owns of the buffers, and how the parameters of all ranks are kept alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
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
from fastadam.kernels.formats import FLOATS
from fastadam.plans.measured import Measured


class Pieces:
    """Holds the part of every bucket of every buffer that this rank steps.

    cuts:    per buffer and bucket, where the ranks' pieces begin and the last ends.
    params:  what the method's constructor takes: for each buffer a list of its pieces.
    owned:   per buffer, these pieces.
    copies:  as params, of what all ranks hold, where that is a rounded copy; else None.
    starts:  by a piece's path in params, where in its buffer it begins.
    offsets: by path, the index of its first element among those of all buffers. shards: what fa.checkpoint takes.
    """

    def __init__(self, buffers: Buffers, engine: Engine, bucket: int, copies: str | None, init: Tree) -> None:
        self._buffers, self._engine = buffers, engine
        self.cuts = [cuts(buffer.n, engine.size, bucket) for buffer in buffers]
        values = [buffer.array for buffer in buffers]
        if init is not None:
            given = buffers.flatten(init, "init")
            values = [x for x in given if x is not None]
            if len(values) < len(given):
                raise ValueError("init has None, expected an array for each parameter")
        self.described = [("values with the checksum", crc32(buffers.home.get(x).view(np.uint8).data)) for x in values]
        self.owned = self._of_rank(values)
        self.copies: Any = None
        if copies is not None:
            self.owned = [[buffers.rounded(x, np.float32) for x in pieces] for pieces in self.owned]
            for buffer, start in zip(buffers, values, strict=True):
                buffer.hold(buffers.rounded(start, FLOATS[copies].dtype))
            self.copies = buffers.by_group(self._of_rank([buffer.array for buffer in buffers]))
        self.params = buffers.as_params(self.owned)
        tree = [item["params"] for item in self.params] if is_grouped(self.params) else self.params
        paths = iter(Structure(tree).names)
        self.starts, self.offsets = dict[str, int](), dict[str, int]()
        self.shards = dict[str, Shard]()
        for buffer, of_buffer in zip(buffers, self.cuts, strict=True):
            whole = list(zip(buffer.paths, buffer.shapes, strict=True))
            for cut in of_buffer:
                path, first = next(paths), cut[engine.rank]
                self.starts[path], self.offsets[path] = first, buffer.first + first
                self.shards[path] = Shard(whole, first)

    def _of_rank(self, arrays: Any) -> list[list[Array]]:
        """Return this rank's pieces of one array for each buffer."""
        rank = self._engine.rank
        both = zip(arrays, self.cuts, strict=True)
        return [[x[cut[rank] : cut[rank + 1]] for cut in of_buffer] for x, of_buffer in both]

    def spread(self) -> None:
        """Give every rank the parameters of all pieces, as their owners have them."""
        waits = []
        for buffer, of_buffer in zip(self._buffers, self.cuts, strict=True):
            for cut in of_buffer:
                held = [buffer.array[a:b] for a, b in pairwise(cut)]
                waits.append(self._engine.share(held))
        for wait in waits:
            wait()

    def refresh(self) -> None:
        """Round this rank's own pieces into what all hold, where that is a copy, after they changed outside a step."""
        if self.copies is not None:
            held = self._of_rank([buffer.array for buffer in self._buffers])
            for pieces, copies in zip(self.owned, held, strict=True):
                for x, y in zip(pieces, copies, strict=True):
                    y[...] = self._buffers.rounded(x, y.dtype)

    def joined(self, everyone: Sequence[Sequence[Measured]]) -> dict[str, Measured]:
        """Return by buffer what all of it is like, from what every rank has measured of each piece of its own."""
        measured, at = {}, 0
        for buffer, of_buffer in zip(self._buffers, self.cuts, strict=True):
            parts = [one for measures in everyone for one in measures[at : at + len(of_buffer)]]
            measured[buffer.name] = parts[0].joined(parts[1:])
            at += len(of_buffer)
        return measured
