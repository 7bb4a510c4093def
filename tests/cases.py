"""What many tests share."""

from typing import Any

from fastadam.cover import METHODS, hostile, kernels_in_use, same_bits, state_arrays, variants
from fastadam.cover import label as name_of

__all__ = ["LARGE", "METHODS", "SIZES", "hostile", "kernels_in_use", "label", "same_bits", "state_arrays", "variants"]

SIZES = [0, 1, 3, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1023, 1025, 4097, 8191, 8192, 8193]
LARGE = [100_003, 2**20 + 3]


def label(case: Any) -> str:
    """A test's name for a variant or a dtype."""
    return name_of(case) if isinstance(case, tuple) else getattr(case, "__name__", str(case))
