"""A job that saves every second step and resumes by itself: `elastic.py FOLDER LAST [RANK STEP]` kills a rank in the
middle of a step. Twelve micro-batches a step are dealt out over however many ranks there are."""

import hashlib
import json
import os
import signal
import sys

import numpy as np
from mpi4py import MPI

import fastadam as fa

N, MANY = 50_003, 12


def values(seed):
    return np.random.default_rng(seed).standard_normal(N).astype(np.float32)


def main(folder, last, dying=-1, at=-1):
    world = MPI.COMM_WORLD
    fa.set_num_threads(1)
    params = {"w": values(0)}
    opt = fa.distributed.Sharded(
        fa.AdamW, params, world, lr=0.01, seed=3, moments="8bit", copies="bfloat16", max_norm=1.0, bucket=20_000,
        reproducible="micro",
    )  # fmt: skip
    checkpoints = fa.checkpoint.Folder(folder, keep=2)
    if opt.load(checkpoints) is not None and world.rank == 0:
        print(f"resumed at {opt.t} on {world.size} ranks", flush=True)
    steps = opt.t
    while steps < last:
        steps += 1

        def die(now=steps):
            print("killed in the middle of step", now, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

        if world.rank == dying and steps == at:
            opt._pieces.spread = die  # its own part has been stepped, and the others wait for it
        for m in range(MANY):
            if m * world.size // MANY == world.rank:
                opt.accumulate(values([steps, m]), index=m)
        opt.step()
        if steps % 2 == 0:
            opt.save(checkpoints, {"ranks": world.size})
    state = opt.state_dict()
    if world.rank == 0:
        arrays = [params["w"], *(x for x in state["leaves"]["params[0]"].values() if isinstance(x, np.ndarray))]
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in arrays)).hexdigest()
        with open(os.path.join(folder, "hash"), "w") as file:
            json.dump(digest, file)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
