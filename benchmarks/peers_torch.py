"""The peers that step torch's tensors: torch.optim itself, and who has its interface."""

import inspect
import shutil
from functools import cache, partial
from typing import ClassVar

import numpy as np

from fastadam.benchmarks.contestants import Contestant, named, only

USUAL = ("lr", "betas", "eps", "weight_decay")


def tensor(array, device="cpu"):
    """A copy in memory from torch's allocator. NumPy's bfloat16 is no dtype that torch knows: by its bits."""
    import torch

    short = array.dtype.name == "bfloat16"
    host = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if short else torch.from_numpy(array)
    return torch.empty(array.shape, dtype=host.dtype, device=device).copy_(host)


cuda_tensor = partial(tensor, device="cuda")


class Torch(Contestant):
    """An optimizer of torch's kind on torch's own tensors: torch.optim's, or what a subclass names."""

    install = "pip install torch"
    needs: tuple[str, ...] = ("torch",)
    more: ClassVar[dict] = {}  # arguments beside the method's; for torch.optim, which loop over the tensors

    def __init__(self, start, setting, threads):
        import torch

        torch.set_num_threads(threads)
        convert = cuda_tensor if self.device == "cuda" else tensor
        self.setting, self.sets = setting, start.grads_as(convert)
        self.p = [torch.nn.Parameter(convert(p)) for p in start.params]
        self.opt = self.optimizer(setting.method.__name__)
        # The foreach loop adds Nesterov's momentum to the gradients where they are.
        changed = "foreach" in self.name and "nesterov" in setting.options
        self.own = [torch.empty_like(p) for p in self.p] if changed else []

    def optimizer(self, method):
        """The optimizer of self.p for the method of that name. Raises NotImplementedError if there is none."""
        import torch

        found = getattr(torch.optim, method, None)
        known = inspect.signature(found).parameters if found else {}
        for lacking in [key for key in ("params", *self.setting.options, *self.more) if key not in known]:
            raise NotImplementedError(f"has no {method}" + f" with {lacking}" * bool(known))
        return self.made(found, known)

    def made(self, cls, known=USUAL):
        """One of that class, told those of the method's hyperparameters that it knows."""
        told = {k: v for k, v in self.setting.hyperparameters.items() if k in known}
        return cls(self.p, **told, **self.more)

    def give(self, k):
        for p, g in zip(self.p, self.sets[k % len(self.sets)], strict=True):
            p.grad = g
        for p, own in zip(self.p, self.own, strict=bool(self.own)):
            p.grad = own.copy_(p.grad)

    def step(self):
        self.opt.step()

    def params(self):
        wide = self.setting.dtype.itemsize < 4
        return [(p.detach().float() if wide else p.detach()).cpu().numpy() for p in self.p]


class TorchGraph(Torch):
    """Replays of a CUDA graph of one step, one for each set of gradients."""

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
    """The fused kernels: arithmetic in float32, the state in p's dtype. The loops round every operation to that."""

    more: ClassVar[dict] = {"fused": True}

    @classmethod
    def holds(cls, format):
        return format.moments == format.dtype.name and "master" not in format.options


class DeepSpeed(Torch):
    """DeepSpeed's CPU optimizers, which compile C++ at first use, for a minute."""

    name, install, needs = "DeepSpeedCPUAdam", "pip install deepspeed ninja", ("torch", "deepspeed")

    @classmethod
    def holds(cls, format):
        return format.moments in ("float32", format.dtype.name) and "master" not in format.options

    @classmethod
    def missing(cls, setting):
        return super().missing(setting) if shutil.which("ninja") else "ninja is not installed"

    def optimizer(self, method):
        only(self.setting, ("Adam", "AdamW"))
        if self.setting.dtype.itemsize > 4:
            raise NotImplementedError("has no float64")
        import cpuinfo
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        cpuinfo.get_cpu_info = cache(cpuinfo.get_cpu_info)  # asked by each construction, for 1.3 s
        cls = partial(DeepSpeedCPUAdam, fp32_optimizer_states=self.setting.format.moments == "float32")
        return self.made(partial(cls, adamw_mode=method == "AdamW"))  # only where weight decay goes


class BitsAndBytes(Torch):
    """bitsandbytes with 32-bit moments."""

    name, install, needs = "bitsandbytes", "pip install bitsandbytes", ("torch", "bitsandbytes")
    more: ClassVar[dict] = {"optim_bits": 32}

    def optimizer(self, method):
        only(self.setting, ("Adam", "AdamW", "Lion"))
        from bitsandbytes import optim

        return self.made(getattr(optim, method))


class EightBit:
    """Moments of 8 bits where a tensor has 4096 elements or more: fewer bytes, other results."""

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

        return self.made(getattr(optim, f"{method}8bit"))


TORCH: tuple = (
    named(TorchFused, "torch fused"),
    named(Torch, "torch foreach", more={"foreach": True}, spare=5),
    named(Torch, "torch for-loop", more={"foreach": False}, spare=4),
)
