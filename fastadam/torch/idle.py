"""Keeps no slot whose decay rate is 0 while steps are taken, and shows zeros where torch's state is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastadam.torch.formats import SHORT
from fastadam.torch.group import plain
from fastadam.torch.leaf import Leaf
from fastadam.torch.method import Method


def forgotten(name: str, key: str) -> ValueError:
    """Return the error for a slot that steps were taken without, and that is needed now."""
    return ValueError(
        f"{name} has taken steps without {key!r}, which is not kept while its decay rate is 0: expected 0, or "
        "opt.load_state_dict(opt.state_dict()) before the next step, which lets it go on from zeros"
    )


def check_remembered(leaf: Leaf, state: dict[str, Any], averages: Sequence[str]) -> None:
    """Refuse a state that counts steps and lacks one of these slots: it would go on from zeros without a word."""
    lacking = [key for key, slot in leaf.kernel_slots.items() if slot.name in averages and state.get(key) is None]
    if lacking and float(state.get("step", 0)) > 0:
        raise forgotten(leaf.name, lacking[0])


def with_zeros(opt: Method, packed: dict[str, Any]) -> dict[str, Any]:
    """Return a state_dict of torch's in which slots that are not kept are there, as zeros."""
    state = dict(packed["state"])
    for group, of_group in zip(opt.param_groups, packed["param_groups"], strict=True):
        rates = {name: plain(group[name]) for name in ("betas", "alpha", "momentum") if name in group}
        keys = [opt.slots[name] for name in opt.rule(**rates).idle]
        for p, at in zip(group["params"], of_group["params"], strict=True):
            for key in keys if at in state else ():
                if key not in state[at]:
                    dtype = torch.float32 if p.dtype in SHORT else p.dtype
                    state[at] = {**state[at], key: torch.zeros_like(p, dtype=dtype, requires_grad=False)}
    return {**packed, "state": state}
