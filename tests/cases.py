"""What many tests share."""

from dataclasses import fields
from typing import Any

from fastadam.tools.cover import (
    METHODS,
    elementwise,
    hostile,
    kernels_in_use,
    same_bits,
    state_arrays,
    sums_first,
    together,
    variants,
)
from fastadam.tools.cover import label as name_of

__all__ = [
    "LARGE",
    "LATE",
    "METHODS",
    "SIZES",
    "defaults",
    "elementwise",
    "hostile",
    "kernels_in_use",
    "label",
    "made_up",
    "needed",
    "same_bits",
    "state_arrays",
    "sums_first",
    "together",
    "variants",
]

SIZES = [0, 1, 3, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1023, 1025, 4097, 8191, 8192, 8193]
LARGE = [100_003, 2**20 + 3]
LATE = 10_000  # steps: what goes wrong only after a while has gone wrong by then


def defaults() -> list[Any]:
    """(method, hyperparameters) for every method as its users get it: BITING's values hide what small ones show."""
    return [(m, {each.name: each.default for each in fields(m.rule) if each.init}) for m in METHODS]


def needed(kernel: Any) -> list[Any]:
    """The slots that every method over a kernel has, unless its hyperparameters say otherwise."""
    rules = [method.rule() for method in METHODS if method.rule.kernel == kernel.name]
    return [slot for slot in kernel.slots if all(rule.keeps(slot) for rule in rules)]


def label(case: Any) -> str:
    """A test's name for a variant or a dtype."""
    return name_of(case) if isinstance(case, tuple) else getattr(case, "__name__", str(case))


def made_up(**seconds):
    """The events of one process of `bench` for 2^20, from seconds a step."""
    names = {"numba": "fastadam numba", "fused": "torch fused"}
    named = {names.get(key, key): value for key, value in seconds.items()}
    return {
        "samples": {name: [s * x for x in (0.9, 1.0, 1.1)] for name, s in named.items()},
        "bytes": dict.fromkeys(named, 28),
        "ulps": dict.fromkeys(named, 1.5),
        "wrong": {"optax": "off"},
        "left_out": {"Thinc": "needs 9 GiB"},
    }
