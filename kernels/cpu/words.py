"""Reaches memory by address: 8 bytes are read or written, and C functions called. All are numbers of int64."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

I32, I64 = ir.IntType(32), ir.IntType(64)
INT = types.int64


def place(builder, address, kind, k=None):
    """Return a pointer to the k-th of a kind from an address on."""
    start = builder.inttoptr(address, ir.PointerType(kind))
    return start if k is None else builder.gep(start, [k])


@intrinsic
def word(typing, address, k):
    """Return the k-th 8 bytes from an address on."""
    return INT(INT, INT), lambda cx, builder, sig, args: builder.load(place(builder, args[0], I64, args[1]))


@intrinsic
def put_word(typing, address, k, x):
    """Store x in the k-th 8 bytes from an address on."""

    def generate(context, builder, signature, args):
        builder.store(args[2], place(builder, args[0], I64, args[1]))
        return context.get_dummy_value()

    return types.void(INT, INT, INT), generate


@intrinsic
def take(typing, address):
    """Return the 8 bytes at an address and then add 1 to them, atomically."""

    def generate(context, builder, signature, args):
        return builder.atomic_rmw("add", place(builder, args[0], I64), I64(1), "monotonic")

    return INT(INT), generate


@intrinsic
def ask(typing, function, handle):
    """Return what a C function `int f(handle, result *)` finds; -1 where it fails."""

    def generate(context, builder, signature, args):
        with builder.goto_entry_block():
            result = builder.alloca(I64)
        builder.store(I64(0), result)  # a result may be shorter
        kind = ir.FunctionType(I32, [I64, ir.PointerType(I64)])
        failed = builder.call(place(builder, args[0], kind), [args[1], result])
        return builder.select(builder.icmp_signed("==", failed, I32(0)), builder.load(result), I64(-1))

    return INT(INT, INT), generate


@intrinsic
def call_piece(typing, function, job, low, high):
    """Call a piece by its address, for chunks low to high - 1 of a job."""

    def generate(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [I64] * 3)
        builder.call(place(builder, args[0], kind), args[1:])
        return context.get_dummy_value()

    return types.void(INT, INT, INT, INT), generate


@intrinsic
def call_workers(typing, parallel_for, get_threads, set_threads, share, spans, width, workers, job):
    """Call `share` once for each of `workers` spans, which lie `width` bytes apart, on as many threads.

    parallel_for and the two about the count of threads are the threading layer's, by address: code that names its
    symbols could not be loaded before the layer is.
    """

    def generate(context, builder, signature, args):
        parallel_for, get_threads, set_threads, share, spans, width, workers, job = args
        with builder.goto_entry_block():
            homes = [builder.alloca(I64) for _ in range(3)]
        for home, x in zip(homes, (spans, workers, width), strict=True):
            builder.store(x, home)
        before = builder.call(place(builder, get_threads, ir.FunctionType(I32, [])), [])
        kind = ir.FunctionType(ir.VoidType(), [I64, *[ir.PointerType(I64)] * 3, I64, I64, I64, I32])
        count = builder.trunc(workers, I32)
        builder.call(place(builder, parallel_for, kind), [share, *homes, job, I64(0), I64(1), count])
        builder.call(place(builder, set_threads, ir.FunctionType(ir.VoidType(), [I32])), [before])
        return context.get_dummy_value()

    return types.void(*[INT] * 8), generate
