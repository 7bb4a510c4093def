"""Has the optimizers by torch's names: torch's class says what is accepted, a rule what is done."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from fastadam import rules
from fastadam.torch.group import plain
from fastadam.torch.leaf import Leaf
from fastadam.torch.method import OPTIONS
from fastadam.torch.optimizer import Fast

MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq", "vmax": "max_exp_avg_sq"}


class Adam(Fast, torch.optim.Adam):
    rule, slots = rules.Adam, MOMENTS
    instead = ", please consider SparseAdam instead"


class AdamW(Fast, torch.optim.AdamW):
    rule, slots, extras = rules.Adam, MOMENTS, {"cautious_decay": False}
    instead = ", please consider SparseAdam instead"


class NAdam(Fast, torch.optim.NAdam):
    rule, slots, numbers = rules.NAdam, MOMENTS, ("step", "mu_product")


class RAdam(Fast, torch.optim.RAdam):
    rule, slots = rules.RAdam, MOMENTS


class Adamax(Fast, torch.optim.Adamax):
    rule, slots = rules.Adamax, {"m": "exp_avg", "u": "exp_inf"}


class Newcomer(Fast, torch.optim.Optimizer):
    """Is a method that torch.optim has not: arguments, defaults and errors are its rule's, beside torch's flags."""

    def __init__(
        self, params: Any, *hyperparameters: Any, foreach: bool | None = None, capturable: bool = False,
        differentiable: bool = False, fused: bool | None = None, **named: Any,
    ) -> None:  # fmt: skip
        options = {name: named.pop(name) for name in OPTIONS if name in named}
        chosen = inspect.signature(self.rule).bind(*hyperparameters, **named)
        chosen.apply_defaults()
        self.rule(**{name: plain(x) for name, x in chosen.arguments.items()})
        flags = {"foreach": foreach, "capturable": capturable, "differentiable": differentiable, "fused": fused}
        super().__init__(params, {**chosen.arguments, **flags}, **options)
        if fused:
            self._step_supports_amp_scaling = True


class ADOPT(Newcomer):
    """Divides each gradient by the root of the second moment before it, Taniguchi et al. 2024, Algorithm 2. Defaults
    are the authors', whose clip_lambda is clip=True or False."""

    rule, slots = rules.ADOPT, MOMENTS


class AdEMAMix(Newcomer):
    """Adds to Adam's mean of gradients α times a slower one, Pagliardini, Ablin & Grangier 2025, Algorithm 1."""

    rule, slots = rules.AdEMAMix, {"m1": "exp_avg", "m2": "exp_avg_slow", "v": "exp_avg_sq"}


class Lion(Newcomer):
    """Steps by the sign of an interpolated momentum, Chen et al. 2023, Algorithm 2. torch.optim has none: arguments and
    defaults are the authors'."""

    rule, slots, numbers = rules.Lion, {"m": "exp_avg"}, ()


class LAMB(Newcomer):
    """Steps in Adam's direction as far as each parameter is long, You et al. 2020, Algorithm 2: timm's Lamb with
    max_grad_norm=None and always_adapt=True."""

    rule, slots = rules.LAMB, MOMENTS


class SGD(Fast, torch.optim.SGD):
    rule, slots, numbers = rules.SGD, {"m": "momentum_buffer"}, ()
    by_row = True

    def check_layout(self, leaf: Leaf, g: Any) -> None:
        if g.layout is torch.strided:
            return
        group = self.param_groups[leaf.group]
        if g.layout is not torch.sparse_coo or group["momentum"] or group["weight_decay"]:
            raise RuntimeError(
                f"{leaf.name} has a gradient of layout {g.layout}, with momentum {group['momentum']} and weight_decay "
                f"{group['weight_decay']}: expected torch.sparse_coo, with neither"
            )


class RMSprop(Fast, torch.optim.RMSprop):
    rule, slots = rules.RMSprop, {"v": "square_avg", "mean": "grad_avg", "m": "momentum_buffer"}


class Adagrad(Fast, torch.optim.Adagrad):
    rule, slots = rules.Adagrad, {"sum": "sum"}
    by_row = True

    def check_layout(self, leaf: Leaf, g: Any) -> None:
        if g.layout is not torch.strided and self.param_groups[leaf.group]["weight_decay"] != 0:
            raise RuntimeError("weight_decay option is not compatible with sparse gradients")


class SparseAdam(Fast, torch.optim.SparseAdam):
    rule, slots, fixed = rules.Adam, MOMENTS, {"eps_hat": True}
    by_row = plain_numbers = True

    def check_layout(self, leaf: Leaf, g: Any) -> None:
        if g.layout is torch.strided:
            raise RuntimeError("SparseAdam does not support dense gradients, please consider Adam instead")
