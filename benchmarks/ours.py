"""Makes contestants of fastadam on a CPU: on NumPy's arrays, and under PyTorch; ours_cuda.py does on a GPU.

Only public names of fastadam are used, so that compare.py can step any commit's.
"""

from functools import cache
from typing import ClassVar

import numpy as np

import fastadam

from .cases import MAX_NORM, SCALE
from .contestants import Contestant, named
from .peers_torch import Torch


class Fastadam(Contestant):
    """Is fastadam on the user's arrays."""

    install, peer, backend = "pip install fastadam", False, ""
    spare = 4
    chores: tuple[str, ...] = ("", "max_norm", "whole")
    more: ClassVar[dict] = {}  # arguments of the method

    @classmethod
    def holds(cls, format):
        return True

    @classmethod
    def missing(cls, setting):
        if (why := super().missing(setting)) is None:
            return None
        status = fastadam.backends().get(cls.backend, "this version has none")  # which imports what each one needs
        return status if status != "ready" else why

    def __init__(self, start, setting, threads):
        fastadam.set_num_threads(threads)
        self.setting, self.scale = setting, ()
        self.p, self.sets = self.arrays(start)
        self.short = None
        if setting.chores == "whole":  # zeroes the gradients, so it has sets of its own
            self.first, self.sets = self.sets, [[g.copy() for g in grads] for grads in self.sets]
            self.short, self.scale = [self.zeros_bfloat16(p) for p in self.p], (SCALE,)
        self.opt = setting.optimizer(self.p, self.short, backend=self.backend, **self.more)

    def moved(self, n):
        """Return the bytes that the optimizer counts over these very arrays, whose blocks of 8 bits may be short."""
        return self.opt.bytes_per_step / n

    def arrays(self, start):
        """Return the parameters and the sets of gradients, as arrays of the backend's."""
        return [p.copy() for p in start.params], start.grads

    @staticmethod
    def zeros_bfloat16(p):
        import ml_dtypes

        return np.zeros(p.shape, ml_dtypes.bfloat16)

    def give(self, k):
        super().give(k)
        if self.scale:
            for g, first in zip(self.grads, self.first[k % len(self.first)], strict=True):
                g[...] = first

    def step(self):
        self.opt.step(self.grads, *self.scale)

    def averages(self):
        return self.opt.ema if self.scale else None

    def copies(self):
        return [short.astype(np.float32) for short in self.short] if self.scale else None


class FastadamTorch(Torch):
    """Is fastadam.torch on torch's tensors."""

    name, install, peer = "fastadam.torch", "pip install 'fastadam[torch]'", False
    chores = ("", "max_norm")

    @classmethod
    def holds(cls, format):
        return format.name in ("float32", "float64")

    @classmethod
    def bytes(cls, setting):
        return setting.bytes

    def optimizer(self, method):
        import fastadam.torch

        fastadam.set_num_threads(self.threads)
        limit = {"max_norm": MAX_NORM} if self.setting.chores else {}
        return getattr(fastadam.torch, method)(self.p, **self.setting.options, **limit)

    def give(self, k):
        self.hand_over(self.sets[k % len(self.sets)])

    def step(self):
        self.opt.step()


@cache
def by_backend(backend):
    """Return fastadam on a backend of the CPU."""
    return named(Fastadam, f"fastadam {backend}", backend=backend)
