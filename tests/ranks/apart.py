"""A job of two ranks whose messages could be taken for each other's: `apart.py mpi|gloo`."""

import gc
import sys

import numpy as np

import fastadam as fa

N = 200_000

if sys.argv[1] == "mpi":
    from mpi4py import MPI

    WORLD = MPI.COMM_WORLD
    RANK = WORLD.rank

    def receive(room):
        return WORLD.Irecv([room, MPI.BYTE], source=1 - RANK).Wait

    def send(values):
        WORLD.Send([values, MPI.BYTE], dest=1 - RANK)
else:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    WORLD, RANK = dist.group.WORLD, dist.get_rank()

    def receive(room):
        return dist.irecv(torch.from_numpy(room[:16]), 1 - RANK).wait  # gloo takes no shorter message than is expected

    def send(values):
        dist.send(torch.from_numpy(values), 1 - RANK)


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
    for k in (0, 1) if RANK == 0 else (1, 0):
        for name in "ba":
            both[k].bucket(f"['{name}']")(np.full(N, (1.0, 50.0)[k], np.float32))
    for opt in both:
        opt.step()
    assert [values(tree) for tree in trees] == [[-1.0], [-50.0]]

    # The program's own message, which is waited for while a step is taken.
    params, room = parameters(), np.zeros(8 * N, np.uint8)
    wait = receive(room)
    sharded(params).step({name: np.ones(N, np.float32) for name in "ab"})
    send(np.full(16, 7, np.uint8))
    wait()
    assert room[:17].tolist() == [7] * 16 + [0]
    assert values(params) == [-1.0]

    # One rank hands in by bucket, the other does not; all drop it, and go on.
    params = parameters()
    opt = sharded(params)
    if RANK == 0:
        for name in "ba":
            opt.bucket(f"['{name}']")(np.full(N, 100, np.float32))
    opt.forget()
    opt.step({name: np.ones(N, np.float32) for name in "ab"})
    assert values(params) == [-1.0]
print(f"rank {RANK}: apart", flush=True)
if sys.argv[1] == "gloo":
    opt = both = wait = WORLD = None  # before the group: what still holds it lets gloo's threads live on
    gc.collect()
    dist.destroy_process_group()
