"""Says which parameters are Muon's matrices and what it may be asked for, and orthogonalises as torch's does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from fastadam.arrays.host import separate
from fastadam.torch.formats import local
from fastadam.torch.method import OPTIONS

SHARED = "master", "seed", "ema_decay"  # options of the walks over matrices and of AdamW
IN_PART = "which would see a part of the gradients: expected clipping and looking at all of them before step()"
REFUSED = {"max_norm": IN_PART, "skip_nonfinite": IN_PART, "stats": "expected another optimizer: Muon reports nothing"}


def check_asked(options: Mapping[str, Any], muon: Any, aux: Any) -> None:
    """Refuse options, of all parameters and in aux, that Muon has not, by name and with the reason."""
    for name, value in options.items():
        if name not in SHARED:
            reason = "expected it in aux: matrices have none of it" if name in OPTIONS else "no argument of Muon"
            raise TypeError(f"{name} is {value!r}, {REFUSED.get(name, reason)}")
    if muon is not None and not callable(muon):
        raise TypeError(f"muon is {muon!r}, expected a function of (name or None, parameter), or None for all")
    if aux is not None and not isinstance(aux, Mapping):
        raise TypeError(f"aux is {aux!r}, expected a dict of AdamW's arguments, or None")
    for name, value in (aux or {}).items():
        if name in SHARED:
            raise TypeError(f"aux has {name!r}, expected it as an argument of Muon, for all parameters")
        if name in REFUSED and value:
            raise TypeError(f"aux has {name!r}, {REFUSED[name]}")


def check_matrices(group: Mapping[str, Any]) -> None:
    """Refuse a group of matrices with options that no group of matrices has."""
    if given := [name for name in OPTIONS if group.get(name) is not None]:
        raise TypeError(f"a group of matrices has {given[0]!r}, {REFUSED.get(given[0], 'expected a group without')}")


def check_separate(groups: Iterable[Mapping[str, Any]], copies: Iterable[Any]) -> None:
    """Refuse parameters and copies that share memory: each walk knows of its own alone."""
    named = [(f"params[{k}][{n}]", p) for k, group in enumerate(groups) for n, p in enumerate(group["params"])]
    named += [(f"aux['copy_to'][{k}]", x) for k, x in enumerate(copies)]
    places = [(name, local(p[1] if isinstance(p, tuple) else p)) for name, p in named]
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
    name, p = member if isinstance(member, tuple) else (None, member)
    return p.dim() >= 2 and (muon is None or bool(muon(name, p)))


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
