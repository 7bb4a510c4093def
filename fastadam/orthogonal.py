"""Has Muon's rule, and orthogonalises matrices by Newton-Schulz iterations, those of one shape together.

Products are BLAS's, NumPy's or cuBLAS through CuPy: their bits depend on the library, its version and its threads.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fastadam.arrays.host import Array
from fastadam.checks import flag, integer, number
from fastadam.rule import LearningRate, Rule

ADJUSTED: dict[str, Callable[[int, int], float]] = {  # by how much lr is multiplied for a matrix of rows and columns
    "original": lambda rows, columns: math.sqrt(max(1, rows / max(1, columns))),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
}
LIMITS: dict[str, dict[str, float]] = {
    "momentum": {"low": 0, "below": 1},
    "weight_decay": {"low": 0},
    "eps": {"low": 0},
}


@dataclass(frozen=True)
class Muon(Rule):
    """Says how matrices are stepped by their orthogonalised momentum: Jordan et al. 2024.

    X <- a·X + (b·A + c·A²)·X with A = X·Xᵀ, ns_steps times from X / max(‖X‖, eps); ns_coefficients: a, b, c.
    """

    lr: LearningRate = 1e-3
    weight_decay: float = 0.1
    momentum: float = 0.95
    nesterov: bool = True
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315)
    eps: float = 1e-7
    ns_steps: int = 5
    adjust: str = "original"

    averages: ClassVar[tuple[str, ...]] = ("m",)

    def __post_init__(self) -> None:
        coefficients = self.ns_coefficients
        if not isinstance(coefficients, (tuple, list)) or len(coefficients) != 3:
            raise TypeError(f"ns_coefficients is {coefficients!r}, expected three numbers")
        if self.adjust not in ADJUSTED:
            raise ValueError(f"adjust is {self.adjust!r}, expected {' or '.join(map(repr, ADJUSTED))}")
        checked: dict[str, Any] = {name: number(name, getattr(self, name), **limits) for name, limits in LIMITS.items()}
        checked["lr"] = self.lr if callable(self.lr) else number("lr", self.lr, low=0)
        checked |= {name: flag(name, getattr(self, name)) for name in ("nesterov", "maximize")}
        checked["ns_coefficients"] = tuple(number(f"ns_coefficients[{k}]", x) for k, x in enumerate(coefficients))
        checked["ns_steps"] = integer("ns_steps", self.ns_steps, low=0, most=99)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def orthogonalised(self, matrices: Sequence[Array]) -> list[Array]:
        """Return each matrix, (rows, columns), with its singular values moved near to 1, times the ratio that adjusts
        lr; NaN spreads in its own."""
        results: list[Any] = [None] * len(matrices)
        alike: dict[tuple[Any, ...], list[int]] = {}
        for k, x in enumerate(matrices):
            alike.setdefault((x.shape, x.dtype), []).append(k)
        for places in alike.values():
            for k, x in zip(places, self._together([matrices[k] for k in places]), strict=True):
                results[k] = x
        return results

    def _together(self, matrices: Sequence[Array]) -> Array:
        """Return (count, rows, columns), of matrices of one shape; the products are of the smaller side."""
        xp: Any = sys.modules[type(matrices[0]).__module__.partition(".")[0]]  # numpy, or cupy
        x = xp.stack(matrices)
        rows, columns = x.shape[1:]
        tall = rows > columns
        x = xp.ascontiguousarray(x.swapaxes(1, 2)) if tall else x
        norm = xp.sqrt((x * x).sum(axis=(1, 2), keepdims=True))
        x /= xp.maximum(norm, norm.dtype.type(self.eps))
        a, b, c = (norm.dtype.type(each) for each in self.ns_coefficients)
        for _ in range(self.ns_steps):
            gram = x @ x.swapaxes(1, 2)
            x = a * x + (b * gram + c * (gram @ gram)) @ x
        x *= norm.dtype.type(ADJUSTED[self.adjust](rows, columns))
        return x.swapaxes(1, 2) if tall else x  # type: ignore[no-any-return]
