"""A rank of a job: `program.py mpi|gloo FILE ...` steps configurations, and rank 0 writes down what came of them.

What one process gives is worked out by rank 0 itself.
"""

import gc
import hashlib
import json
import os
import sys

import numpy as np

import fastadam as fa
from fastadam.kernels.formats import FORMATS

N, STEPS = 70_003, 3
CASES = [
    {},
    {"max_norm": 0.4, "skip_nonfinite": True},
    {"moments": "8bit", "ema_decay": 0.9},
    {"copies": "bfloat16", "moments": "bfloat16", "max_norm": 0.4},
    {"p": "bfloat16", "g": "bfloat16", "master": "remainder"},
    {"p": "float64", "g": "float64"},
]


def values(seed, dtype):
    return np.random.default_rng(seed).standard_normal(N).astype(np.float32).astype(FORMATS[dtype].dtype)


def digest(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in arrays)).hexdigest()


def state_of(leaf):
    return [x for _, x in sorted(leaf.items()) if isinstance(x, np.ndarray)]


def communicator(kind):
    if kind == "mpi":
        from mpi4py import MPI

        return MPI.COMM_WORLD, MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
    import torch.distributed as dist

    dist.init_process_group("gloo")
    return dist.group.WORLD, dist.get_rank(), dist.get_world_size()


def gradient(t, rank, dtype, flip):
    g = values([t, rank], dtype)
    if flip and t == 1 and rank == 1:
        g.view(np.uint8)[4 * 1000 + 2] ^= 1
    return g


def sharded(kind, case, flip):
    """The hash of parameters and state over the ranks, on rank 0."""
    given, rank, _ = communicator.given
    chosen = dict(case)
    p_dtype, g_dtype = chosen.pop("p", "float32"), chosen.pop("g", "float32")
    p = values(99, p_dtype)
    params = {"a": p[:40_000].copy(), "b": [p[40_000:].copy()]}
    opt = fa.distributed.Sharded(fa.AdamW, params, given, lr=0.01, seed=5, bucket=20_000, **chosen)
    for t in range(STEPS):
        g = gradient(t, rank, g_dtype, flip)
        if "skip_nonfinite" in chosen and t == 1 and rank == 1:
            g[7] = np.inf
        opt.step({"a": g[:40_000], "b": [g[40_000:]]})
    state = opt.state_dict()
    hashes = opt._engine.everyone(digest(params["a"], params["b"][0]))
    assert len(set(hashes)) == 1, hashes
    return None if state is None else [hashes[0], digest(*state_of(state["leaves"]["params[0]"])), state["t"]]


def alone(case, size):
    """The same of one process."""
    chosen = dict(case)
    p_dtype, g_dtype = chosen.pop("p", "float32"), chosen.pop("g", "float32")
    p, held = values(99, p_dtype), {}
    if copies := chosen.pop("copies", None):
        held["copy_to"] = np.zeros(N, FORMATS[copies].dtype)
    opt = fa.AdamW(p, lr=0.01, seed=5, **held, **chosen)
    for t in range(STEPS):
        streams = [gradient(t, rank, g_dtype, False) for rank in range(size)]
        if "skip_nonfinite" in chosen and t == 1 and size > 1:
            streams[1][7] = np.inf
        opt.step(streams=streams)
    state = opt.state_dict()
    return [digest(held.get("copy_to", p)), digest(*state_of(state["leaves"]["params"])), state["t"]]


def fastest():
    """The engine's own sums: the same on all ranks, near one process's, and gradients, even read-only ones, kept."""
    given, rank, size = communicator.given
    p, g = values(99, "float32"), values([0, rank], "float32")
    g.flags.writeable = False
    opt = fa.distributed.Sharded(fa.SGD, p, given, lr=1.0, reproducible=False, bucket=20_000)
    opt.step(g)
    one = values(99, "float32")
    fa.SGD(one, lr=1.0).step(streams=[values([0, k], "float32") for k in range(size)])
    # size numbers of at most 6 are added with size - 1 roundings, in whatever order
    np.testing.assert_allclose(p, one, rtol=0, atol=2 * size * 6 * np.finfo(np.float32).eps)
    assert (g == values([0, rank], "float32")).all()
    assert len(set(opt._engine.everyone(digest(p)))) == 1


def main(kind, file, flip):
    fa.set_num_threads(1)
    communicator.given = communicator(kind)
    _, rank, size = communicator.given
    results = [(sharded(kind, case, flip), alone(case, size) if rank == 0 else None) for case in CASES]
    fastest()
    if rank == 0:
        with open(file, "w") as out:
            json.dump({"size": size, "results": results}, out)
    if kind == "gloo":
        import torch.distributed as dist

        del communicator.given  # what still holds the group at the end lets gloo's threads live on
        gc.collect()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], os.environ.get("FLIP") == "1")
