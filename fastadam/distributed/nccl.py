"""The engine over NCCL through CuPy: arrays of a device, on the current stream of whoever owns them."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastadam.arrays.host import Array
from fastadam.distributed.engine import Engine, Part, Wait, nothing


class Nccl(Engine):
    """Serves the ranks of a cupy.cuda.nccl.NcclCommunicator. When one dies, the others wait, as NCCL has it.

    Work is ordered by the stream, so waits return at once; not tried on a device yet.
    """

    carries = ("device",)

    def __init__(self, communicator: Any) -> None:
        import cupy

        self._cupy, self._nccl, self._communicator = cupy, cupy.cuda.nccl, communicator
        self.rank, self.size = communicator.rank_id(), communicator.size()

    def _stream(self) -> int:
        stream: int = self._cupy.cuda.get_current_stream().ptr
        return stream

    def swap(self, sends: Sequence[Part], receives: Sequence[Part]) -> Wait:
        stream, byte = self._stream(), self._nccl.NCCL_UINT8
        self._nccl.groupStart()
        for act, parts in ((self._communicator.send, sends), (self._communicator.recv, receives)):
            for rank, part in enumerate(parts):
                if part is not None and part.size:
                    act(part.data.ptr, part.nbytes, byte, rank, stream)
        self._nccl.groupEnd()
        return nothing

    def reduce(self, parts: Sequence[Part], total: Part) -> Wait:
        nccl = self._nccl
        kind = getattr(nccl, f"NCCL_{total.dtype.name.upper()}")
        nccl.groupStart()
        for rank, part in enumerate(parts):
            if part.size:
                target = total.data.ptr if rank == self.rank else part.data.ptr
                self._communicator.reduce(part.data.ptr, target, part.size, kind, nccl.NCCL_SUM, rank, self._stream())
        nccl.groupEnd()
        return nothing

    def words(self, x: Array) -> Array:
        every: Array = self._gather(x)
        return every

    def everyone(self, x: Any) -> list[Any]:
        said = np.frombuffer(pickle.dumps(x), np.uint8)
        sizes = self._gather(np.array([said.size], np.int64)).reshape(-1)
        padded = np.zeros(int(sizes.max()), np.uint8)
        padded[: said.size] = said
        everyones = self._gather(padded)
        return [pickle.loads(text[:size].tobytes()) for text, size in zip(everyones, sizes, strict=True)]

    def _gather(self, x: Any) -> Any:
        """Return (size, *x.shape) on the host: an array of every rank, all of one shape."""
        sent = self._cupy.asarray(x)
        every = self._cupy.empty((self.size, *x.shape), x.dtype)
        pointers = sent.data.ptr, every.data.ptr
        self._communicator.allGather(*pointers, x.nbytes, self._nccl.NCCL_UINT8, self._stream())
        return every.get()


def engine(communicator: Any, timeout: float | None) -> Nccl | None:
    """Return the engine of a communicator of CuPy's; None for anything else."""
    if timeout is not None:
        raise ValueError(f"timeout is {timeout!r}, expected None: NCCL through CuPy has none")
    inner = getattr(communicator, "_comm", communicator)  # of a cupyx.distributed.NCCLBackend
    return Nccl(inner) if type(inner).__name__ == "NcclCommunicator" else None
