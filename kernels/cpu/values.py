"""Says what translated code can have: numbers with operators, and values of Numba's types that only intrinsics read."""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types

from .tracing import Boolean, Number, Unsigned, Whole


class Real(Number):
    """Is a float64 known when the code runs."""

    kind = types.float64


class Opaque(NamedTuple):
    """Is a value of one of Numba's types that has no operators here."""

    kind: Any
    value: Any


Value = Number | Opaque
NUMBERS: dict[Any, Any] = {number.kind: number for number in (Real, Boolean, Whole, Unsigned)}
LITERALS = (bool, Boolean), (int, Whole), (np.uint64, Unsigned), (float, Real)  # in this order, for a bool is an int


def typed(builder: Any, kind: Any, x: Any) -> Any:
    """Return a value of LLVM's as one of a type of Numba's."""
    return NUMBERS[kind](builder, x) if kind in NUMBERS else Opaque(kind, x)


def value_of(context: Any, builder: Any, x: Any) -> Any:
    """Return what is known when code is made as a value of that code; a value as it is. None: it cannot be one."""
    if isinstance(x, Value):
        return x
    if x is None or isinstance(x, types.Type):  # a tag, of which intrinsics read nothing but the type
        return Opaque(x or types.none, context.get_dummy_value())
    number = next((number for python, number in LITERALS if isinstance(x, python)), None)
    return number and number(builder, ir.Constant(context.get_value_type(number.kind), x))


def converted(builder: Any, x: Any, kind: Any) -> Any:
    """Return a value as LLVM's where one of a type of Numba's is expected: truths as 0 or 1 for signed numbers, whose
    bits unsigned ones share. None: it cannot be that."""
    if x.kind == Boolean.kind and kind == Whole.kind:
        return builder.zext(x.value, ir.IntType(64))
    alike = x.kind == kind or {x.kind, kind} == {Whole.kind, Unsigned.kind}
    return x.value if alike else None
