"""Who steps: fastadam on each backend, the limit, and the peers (peers.py), all from the same start.

Each steps the arrays that its users have: NumPy's for fastadam and the limit, torch's own tensors for torch, and so on.
`give(k)` hands over gradient set k % 2, so that each step meets gradients it did not just read: `.grad` is assigned for
torch, a list is chosen for fastadam. It is not timed, because in training the backward pass does that. `step()` is the
user's whole call and is timed. Neither copies anything.
"""

from functools import cache
from importlib.util import find_spec

import numpy as np

import fastadam
from fastadam.benchmarks.truth import STEPS, Method, Trivial

POOL = 1 << 22  # random numbers that are drawn; larger leaves repeat them
ONE_SET = 1 << 28  # parameters from which one set of gradients is given again and again: no cache holds any of it


class Start:
    """Where everyone begins: parameters, which each copies, and two sets of gradients, which nobody writes."""

    def __init__(self, shapes, dtype=np.float32, seed=0):
        self.shapes, self.dtype = shapes, np.dtype(dtype)
        n = sum(int(np.prod(shape)) for shape in shapes)
        pool = np.random.default_rng(seed).standard_normal(min(n, POOL) + 64, np.float32).astype(dtype)
        sets = 1 + self.sets(n)
        self.params, *self.grads = [[np.resize(pool[13 * k :], shape) for shape in shapes] for k in range(sets)]
        self._copies = {}

    @staticmethod
    def sets(n):
        return 1 if n >= ONE_SET else 2

    def grads_as(self, convert):
        """The gradients as another library's arrays, made once for all contestants of that library."""
        if convert not in self._copies:
            self._copies[convert] = [[convert(g) for g in some] for some in self.grads]
        return self._copies[convert]


class Contestant:
    """One way to do the work. A subclass sets `p` and `sets` in __init__(start, setting, threads)."""

    name: str
    install: str  # the command that brings it here
    needs: tuple[str, ...] = ()  # modules without which it is absent
    on_request = ""  # why it runs only if asked for by name
    device = "cpu"
    judged = STEPS  # steps whose error is held against the bound; with 8-bit moments, only the first
    peer = True  # see truth.Method
    spare = 2  # arrays of temporaries
    needs_wall = False  # a library with CUDA streams of its own, which no event sees

    @classmethod
    def missing(cls, setting, dtype):
        """Why it cannot do this, or None: found out by trying."""
        for module in cls.needs:
            if find_spec(module) is None:
                return f"{module} is not installed"
        try:
            one = cls(Start([(3,)], dtype), setting, 1)
            one.give(0)
            one.step()
            one.params()
        except Exception as error:  # whatever another's library raises
            kind = "" if isinstance(error, NotImplementedError) else f"{type(error).__name__}: "
            return " ".join(f"{kind}{error}".split())[:160]
        return None

    @classmethod
    def bytes(cls, setting, dtype):
        """What it moves per parameter and step."""
        return setting.bytes(dtype)

    def oracle(self):
        return Method(self.setting, self.peer)

    @property
    def oracle_key(self):
        """Contestants of one key share an oracle."""
        return self.setting.name, self.peer

    def give(self, k):
        self.grads = self.sets[k % len(self.sets)]

    def finish(self):
        """Wait for what was started, where a library runs ahead and no event can tell."""

    def params(self):
        """The parameters as NumPy arrays."""
        return self.p


class Fastadam(Contestant):
    """fastadam on the user's arrays."""

    install, peer, backend = "pip install fastadam", False, ""
    spare = 4

    @classmethod
    def missing(cls, setting, dtype):
        status = fastadam.backends().get(cls.backend, "this version has none")
        return status if status != "ready" else super().missing(setting, dtype)

    def __init__(self, start, setting, threads):
        fastadam.set_num_threads(threads)
        self.setting = setting
        self.p, self.sets = self.arrays(start)
        self.opt = setting.method(self.p, backend=self.backend, **setting.options)

    def arrays(self, start):
        return [p.copy() for p in start.params], start.grads

    def step(self):
        self.opt.step(self.grads)


class FastadamCuda(Fastadam):
    """fastadam on CuPy's arrays."""

    device, install = "cuda", "pip install cupy-cuda13x"

    def arrays(self, start):
        return [on_gpu(p) for p in start.params], start.grads_as(on_gpu)

    def params(self):
        return [p.get() for p in self.p]


class FastadamMoved(FastadamCuda):
    """The same for gradients and parameters that live in the host's memory: both travel at each step."""

    def arrays(self, start):
        self.host, self.here = [p.copy() for p in start.params], [on_gpu(p) for p in start.params]
        self.there = [on_gpu(g) for g in start.grads[0]]
        return self.here, start.grads

    def step(self):
        for there, g in zip(self.there, self.grads, strict=True):
            there.set(g)
        self.opt.step(self.there)
        for here, p in zip(self.here, self.host, strict=True):
            here.get(out=p)

    def params(self):
        return self.host


def on_gpu(array):
    """A copy in CuPy's memory."""
    import cupy

    return cupy.asarray(array)


class Limit(Contestant):
    """No optimizer: the time that moving the same bytes takes. See limit.py."""

    name, install, needs, peer = "limit", "pip install numba", ("numba",), False

    def __init__(self, start, setting, threads):
        from fastadam.benchmarks import limit

        self.setting, self.p, self.c = setting, [p.copy() for p in start.params], start.dtype.type(setting.rule.lr)
        slots = [limit.beside(self.p, 1024 * (k + 1)) for k in range(setting.slots)]
        self.sets = [limit.plan(list(zip(self.p, some, *slots, strict=True)), threads) for some in start.grads]
        self.keep = start, slots
        self.walk = limit.walk_for(sum(p.size for p in self.p), threads)

    def oracle(self):
        return Trivial(self.setting.rule.lr)

    oracle_key = "limit"

    def step(self):
        self.walk(*self.grads, self.c)


class LimitCuda(Limit):
    """The same on the GPU, on one flat array however the parameters are split: one launch."""

    name, device, needs, install = "limit cuda", "cuda", ("cupy",), FastadamCuda.install

    def __init__(self, start, setting, threads):
        from fastadam.benchmarks import limit_cuda

        self.setting, self.c, self.shapes = setting, start.dtype.type(setting.rule.lr), start.shapes
        self.p = on_gpu(np.concatenate([p.reshape(-1) for p in start.params]))
        slots = [self.p * 0 for _ in range(setting.slots)]
        self.sets = [on_gpu(np.concatenate([g.reshape(-1) for g in some])) for some in start.grads]
        self.walk = limit_cuda.Walk(self.p, slots)

    def step(self):
        self.walk(self.grads, self.c)

    def params(self):
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        pieces = np.split(self.p.get(), ends[:-1])
        return [piece.reshape(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]


def named(cls, name, **more):
    """A contestant like this one, under another name."""
    return type(cls.__name__, (cls,), {"name": name, "__doc__": cls.__doc__, **more})


@cache
def ours():
    """fastadam on every backend that this version knows, by the name of the backend."""
    found = {}
    for backend in fastadam.backends():
        if backend == "cuda":
            found[backend] = [named(FastadamCuda, "fastadam cuda", backend=backend), LimitCuda]
            found[backend].append(named(FastadamMoved, "fastadam cuda, moved", backend=backend))
        else:
            found[backend] = [named(Fastadam, f"fastadam {backend}", backend=backend)]
    return found


def everyone(backends):
    """All contestants for these backends; fastadam and the limits first."""
    from fastadam.benchmarks import peers

    cpu = any(backend != "cuda" for backend in backends)
    own = [one for backend in backends for one in ours()[backend]]
    own.sort(key=lambda one: one.name.endswith("numpy"))
    others = (peers.CPU if cpu else ()) + (peers.CUDA if "cuda" in backends else ())
    return [*own[:1], *([Limit] if cpu else []), *own[1:], *others]
