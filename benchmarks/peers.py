"""Adapts the peers, shortly, for the methods that a peer has. What is wrong is found by truth.py.

Those that step torch's tensors are in peers_torch.py.
"""

import inspect
from functools import cache, partial

import numpy as np

from fastadam.kernels.formats import FLOAT32, FLOAT64, format_of

from . import cases
from .contestants import Contestant, named, only
from .peers_torch import (
    TORCH,
    BitsAndBytes,
    BitsAndBytes8,
    DeepSpeed,
    Optimi,
    ProdigyOpt,
    Timm,
    TorchAO,
    TorchGraph,
)  # fmt: skip


class PlainNumpy(Contestant):
    """Is what one writes by hand: in place, whole arrays, no library."""

    name, install = "plain NumPy", ""

    def __init__(self, start, setting, threads):
        only(setting, ("Adam", "AdamW"))
        self.setting, self.p, self.sets, self.t = setting, [p.copy() for p in start.params], start.grads, 0
        self.m, self.v = ([np.zeros_like(p) for p in self.p] for _ in range(2))

    def step(self):
        self.t += 1
        rule = self.setting.rule
        (beta1, beta2), decay = rule.betas, rule.lr * rule.weight_decay
        correct1, correct2 = 1 - beta1**self.t, 1 - beta2**self.t
        for p, g, m, v in zip(self.p, self.grads, self.m, self.v, strict=True):
            if decay:
                p *= 1 - decay
            m *= beta1
            m += (1 - beta1) * g
            v *= beta2
            v += (1 - beta2) * g * g
            p -= rule.lr / correct1 * m / (np.sqrt(v / correct2) + rule.eps)


@cache  # so that Start keeps one copy for each platform
def jax_array(platform):
    """Return a copier to JAX's arrays on that platform."""
    import jax

    return partial(jax.device_put, device=jax.devices(platform)[0])


class Optax(Contestant):
    """Is optax under jit, parameters and state donated."""

    name, install, needs, needs_wall = "optax", "pip install optax jax", ("optax", "jax"), True

    def __init__(self, start, setting, threads):
        import jax
        import optax

        only(setting, ("Adam", "AdamW", "Adamax", "LAMB", "Lion", "SGD"), ("momentum", "nesterov"))
        if format_of(start.dtype) is FLOAT64:
            jax.config.update("jax_enable_x64", True)
        convert = jax_array(self.device if self.device == "cpu" else "gpu")
        self.setting, self.sets = setting, start.grads_as(convert)
        transform = self.transform(setting.method.__name__, setting.hyperparameters)
        self.p = [convert(p.copy()) for p in start.params]  # a copy: JAX may take NumPy's memory as it is
        self.state = jax.jit(transform.init)(self.p)

        def update(params, state, grads):
            updates, state = transform.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.update = jax.jit(update, donate_argnums=(0, 1))

    @staticmethod
    def transform(method, values):
        """Return optax's transformation for a method with these hyperparameters."""
        import optax

        if method == "SGD":
            return optax.sgd(values["lr"], momentum=values["momentum"] or None, nesterov=values["nesterov"])
        make = getattr(optax, method.lower())
        told = {key: values[key] for key in ("eps", "weight_decay") if key in inspect.signature(make).parameters}
        return make(values["lr"], *values["betas"], **told)

    def step(self):
        self.p, self.state = self.update(self.p, self.state, self.grads)
        if self.device == "cpu":
            self.finish()

    def finish(self):
        import jax

        jax.block_until_ready((self.p, self.state))

    def params(self):
        return [np.asarray(p) for p in self.p]


class Thinc(Contestant):
    """Is Thinc's Adam, whose eps joins √v before the bias correction, and which zeroes the gradients it was given."""

    name, install, needs = "Thinc", "pip install thinc", ("thinc",)

    def __init__(self, start, setting, threads):
        from thinc.api import Adam

        only(setting, ("Adam",))
        if format_of(start.dtype) is not FLOAT32:
            raise NotImplementedError("has float32 only")
        self.setting, self.p, self.sets = setting, [p.copy() for p in start.params], start.grads
        self.private = [np.empty_like(p) for p in self.p]
        rule = setting.rule
        self.opt = Adam(rule.lr, beta1=rule.betas[0], beta2=rule.betas[1], eps=rule.eps, L2=0.0, grad_clip=0.0,
                        use_averages=False)  # fmt: skip

    @property
    def paper(self):
        return cases.settings()["Adam-eps_hat"]

    def give(self, k):
        for private, g in zip(self.private, self.sets[k % len(self.sets)], strict=True):
            np.copyto(private, g)

    def step(self):
        for k, (p, g) in enumerate(zip(self.p, self.private, strict=True)):
            self.p[k], _ = self.opt((k, "p"), p, g)


CPU = (
    *TORCH[:1], DeepSpeed, Optax, *TORCH[1:], Thinc, Timm, Optimi, ProdigyOpt, BitsAndBytes, BitsAndBytes8, PlainNumpy,
    TorchAO,
)  # fmt: skip
CUDA = (
    *(named(one, f"{one.name} cuda", device="cuda")
      for one in (*TORCH[:1], Optax, *TORCH[1:], BitsAndBytes, BitsAndBytes8)),
    named(TorchGraph, "torch fused cuda, graph", device="cuda"),
)  # fmt: skip
