"""The engine over an mpi4py communicator: arrays of the host travel as bytes, so that every dtype does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fastadam.distributed.engine import Engine, Part, Wait, nothing

MOST = 2**30  # bytes of one message: MPI counts in 32 bits


class Mpi(Engine):
    """Serves the ranks of an MPI communicator. A rank that dies ends the job, as MPI does it by default."""

    def __init__(self, communicator: Any) -> None:
        from mpi4py import MPI

        self._mpi, self._communicator = MPI, communicator
        self.rank, self.size = communicator.rank, communicator.size

    def swap(self, sends: Sequence[Part], receives: Sequence[Part]) -> Wait:
        begun = [self._communicator.Irecv(x, source=k) for k, x in self._messages(receives)]
        begun += [self._communicator.Isend(x, dest=k) for k, x in self._messages(sends)]
        return lambda: self._mpi.Request.Waitall(begun)

    def _messages(self, parts: Sequence[Part]) -> Any:
        """Yield (rank, a message's bytes) for all that there is to carry."""
        for k, part in enumerate(parts):
            if part is not None and part.size:
                raw = part.view(np.uint8)
                yield from ((k, [raw[at : at + MOST], self._mpi.BYTE]) for at in range(0, raw.size, MOST))

    def reduce(self, parts: Sequence[Part], total: Part) -> Wait:
        filled = [x for x in parts if x.size] or parts[:1]  # NumPy lets an empty slice begin where its base does
        if any(a.ctypes.data + a.nbytes != b.ctypes.data for a, b in pairwise(filled)):
            raise ValueError("parts are apart, expected one array cut into pieces")
        whole = np.lib.stride_tricks.as_strided(filled[0], (sum(x.size for x in parts),))
        self._communicator.Reduce_scatter(whole, total, [x.size for x in parts])
        return nothing

    def everyone(self, x: Any) -> list[Any]:
        everyones: list[Any] = self._communicator.allgather(x)
        return everyones


def engine(communicator: Any, timeout: float | None) -> Mpi | None:
    """Return the engine of an mpi4py communicator between the processes of one group; None for anything else."""
    from mpi4py import MPI

    if timeout is not None:
        raise ValueError(f"timeout is {timeout!r}, expected None: MPI has none")
    return Mpi(communicator) if isinstance(communicator, MPI.Intracomm) else None
