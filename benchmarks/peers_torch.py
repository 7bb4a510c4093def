"""Adapts the peers that step torch's tensors: torch.optim itself, and who has its interface."""

import inspect
import shutil
from dataclasses import replace
from functools import cache, partial
from typing import ClassVar

import numpy as np

from fastadam.kernels.formats import BFLOAT16, FLOAT64, format_of

from .cases import EMA_DECAY, MAX_NORM, SCALE
from .contestants import Contestant, named, only

USUAL = ("lr", "betas", "eps", "weight_decay")
# Bytes per float32 of chores as passes of their own: norm 4, g clipped 8; g scaled 8, average 12, copy 6, zeros 4.
PASSES = {"": 0, "max_norm": 4 + 8, "whole": 8 + 4 + 8 + 12 + 6 + 4}


def tensor(array, device="cpu"):
    """Copy an array into memory from torch's allocator; NumPy's bfloat16, which torch does not know, by its bits."""
    import torch

    short = format_of(array.dtype) is BFLOAT16
    host = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if short else torch.from_numpy(array)
    return torch.empty(array.shape, dtype=host.dtype, device=device).copy_(host)


cuda_tensor = partial(tensor, device="cuda")


class Torch(Contestant):
    """Is an optimizer of torch's kind on torch's own tensors: torch.optim's, or what a subclass names.

    Chores are passes of their own: mul_, clip_grad_norm_, the step, lerp_, copy_ and zero_.
    """

    install = "pip install torch"
    needs: tuple[str, ...] = ("torch",)
    more: ClassVar[dict] = {}  # arguments beside the method's; for torch.optim, which loop over the tensors

    def __init__(self, start, setting, threads):
        import torch

        torch.set_num_threads(threads)
        convert = cuda_tensor if self.device == "cuda" else tensor
        self.setting, self.threads, self.sets = setting, threads, start.grads_as(convert)
        self.p = [torch.nn.Parameter(convert(p)) for p in start.params]
        if setting.kernel is None:
            self.judged = 0  # whole matrices, in products of bfloat16, whose bound says nothing
        self.opt = self.optimizer(setting.method.__name__)
        # The foreach loop adds Nesterov's momentum to the gradients where they are; chores scale and clear them.
        changed = setting.chores or ("foreach" in self.name and "nesterov" in setting.options)
        self.private = [torch.empty_like(p) for p in self.p] if changed else None
        if setting.chores == "whole":
            self.ema = [p.detach().clone() for p in self.p]
            self.short = [torch.empty_like(p, dtype=torch.bfloat16) for p in self.p]

    @classmethod
    def bytes(cls, setting):
        return replace(setting, chores="").bytes + PASSES[setting.chores]

    def optimizer(self, method):
        """Return the optimizer of self.p for the method of that name. Raises NotImplementedError if there is none."""
        import torch

        cls = getattr(torch.optim, method, None)
        parameters = inspect.signature(cls).parameters if cls else {}
        for lacking in [key for key in ("params", *self.setting.options, *self.more) if key not in parameters]:
            raise NotImplementedError(f"has no {method}" + f" with {lacking}" * bool(parameters))
        return self.constructed(cls, parameters)

    def constructed(self, cls, parameters=USUAL):
        """Construct one of that class, told those of the method's hyperparameters that it has parameters for."""
        told = {k: v for k, v in self.setting.hyperparameters.items() if k in parameters}
        return cls(self.p, **told, **self.more)

    def give(self, k):
        grads = self.sets[k % len(self.sets)]
        if self.private:
            grads = [private.copy_(g) for private, g in zip(self.private, grads, strict=True)]
        self.hand_over(grads)

    def hand_over(self, grads):
        """Hand over new tensor objects at every step, as backward makes them."""
        for p, g in zip(self.p, grads, strict=True):
            p.grad = g.detach()

    def step(self):
        if self.setting.chores:
            self.step_with_chores()
        else:
            self.opt.step()

    def step_with_chores(self):
        """Do each chore as a pass, in the order of a training loop."""
        import torch

        has_all_chores = self.setting.chores == "whole"
        if has_all_chores:
            for p in self.p:
                p.grad.mul_(SCALE)
        torch.nn.utils.clip_grad_norm_(self.p, MAX_NORM)
        self.opt.step()
        if has_all_chores:
            with torch.no_grad():
                for p, ema, short in zip(self.p, self.ema, self.short, strict=True):
                    ema.lerp_(p, 1 - EMA_DECAY)
                    short.copy_(p)
                    p.grad.zero_()

    def params(self):
        return [to_numpy(p) for p in self.p]

    def averages(self):
        return [to_numpy(ema) for ema in self.ema] if self.setting.chores == "whole" else None

    def copies(self):
        return [to_numpy(short) for short in self.short] if self.setting.chores == "whole" else None


def to_numpy(tensor):
    """Return a NumPy array of a tensor's values, float32 where it is narrower."""
    return (tensor if tensor.element_size() >= 4 else tensor.float()).detach().cpu().numpy()


class TorchGraph(Torch):
    """Replays a CUDA graph of one step; there is one for each set of gradients."""

    more: ClassVar[dict] = {"fused": True, "capturable": True}
    needs_wall = True

    def __init__(self, start, setting, threads):
        import torch

        only(setting, ("Adam", "AdamW"))
        super().__init__(start, setting, threads)
        super().give(0)
        self.opt.step()  # makes the state, which must not happen in a capture; then everything is as before
        with torch.no_grad():
            for p, first in zip(self.p, start.params, strict=True):
                p.copy_(cuda_tensor(first))
            for x in [x for state in self.opt.state.values() for x in state.values()]:
                x.zero_()
        graphs = []
        for k in range(len(self.sets)):
            super().give(k)
            graphs.append(torch.cuda.CUDAGraph())
            with torch.cuda.graph(graphs[-1]):
                self.opt.step()
        self.kept, self.sets = self.sets, graphs

    def give(self, k):
        Contestant.give(self, k)

    def step(self):
        self.grads.replay()

    def finish(self):
        import torch

        torch.cuda.synchronize()


class TorchFused(Torch):
    """Is torch's fused kernels: arithmetic in float32, the state in p's dtype; loops round every operation to it."""

    more: ClassVar[dict] = {"fused": True}
    chores = ("", "max_norm", "whole")

    @classmethod
    def holds(cls, format):
        return format.moments == format.dtype.name and "master" not in format.options


class Timm(Torch):
    """Is timm's LAMB and LARS, which loop over lists of tensors."""

    name, install, needs = "timm", "pip install timm torchvision", ("torch", "timm")

    def optimizer(self, method):
        from timm.optim import Lamb, Lars

        only(self.setting, ("LAMB", "LARS"))
        self.more = {"always_adapt": True} | ({"max_grad_norm": None} if method == "LAMB" else {"eps": 0.0})
        told = {"trust_coefficient": "trust_coeff"}
        hyper = {told.get(k, k): v for k, v in self.setting.hyperparameters.items() if k != "maximize"}
        return (Lamb if method == "LAMB" else Lars)(self.p, **hyper, **self.more)


class Optimi(Torch):
    """Is optimi's StableAdamW, which loops over lists of tensors."""

    name, install, needs = "optimi", "pip install torch-optimi", ("torch", "optimi")

    def optimizer(self, method):
        from optimi import StableAdamW

        only(self.setting, ("StableAdamW",))
        return self.constructed(StableAdamW)


class ProdigyOpt(Torch):
    """Is the authors' Prodigy, which brings two sums of each tensor to the host."""

    name, install, needs = "prodigyopt", "pip install prodigyopt", ("torch", "prodigyopt")

    def optimizer(self, method):
        from prodigyopt import Prodigy

        only(self.setting, ("Prodigy",))
        told = {k: v for k, v in self.setting.hyperparameters.items() if k != "maximize" and v is not None}
        return Prodigy(self.p, **told)


class TorchMuon(Torch):
    """Is torch's Muon, which knows one way to step, and matrices alone."""

    trial = ((3, 3),)

    def optimizer(self, method):
        only(self.setting, ("Muon",))
        return super().optimizer(method)


class DeepSpeed(Torch):
    """Is DeepSpeed's CPU optimizers, which compile C++ at first use, for a minute."""

    name, install, needs = "DeepSpeedCPUAdam", "pip install deepspeed ninja", ("torch", "deepspeed")

    @classmethod
    def holds(cls, format):
        return format.moments in ("float32", format.dtype.name) and "master" not in format.options

    @classmethod
    def missing(cls, setting):
        return super().missing(setting) if shutil.which("ninja") else "ninja is not installed"

    def optimizer(self, method):
        only(self.setting, ("Adam", "AdamW"))
        if format_of(self.setting.dtype) is FLOAT64:
            raise NotImplementedError("has no float64")
        import cpuinfo
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        cpuinfo.get_cpu_info = cache(cpuinfo.get_cpu_info)  # asked by each construction, for 1.3 s
        cls = partial(DeepSpeedCPUAdam, fp32_optimizer_states=self.setting.format.moments == "float32")
        return self.constructed(partial(cls, adamw_mode=method == "AdamW"))  # only where weight decay goes


class BitsAndBytes(Torch):
    """Is bitsandbytes with 32-bit moments."""

    name, install, needs = "bitsandbytes", "pip install bitsandbytes", ("torch", "bitsandbytes")
    more: ClassVar[dict] = {"optim_bits": 32}

    def optimizer(self, method):
        only(self.setting, ("Adam", "AdamW", "Lion"))
        from bitsandbytes import optim

        return self.constructed(getattr(optim, method))


class EightBit:
    """Keeps moments of 8 bits where a tensor has 4096 elements or more: fewer bytes, other results."""

    judged = 1  # from zero state the first step has nothing to forget; then v may be 0, and p anywhere

    @classmethod
    def holds(cls, format):
        return format.name in ("float32", "float32:moments=8bit")

    @classmethod
    def bytes(cls, setting):
        return 3 * setting.dtype.itemsize + 2 * setting.slots


class BitsAndBytes8(EightBit, BitsAndBytes):
    name = "bitsandbytes 8-bit"
    more: ClassVar[dict] = {"optim_bits": 8}


class TorchAO(EightBit, Torch):
    name, install, needs = "torchao 8-bit", "pip install torchao", ("torch", "torchao")
    on_request = "compiles for 20 s for each shape"

    def optimizer(self, method):
        only(self.setting, ("Adam", "AdamW"))
        from torchao import optim

        return self.constructed(getattr(optim, f"{method}8bit"))


TORCH: tuple = (
    named(TorchFused, "torch fused"),
    named(Torch, "torch foreach", more={"foreach": True}, spare=5),
    named(Torch, "torch for-loop", more={"foreach": False}, spare=4),
    named(TorchMuon, "torch Muon"),
)
