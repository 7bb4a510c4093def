"""Says which parameters are Muon's matrices and what it may be asked for, and orthogonalises as torch's does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from fastadam.arrays.host import separate
from fastadam.torch.formats import local
from fastadam.torch.method import OPTIONS, listed
from fastadam.torch.optimizer import Fast

DEFAULTS = {name: x.default for name, x in inspect.signature(Fast.__init__).parameters.items() if name in OPTIONS}
SHARED = "master", "seed", "ema_decay"  # options of the walks over matrices and of AdamW
IN_PART = "which would see a part of the gradients: expected clipping and looking at all of them before step()"
REFUSED = {"max_norm": IN_PART, "skip_nonfinite": IN_PART, "stats": "expected another optimizer: Muon reports nothing"}


def is_asked(name: str, value: Any) -> bool:
    """Return whether an option is more than its default, said once more."""
    default = DEFAULTS[name]
    return not (value is default or (type(value) is type(default) and value == default))


def check_asked(options: Mapping[str, Any], muon: Any, aux: Any) -> None:
    """Refuse options, of all parameters and in aux, that Muon has not, by name and with the reason."""
    for name, value in options.items():
        if name not in SHARED and (name not in OPTIONS or is_asked(name, value)):
            reason = "expected it in aux: matrices have none of it" if name in OPTIONS else "no argument of Muon"
            raise TypeError(f"{name} is {value!r}, {REFUSED.get(name, reason)}")
    if muon is not None and not callable(muon):
        raise TypeError(f"muon is {muon!r}, expected a function of (name or None, parameter), or None for all")
    if aux is not None and not isinstance(aux, Mapping):
        raise TypeError(f"aux is {aux!r}, expected a dict of AdamW's arguments, or None")
    for name, value in (aux or {}).items():
        if name in SHARED:
            raise TypeError(f"aux has {name!r}, expected it as an argument of Muon, for all parameters")
        if name in REFUSED and is_asked(name, value):
            raise TypeError(f"aux has {name!r}, {REFUSED[name]}")


def check_matrices(where: str, group: Mapping[str, Any]) -> None:
    """Refuse a group of matrices with options that no group of matrices has. where: what errors call the group."""
    for name in OPTIONS:
        if name in group and is_asked(name, group[name]):
            reason = REFUSED.get(name, "expected a group of matrices without")
            raise TypeError(f"{where}[{name!r}] is {group[name]!r}, {reason}")


def check_added(group: Mapping[str, Any], copies: Any) -> None:
    """Refuse what a group of AdamW's that is added cannot have. copies: those of the parameters before it, or None."""
    Fast.check_group(dict(group))
    if "copy_to" in group:
        raise ValueError("a param group has 'copy_to', expected it in aux, for the parameters given first")
    if copies is not None:
        raise ValueError("aux has 'copy_to' for the parameters given first, expected another optimizer for more")


def arguments_of(aux: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return AdamW's arguments. Of copies a list: they are looked at, too, before AdamW takes them."""
    arguments = dict(aux or {})
    if arguments.get("copy_to") is not None:
        arguments["copy_to"] = listed(arguments["copy_to"], "aux['copy_to']", ", one per parameter of AdamW's")
    return arguments


def members_of(group: Mapping[str, Any]) -> list[Any]:
    """Return what a group's params are: parameters, or (name, parameter)s."""
    return [group["params"]] if isinstance(group["params"], torch.Tensor) else list(group["params"])


def tensor_of(member: Any) -> Any:
    """Return a parameter, given with its name or without."""
    return member[1] if isinstance(member, tuple) else member


def parted(params: Any, muon: Callable[..., bool] | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return (groups of matrices, groups of all others). params: as torch's optimizers take them."""
    items = list(params)
    groups = items if items and isinstance(items[0], dict) else [{"params": items}]
    matrices: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for k, group in enumerate(groups):
        members = members_of(group)
        chosen = [not group.get("aux") and is_matrix(x, muon) for x in members]
        if chosen_members := [x for x, is_chosen in zip(members, chosen, strict=True) if is_chosen]:
            check_matrices(f"params[{k}]", group)
            matrices.append({**{key: x for key, x in group.items() if key != "aux"}, "params": chosen_members})
        if rest := [x for x, is_chosen in zip(members, chosen, strict=True) if not is_chosen]:
            kept = {key: x for key, x in group.items() if group.get("aux")}
            others.append({**kept, "params": rest, "aux": True})
    return matrices, others


def check_separate(groups: Iterable[Mapping[str, Any]], copies: Iterable[Any]) -> None:
    """Refuse parameters and copies that share memory: each walk knows of its own alone."""
    named = [(f"params[{k}][{n}]", p) for k, group in enumerate(groups) for n, p in enumerate(group["params"])]
    named += [(f"aux['copy_to'][{k}]", x) for k, x in enumerate(copies)]
    places = [(name, local(tensor_of(p))) for name, p in named]
    separate(
        ((x.data_ptr(), x.data_ptr() + x.nbytes, name) for name, x in places if _is_dense(x) and x.data_ptr()),
        "tensors",
    )


def _is_dense(x: Any) -> bool:
    """Return whether a tensor fills the memory between its first element and its last."""
    if not isinstance(x, torch.Tensor) or torch.nn.parameter.is_lazy(x) or not x.numel():
        return False
    return bool(torch.empty_like(x, device="meta", memory_format=torch.preserve_format).stride() == x.stride())


def is_matrix(member: Any, muon: Callable[..., bool] | None) -> bool:
    """Return whether a parameter, or (name, parameter), is a matrix that is meant."""
    name, p = member[0] if isinstance(member, tuple) else None, tensor_of(member)
    return isinstance(p, torch.Tensor) and p.dim() >= 2 and (muon is None or bool(muon(name, p)))


def orthogonalised(x: Any, group: Mapping[str, Any], dtype: Any) -> Any:
    """Return (count, rows, columns) bfloat16 matrices in dtype, their singular values moved near to 1; see torch's."""
    a, b, c = group["ns_coefficients"]
    alone = len(x) == 1  # then as torch multiplies, not by batches of one
    product, added = (torch.mm, torch.addmm) if alone else (torch.bmm, torch.baddbmm)
    x = x[0] if alone else x
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT.contiguous() if tall else x
    x.div_(torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=group["eps"]))
    for _ in range(group["ns_steps"]):
        gram = product(x, x.mT)
        x = added(x, added(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = (x.mT if tall else x).to(dtype, memory_format=torch.contiguous_format)
    return x[None] if alone else x
