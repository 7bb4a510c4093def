"""A job of two ranks over MPI whose messages could be taken for each other's."""

import numpy as np
from mpi4py import MPI

import fastadam as fa

WORLD = MPI.COMM_WORLD
N = 200_000


def parameters():
    return {name: np.zeros(N, np.float32) for name in "ab"}


def sharded(params):
    return fa.distributed.Sharded(fa.SGD, params, WORLD, lr=1.0)


def values(params):
    return sorted({float(x) for p in params.values() for x in p})


with fa.num_threads(1):
    # Two optimizers, whose gradients are handed in in another order on the other rank.
    trees = parameters(), parameters()
    both = [sharded(tree) for tree in trees]
    for k in (0, 1) if WORLD.rank == 0 else (1, 0):
        for name in "ba":
            both[k].bucket(f"['{name}']")(np.full(N, (1.0, 50.0)[k], np.float32))
    for opt in both:
        opt.step()
    assert [values(tree) for tree in trees] == [[-1.0], [-50.0]]

    # The program's own message, which is waited for while a step is taken.
    params, room = parameters(), np.zeros(8 * N, np.uint8)
    waiting = WORLD.Irecv([room, MPI.BYTE], source=1 - WORLD.rank)
    sharded(params).step({name: np.ones(N, np.float32) for name in "ab"})
    WORLD.Send([np.full(16, 7, np.uint8), MPI.BYTE], dest=1 - WORLD.rank)
    waiting.Wait()
    assert room[:17].tolist() == [7] * 16 + [0]
    assert values(params) == [-1.0]

    # One rank hands in by bucket, the other does not; all drop it, and go on.
    params = parameters()
    opt = sharded(params)
    if WORLD.rank == 0:
        for name in "ba":
            opt.bucket(f"['{name}']")(np.full(N, 100, np.float32))
    opt.forget()
    opt.step({name: np.ones(N, np.float32) for name in "ab"})
    assert values(params) == [-1.0]
print(f"rank {WORLD.rank}: apart", flush=True)
