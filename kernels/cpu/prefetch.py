"""Asks for memory before a walk reads it, where that is a gain.

The processor's own prefetchers follow a few streams of wide reads and lose others: on two Intel Xeon cores (AMX, 2^24
parameters) AdamW takes 0.95 of its time where all streams are asked for ahead, with parameters in bfloat16 0.68, with
moments in bfloat16 0.55, in 8 bits 0.75. Of what is in the caches already, 2^13 to 2^20 parameters, it takes 0.93 to
1.06: small arrays are asked for, too, since between two steps a program fills the caches with something else. On two
Zen 3 cores it takes 1.02 to 1.14 of its time, but 0.83 in 8 bits: there only walks over blocks of codes ask.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from ..formats import Format
from .elements import KERNEL_OF, asked, coded, columns, storage
from .words import I32, I64

GAINING = "+amx-tile"  # a feature of the processors on which every walk gains: Intel's Xeons from 2023 on
PERIOD = 64  # elements from one time of asking to the next; 128 and 256 took up to 1.05 and 1.2 times as long
NEVER = 1 << 62  # elements
AHEAD, LINE = 2_048, 64  # bytes; 1,024 ahead took 1.02 times as long, 4,096 the same
_ADDRESS = ir.PointerType(ir.IntType(8))
_READING, _ALL_LEVELS, _DATA = I32(0), I32(3), I32(1)


def asking(tag: Any) -> bool:
    """Return whether the walk of a tag asks for memory on this processor."""
    return GAINING in cpu_target.target_context.codegen().magic_tuple()[2] or bool(coded(tag))


def walked(tag: Any) -> dict[int, Format]:
    """Return {column: format} of the streams whose elements a walk reads, or writes beside them, as they lie in
    memory."""
    streams, at = dict(storage(tag)), columns(tag)
    idle = {at.g} if asked(tag, "several") else set()  # which rests in several arrays
    if tag.instance_class in KERNEL_OF:
        kernel, summing = KERNEL_OF[tag.instance_class], asked(tag, "summing")
        kernel = kernel.switched(name for name in kernel.switches if asked(tag, name))
        summed, read, _ = kernel.reached(summing or asked(tag, "summed"), [k in streams for k in at.slots])
        uses = (summed if summing else read).slots
        idle |= {k for k, used in zip(at.slots, uses, strict=True) if not used} - set(coded(tag))
        if summing:
            idle |= {at.ema, at.copy, *(() if summed.g else [at.g])}
            idle |= set() if summed.p else {at.p, at.low, at.rounded}
    return {k: format for k, format in streams.items() if k not in idle}


@intrinsic
def period_of(typing, tag, n, most):
    """Return after how many elements of a chunk of n memory is asked for again: never in one of less than the most,
    behind which its leaf ends."""

    def generate(context, builder, signature, args):
        again = builder.icmp_unsigned("==", *args[1:]) if asking(tag) else ir.Constant(ir.IntType(1), 0)
        return builder.select(again, I64(PERIOD), I64(NEVER))

    return types.uint64(tag, types.uint64, types.uint64), generate


@intrinsic
def prefetch(typing, tag, base, i):
    """Ask for the memory of PERIOD elements of every stream of a walk, AHEAD of element i: at most so much beyond a
    stream's end, which no processor minds."""

    def generate(context, builder, signature, args):
        for column, format in walked(tag).items() if asking(tag) else ():
            ask(builder, builder.extract_value(args[1], column), args[2], format)
        return context.get_dummy_value()

    return types.void(tag, base, types.uint64), generate


def ask(builder: Any, address: Any, i: Any, format: Format) -> None:
    """Ask for the memory of PERIOD elements, AHEAD of element i, of a stream that begins at an address."""
    begin = builder.add(address, builder.udiv(builder.mul(i, I64(format.bytes)), I64(format.block)))
    for line in range(0, PERIOD * format.bytes // format.block, LINE):
        ask_for_line(builder, builder.add(begin, I64(AHEAD + line)))


def ask_for_line(builder: Any, address: Any) -> None:
    """Ask for the line of memory that holds an address."""
    kind = ir.FunctionType(ir.VoidType(), [_ADDRESS, *[I32] * 3])
    function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.inttoptr(address, _ADDRESS), _READING, _ALL_LEVELS, _DATA])
