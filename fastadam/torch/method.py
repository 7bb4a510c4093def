"""What a method is, as torch's class of that name has it: its rule, its state, the gradients that it takes."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch

from fastadam.plans.chores import Chores
from fastadam.plans.storage import Storage
from fastadam.rule import Rule
from fastadam.torch.formats import FORMATS, local
from fastadam.torch.leaf import Leaf


class Options(NamedTuple):
    """What an optimizer was asked for beside its groups' hyperparameters, as far as a walk must know it."""

    chores: Chores
    storage: Storage
    seed: int


class Method(torch.optim.Optimizer):
    """The part of an optimizer that a walk asks."""

    rule: ClassVar[type[Rule]]
    slots: ClassVar[dict[str, str]]  # torch's names in the state of the kernel's slots
    numbers: tuple[str, ...] = ("step",)  # and of what is one number: the count, then what the rule carries
    fixed: ClassVar[dict[str, Any]] = {}  # what the rule is told beside torch's hyperparameters
    instead = ""  # what takes sparse gradients
    by_row = False  # whether gradients may be sparse
    plain_numbers = False  # whether the state's numbers are Python's

    def check_layout(self, leaf: Leaf, g: Any) -> None:
        """Refuse a gradient of a layout that this method does not take: all but dense ones."""
        if g.layout is not torch.strided:
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients{self.instead}")


def count_if_asked(opt: Method, chores: Chores, storage: Storage) -> None:
    """Let an optimizer for which torch keeps no count keep one if a function of t or random bits depend on it."""
    formats = (FORMATS.get(local(p).dtype) for group in opt.param_groups for p in group["params"])
    drawing = any(format is not None and format.draws for format in formats)
    if not opt.numbers and (callable(chores.ema_decay) or (storage.master is None and drawing)):
        opt.numbers = ("step",)


def begin(opt: Method, leaf: Leaf) -> None:
    """Put into the state what torch's own optimizer does before a parameter's first step, as far as it is lacking."""
    group, state = opt.param_groups[leaf.group], opt.state[leaf.p]
    with torch.no_grad():
        wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
        for name, x in zip(opt.numbers, (0.0, *opt.rule.carried.values()), strict=False):
            if name not in state:
                dtype = torch.float64 if wide or name != "step" else torch.float32
                number = torch.tensor(x, dtype=dtype, device="cpu")  # whatever torch's default device is
                state[name] = int(x) if opt.plain_numbers else number
        for key in leaf.slots:
            if state.get(key) is None:
                state[key] = leaf.zeros(key)
                if key in ("ema", "master"):
                    state[key].copy_(leaf.p)
