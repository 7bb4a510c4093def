"""Takes over the state of other optimizers, and gives ours away."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from fastadam import kernels
from fastadam.torch import methods, muon
from fastadam.torch.formats import ORDER
from fastadam.torch.group import plain
from fastadam.torch.method import OPTIONS
from fastadam.torch.optimizer import Fast, in_place_of

NUMBERED = re.compile(r"state\d+")  # bitsandbytes' names of its states
WRAPPED = "__bnb_optimizer_quant_state__"  # where bitsandbytes keeps what load_state_dict must not cast
TAKEN = (
    "lr", "betas", "eps", "weight_decay", "momentum", "alpha", "amsgrad", "bias_correction", "train_mode",
    "beta3", "decouple", "use_bias_correction", "safeguard_warmup", "d0", "d_coef", "growth_rate", "d", "d_max",
    "d_numerator", "t_alpha", "t_beta3",
)  # fmt: skip


def convert(optimizer: torch.optim.Optimizer, **options: Any) -> Fast:
    """Return our optimizer in place of one of torch.optim, with its groups, state and hooks; schedulers go on working.

    options: ours, as the constructors take them. Both share groups and state: drop the old one.
    Raises TypeError where there is no such method here, ValueError as the constructor does.

    >>> model = torch.nn.Linear(4, 2)
    >>> opt = fat.convert(torch.optim.AdamW(model.parameters(), lr=0.01))
    >>> opt.param_groups[0]["lr"]
    0.01
    """
    method: Any = (vars(methods) | vars(muon)).get(type(optimizer).__name__)
    if method is None or type(optimizer) is not getattr(torch.optim, type(optimizer).__name__, None):
        name = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
        raise TypeError(f"optimizer is {name}, expected one of torch.optim that fastadam.torch has")
    for group in optimizer.param_groups:
        method.check_group(group)
    if unknown := options.keys() - set(OPTIONS):
        raise TypeError(f"convert got {min(unknown)!r}, expected any of {', '.join(OPTIONS)}")
    return in_place_of(optimizer, method, options)


def to_torch_state(opt: Fast) -> dict[str, Any]:
    """Return opt's state_dict as torch.optim's optimizer of that name has it: nothing of ours, and no tensor shared.

    Slots are as wide as the arithmetic: float32 for moments of 8 or 16 bits and for 16-bit parameters. Of the
    schedule-free two and of Prodigy as the authors' packages have it, who count in their groups: take such a state back
    by load_state_from.

    >>> model = torch.nn.Linear(4, 2)
    >>> state = fat.to_torch_state(fat.AdamW(model.parameters(), moments="8bit"))
    >>> torch.optim.AdamW(model.parameters()).load_state_dict(state)
    """
    _check(opt)
    state, slots = opt.state_dict(), set(opt.slots.values())
    leaves = {leaf.p: leaf for walk in opt.walks() for leaf in walk.leaves}
    params = [p for group in opt.param_groups for p in group["params"]]  # as state_dict numbers them
    counts = {*type(opt).numbers}.difference(opt.of_group.keys() - opt.of_each)
    of_torch: dict[Any, Any] = {}
    for k, each in state["state"].items():
        of_torch[k] = {}
        for key, x in each.items():
            if key in slots and isinstance(x, torch.Tensor):
                order = each[ORDER].tolist() if ORDER in each else None
                decoded_slot = leaves[params[k]].decoded(key, x, order)
                of_torch[k][key] = decoded_slot.reshape(-1) if key in opt.flat else decoded_slot
            elif key in slots or key in counts:
                of_torch[k][key] = x.clone() if isinstance(x, torch.Tensor) else x
                if key in opt.rule.carried:  # float64 here
                    of_torch[k][key] = x.to(torch.get_default_dtype(), copy=True)
    names_of_options = {*OPTIONS, *opt.extras}
    groups = [{name: x for name, x in group.items() if name not in names_of_options} for group in state["param_groups"]]
    for group in groups:  # as a package has them that counts in its groups
        numbers: dict[str, Any] = {"step": 0, **opt.rule.carried}  # before the first step
        numbers |= next((state["state"][k] for k in group["params"] if k in state["state"]), {})
        group |= {key: plain(numbers[name]) for name, key in opt.of_group.items()}
        group |= opt.for_package(group)
    return {"state": of_torch, "param_groups": groups}


def _check(opt: Any) -> None:
    """Refuse what is no method of its own, such as Muon, whose own state_dict is torch's already."""
    if not isinstance(opt, Fast):
        raise TypeError(f"opt is {type(opt).__name__}, expected one of fastadam.torch's methods but Muon")


def load_state_from(opt: Fast, state: dict[str, Any]) -> None:
    """Take over the state_dict of another library's optimizer of the same method, and its hyperparameters.

    DeepSpeed's DeepSpeedCPUAdam, apex's FusedAdam (which counts in its groups), bitsandbytes' 32-bit and 8-bit
    optimizers (8-bit: blocks of one scale, decoded here). Whether weight decay is decoupled is opt's: their states do
    not say. Values are copied. Raises ValueError naming what does not fit; then nothing has changed.

    >>> model = torch.nn.Linear(4, 2)
    >>> state = torch.optim.AdamW(model.parameters(), lr=0.01).state_dict()  # or another library's, from a file
    >>> opt = fat.AdamW(model.parameters())
    >>> fat.load_state_from(opt, state)
    >>> opt.param_groups[0]["lr"]
    0.01
    """
    _check(opt)
    if lacking := {"state", "param_groups"} - set(state):
        raise ValueError(f"state has no {min(lacking)!r}, expected the state_dict of an optimizer")
    groups_now = opt.state_dict()["param_groups"]
    if [len(group["params"]) for group in groups_now] != [len(group["params"]) for group in state["param_groups"]]:
        raise ValueError(
            f"state has groups of {[len(group['params']) for group in state['param_groups']]} parameters, "
            f"this optimizer of {[len(group['params']) for group in groups_now]}"
        )
    taken: dict[int, Any] = {}
    for k, (group, target) in enumerate(zip(state["param_groups"], groups_now, strict=True)):
        if not group.get("bias_correction", True) and "bias_correction" not in target:
            asked = f"state['param_groups'][{k}]['bias_correction'] is {group['bias_correction']}"
            raise ValueError(f"{asked}, expected True: {type(opt).__name__} never leaves the correction out")
        target.update({name: group[name] for name in TAKEN if name in group and name in target})
        target.update({name: x for name, x in opt.for_none.items() if group.get(name, x) is None})
        for at, at_saved, p in zip(target["params"], group["params"], opt.param_groups[k]["params"], strict=True):
            if at_saved in state["state"]:
                taken[at] = _one(opt, f"state['state'][{at_saved}]", state["state"][at_saved], group, p)
    opt.load_state_dict({"state": taken, "param_groups": groups_now})


def _one(opt: Fast, where: str, given: dict[str, Any], group: dict[str, Any], p: Any) -> dict[str, Any]:
    """Return one parameter's state under torch's keys."""
    given = {**given, **given.get(WRAPPED, {})}
    taken: dict[str, Any] = {}
    for name in type(opt).numbers:
        if (x := given.get(name, group.get(opt.of_group.get(name, name)))) is None and name == "step":
            raise ValueError(f"{where} has no 'step', nor has its group")
        if x is not None:
            dtype = torch.float32 if name == "step" else torch.float64
            taken[name] = torch.tensor(float(x), dtype=dtype, device="cpu")
    keys, states = [*opt.slots.values()], _numbered(opt)
    if strange := [name for name in given if NUMBERED.fullmatch(name) and name not in states]:
        expected = ", ".join(map(repr, states))
        raise ValueError(f"{where} has {strange[0]!r}, expected {expected} and no other of {type(opt).__name__}")
    for name, keys_of_state in states.items():
        if name in given:
            taken |= zip(keys_of_state, _decoded(where, given, name, len(keys_of_state), p), strict=True)
    taken |= {key: given[key].detach().clone() for key in keys if key in given and key not in taken}
    names = {key: name for name, keys_of_state in states.items() for key in keys_of_state}
    needed = [*names, *(["max_exp_avg_sq"] if group.get("amsgrad") else [])]
    if lacking := [key for key in needed if key not in taken]:
        expected = " or ".join(map(repr, dict.fromkeys([lacking[0], names.get(lacking[0], lacking[0])])))
        raise ValueError(f"{where} has {', '.join(map(repr, given))}, expected {expected}")
    for key in taken.keys() & set(keys):
        if key in opt.flat and taken[key].dim() == 0:  # one number for all
            taken[key] = taken[key].expand(p.shape).clone()
        _check_size(f"{where}[{key!r}]", taken[key], 1, p)
        taken[key] = taken[key].reshape(p.shape)
    return taken


def _numbered(opt: Fast) -> dict[str, tuple[str, ...]]:
    """Return by bitsandbytes' names of its states the keys of the slots that each holds: what a method always has."""
    rule, slots = opt.rule(), kernels.ALL[opt.rule.kernel].slots
    always = {opt.slots[slot.name] for slot in slots if rule.uses(slot)} or {*list(opt.slots.values())[:1]}
    alone = [key for key in opt.slots.values() if key in always.difference(*opt.packed.values())]
    return {**opt.packed, **{f"state{k}": (key,) for k, key in enumerate(alone, start=len(opt.packed) + 1)}}


def _check_size(name: str, x: Any, many: int, p: Any) -> None:
    """Refuse a tensor that does not hold so many numbers for each of a parameter's."""
    if x.numel() != many * p.numel():
        expected = f", expected {many} for each of its own" if many > 1 else ""
        raise ValueError(f"{name} has {x.numel()} numbers for a parameter of shape {tuple(p.shape)}{expected}")


def _decoded(where: str, given: dict[str, Any], name: str, many: int, p: Any) -> Sequence[Any]:
    """Return the slots that are one state of bitsandbytes': float32, or codes into a table, times one scale for each
    block in the order of memory, which begins anew with each slot."""
    codes, k = given[name].detach(), name.removeprefix("state")
    _check_size(f"{where}[{name!r}]", codes, many, p)
    codes = codes.reshape(many, p.numel())
    if codes.is_floating_point():
        return [x.clone() for x in codes]  # in memory of its own
    if lacking := [key for key in (f"qmap{k}", f"absmax{k}") if key not in given]:
        raise ValueError(f"{where}[{name!r}] is of 8 bits, and {where} has no {lacking[0]!r}")
    table, scales = given[f"qmap{k}"].float(), given[f"absmax{k}"].float()
    block = next((size for size in (256, 2048, 4096) if many * -(-p.numel() // size) == scales.numel()), None)
    if block is None:
        raise ValueError(
            f"{where}['absmax{k}'] has {scales.numel()} scales for {codes.numel()} codes, "
            "expected one for each 256 or 2,048"
        )
    wide = scales.reshape(many, scales.numel() // many).repeat_interleave(block, dim=1)[:, : p.numel()]
    return [table[x.long()] * scale for x, scale in zip(codes, wide, strict=True)]
