"""The engine over an mpi4py communicator: arrays travel as bytes, so that every dtype does; those of a device by way of
page-locked memory of the host, where the MPI does not read the device's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, pairwise
from typing import Any

import numpy as np

from fastadam.arrays.host import Array
from fastadam.distributed.engine import Engine, Part, Wait, nothing

KEYS: list[int] = []  # of the communicator's attribute that holds the duplicate
MOST = 2**30  # bytes of one message: MPI counts in 32 bits


class Mpi(Engine):
    """Serves the ranks of an MPI communicator. A rank that dies ends the job, as MPI does it by default.

    cuda_aware: whether this MPI takes addresses on a device. MPI has no call that tells: hand in
        `fastadam.distributed.mpi.Mpi(communicator, cuda_aware=True)` in the communicator's place where it does.
    """

    carries = "host", "device"

    def __init__(self, communicator: Any, cuda_aware: bool = False) -> None:
        from mpi4py import MPI

        self._mpi, self._aware = MPI, cuda_aware
        self._communicator, tags = duplicate_of(communicator)
        self._tag = next(tags) % 32768  # MPI's least upper bound is 32,767
        self.rank, self.size = communicator.rank, communicator.size

    def swap(self, sends: Sequence[Part], receives: Sequence[Part]) -> Wait:
        rooms, values = [self._near(x) for x in receives], [self._near(x, filled=True) for x in sends]
        begun = [self._communicator.Irecv(x, source=k, tag=self._tag) for k, x in self._messages(rooms)]
        begun += [self._communicator.Isend(x, dest=k, tag=self._tag) for k, x in self._messages(values)]

        def wait() -> None:
            self._mpi.Request.Waitall(begun)
            for part, room in zip(receives, rooms, strict=True):
                put(part, room)

        return wait

    def _near(self, part: Part, filled: bool = False) -> Part:
        """Return memory that MPI reaches in a part's place, with the same values if `filled`: where it lies if it can
        be."""
        if part is None or isinstance(part, np.ndarray) or not part.size:
            return part
        import cupy

        with part.device:
            if self._aware:
                cupy.cuda.get_current_stream().synchronize()  # MPI knows of no stream
                return part
            room = np.frombuffer(cupy.cuda.alloc_pinned_memory(part.nbytes), part.dtype, part.size)
            return part.get(out=room) if filled else room

    def _messages(self, parts: Sequence[Part]) -> Any:
        """Yield (rank, a message's bytes) for all that there is to carry."""
        for k, part in enumerate(parts):
            if part is not None and part.size:
                raw = part.view(np.uint8)
                yield from ((k, [raw[at : at + MOST], self._mpi.BYTE]) for at in range(0, raw.size, MOST))

    def reduce(self, parts: Sequence[Part], total: Part) -> Wait:
        if not isinstance(total, np.ndarray):  # sums are made on the host, of parts end to end
            buffer = np.concatenate([x.get() for x in parts])
            room = self._near(total) if total.size and not self._aware else np.empty(total.size, total.dtype)
            self._communicator.Reduce_scatter(buffer, room, [x.size for x in parts])
            put(total, room)
            return nothing
        filled = [x for x in parts if x.size] or parts[:1]  # NumPy lets an empty slice begin where its base does
        if any(a.ctypes.data + a.nbytes != b.ctypes.data for a, b in pairwise(filled)):
            raise ValueError("parts are apart, expected one array cut into pieces")
        buffer = np.lib.stride_tricks.as_strided(filled[0], (sum(x.size for x in parts),))
        self._communicator.Reduce_scatter(buffer, total, [x.size for x in parts])
        return nothing

    def words(self, x: Array) -> Array:
        every = np.empty((self.size, x.size), x.dtype)
        self._communicator.Allgather(x, every)
        return every

    def everyone(self, x: Any) -> list[Any]:
        everyones: list[Any] = self._communicator.allgather(x)
        return everyones


def duplicate_of(communicator: Any) -> tuple[Any, Iterator[int]]:
    """Return this library's duplicate of a communicator, apart from the program's messages, and the tags not yet taken.

    One for each communicator, as MPICH has 2,048 in all; a tag for each optimizer, as hooks may come in unlike order.
    """
    from mpi4py import MPI

    if not KEYS:
        KEYS.append(MPI.Comm.Create_keyval())
    kept = communicator.Get_attr(KEYS[0])
    if kept is None:
        kept = communicator.Dup(), count()
        communicator.Set_attr(KEYS[0], kept)
    duplicate, tags = kept
    return duplicate, tags


def put(part: Part, room: Part) -> None:
    """Let a part on a device have what MPI has left on the host in its place, and wait until it does."""
    if part is not room:
        import cupy

        with part.device:
            part.set(room)
            cupy.cuda.get_current_stream().synchronize()  # the room may be given to others then


def engine(communicator: Any, timeout: float | None) -> Mpi | None:
    """Return the engine of an mpi4py communicator between the processes of one group; None for anything else."""
    from mpi4py import MPI

    if timeout is not None:
        raise ValueError(f"timeout is {timeout!r}, expected None: MPI has none")
    return Mpi(communicator) if isinstance(communicator, MPI.Intracomm) else None
