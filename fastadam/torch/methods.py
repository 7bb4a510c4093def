"""Has the optimizers by torch's names: torch's class says what is accepted, a rule what is done."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, ClassVar

import torch

from fastadam import rules
from fastadam.plans.streams import Streams
from fastadam.torch.formats import describe, local
from fastadam.torch.group import plain
from fastadam.torch.leaf import Leaf
from fastadam.torch.method import OPTIONS
from fastadam.torch.optimizer import Fast

MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq", "vmax": "max_exp_avg_sq"}


def kind(x: Any) -> tuple[Any, ...]:
    """Return what a tensor has in common with those that it is moved together with."""
    return x.shape, x.device, x.is_complex(), x.is_floating_point()


class Adam(Fast, torch.optim.Adam):
    rule, slots, extras = rules.Adam, MOMENTS, {"cautious": False}
    instead = ", please consider SparseAdam instead"


class AdamW(Fast, torch.optim.AdamW):
    rule, slots, extras = rules.Adam, MOMENTS, {"cautious_decay": False, "cautious": False}
    instead = ", please consider SparseAdam instead"


class NAdam(Fast, torch.optim.NAdam):
    rule, slots, extras = rules.NAdam, MOMENTS, {"cautious": False}
    numbers = ("step", "mu_product")


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
        options = {name: named.pop(name) for name in (*OPTIONS, *self.extras) if name in named}
        chosen = inspect.signature(self.rule).bind(*hyperparameters, **named)
        chosen.apply_defaults()
        self.rule(**{name: plain(x) for name, x in chosen.arguments.items()})
        flags = {"foreach": foreach, "capturable": capturable, "differentiable": differentiable, "fused": fused}
        super().__init__(params, {**chosen.arguments, **flags}, **options)
        if fused:
            self._step_supports_amp_scaling = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        for k, group in enumerate(state["param_groups"] if "_loaded" in self.__dict__ else ()):
            names = [each.name for each in fields(self.rule) if each.init and each.name not in self.extras]
            lacking = [f"no {name!r}" for name in names if name in self.defaults and name not in group]
            strange = [repr(key) for key in self.of_group.values() if key in group]  # what a package has taken over
            if differences := [*lacking, *strange]:
                raise ValueError(
                    f"state_dict['param_groups'][{k}] has {differences[0]}, expected the state of "
                    f"fastadam.torch.{type(self).__name__}: load_state_from takes what other libraries keep"
                )
        super().__setstate__(state)


class ADOPT(Newcomer):
    """Divides each gradient by the root of the second moment before it, Taniguchi et al. 2024, Algorithm 2. Defaults
    are the authors', whose clip_lambda is clip=True or False."""

    rule, slots = rules.ADOPT, MOMENTS


class AdEMAMix(Newcomer):
    """Adds to Adam's mean of gradients α times a slower one, Pagliardini, Ablin & Grangier 2025, Algorithm 1."""

    rule, slots = rules.AdEMAMix, {"m1": "exp_avg", "m2": "exp_avg_slow", "v": "exp_avg_sq"}
    packed: ClassVar[dict[str, tuple[str, ...]]] = {"state1": ("exp_avg", "exp_avg_slow")}
    for_none: ClassVar[dict[str, float]] = {"t_alpha": 0.0, "t_beta3": 0.0}  # no warm-up


class Lion(Newcomer):
    """Steps by the sign of an interpolated momentum, Chen et al. 2023, Algorithm 2. torch.optim has none: arguments and
    defaults are the authors'."""

    rule, slots, numbers = rules.Lion, {"m": "exp_avg"}, ()


class LAMB(Newcomer):
    """Steps in Adam's direction as far as each parameter is long, You et al. 2020, Algorithm 2: timm's Lamb with
    max_grad_norm=None and always_adapt=True."""

    rule, slots = rules.LAMB, MOMENTS


class TwoModes(Newcomer):
    """Is what both schedule-free methods have of the authors' package: eval() puts averages in, train() takes them out,
    and copies in copy_to follow.

    After construction parameters hold what steps are taken from; the package asks for train() first.
    """

    numbers = ("step", "weight_sum", "lr_max")
    of_group: ClassVar[dict[str, str]] = {"step": "k", "weight_sum": "weight_sum", "lr_max": "lr_max"}

    def __init__(self, params: Any, *hyperparameters: Any, **named: Any) -> None:
        if named.get("master") == "remainder":
            raise ValueError(
                "master is 'remainder', expected None or 'float32': eval() moves parameters, not their halves"
            )
        super().__init__(params, *hyperparameters, **named)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch does; "train_mode" in it says what its parameters hold."""
        super().add_param_group({"train_mode": True, **param_group} if isinstance(param_group, dict) else param_group)

    def eval(self) -> None:
        """Let the parameters hold the averages, to test with or to save, until train(). No step is taken meanwhile."""
        self._switch(False)

    def train(self) -> None:
        """Let the parameters hold what steps are taken from, as after construction."""
        self._switch(True)

    @torch.no_grad()
    def _switch(self, training: bool) -> None:
        """Move all groups that are in the other mode; where one of them cannot be moved, nothing has changed."""
        Fast.check_idle(self, "a change of mode inside averaged() would be undone at its end")
        copies = self._copies()
        groups = [k for k, group in enumerate(self.param_groups) if group.get("train_mode", True) is not training]
        moves = [move for k in groups for move in self._moves(k, training, copies)]
        # Nothing is refused from here on.
        for p, copy, wide, z, weight in moves:
            moved = torch.lerp(wide.to(z.dtype), z, weight)
            for x in {id(x): x for x in (wide, p)}.values():
                x.copy_(moved)
            if copy is not None:
                copy.copy_(moved.float())  # a step rounds float64 in two as well
        for k in groups:
            self.param_groups[k]["train_mode"] = training

    def _moves(self, k: int, training: bool, copies: dict[int, Any]) -> Iterator[tuple[Any, Any, Any, Any, float]]:
        """Yield for each parameter of a group that has taken steps (p, its copy or None, its master or p, z, weight):
        by weight it moves towards z."""
        group = self.param_groups[k]
        rates = {name: plain(group[name]) for name in ("betas", "momentum") if name in group}
        try:
            self.rule(**rates)
        except (TypeError, ValueError) as error:
            raise type(error)(f"param_groups[{k}]: {error}") from None
        share = rates["betas"][0] if "betas" in rates else rates["momentum"]  # of the average
        for n, param in enumerate(group["params"]):
            state = self.state.get(param, {})
            if state.get("z") is None:
                continue
            tensors = param, copies[id(param)], state.get("master", param), state["z"]
            p, copy, wide, z = (None if x is None else local(x) for x in tensors)
            name = f"params[{k}][{n}]"
            for what, x in ((name, p), (f"copy_to for {name}", copy), (f"state['master'] of {name}", wide)):
                if x is not None and kind(x) != kind(z):
                    difference = f"{what} is {describe(x)}, state['z'] is {describe(z)}"
                    raise ValueError(f"{difference}: expected floats of one shape on one device")
            yield p, copy, wide, z, 1 - share if training else 1 - 1 / share

    def _averaged_slots(self) -> Iterator[tuple[Streams, Any, float]]:
        key = self.slots[self.rule.averaged_slot]  # type: ignore[index]
        for walk in self.walks():
            for leaf in walk.leaves:
                if not self.param_groups[leaf.group].get("train_mode", True):
                    continue  # it holds its average already
                if (z := self.state.get(leaf.p, {}).get(key)) is not None:
                    master = self.state[leaf.p].get("master")
                    streams = Streams(local(leaf.p).detach(), master=None if master is None else local(master))
                    yield streams, local(z), walk.groups[leaf.group].rule.extrapolation

    def check_idle(self, what: str = "a step inside averaged() would be lost") -> None:
        super().check_idle(what)
        if not all(group.get("train_mode", True) for group in self.param_groups):
            raise RuntimeError("the parameters hold the averages since eval(): call train() before")


class ScheduleFreeAdamW(TwoModes):
    """Takes AdamW's steps without its first moment, and averages them, Defazio et al. 2024, Algorithm 1. Arguments are
    those of the schedulefree package's AdamWScheduleFree."""

    rule, slots = rules.ScheduleFreeAdamW, {"z": "z", "v": "exp_avg_sq"}


class ScheduleFreeSGD(TwoModes):
    """Takes plain gradient steps and averages them, Defazio et al. 2024, equations 6 to 8. Arguments are those of the
    schedulefree package's SGDScheduleFree."""

    rule, slots = rules.ScheduleFreeSGD, {"z": "z"}


class LARS(Newcomer):
    """Gives each parameter a learning rate of its own, You, Gitman & Ginsburg 2017, Algorithm 1."""

    rule, slots, numbers = rules.LARS, {"m": "momentum_buffer"}, ()


class StableAdamW(Newcomer):
    """Steps less where gradients surprise it, Wortsman et al. 2023, Algorithm 2."""

    rule, slots = rules.StableAdamW, MOMENTS


class Prodigy(Newcomer):
    """Finds its learning rate by itself, Mishchenko & Defazio 2024, Algorithm 4: the prodigyopt package's Prodigy.

    As there, groups hold d, d_max and d_numerator, one for all, and the first group's count. The package's slice_p and
    fsdp_in_use are refused unless 1 and False. A parameter's own count corrects its bias, and lr is its group's.
    """

    rule, slots = rules.Prodigy, {**MOMENTS, "s": "s", "p0": "p0"}
    extras: ClassVar[dict[str, Any]] = {"slice_p": 1, "fsdp_in_use": False}
    of_group: ClassVar[dict[str, str]] = {"step": "k"}
    of_each = frozenset({"step"})
    flat = frozenset({"s", "p0"})

    def for_package(self, group: dict[str, Any]) -> dict[str, Any]:
        growth_rate = math.inf if group["growth_rate"] is None else group["growth_rate"]
        return {**type(self).extras, "growth_rate": growth_rate}

    @staticmethod
    def check_group(group: dict[str, Any]) -> None:
        Newcomer.check_group(group)
        for name, expected in Prodigy.extras.items():
            if group.get(name, expected) != expected:
                raise ValueError(f"{name} is {group[name]!r}, expected {expected!r}: sums go over all of this process")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch does; it has the first group's d."""
        super().add_param_group(param_group)
        first, group = self.param_groups[0], self.param_groups[-1]
        for name, start in (("d", group["d0"]), ("d_max", group["d0"]), ("d_numerator", 0.0)):
            group.setdefault(name, first.get(name, start))


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
