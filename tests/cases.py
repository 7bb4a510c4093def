"""What many tests share."""

from dataclasses import fields
from itertools import product
from typing import Any

import pytest

from fastadam.tools import cover
from fastadam.tools.cover import METHODS, hostile, pairwise, same_bits, state_arrays, sums_first, together

__all__ = [
    "LARGE",
    "LATE",
    "METHODS",
    "SIZES",
    "by_turns",
    "crossed",
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


def _apart(listed: Any) -> Any:
    """A list of variants, whose dicts are the caller's own."""
    return lambda **fixed: [(method, dict(chosen)) for method, chosen in listed(**fixed)]


variants, kernels_in_use, elementwise = map(_apart, (cover.variants, cover.kernels_in_use, cover.elementwise))


def defaults() -> list[Any]:
    """(method, hyperparameters) for every method as its users get it: BITING's values hide what small ones show."""
    return [(m, {each.name: each.default for each in fields(m.rule) if each.init}) for m in METHODS]


def needed(kernel: Any) -> list[Any]:
    """The slots that every method over a kernel has, unless its hyperparameters say otherwise."""
    rules = [method.rule() for method in METHODS if method.rule.kernel == kernel.name]
    return [slot for slot in kernel.slots if all(rule.keeps(slot) for rule in rules)]


def label(case: Any) -> str:
    """A test's name for a variant or a dtype."""
    is_variant = isinstance(case, tuple) and isinstance(case[0], type)
    return cover.label(case) if is_variant else getattr(case, "__name__", str(case))


def crossed(**factors: Any) -> Any:
    """A test's parameters, by name all values of each: every combination with --all, else every pair in some."""
    return _marked(factors, set(pairwise(*factors.values())))


def by_turns(**factors: Any) -> Any:
    """A test's two parameters: every combination with --all, else each of the longer with one of the other in turns."""
    one, other = map(len, factors.values())
    return _marked(factors, {(k % one, k % other) for k in range(max(one, other))})


def _marked(factors: Any, always: set[tuple[int, ...]]) -> Any:
    """Every combination, those marked that are no tuple of indices in `always`."""
    cases = []
    for chosen in product(*(list(enumerate(some)) for some in factors.values())):
        marks = () if tuple(k for k, _ in chosen) in always else pytest.mark.whole
        cases.append(pytest.param(*(x for _, x in chosen), marks=marks, id="-".join(label(x) for _, x in chosen)))
    return pytest.mark.parametrize(list(factors), cases)


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
