"""One optimizer over several processes, to the bits of one: Sharded(fa.AdamW, params, MPI.COMM_WORLD).step(grads).

May import the optimizer, checkpoint and what lies below them; mpi4py, torch and CuPy only in the engine of each.
How a step is measured, decided on and launched belongs to plans, host and cuda.
"""

from fastadam.distributed.engine import Engine
from fastadam.distributed.sharded import Sharded

__all__ = ["Engine", "Sharded"]
