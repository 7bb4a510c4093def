"""Storage formats in compiled code: from the compute type to what lies in memory."""

from typing import Any

from llvmlite import ir
from numba import types

# Numba has no 16-bit floats: their bits travel as integers, bfloat16's unsigned, float16's signed.
BFLOAT16, FLOAT16 = types.uint16, types.int16


def encode(builder: Any, value: Any, dtype: Any) -> Any:
    """A float in the storage type, rounded to the nearest, ties to even; float64 goes through float32."""
    if dtype not in (BFLOAT16, FLOAT16):
        return value
    if value.type == ir.DoubleType():
        value = builder.fptrunc(value, ir.FloatType())
    i16, i32 = ir.IntType(16), ir.IntType(32)
    if dtype == FLOAT16:
        return builder.bitcast(builder.fptrunc(value, ir.HalfType()), i16)
    bits = builder.bitcast(value, i32)
    odd = builder.and_(builder.lshr(bits, i32(16)), i32(1))
    rounded = builder.add(bits, builder.add(odd, i32(0x7FFF)))
    quiet = builder.or_(bits, i32(0x400000))  # a NaN bypasses rounding, which could carry it to infinity or to zero
    kept = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
    return builder.trunc(builder.lshr(kept, i32(16)), i16)
