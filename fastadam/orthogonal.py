"""Orthogonalises matrices by Newton-Schulz iterations, those of one shape together.

Products are BLAS's, NumPy's or cuBLAS through CuPy: their bits depend on the library, its version and its threads.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastadam.arrays.host import Array


class Iteration(NamedTuple):
    """Says how a matrix is orthogonalised: X <- a·X + (b·A + c·A²)·X with A = X·Xᵀ, so many times, from X / ‖X‖."""

    coefficients: tuple[float, float, float]
    steps: int
    eps: float  # the least ‖X‖ that is divided by

    def __call__(self, matrices: Sequence[Array]) -> list[Array]:
        """Return each matrix, (rows, columns), with its singular values moved near to 1; NaN spreads in its own."""
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
        tall = x.shape[1] > x.shape[2]
        x = xp.ascontiguousarray(x.swapaxes(1, 2)) if tall else x
        norm = xp.sqrt((x * x).sum(axis=(1, 2), keepdims=True))
        x /= xp.maximum(norm, norm.dtype.type(self.eps))
        a, b, c = (norm.dtype.type(each) for each in self.coefficients)
        for _ in range(self.steps):
            gram = x @ x.swapaxes(1, 2)
            x = a * x + (b * gram + c * (gram @ gram)) @ x
        return x.swapaxes(1, 2) if tall else x  # type: ignore[no-any-return]
