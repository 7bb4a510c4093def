"""What a method is, as torch's class of that name has it: its rule, its state, the gradients that it takes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from fastadam.plans.chores import Chores
from fastadam.plans.storage import Storage
from fastadam.rule import Rule
from fastadam.torch.formats import FORMATS, local
from fastadam.torch.leaf import Leaf


class Method(torch.optim.Optimizer):
    """The part of an optimizer that a walk asks."""

    rule: ClassVar[type[Rule]]
    slots: ClassVar[dict[str, str]]  # torch's names in the state of the kernel's slots
    numbers: tuple[str, ...] = ("step",)  # and of what is one number: the count, then what the rule carries
    fixed: ClassVar[dict[str, Any]] = {}  # what the rule is told beside torch's hyperparameters
    instead = ""  # what takes sparse gradients
    by_row = False  # whether gradients may be sparse
    plain_numbers = False  # whether the state's numbers are Python's

    _chores: Chores
    _storage: Storage
    _seed: int

    def _check_layout(self, leaf: Leaf, g: Any) -> None:
        """Refuse a gradient of a layout that this method does not take: all but dense ones."""
        if g.layout is not torch.strided:
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients{self.instead}")

    def _count_if_asked(self) -> None:
        """Where torch keeps no count: keep one if something of ours depends on it, a function of t or random bits."""
        formats = (FORMATS.get(local(p).dtype) for group in self.param_groups for p in group["params"])
        drawing = any(format is not None and format.draws for format in formats)
        if not self.numbers and (callable(self._chores.ema_decay) or (self._storage.master is None and drawing)):
            self.numbers = ("step",)

    def _begin(self, leaf: Leaf) -> None:
        """What torch's own optimizer puts into the state before a parameter's first step, as far as it is not there."""
        group, state = self.param_groups[leaf.group], self.state[leaf.p]
        with torch.no_grad():
            wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
            for name, x in zip(self.numbers, (0.0, *self.rule.carried.values()), strict=False):
                if name not in state:
                    dtype = torch.float64 if wide or name != "step" else torch.float32
                    number = torch.tensor(x, dtype=dtype, device="cpu")  # whatever torch's default device is
                    state[name] = int(x) if self.plain_numbers else number
            for key in leaf.slots:
                if state.get(key) is None:
                    state[key] = leaf.zeros(key)
                    if key in ("ema", "master"):
                        state[key].copy_(leaf.p)
