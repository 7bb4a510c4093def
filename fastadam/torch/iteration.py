"""Orthogonalises matrices as torch.optim.Muon does, those of one shape together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


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
