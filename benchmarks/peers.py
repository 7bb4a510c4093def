"""The peers: one short adapter each, for the methods that a peer has. What is wrong is found by truth.py."""

import inspect
import shutil
from functools import cache

import numpy as np

from fastadam.benchmarks import cases
from fastadam.benchmarks.contestants import Contestant, named
from fastadam.benchmarks.truth import Method


def only(setting, method, options=()):
    """Raise unless it is this method, or one of these, with none but these options."""
    if setting.method.__name__ not in method or not set(setting.options) <= set(options):
        raise NotImplementedError(f"has no {setting.name}")


class PlainNumpy(Contestant):
    """What one writes by hand: in place, whole arrays, no library."""

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


def tensor(array):
    """A copy in memory from torch's allocator."""
    import torch

    return torch.empty(array.shape, dtype=torch.from_numpy(array[:0]).dtype).copy_(torch.from_numpy(array))


def cuda_tensor(array):
    import torch

    return torch.from_numpy(array).to("cuda")


class Torch(Contestant):
    """torch.optim on torch's own tensors; `how` is the loop over them."""

    install, how = "pip install torch", ()
    needs: tuple[str, ...] = ("torch",)

    def __init__(self, start, setting, threads):
        import torch

        torch.set_num_threads(threads)
        convert = cuda_tensor if self.device == "cuda" else tensor
        self.setting, self.sets = setting, start.grads_as(convert)
        self.p = [torch.nn.Parameter(convert(p)) for p in start.params]
        self.opt = self.optimizer(setting, self.p)
        # The foreach loop adds Nesterov's momentum to the gradients where they are.
        self.own = (
            [torch.empty_like(p) for p in self.p] if "foreach" in self.name and "nesterov" in setting.options else ()
        )

    def optimizer(self, setting, params):
        import torch

        method = getattr(torch.optim, setting.method.__name__, None)
        known = inspect.signature(method).parameters if method else {}
        for lacking in [key for key in ("params", *setting.options, *dict(self.how)) if key not in known]:
            raise NotImplementedError(f"has no {setting.method.__name__}" + f" with {lacking}" * bool(known))
        return method(params, **{k: v for k, v in setting.hyperparameters.items() if k in known}, **dict(self.how))

    def give(self, k):
        for p, g in zip(self.p, self.sets[k % len(self.sets)], strict=True):
            p.grad = g
        for p, own in zip(self.p, self.own, strict=bool(self.own)):
            p.grad = own.copy_(p.grad)

    def step(self):
        self.opt.step()

    def params(self):
        return [p.detach().cpu().numpy() for p in self.p]


class DeepSpeed(Torch):
    """DeepSpeed's CPU optimizers, which compile C++ at first use, for a minute."""

    name, install, needs = "DeepSpeedCPUAdam", "pip install deepspeed ninja", ("torch", "deepspeed")

    @classmethod
    def missing(cls, setting):
        if not shutil.which("ninja"):
            return "ninja is not installed"
        return super().missing(setting)

    def optimizer(self, setting, params):
        only(setting, ("Adam", "AdamW"))
        if params[0].dtype.itemsize > 4:
            raise NotImplementedError("has no float64")
        import cpuinfo
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        cpuinfo.get_cpu_info = cache(cpuinfo.get_cpu_info)  # asked by each construction, for 1.3 s
        rule = setting.rule
        return DeepSpeedCPUAdam(
            params, lr=rule.lr, betas=rule.betas, eps=rule.eps, weight_decay=rule.weight_decay,
            adamw_mode=setting.method.__name__ == "AdamW",  # only where weight decay goes
        )  # fmt: skip


class BitsAndBytes(Torch):
    """bitsandbytes with 32-bit moments."""

    name, install, needs, bits = "bitsandbytes", "pip install bitsandbytes", ("torch", "bitsandbytes"), 32

    def optimizer(self, setting, params):
        only(setting, ("Adam", "AdamW", "Lion"))
        from bitsandbytes import optim

        known = {k: v for k, v in setting.hyperparameters.items() if k in ("lr", "betas", "eps", "weight_decay")}
        return getattr(optim, setting.method.__name__)(params, **known, optim_bits=self.bits)


class EightBit:
    """Moments of 8 bits where a tensor has 4096 elements or more: fewer bytes, other results."""

    judged = 1

    @classmethod
    def bytes(cls, setting):
        return 3 * setting.dtype.itemsize + 2 * setting.slots


class BitsAndBytes8(EightBit, BitsAndBytes):
    name, bits = "bitsandbytes 8-bit", 8


class TorchAO(EightBit, Torch):
    name, install, needs = "torchao 8-bit", "pip install torchao", ("torch", "torchao")
    on_request = "compiles for 20 s for each shape"

    def optimizer(self, setting, params):
        only(setting, ("Adam", "AdamW"))
        from torchao import optim

        rule, cls = setting.rule, getattr(optim, setting.method.__name__ + "8bit")
        return cls(params, lr=rule.lr, betas=rule.betas, eps=rule.eps, weight_decay=rule.weight_decay)


def jax_array(platform):
    """A copier to JAX's arrays on that platform; one function for each, so that Start keeps one copy."""
    if platform not in _COPIERS:
        import jax

        device = jax.devices(platform)[0]
        _COPIERS[platform] = lambda array: jax.device_put(array, device)
    return _COPIERS[platform]


_COPIERS: dict = {}


class Optax(Contestant):
    """optax under jit, parameters and state donated."""

    name, install, needs, needs_wall = "optax", "pip install optax jax", ("optax", "jax"), True

    def __init__(self, start, setting, threads):
        import jax

        if start.dtype == np.float64:
            jax.config.update("jax_enable_x64", True)
        convert = jax_array(self.device if self.device == "cpu" else "gpu")
        self.setting, self.sets = setting, start.grads_as(convert)
        transform = self.transform(setting)
        self.p = [convert(p.copy()) for p in start.params]  # a copy: JAX may take NumPy's memory as it is
        self.state = jax.jit(transform.init)(self.p)

        def update(params, state, grads):
            import optax

            updates, state = transform.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.update = jax.jit(update, donate_argnums=(0, 1))

    @staticmethod
    def transform(setting):
        import optax

        rule, method = setting.rule, setting.method.__name__
        only(setting, ("Adam", "AdamW", "Adamax", "Lion", "SGD"), ("momentum", "nesterov"))
        if method == "SGD":
            return optax.sgd(rule.lr, momentum=rule.momentum or None, nesterov=rule.nesterov)
        more = {} if method == "Lion" else {"eps": rule.eps}
        if method in ("AdamW", "Lion"):
            more["weight_decay"] = rule.weight_decay
        return getattr(optax, method.lower())(rule.lr, *rule.betas, **more)

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
    """Thinc's Adam, whose eps joins √v before the bias correction, and which zeroes the gradients it was given."""

    name, install, needs = "Thinc", "pip install thinc", ("thinc",)

    def __init__(self, start, setting, threads):
        from thinc.api import Adam

        only(setting, ("Adam",))
        if start.dtype != np.float32:
            raise NotImplementedError("has float32 only")
        self.setting, self.p, self.sets = setting, [p.copy() for p in start.params], start.grads
        self.own = [np.empty_like(p) for p in self.p]
        rule = setting.rule
        self.opt = Adam(rule.lr, beta1=rule.betas[0], beta2=rule.betas[1], eps=rule.eps, L2=0.0, grad_clip=0.0,
                        use_averages=False)  # fmt: skip

    def oracle(self):
        return Method(cases.settings()["Adam-eps_hat"], self.peer)

    oracle_key = "Adam-eps_hat"

    def give(self, k):
        for own, g in zip(self.own, self.sets[k % len(self.sets)], strict=True):
            np.copyto(own, g)

    def step(self):
        for k, (p, g) in enumerate(zip(self.p, self.own, strict=True)):
            self.p[k], _ = self.opt((k, "p"), p, g)


TORCH: tuple = (
    named(Torch, "torch fused", how=(("fused", True),)),
    named(Torch, "torch foreach", how=(("foreach", True),), spare=5),
    named(Torch, "torch for-loop", how=(("foreach", False),), spare=4),
)
CPU = (*TORCH[:1], DeepSpeed, Optax, *TORCH[1:], Thinc, BitsAndBytes, BitsAndBytes8, PlainNumpy, TorchAO)


CUDA = tuple(
    named(one, f"{one.name} cuda", device="cuda")
    for one in (*TORCH[:1], Optax, *TORCH[1:], BitsAndBytes, BitsAndBytes8)
)
