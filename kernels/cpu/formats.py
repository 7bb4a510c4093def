"""Says storage formats in compiled code: TEXTS has one text for each, from what lies in memory to floats and back.

The fields of a tag (elements.py) are Formats, so compiled code knows what each stream rests in.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import from_dtype, types
from numba.core.datamodel.models import OpaqueModel
from numba.extending import register_model, typeof_impl

from ..formats import BFLOAT16, CODES, FLOAT16, FLOAT32, FLOAT64, MIX, REMAINDER, Format

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F16, _F32, _F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
_COMPUTE = {FLOAT32.compute: _F32, FLOAT64.compute: _F64}


class Resting(types.Dummy):
    """Is the type of a tag's field for a stream that is there: it names the format."""

    def __init__(self, format: Format) -> None:
        self.format = format
        super().__init__(f"resting({format.name})")


register_model(Resting)(OpaqueModel)


@typeof_impl.register(Format)
def _typeof(value, context):
    return Resting(value)


class Text(NamedTuple):
    """Says one format in compiled code.

    bits:   the type that an element is loaded and stored as.
    decode: (builder, bits) -> a float of 32 bits or more, or of 16.
    encode: (builder, float32, draw, safe) -> bits; float64 for float64. draw: 16 random bits, or None: to nearest, ties
            to even. safe: a NaN's low 16 bits are 0.
    """

    bits: Any
    decode: Callable[[Any, Any], Any]
    encode: Callable[[Any, Any, Any, bool], Any]


def _to_bfloat16(builder, value, draw, safe):
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


def _of_bfloat16(builder, bits):
    return builder.bitcast(builder.shl(builder.zext(bits, _I32), _I32(16)), _F32)


def _as_it_is(builder, value, *how):
    return value


TEXTS = {
    FLOAT64: Text(_F64, _as_it_is, _as_it_is),
    FLOAT32: Text(_F32, _as_it_is, _as_it_is),
    BFLOAT16: Text(_I16, _of_bfloat16, _to_bfloat16),
    FLOAT16: Text(
        _I16,
        lambda builder, bits: builder.bitcast(bits, _F16),
        lambda builder, value, draw, safe: builder.bitcast(builder.fptrunc(value, _F16), _I16),
    ),
    CODES: Text(_I8, _as_it_is, _as_it_is),  # the walk steps floats in scratch: see codes.py
    REMAINDER: Text(_I16, _as_it_is, _as_it_is),  # see join and split
}


def numbers(format: Format) -> Any:
    """Return Numba's type of the numbers that steps over parameters in a format compute with."""
    return from_dtype(format.compute)


def resized(builder: Any, value: Any, to: Any) -> Any:
    """Return a float in another width."""
    if value.type == to:
        return value
    wider = value.type == _F16 or to == _F64
    return (builder.fpext if wider else builder.fptrunc)(value, to)


def decode(builder: Any, bits: Any, format: Format, p: Format) -> Any:
    """Return what was loaded from a stream in a format, in the compute type of parameters in another."""
    return resized(builder, TEXTS[format].decode(builder, bits), _COMPUTE[p.compute])


def encode(builder: Any, value: Any, format: Format, draw: Any = None, safe: bool = False) -> Any:
    """Return a float as it rests in a format, by way of what that format computes in: see Text."""
    return TEXTS[format].encode(builder, resized(builder, value, _COMPUTE[format.compute]), draw, safe)


def join(builder: Any, high: Any, low: Any) -> Any:
    """Return the float32 that `split` took apart; of halves that make a NaN, the high one alone."""
    alone = builder.shl(builder.zext(high, _I32), _I32(16))
    value = builder.bitcast(builder.add(alone, builder.sext(low, _I32)), _F32)
    return builder.select(builder.fcmp_unordered("uno", value, value), builder.bitcast(alone, _F32), value)


def split(builder: Any, value: Any) -> tuple[Any, Any]:
    """Return a float32 as bfloat16, to nearest, ties up in size, and the signed 16 bits that it lacks; of a NaN
    none."""
    bits, nan = builder.bitcast(value, _I32), builder.fcmp_unordered("uno", value, value)
    bits = builder.select(nan, builder.and_(builder.or_(bits, _I32(0x400000)), _I32(0xFFFF0000)), bits)
    return builder.trunc(builder.lshr(builder.add(bits, _I32(0x8000)), _I32(16)), _I16), builder.trunc(bits, _I16)


def followed(builder: Any, p: Any, rounded: Any, format: Format) -> tuple[Any, Any]:
    """Return a float32 p, but what `rounded` holds in a format where that is not p rounded to nearest; and whether it
    is not. See ../formats.py."""
    copy = decode(builder, rounded, format, FLOAT32)
    numbers = (builder.fcmp_ordered("ord", x, x) for x in (p, copy))
    differs = builder.icmp_unsigned("!=", encode(builder, p, format), rounded)
    outside = builder.and_(differs, builder.or_(*numbers))
    return builder.select(outside, copy, p), outside


def draws_from(builder: Any, key: Any, first: Any, at: Any) -> Any:
    """Return what is mixed for element first + at. key: see memory.key."""
    m0, m1 = (_I32(m) for m in MIX[:2])

    def halves(x: Any) -> tuple[Any, Any]:
        return builder.trunc(x, _I32), builder.trunc(builder.lshr(x, _I64(32)), _I32)

    mixed_key = builder.xor(*halves(builder.fptoui(key, _I64)))
    low, high = halves(builder.add(first, at))
    return builder.add(mixed_key, builder.add(builder.mul(low, m0), builder.mul(high, m1)))


def of_type(like: Any, number: int) -> Any:
    """Return a constant integer of the type of `like`, in every lane if that is a vector."""
    vector = isinstance(like.type, ir.VectorType)
    return ir.Constant(like.type, [number] * like.type.count if vector else number)


def mixed(builder: Any, x: Any, last: int = MIX[2]) -> Any:
    """Return the random bits, as kernels/formats.py has them, of a number or a vector."""
    for shift, factor in ((16, MIX[1]), (15, last)):
        x = builder.mul(builder.xor(x, builder.lshr(x, of_type(x, shift))), of_type(x, factor))
    return x


def next_draws(builder: Any, x: Any) -> Any:
    """Return what is mixed for the next element, of the same multiple of 2^32: an addition, where its index would cost
    a multiplication."""
    return builder.add(x, _I32(MIX[0]))
