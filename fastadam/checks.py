"""Checks single values, with errors that name the argument, what came and what was expected."""

import math
from collections.abc import Callable
from typing import Any


def number(name: str, value: Any, low: float = -math.inf, below: float = math.inf, most: float = math.inf) -> float:
    """Return value as a float: finite, at least `low`, less than `below` and at most `most`."""
    error: type[Exception] = TypeError
    try:
        if not isinstance(value, (str, bytes, bool)):
            result = float(value)
            if math.isfinite(result) and low <= result < below and result <= most:
                return result
            error = ValueError
    except OverflowError:
        error = ValueError
    except (TypeError, ValueError):
        pass
    limits = f" of at least {low:g}" if low > -math.inf else ""
    limits += f" and below {below:g}" if below < math.inf else ""
    limits += f" and at most {most:g}" if most < math.inf else ""
    raise error(f"{name} is {value!r}, expected a finite number{limits}")


SEEDS = {"low": 0, "most": 2**64 - 1}  # for `integer`


def integer(name: str, value: Any, low: int | None = None, most: int | None = None) -> int:
    """Return value as an int, at least `low` and at most `most`. Other real numbers raise ValueError, the rest
    TypeError."""
    expected = "an integer"
    expected += f" of at least {low}" if low is not None else ""
    expected += f" and at most {most}" if most is not None else ""
    try:
        if type(value).__name__ in ("bool", "bool_"):  # NumPy's too
            raise TypeError
        result = value.__index__()
    except (AttributeError, TypeError):
        error = ValueError if isinstance(value, float) or hasattr(value, "is_integer") else TypeError
        raise error(f"{name} is {value!r}, expected {expected}") from None
    if (low is not None and result < low) or (most is not None and result > most):
        raise ValueError(f"{name} is {value!r}, expected {expected}")
    return int(result)


def positive(name: str, value: Any) -> float | None:
    """Return a finite number above 0, or None."""
    if value is None:
        return None
    x = number(name, value, low=0)
    if x == 0:
        raise ValueError(f"{name} is {value!r}, expected a number above 0, or None")
    return x


def flag(name: str, value: Any) -> bool:
    """Return value where it is True or False, and nothing that only counts as one, such as "no"."""
    if value is not True and value is not False:
        raise TypeError(f"{name} is {value!r}, expected True or False")
    return value


def at_count(name: str, schedule: Callable[[int], Any], t: int, **limits: float) -> float:
    """Return what a schedule says at t, checked; whatever it raises says where."""
    try:
        value = schedule(t)
    except Exception as error:
        error.add_note(f"raised by {name}({t})")
        raise
    return number(f"{name}({t})", value, **limits)
