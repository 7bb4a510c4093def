"""Makes contestants of fastadam on a GPU: CuPy's arrays, replays of a CUDA graph, data in the host's memory."""

from typing import ClassVar

import numpy as np

from fastadam.cuda.window import STEPS as WINDOW

from .contestants import named
from .ours import Fastadam


def on_gpu(array):
    """Copy an array into CuPy's memory."""
    import cupy

    return cupy.asarray(array)


class FastadamCuda(Fastadam):
    """Is fastadam on CuPy's arrays."""

    device, install, backend = "cuda", "pip install cupy-cuda13x", "cuda"

    def arrays(self, start):
        return [on_gpu(p) for p in start.params], start.grads_as(on_gpu)

    @staticmethod
    def zeros_bfloat16(p):
        return on_gpu(Fastadam.zeros_bfloat16(p))

    def params(self):
        return [p.get() for p in self.p]

    def averages(self):
        return [ema.get() for ema in self.opt.ema] if self.scale else None

    def copies(self):
        return [short.get().astype(np.float32) for short in self.short] if self.scale else None


class FastadamGraph(FastadamCuda):
    """Replays a CUDA graph of one step; there is one for each set of gradients."""

    more: ClassVar[dict] = {"capturable": True}
    needs_wall = True  # replays back to back: an event on either side would cost as much as one
    chores = ("",)

    def __init__(self, start, setting, threads):
        super().__init__(start, setting, threads)
        import cupy

        first = [p.reshape(-1)[:1] for p in start.params]  # as many leaves: what is launched for them is the same
        other = setting.optimizer([on_gpu(p) for p in first], **self.more)
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
    """Steps gradients and parameters that live in the host's memory: both travel at each step."""

    chores = ("",)

    def arrays(self, start):
        self.host, self.on_device = [p.copy() for p in start.params], [on_gpu(p) for p in start.params]
        self.grads_on_device = [on_gpu(g) for g in start.grads[0]]
        return self.on_device, start.grads

    def step(self):
        for on_device, g in zip(self.grads_on_device, self.grads, strict=True):
            on_device.set(g)
        self.opt.step(self.grads_on_device)
        for on_device, p in zip(self.on_device, self.host, strict=True):
            on_device.get(out=p)

    def params(self):
        return self.host


MAIN = named(FastadamCuda, "fastadam cuda")
VARIANTS = named(FastadamGraph, "fastadam cuda, graph"), named(FastadamMoved, "fastadam cuda, moved")
