"""Steps streams of bfloat16 two elements at a time.

A word holds both: a shift and a mask take it apart, one permutation puts it together. Alone, elements are widened and
narrowed in seven operations a stream; a step in the caches took 1.2 times as long.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..formats import BFLOAT16
from .elements import asked, element, loaded, remainder, stochastic_elements, storage
from .formats import next_draws
from .memory import kinds, pointer, resting_values, scoped, unpacked, values_of
from .words import I32

_I16 = ir.IntType(16)
# LLVM prefers vectors of 256 bits for Intel's processors, in which the halves of words run out of registers: on two
# Xeon cores (AMX) AdamW took 1.5 times as long, 1.35 in the caches. AMD's get 512 unasked; Intel's without AMX, which
# may slow down under such vectors, were not measured.
WIDE = '"prefer-vector-width"="512"'


def paired(tag: Any) -> bool:
    """Return whether all streams of a tag are bfloat16 where they are stepped, but for p's remainder."""
    return not asked(tag, "several") and all(format is BFLOAT16 or k == remainder(tag) for k, format in storage(tag))


@intrinsic
def move_two(typing, tag, base, i, c, x, bits):
    """Step elements i and i + 1, each as `move` does; returns the bits of the element after them."""
    read = [*loaded(tag), *([] if remainder(tag) is None else [remainder(tag)])]
    drawing = bool(stochastic_elements(tag))

    def generate(context, builder, signature, args):
        _, base, i, c, x, bits = args
        set.add(builder.function.attributes, WIDE)  # of llvmlite's set, whose own `add` takes the names it has only
        c, x = (unpacked(builder, *pair) for pair in zip((c, x), kinds(tag), strict=True))

        def home(k):
            return builder.bitcast(pointer(builder, base, k, i, BFLOAT16), ir.PointerType(I32))

        words = {k: scoped(builder, builder.load(home(k)), k) for k in read}

        def half(by):
            return lambda k, format: builder.trunc(builder.lshr(words[k], I32(by)), _I16)

        second = next_draws(builder, bits) if drawing else bits
        new = [element(tag, values_of(builder, tag, half(by)), c, x) for by in (0, 16)]
        halves = (resting_values(builder, tag, *each) for each in zip(new, (bits, second), strict=True))
        for (k, _, low), (_, _, high) in zip(*halves, strict=True):
            word = builder.or_(builder.zext(low, I32), builder.shl(builder.zext(high, I32), I32(16)))
            scoped(builder, builder.store(word, home(k)), k)
        return next_draws(builder, second) if drawing else bits

    return bits(tag, base, types.uint64, c, x, bits), generate
