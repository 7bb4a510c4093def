"""Reaches memory by address: 8 bytes are read or written, and C functions called. All are numbers of int64."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

I32, I64 = ir.IntType(32), ir.IntType(64)
INT, FLOAT = types.int64, types.float64


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
def number(typing, address, k):
    """Return the k-th float64 from an address on."""
    return FLOAT(INT, INT), lambda cx, b, sig, args: b.load(place(b, args[0], ir.DoubleType(), args[1]))


@intrinsic
def put_number(typing, address, k, x):
    """Store x as the k-th float64 from an address on."""

    def generate(context, builder, signature, args):
        builder.store(args[2], place(builder, args[0], ir.DoubleType(), args[1]))
        return context.get_dummy_value()

    return types.void(INT, INT, FLOAT), generate


@intrinsic
def take(typing, address):
    """Return the 8 bytes at an address and then add 1 to them, atomically."""

    def generate(context, builder, signature, args):
        return builder.atomic_rmw("add", place(builder, args[0], I64), I64(1), "monotonic")

    return INT(INT), generate


@intrinsic
def share(typing, address, n):
    """Add n to the 8 bytes at an address, atomically, and return what was there; others see what was written before."""

    def generate(context, builder, signature, args):
        return builder.atomic_rmw("add", place(builder, args[0], I64), args[1], "acq_rel")

    return INT(INT, INT), generate


@intrinsic
def room(typing):
    """Return the address of 8 words on the stack of the function that says this."""

    def generate(context, builder, signature, args):
        with builder.goto_entry_block():
            words = builder.alloca(ir.ArrayType(I64, 8))
        return builder.ptrtoint(words, I64)

    return INT(), generate


@intrinsic
def call(typing, function, argument):
    """Return what a C function `int64 f(int64)` does, by its address."""

    def generate(context, builder, signature, args):
        return builder.call(place(builder, args[0], ir.FunctionType(I64, [I64])), [args[1]])

    return INT(INT, INT), generate


@intrinsic
def call_nothing(typing, function, argument):
    """Call a C function `void f(int64)` by its address."""

    def generate(context, builder, signature, args):
        builder.call(place(builder, args[0], ir.FunctionType(ir.VoidType(), [I64])), [args[1]])
        return context.get_dummy_value()

    return types.void(INT, INT), generate


@intrinsic
def call_three(typing, function, a, b, c):
    """Return what a C function `int64 f(int64, int64, int64)` does, by its address."""

    def generate(context, builder, signature, args):
        return builder.call(place(builder, args[0], ir.FunctionType(I64, [I64] * 3)), args[1:])

    return INT(INT, INT, INT, INT), generate


@intrinsic
def remembered(typing, x):
    """Keep x, unless it is 0, until the process ends, and return what is kept for the function that says this."""

    def generate(context, builder, signature, args):
        home = builder.module.globals.get("remembered") or ir.GlobalVariable(builder.module, I64, "remembered")
        home.linkage, home.initializer = "internal", I64(0)
        value = builder.select(builder.icmp_signed("==", args[0], I64(0)), builder.load(home), args[0])
        builder.store(value, home)
        return value

    return INT(INT), generate


@intrinsic
def float_at(typing, address, wide):
    """Return the float64 at an address, or the float32 there if `wide` is 0, as a float64."""

    def generate(context, builder, signature, args):
        short = builder.fpext(builder.load(place(builder, args[0], ir.FloatType())), ir.DoubleType())
        with builder.goto_entry_block():
            home = builder.alloca(ir.DoubleType())
        builder.store(short, home)
        with builder.if_then(builder.icmp_signed("!=", args[1], I64(0))):
            builder.store(builder.load(place(builder, args[0], ir.DoubleType())), home)
        return builder.load(home)

    return FLOAT(INT, INT), generate


@intrinsic
def put_float32(typing, address, x):
    """Store x as the float32 at an address."""

    def generate(context, builder, signature, args):
        short = builder.fptrunc(args[1], ir.FloatType())
        builder.store(short, place(builder, args[0], ir.FloatType()))
        return context.get_dummy_value()

    return types.void(INT, FLOAT), generate


@intrinsic
def put_int32(typing, address, x):
    """Store x in the 4 bytes at an address."""

    def generate(context, builder, signature, args):
        builder.store(builder.trunc(args[1], I32), place(builder, args[0], I32))
        return context.get_dummy_value()

    return types.void(INT, INT), generate


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
