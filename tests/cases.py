"""What many tests share: every method with every choice of options, sizes at which loops break, values that bite."""

from dataclasses import fields
from itertools import product
from typing import Any

import numpy as np

from fastadam import methods

METHODS = [m for m in vars(methods).values() if isinstance(m, type) and "rule" in vars(m)]

# Values at which a misplaced term cannot hide.
BITING = {
    "lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1, "alpha": 0.8, "dampening": 0.3,
    "lr_decay": 0.1, "initial_accumulator_value": 0.2, "momentum_decay": 0.04,
}  # fmt: skip


def variants(**fixed: Any) -> list[Any]:
    """(method, hyperparameters) for every method and every combination of what can be switched on and off."""
    found = []
    for method in METHODS:
        own = [each for each in fields(method.rule) if each.init]
        base = {each.name: BITING[each.name] for each in own if each.name in BITING}
        switches = {each.name: (False, True) for each in own if each.type is bool and each.name not in fixed}
        if "momentum" in {each.name for each in own}:
            switches["momentum"] = (0.0, 0.7)
        for values in product(*switches.values()):
            chosen = {**base, **fixed, **dict(zip(switches, values, strict=True))}
            if chosen.get("nesterov"):
                chosen["dampening"] = 0.0
            try:
                method.rule(**chosen)
            except ValueError:  # Nesterov without momentum
                continue
            found.append((method, chosen))
    return found


def kernels_in_use() -> list[Any]:
    """One (method, hyperparameters) for every kernel and every set of optional slots."""
    known = {}
    for method, chosen in variants(maximize=False):
        known.setdefault((method.rule.kernel, method.rule(**chosen).options), (method, chosen))
    return list(known.values())


def label(case: Any) -> str:
    """A test's name for one variant."""
    if isinstance(case, tuple):
        method, chosen = case
        on = [name for name, value in chosen.items() if value is True or (name == "momentum" and value)]
        return "-".join([method.__name__, *on])
    return getattr(case, "__name__", str(case))


SIZES = [0, 1, 3, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1023, 1025, 4097, 8191, 8192, 8193]
LARGE = [100_003, 2**20 + 3]


def hostile(rng: np.random.Generator, n: int, dtype: Any, bad: bool = True) -> Any:
    """Gradients from 1e-30 to 1e6 of both signs, both zeros, subnormals; with `bad`, infinities and NaN too."""
    dtype = np.dtype(dtype)
    x = (rng.standard_normal(n) * 10.0 ** rng.uniform(-30, 6, n)).astype(dtype)
    tiny = np.finfo(dtype).smallest_subnormal
    special = [0.0, -0.0, tiny, -3 * tiny, *([np.inf, -np.inf, np.nan] if bad else [])]
    where = rng.random(n) < 0.05
    x[where] = rng.choice(np.array(special, dtype), where.sum())
    return x


def same_bits(a: Any, b: Any) -> bool:
    """Equal to the bit, the sign of zero included; all NaNs count as equal."""
    integer = np.dtype(f"u{a.dtype.itemsize}")
    equal = np.ascontiguousarray(a).view(integer) == np.ascontiguousarray(b).view(integer)
    return a.dtype == b.dtype and a.shape == b.shape and bool(np.all(equal | (np.isnan(a) & np.isnan(b))))


def state_arrays(opt: Any) -> dict[str, Any]:
    """Every array of state by leaf and slot."""
    return {
        f"{leaf}.{slot}": x
        for leaf, own in opt.state_dict()["leaves"].items()
        for slot, x in own.items()
        if isinstance(x, np.ndarray)
    }
