"""Deals the digits out over processes: `mpiexec -n 4 python -m fastadam demo --distributed`."""

from hashlib import sha256
from typing import Any

import numpy as np

import fastadam as fa
from fastadam.tools.demo import models
from fastadam.tools.demo.learning import Task, digits, one_thread

MICRO_BATCHES, EPOCHS = 8, 10  # of a batch; passes over the data


def batches(task: Task, batch_size: int, rng: np.random.Generator) -> Any:
    """Yield the micro-batches of each step: arrays of examples, about batch_size in all."""
    for _ in range(EPOCHS):
        order = rng.permutation(task.learn)
        for first in range(0, len(order) - batch_size + 1, batch_size):
            yield np.array_split(order[first : first + batch_size], MICRO_BATCHES)


def learn(task: Task, params: Any, opt: Any, dealt: range, batch_size: int, seed: int) -> tuple[float, str]:
    """Train on the micro-batches of these numbers; return the accuracy, and a hash of the parameters' bits."""
    for step in batches(task, batch_size, np.random.default_rng(seed)):
        streams = []
        for number in dealt:
            x = step[number]
            grads = task.loss_and_grads(params, task.x[x], task.y[x])[1]
            if isinstance(opt, fa.distributed.Sharded):
                opt.accumulate(grads, index=number)
            else:
                streams.append(np.concatenate([g.reshape(-1) for layer in grads for g in layer.values()]))
        opt.step(**({"streams": streams} if streams else {}))
    bits = b"".join(np.ascontiguousarray(x).tobytes() for layer in params for x in layer.values())
    return task.accuracy(params, opt), sha256(bits).hexdigest()[:16]


def run(batch_size: int, seed: int = 0) -> int:
    """Train as these ranks and as one process, print both; 1 where their bits differ."""
    try:
        from mpi4py import MPI
    except ImportError:
        world, rank, size = None, 0, 1
    else:
        world, rank, size = MPI.COMM_WORLD, MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
    named: dict[str, Any] = {"lr": 1e-3, "max_norm": 1.0, "moments": "8bit", "seed": seed}
    with one_thread():
        task = digits(models.MLP, np.random.default_rng(seed))
        start = task.init(np.random.default_rng(seed))
        params = [{name: x.copy() for name, x in layer.items()} for layer in start]
        sharded = fa.distributed.Sharded(fa.AdamW, params, world, reproducible="micro", bucket=1 << 14, **named)
        of_ranks = learn(task, params, sharded, range(rank, MICRO_BATCHES, size), batch_size, seed)
        if rank > 0:
            return 0
        buffer = fa.FlatBuffer(start)
        of_one = learn(task, buffer.views, fa.AdamW(buffer, **named), range(MICRO_BATCHES), batch_size, seed)
    print(task.about)
    print(f"{sharded.t} steps of {MICRO_BATCHES} micro-batches, dealt out over the ranks; 8-bit moments in their parts")
    for who, (accuracy, bits) in ((f"{size} {'ranks' if size > 1 else 'rank'}", of_ranks), ("one process", of_one)):
        print(f"{who:12} accuracy {accuracy:.1%}   the parameters' last bits {bits}")
    same = of_ranks == of_one
    print("the same bits" if same else "the bits differ")
    return 0 if same else 1
