"""Finds the engine that serves a communicator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastadam.distributed import mpi, nccl, process_group
from fastadam.distributed.engine import Alone, Engine

ENGINES: dict[str, Callable[[Any, float | None], Engine | None]] = {  # by the package of a communicator's class
    "mpi4py": mpi.engine,
    "torch": process_group.engine,
    "cupy": nccl.engine,
    "cupyx": nccl.engine,
}
ACCEPTED = (
    "an mpi4py communicator, a torch.distributed process group, a cupy.cuda.nccl.NcclCommunicator, a "
    "cupyx.distributed.NCCLBackend, a fastadam.distributed.Engine, or None for one process"
)


def engine_of(communicator: Any, timeout: float | None = None) -> Engine:
    """Return the engine that serves a communicator, found by its type. Raises TypeError that lists what is accepted."""
    if communicator is None:
        return Alone()
    if isinstance(communicator, Engine):
        return communicator
    serve = ENGINES.get(type(communicator).__module__.partition(".")[0])
    engine = None if serve is None else serve(communicator, timeout)
    if engine is None:
        raise TypeError(f"communicator is {type(communicator).__name__}, expected {ACCEPTED}")
    return engine
