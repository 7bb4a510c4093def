"""Makes contestants of the limit, the time that moving the same bytes takes (limit.py, limit_cuda.py)."""

import numpy as np

from .contestants import Contestant
from .ours_cuda import on_gpu


class Limit(Contestant):
    """Is the limit of a CPU."""

    name, install, needs, peer, paper = "limit", "pip install numba", ("numba",), False, None

    def __init__(self, start, setting, threads):
        from . import limit

        self.setting, self.p, self.c = setting, [p.copy() for p in start.params], start.dtype.type(setting.rule.lr)
        slots = [limit.beside(self.p, 1024 * (k + 1)) for k in range(setting.slots)]
        self.sets = [limit.plan(list(zip(self.p, grads, *slots, strict=True)), threads) for grads in start.grads]
        self.keep = start, slots
        self.walk = limit.walk_for(sum(p.size for p in self.p), threads)

    def step(self):
        self.walk(*self.grads, self.c)


class LimitCuda(Limit):
    """Is the same on the GPU, on one flat array however the parameters are split: one launch."""

    name, device, needs, install = "limit cuda", "cuda", ("cupy",), "pip install cupy-cuda13x"

    def __init__(self, start, setting, threads):
        from . import limit_cuda

        self.setting, self.c, self.shapes = setting, start.dtype.type(setting.rule.lr), start.shapes
        self.p = on_gpu(np.concatenate([p.reshape(-1) for p in start.params]))
        slots = [on_gpu(np.zeros(self.p.size, start.dtype)) for _ in range(setting.slots)]
        self.sets = [on_gpu(np.concatenate([g.reshape(-1) for g in grads])) for grads in start.grads]
        self.walk, self.chose = limit_cuda.quickest(self.p, slots, self.sets[0])

    def step(self):
        self.walk(self.grads, self.c)

    def params(self):
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        pieces = np.split(self.p.get(), ends[:-1])
        return [piece.reshape(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]
