"""Asked: what Sharded is asked for, refused where it cannot be, and as ranks compare it."""

from __future__ import annotations

from typing import Any

from fastadam import kernels
from fastadam.checks import at_count
from fastadam.distributed.agreement import shown
from fastadam.kernels.formats import SHORT
from fastadam.optimizer import Optimizer

REFUSED = "index_offset", "capturable"


def described(groups: Any, ema_decay: Any, t: int) -> list[tuple[str, Any]]:
    """Return the numbers of the next step, which a program may have set on one rank alone, and its schedules say."""
    said: list[tuple[str, Any]] = [
        (
            f"groups[{k}] with",
            f"{shown(vars(group.rule))}, max_norm {shown(group.max_norm)}, lr {shown(group.lr_at(t + 1))}",
        )
        for k, group in enumerate(groups)
    ]
    if callable(ema_decay):
        said.append(("ema_decay", at_count("ema_decay", ema_decay, t + 1, low=0, most=1)))
    return said


def sums_over_leaves(method: type[Optimizer], groups: Any, options: dict[str, Any]) -> bool:
    """Return whether steps begin with sums over whole leaves. groups: as constructors take them, without parameters."""
    return method(groups, **options).sums_first


def check(method: Any, options: dict[str, Any], reproducible: Any, copies: Any, init: Any, copy_to: Any) -> None:
    """Refuse what Sharded cannot take."""
    if not (isinstance(method, type) and issubclass(method, Optimizer) and hasattr(method, "rule")):
        name = getattr(method, "__name__", repr(method))
        raise TypeError(f"method is {name}, expected a class that steps each element alone, such as fastadam.AdamW")
    if kernels.ALL[method.rule.kernel].Judging is not None:
        raise TypeError(f"method is {method.__name__}, expected one whose sums, if any, go over each leaf by itself")
    for name in REFUSED:
        if name in options:
            raise TypeError(f"{name} is {options[name]!r}, expected none: Sharded takes no {name}")
    if reproducible is not False and reproducible not in ("ranks", "micro"):
        raise ValueError(f"reproducible is {reproducible!r}, expected 'ranks', 'micro' or False")
    if copies is not None and copies not in SHORT:
        raise ValueError(f"copies is {copies!r}, expected one of {', '.join(SHORT)}, or None")
    if copy_to is not None and copies is not None:
        raise ValueError(f"copy_to is given and copies is {copies!r}, expected one of the two")
    if init is not None and copies is None:
        raise ValueError("init is given, expected it with copies alone, whose float32 values it says")
