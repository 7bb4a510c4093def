"""Turns a kernel's element into code: it is run once on numbers that write down what is done to them.

So its equation, clip, average, maximum and sign have one Python text for arrays and for compiled code, and Numba infers
no types in it: half of what compiling a kernel took.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.lib.mixins import NDArrayOperatorsMixin


class Number(NDArrayOperatorsMixin):
    """Is a float known when the code runs. NumPy's functions of it append instructions."""

    kind: Any = None  # Numba's type, of those that one class has

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def constant(self, x: Any) -> Any:
        """Return the value of x, which may be a literal: in this number's type, a bare 0 must not widen float32 to
        float64."""
        return x.value if isinstance(x, Number) else ir.Constant(self.value.type, float(x))

    def like(self, x: Any) -> "Number":
        return Number(self.builder, self.constant(x))

    def __bool__(self) -> bool:
        raise TypeError(
            "an element cannot branch on a number, which is known when the code runs: take both sides, and np.where, "
            "maximum or sign of contract.py"
        )

    @property
    def written(self) -> dict[Any, Any]:
        """Return what writes each of NumPy's functions of such numbers."""
        return WRITTEN

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any) -> "Number":
        write = self.written.get(ufunc) if method == "__call__" else None
        if write is None:
            name = f"numpy.{ufunc.__name__} of a {type(self).__name__}"
            raise TypeError(f"compiled code has no {name}: add it to what {__name__} has written")
        value = write(self.builder, *map(self.constant, inputs))
        return (type(self) if value.type == self.value.type else Boolean)(self.builder, value)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> "Number":
        if function is np.where:
            truth, *choices = args
            like = next(x for x in choices if isinstance(x, Number))
            return Number(self.builder, self.builder.select(truth.value, *map(like.constant, choices)))
        if function is np.zeros_like:
            return self.like(0)
        raise TypeError(f"compiled code has no numpy.{function.__name__}")


class Boolean(Number):
    """Is a truth known when the code runs."""

    kind = types.boolean


class Whole(Number):
    """Is a signed whole number of 64 bits, known when the code runs, which wraps."""

    kind: Any = types.int64

    def constant(self, x: Any) -> Any:
        kind = x.kind if isinstance(x, Number) else types.uint64 if isinstance(x, np.uint64) else self.kind
        if kind != self.kind:
            raise TypeError(f"{kind} meets {self.kind}: say which is meant, by np.uint64")
        if isinstance(x, Number):
            return x.value
        if not isinstance(x, int | np.uint64) or (x < 0 and self.kind == types.uint64):
            raise TypeError(f"{x!r} meets {self.kind}: say which is meant, by float or np.uint64")
        return ir.Constant(self.value.type, int(x))

    @property
    def written(self) -> dict[Any, Any]:
        return WRITTEN_WHOLE


class Unsigned(Whole):
    """Is an unsigned one."""

    kind = types.uint64

    @property
    def written(self) -> dict[Any, Any]:
        return WRITTEN_UNSIGNED


def _one(name: str) -> Any:
    """Return an instruction of LLVM's that is written as a call."""

    def write(builder: Any, x: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic(name, [x.type]), [x])

    return write


def _sign(builder: Any, x: Any) -> Any:
    zero, one, less = (ir.Constant(x.type, float(k)) for k in (0, 1, -1))
    below = builder.select(builder.fcmp_ordered("<", x, zero), less, zero)
    signed = builder.select(builder.fcmp_ordered(">", x, zero), one, below)
    return builder.select(builder.fcmp_ordered("ord", x, x), signed, x)


# NumPy's function: what writes it. No flag lets LLVM contract, reorder or flush.
WRITTEN: dict[Any, Any] = {
    np.add: lambda b, x, y: b.fadd(x, y),
    np.subtract: lambda b, x, y: b.fsub(x, y),
    np.multiply: lambda b, x, y: b.fmul(x, y),
    np.true_divide: lambda b, x, y: b.fdiv(x, y),
    np.negative: lambda b, x: b.fneg(x),
    np.greater: lambda b, x, y: b.fcmp_ordered(">", x, y),
    np.greater_equal: lambda b, x, y: b.fcmp_ordered(">=", x, y),
    np.less: lambda b, x, y: b.fcmp_ordered("<", x, y),
    np.less_equal: lambda b, x, y: b.fcmp_ordered("<=", x, y),
    np.equal: lambda b, x, y: b.fcmp_ordered("==", x, y),
    np.not_equal: lambda b, x, y: b.fcmp_unordered("!=", x, y),
    np.bitwise_or: lambda b, x, y: b.or_(x, y),
    np.bitwise_and: lambda b, x, y: b.and_(x, y),
    np.sqrt: _one("llvm.sqrt"),
    np.absolute: _one("llvm.fabs"),
    np.sign: _sign,
}


def _divided(builder: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Return quotient and remainder of whole numbers as Python's: the quotient's floor."""
    quotient, rest = builder.sdiv(x, y), builder.srem(x, y)
    zero = ir.Constant(x.type, 0)
    apart = builder.icmp_signed("<", builder.xor(rest, y), zero)
    lower = builder.and_(builder.icmp_signed("!=", rest, zero), apart)
    return builder.sub(quotient, builder.zext(lower, x.type)), builder.add(rest, builder.select(lower, y, zero))


WRITTEN_WHOLE: dict[Any, Any] = {
    np.add: lambda b, x, y: b.add(x, y),
    np.subtract: lambda b, x, y: b.sub(x, y),
    np.multiply: lambda b, x, y: b.mul(x, y),
    np.negative: lambda b, x: b.neg(x),
    np.floor_divide: lambda b, x, y: _divided(b, x, y)[0],
    np.remainder: lambda b, x, y: _divided(b, x, y)[1],
    np.bitwise_and: lambda b, x, y: b.and_(x, y),
    np.greater: lambda b, x, y: b.icmp_signed(">", x, y),
    np.greater_equal: lambda b, x, y: b.icmp_signed(">=", x, y),
    np.less: lambda b, x, y: b.icmp_signed("<", x, y),
    np.less_equal: lambda b, x, y: b.icmp_signed("<=", x, y),
    np.equal: lambda b, x, y: b.icmp_signed("==", x, y),
    np.not_equal: lambda b, x, y: b.icmp_signed("!=", x, y),
}

WRITTEN_UNSIGNED: dict[Any, Any] = {
    **{
        ufunc: WRITTEN_WHOLE[ufunc]
        for ufunc in (np.add, np.subtract, np.multiply, np.bitwise_and, np.equal, np.not_equal)
    },
    np.bitwise_xor: lambda b, x, y: b.xor(x, y),
    np.right_shift: lambda b, x, y: b.lshr(x, y),
    np.floor_divide: lambda b, x, y: b.udiv(x, y),
    np.remainder: lambda b, x, y: b.urem(x, y),
    np.greater_equal: lambda b, x, y: b.icmp_unsigned(">=", x, y),
    np.less: lambda b, x, y: b.icmp_unsigned("<", x, y),
}
