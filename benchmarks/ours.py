"""fastadam on each backend, and the limits; and everyone who takes part, peers included."""

from functools import cache
from typing import ClassVar

import numpy as np

import fastadam
from fastadam.benchmarks.contestants import Contestant, named
from fastadam.benchmarks.truth import Trivial
from fastadam.cuda.window import STEPS as WINDOW


class Fastadam(Contestant):
    """fastadam on the user's arrays."""

    install, peer, backend = "pip install fastadam", False, ""
    spare = 4
    more: ClassVar[dict] = {}  # arguments of the method

    @classmethod
    def holds(cls, format):
        return True

    @classmethod
    def missing(cls, setting):
        status = fastadam.backends().get(cls.backend, "this version has none")
        return status if status != "ready" else super().missing(setting)

    def __init__(self, start, setting, threads):
        fastadam.set_num_threads(threads)
        self.setting = setting
        self.p, self.sets = self.arrays(start)
        self.opt = setting.method(
            self.p, backend=self.backend, **setting.options, **setting.format.options, **self.more
        )

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


class FastadamGraph(FastadamCuda):
    """The same as a CUDA graph of one step, replayed; one for each set of gradients."""

    more: ClassVar[dict] = {"capturable": True}
    needs_wall = True  # replays back to back: an event on either side would cost as much as one

    def __init__(self, start, setting, threads):
        super().__init__(start, setting, threads)
        import cupy

        first = [p.reshape(-1)[:1] for p in start.params]  # as many leaves: what is launched for them is the same
        other = setting.method([on_gpu(p) for p in first], **setting.options, **setting.format.options, **self.more)
        other.step([on_gpu(p) for p in first])  # loaded before the capture
        cupy.cuda.get_current_stream().synchronize()
        self.stream, self.ready, graphs = cupy.cuda.Stream(non_blocking=True), WINDOW, []
        with self.stream:
            for grads in self.sets:
                self.stream.begin_capture()
                self.opt.step(grads)
                graphs.append(self.stream.end_capture())
        self.kept, self.sets = self.sets, graphs

    def give(self, k):
        super().give(k)
        if self.ready == 0:
            self.finish()
            with self.stream:
                self.opt.prepare()
            self.ready = WINDOW
        self.ready -= 1

    def step(self):
        self.grads.launch(self.stream)

    def finish(self):
        self.stream.synchronize()

    def params(self):
        self.finish()
        return super().params()


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
        slots = [on_gpu(np.zeros(self.p.size, start.dtype)) for _ in range(setting.slots)]
        self.sets = [on_gpu(np.concatenate([g.reshape(-1) for g in some])) for some in start.grads]
        self.walk, self.chose = limit_cuda.quickest(self.p, slots, self.sets[0])

    def step(self):
        self.walk(self.grads, self.c)

    def params(self):
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        pieces = np.split(self.p.get(), ends[:-1])
        return [piece.reshape(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]


@cache
def ours():
    """fastadam on every backend that this version knows, by the name of the backend."""
    found = {}
    for backend in fastadam.backends():
        if backend == "cuda":
            found[backend] = [named(FastadamCuda, "fastadam cuda", backend=backend), LimitCuda]
            for extra, name in ((FastadamGraph, "graph"), (FastadamMoved, "moved")):
                found[backend].append(named(extra, f"fastadam cuda, {name}", backend=backend))
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
    main = [one for one in own if ", " not in one.name]  # where memory is short, the peers come before the variants
    return [*main[:1], *([Limit] if cpu else []), *main[1:], *others, *(one for one in own if ", " in one.name)]
