"""Agreement: what every rank must have alike, and which ranks have not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np

from fastadam.distributed.engine import Engine


def ranks(which: Sequence[int]) -> str:
    """Return what errors call some ranks."""
    return f"rank {which[0]} has" if len(which) == 1 else f"ranks {', '.join(map(str, which))} have"


def agree(everyone: Sequence[Sequence[tuple[str, Any]]]) -> None:
    """Compare what all ranks say: of each, (what, value) in one order.

    Raises ValueError, on every rank alike, which names the first difference and who has what.
    """
    for k in range(max(map(len, everyone), default=0)):
        values: dict[str, list[int]] = {}
        for rank, said in enumerate(everyone):
            values.setdefault(f"{said[k][0]} {plain(said[k][1])!r}" if k < len(said) else "nothing more", []).append(
                rank
            )
        if len(values) > 1:
            differing = "; ".join(f"{ranks(which)} {value}" for value, which in values.items())
            raise ValueError(f"{differing}: expected the same on all ranks")


def plain(value: Any) -> Any:
    """Return a value as ranks compare it: numbers by what they are worth, whoever made them, and tuples as lists.

    What is an integer becomes an int below 2^64, and a float beyond it where it is one: 1e300 takes no 301 digits.
    """
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    if isinstance(value, dict):
        return {key: plain(x) for key, x in value.items()}
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**64:
        return int(value)
    if type(value) is int and 2**64 <= abs(value) <= sys.float_info.max and float(value) == value:
        return float(value)
    return value


def shown(value: Any) -> str:
    """Return what ranks compare an option by: a function's name, for its address is every process's own.

    Of what holds functions too: lists, the arguments of a partial, a schedule that another function goes on from.
    """
    if isinstance(value, dict):
        return str({key: shown(x) for key, x in value.items()})
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, partial):
        return f"{shown(value.func)} with {shown(value.args)}, {shown(value.keywords)}"
    if is_dataclass(value) and not isinstance(value, type):
        of_fields = ", ".join(f"{each.name}={shown(getattr(value, each.name))}" for each in fields(value))
        return f"{type(value).__qualname__}({of_fields})"
    name = getattr(value, "__qualname__", None)
    if name is None and getattr(type(value), "__repr__", None) is object.__repr__:
        name = type(value).__qualname__
    return repr(plain(value)) if name is None else f"the function {name}"


def word(said: Any) -> int:
    """Return 8 bytes, never 0, that stand for what a rank says: as `agree` compares it, by how it is shown."""
    return 1 + int.from_bytes(blake2b(repr(plain(said)).encode(), digest_size=8).digest()) // 4


def together(engine: Engine, check: Callable[[], Any]) -> list[Any]:
    """Return what check() returns on each rank; where it raises on one, raise on all.

    The rank itself raises its own error, the others RuntimeError that names it and says the error. First 8 bytes of
    each rank tell whether all say the same; only where they do not, what each says travels.
    """
    raised: Exception | None = None
    said: Any = None
    try:
        said = check()
    except Exception as error:  # this rank takes part in the agreement all the same
        raised = error
    words = engine.words(np.array([0 if raised is not None else word(said)]))
    if raised is None and (words == words[0]).all():
        return [said] * engine.size
    everyone = engine.everyone((None if raised is None else f"{type(raised).__name__}: {raised}", said))
    if raised is not None:
        raise raised
    for rank, (wrong, _) in enumerate(everyone):
        if wrong is not None:
            raise RuntimeError(f"rank {rank} refused, so that no rank goes on: {wrong}")
    return [said for _, said in everyone]
