"""Storage formats in compiled code: what lies in memory to the compute type, and back."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..formats import MIX

# Numba has no 16-bit floats: their bits travel as integers, bfloat16's unsigned, float16's signed.
BFLOAT16, FLOAT16 = types.uint16, types.int16
CODED = types.uint8  # 8-bit blocks: see codes.py
_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FLOATS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}


def resized(builder: Any, value: Any, to: Any) -> Any:
    """A float in another width."""
    if value.type == to:
        return value
    wider = value.type == ir.HalfType() or to == ir.DoubleType()
    return (builder.fpext if wider else builder.fptrunc)(value, to)


def decode(builder: Any, value: Any, dtype: Any, compute: Any) -> Any:
    """What was loaded as `dtype` in the compute type."""
    if dtype == BFLOAT16:
        value = builder.bitcast(builder.shl(builder.zext(value, _I32), _I32(16)), ir.FloatType())
    elif dtype == FLOAT16:
        value = builder.bitcast(value, ir.HalfType())
    return resized(builder, value, _FLOATS[compute])


def encode(builder: Any, value: Any, dtype: Any, draw: Any = None, safe: bool = False) -> Any:
    """A float in the storage type: to nearest, ties to even, or by 16 random bits; to 16 bits by way of float32.

    safe: a NaN's low 16 bits are 0.
    """
    if dtype in _FLOATS:
        return resized(builder, value, _FLOATS[dtype])
    value = resized(builder, value, ir.FloatType())
    if dtype == FLOAT16:
        return builder.bitcast(builder.fptrunc(value, ir.HalfType()), _I16)
    bits = builder.bitcast(value, _I32)
    if draw is None:
        odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
        draw = builder.add(odd, _I32(0x7FFF))
    if safe:  # 7 % of a step in bfloat16 alone
        return builder.trunc(builder.lshr(builder.add(bits, draw), _I32(16)), _I16)
    # A NaN bypasses rounding, with a bit that is stored; infinity stays, since all its low bits are 0.
    nan = builder.fcmp_unordered("uno", value, value)
    kept = builder.select(nan, builder.or_(bits, _I32(0x400000)), builder.add(bits, draw))
    return builder.trunc(builder.lshr(kept, _I32(16)), _I16)


def join(builder: Any, high: Any, low: Any) -> Any:
    """The float32 that `split` took apart."""
    bits = builder.add(builder.shl(builder.zext(high, _I32), _I32(16)), builder.sext(low, _I32))
    return builder.bitcast(bits, ir.FloatType())


def split(builder: Any, value: Any) -> tuple[Any, Any]:
    """A float32 as bfloat16, to nearest, ties up in size, and the signed 16 bits that it lacks; of a NaN none."""
    bits, nan = builder.bitcast(value, _I32), builder.fcmp_unordered("uno", value, value)
    bits = builder.select(nan, builder.and_(builder.or_(bits, _I32(0x400000)), _I32(0xFFFF0000)), bits)
    return builder.trunc(builder.lshr(builder.add(bits, _I32(0x8000)), _I32(16)), _I16), builder.trunc(bits, _I16)


@intrinsic
def draws_from(typing, key, first, at):
    """What is mixed for element first + at. key: see memory.key."""

    def generate(context, builder, signature, args):
        m0, m1 = (_I32(m) for m in MIX[:2])

        def halves(x):
            return builder.trunc(x, _I32), builder.trunc(builder.lshr(x, _I64(32)), _I32)

        key = builder.xor(*halves(builder.fptoui(args[0], _I64)))
        low, high = halves(builder.add(args[1], args[2]))
        return builder.add(key, builder.add(builder.mul(low, m0), builder.mul(high, m1)))

    return types.uint32(types.float64, types.uint64, types.uint64), generate


def of_type(like: Any, number: int) -> Any:
    """A constant integer of the type of `like`, in every lane if that is a vector."""
    vector = isinstance(like.type, ir.VectorType)
    return ir.Constant(like.type, [number] * like.type.count if vector else number)


def mixed(builder: Any, x: Any, last: int = MIX[2]) -> Any:
    """The random bits, as kernels/formats.py has them, of a number or a vector."""
    for shift, factor in ((16, MIX[1]), (15, last)):
        x = builder.mul(builder.xor(x, builder.lshr(x, of_type(x, shift))), of_type(x, factor))
    return x


@intrinsic
def draws(typing, x):
    """The random bits."""
    return types.uint32(types.uint32), lambda cx, builder, sig, args: mixed(builder, args[0])


@intrinsic
def next_draws(typing, x):
    """What is mixed for the next element, of the same multiple of 2^32: an addition, where its index would cost a
    multiplication."""
    return types.uint32(types.uint32), lambda cx, builder, sig, args: builder.add(args[0], _I32(MIX[0]))
