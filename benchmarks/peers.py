"""The contestants: one short adapter each, all doing float32 Adam with torch's defaults on the same start.

Each steps the arrays that its users have: NumPy's for fastadam and the limit, torch's own tensors for the others.
`give(k)` hands over gradient set k % 2, so that each step meets gradients it did not just read: `.grad` is assigned for
torch, a list is chosen for fastadam. It is not timed, because in training the backward pass does that. `step()` is the
user's whole call and is timed. Neither copies anything.
"""

import shutil
from functools import cache, cached_property
from importlib.util import find_spec

import numpy as np

LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8


class Start:
    """Where everyone begins: parameters, which each copies, and two sets of gradients, which nobody writes."""

    def __init__(self, shapes, seed):
        rng = np.random.default_rng(seed)
        self.params, *self.grads = [[rng.standard_normal(s, np.float32) for s in shapes] for _ in range(3)]

    @cached_property
    def tensors(self):
        """The gradients in memory of torch's."""
        return [[tensor(g) for g in some] for some in self.grads]


def adam(p, grads):
    """Kingma & Ba 2015, Algorithm 1, in float64."""
    p = p.astype(np.float64)
    m = v = 0.0
    for t, g in enumerate((g.astype(np.float64) for g in grads), start=1):
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g**2
        p = p - LR * (m / (1 - BETA1**t)) / (np.sqrt(v / (1 - BETA2**t)) + EPS)
    return p


def trivial(p, grads):
    """What the limit computes, in float64."""
    return p.astype(np.float64) + LR * sum(g.astype(np.float64) for g in grads)


def tolerance(p, steps):
    """Largest |error| of p that float32 explains: each step rounds p once or twice, and 1 - β2^t, as everyone but
    fastadam computes it, is off by an ulp of 1 relative to 1 - β2, which moves the update by half of that."""
    u = np.finfo(np.float32).eps / 2
    return steps * (2 * u * (abs(p) + LR) + u / (1 - BETA2) * LR)


class Limit:
    """Not Adam: the time that moving Adam's bytes takes. See roofline.py."""

    name, install, oracle = "limit", "pip install numba", staticmethod(trivial)

    @staticmethod
    def available():
        return None if find_spec("numba") else "numba is not installed"

    def __init__(self, start, threads):
        import roofline

        self.p = [p.copy() for p in start.params]
        m, v = slots(self.p, 1024), slots(self.p, 2048)
        self.plans = [roofline.plan(list(zip(self.p, some, m, v, strict=True)), threads) for some in start.grads]
        self.keep = start, m, v
        self.walk = roofline.serial if sum(p.size for p in self.p) <= roofline.SERIAL else roofline.parallel
        self.c = np.float32(LR)

    def give(self, k):
        self.plan = self.plans[k % 2]

    def step(self):
        self.walk(*self.plan, self.c)

    def params(self):
        return self.p


def slots(params, shift):
    """Zeros like params in one buffer, `shift` bytes behind p in a page; NumPy puts large buffers on huge pages.

    A load that meets an older store at the same place of another page waits for it (4K aliasing): with m and v 48 bytes
    behind p, the limit took 1.9 times as long at 2^17 (2 Zen 4 cores).
    """
    raw = np.empty(sum(4 * p.size + 4096 for p in params) + 4096, np.uint8)
    raw.fill(0)
    base, at, out = raw.ctypes.data, 0, []
    for p in params:
        at += (p.ctypes.data + shift - base - at) % 4096
        out.append(raw[at : at + 4 * p.size].view(np.float32).reshape(p.shape))
        at += 4 * p.size
    return out


class Fastadam:
    """fastadam on the user's NumPy arrays."""

    install, oracle, backend = "pip install .", staticmethod(adam), None

    @classmethod
    def available(cls):
        try:
            import fastadam

            fastadam.Adam([np.zeros(1, np.float32)], backend=cls.backend)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    def __init__(self, start, threads):
        import fastadam

        fastadam.set_num_threads(threads)
        self.p = [p.copy() for p in start.params]
        self.sets = start.grads
        self.opt = fastadam.Adam(self.p, lr=LR, backend=self.backend)

    def give(self, k):
        self.grads = self.sets[k % 2]

    def step(self):
        self.opt.step(self.grads)

    def params(self):
        return self.p


class FastadamNumba(Fastadam):
    name, backend = "fastadam numba", "numba"


class FastadamNumpy(Fastadam):
    name, backend = "fastadam numpy", "numpy"


class Torch:
    """torch.optim.Adam on torch's own tensors."""

    install, oracle = "pip install torch", staticmethod(adam)

    @staticmethod
    def available():
        return None if find_spec("torch") else "torch is not installed"

    def __init__(self, start, threads):
        import torch

        torch.set_num_threads(threads)
        self.p = [torch.nn.Parameter(tensor(p)) for p in start.params]
        self.sets = start.tensors
        self.opt = self.optimizer(self.p)

    def give(self, k):
        for p, g in zip(self.p, self.sets[k % 2], strict=True):
            p.grad = g

    def step(self):
        self.opt.step()

    def params(self):
        return [p.detach().numpy() for p in self.p]


def tensor(array):
    """A copy in memory from torch's allocator."""
    import torch

    return torch.empty(array.shape).copy_(torch.from_numpy(array))


class TorchFused(Torch):
    name = "torch fused"

    def optimizer(self, params):
        import torch

        return torch.optim.Adam(params, lr=LR, fused=True)


class TorchForeach(Torch):
    name = "torch foreach"

    def optimizer(self, params):
        import torch

        return torch.optim.Adam(params, lr=LR, foreach=True)


class DeepSpeed(Torch):
    """DeepSpeedCPUAdam, which compiles C++ at first use, for a minute; adamw_mode: only where weight decay goes."""

    name, install = "DeepSpeedCPUAdam", "pip install deepspeed ninja"

    @classmethod
    def available(cls):
        if missing := [name for name in ("torch", "deepspeed") if not find_spec(name)]:
            return f"{missing[0]} is not installed"
        if not shutil.which("ninja"):
            return "ninja, which builds it, is not installed"
        try:
            cls(Start([(1,)], 0), 1)
        except Exception as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return None

    def optimizer(self, params):
        import cpuinfo
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        cpuinfo.get_cpu_info = cache(cpuinfo.get_cpu_info)  # asked by each construction, for 1.3 s
        return DeepSpeedCPUAdam(params, lr=LR, adamw_mode=False)


CORE = (Limit, FastadamNumba, FastadamNumpy, TorchFused, TorchForeach, DeepSpeed)
