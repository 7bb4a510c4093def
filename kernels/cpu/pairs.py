"""Streams of bfloat16 two elements at a time.

A word holds both: a shift and a mask take it apart, one permutation puts it together. Alone, elements are widened and
narrowed in seven operations a stream; a step in the caches took 1.2 times as long.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..formats import BFLOAT16
from .elements import loaded, remainder, storage
from .memory import pointer, resting_values, scoped, values_of, values_type

_I16, _I32 = ir.IntType(16), ir.IntType(32)


def paired(tag: Any) -> bool:
    """Whether all streams of a tag are bfloat16, but for p's remainder."""
    return all(format is BFLOAT16 or k == remainder(tag) for k, format in storage(tag))


def _word(builder: Any, base: Any, k: int, i: Any) -> Any:
    """Where elements i and i + 1 of stream k lie."""
    return builder.bitcast(pointer(builder, base, k, i, BFLOAT16), ir.PointerType(_I32))


@intrinsic
def load_two(typing, tag, base, i):
    """Elements i and i + 1 of every stream, each as `load` gives it."""
    result = types.UniTuple(values_type(tag), 2)
    read = [*loaded(tag), *([] if remainder(tag) is None else [remainder(tag)])]

    def generate(context, builder, signature, args):
        _, base, i = args
        words = {k: scoped(builder, builder.load(_word(builder, base, k, i)), k) for k in read}

        def half(by):
            return lambda k, format: builder.trunc(builder.lshr(words[k], _I32(by)), _I16)

        return context.make_tuple(builder, result, [values_of(context, builder, tag, half(by)) for by in (0, 16)])

    return result(tag, base, types.uint64), generate


@intrinsic
def store_two(typing, tag, base, i, first, second, random, other):
    """Write the new values of elements i and i + 1 back, each as `store` does."""

    def generate(context, builder, signature, args):
        _, base, i, first, second, random, other = args
        halves = (resting_values(builder, tag, *new) for new in ((first, random), (second, other)))
        for (k, _, low), (_, _, high) in zip(*halves, strict=True):
            word = builder.or_(builder.zext(low, _I32), builder.shl(builder.zext(high, _I32), _I32(16)))
            scoped(builder, builder.store(word, _word(builder, base, k, i)), k)
        return context.get_dummy_value()

    return types.void(tag, base, types.uint64, first, second, random, other), generate
