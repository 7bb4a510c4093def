"""Sums of squares and largest magnitudes of one block, in the order of kernels/chores.py, on whole vectors."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastadam.kernels.chores import BLOCK, LANES
from fastadam.kernels.cpu.elements import Measure, asked

_I64 = ir.IntType(64)


def _vectors(context, builder, kind, address):
    """The block's elements, LANES at a time."""
    vector = ir.VectorType(context.get_data_type(kind), LANES)
    first = builder.inttoptr(address, ir.PointerType(vector))
    for k in range(BLOCK // LANES):
        yield builder.load(builder.gep(first, [_I64(k)]), align=1)


def _in_halves(builder, vector, combine):
    """One scalar of a vector: its upper half onto the lower, until one is left."""
    width = vector.type.count
    while width > 1:
        width //= 2
        halves = [
            builder.shuffle_vector(
                vector,
                ir.Constant(vector.type, ir.Undefined),
                ir.Constant(ir.VectorType(ir.IntType(32), width), list(at)),
            )
            for at in (range(width), range(width, 2 * width))
        ]
        vector = combine(*halves)
    return builder.extract_element(vector, ir.IntType(32)(0))


@intrinsic
def sum_of_squares(typing, kind, address):
    """The float64 sum of the squares of BLOCK numbers of a dtype."""

    def generate(context, builder, signature, args):
        total, wide = None, ir.VectorType(ir.DoubleType(), LANES)
        for x in _vectors(context, builder, kind.dtype, args[1]):
            x = builder.fpext(x, wide) if kind.dtype == types.float32 else x
            square = builder.fmul(x, x)
            total = square if total is None else builder.fadd(total, square)
        return _in_halves(builder, total, builder.fadd)

    return types.float64(kind, types.uint64), generate


@intrinsic
def largest(typing, kind, address):
    """The largest magnitude of BLOCK numbers, NaN if there is one: compared as integers, where NaN is above all."""

    def generate(context, builder, signature, args):
        bits = 32 if kind.dtype == types.float32 else 64
        integers = ir.VectorType(ir.IntType(bits), LANES)
        mask = ir.Constant(integers, [2 ** (bits - 1) - 1] * LANES)

        def larger(a, b):
            return builder.select(builder.icmp_signed(">", a, b), a, b)

        top = None
        for x in _vectors(context, builder, kind.dtype, args[1]):
            x = builder.and_(builder.bitcast(x, integers), mask)
            top = x if top is None else larger(top, x)
        found = builder.bitcast(_in_halves(builder, top, larger), context.get_data_type(kind.dtype))
        return builder.fpext(found, ir.DoubleType()) if bits == 32 else found

    return types.float64(kind, types.uint64), generate


@intrinsic
def difference(typing, kind, a, b):
    """a <- b - a over BLOCK numbers."""

    def generate(context, builder, signature, args):
        vector = ir.VectorType(context.get_data_type(kind.dtype), LANES)
        first = builder.inttoptr(args[1], ir.PointerType(vector))
        pairs = zip(*(_vectors(context, builder, kind.dtype, x) for x in args[1:]), strict=True)
        for k, (x, y) in enumerate(pairs):
            builder.store(builder.fsub(y, x), builder.gep(first, [_I64(k)]), align=1)
        return context.get_dummy_value()

    return types.void(kind, types.uint64, types.uint64), generate


@intrinsic
def copied(typing, kind, room, address, n):
    """room <- n numbers, filled up with zeros to a block. Returns room."""

    def generate(context, builder, signature, args):
        size = context.get_abi_sizeof(context.get_data_type(kind.dtype))
        bytes_, i1 = ir.PointerType(ir.IntType(8)), ir.IntType(1)
        target = builder.inttoptr(args[1], bytes_)
        memset = builder.module.declare_intrinsic("llvm.memset", [bytes_, _I64])
        memcpy = builder.module.declare_intrinsic("llvm.memcpy", [bytes_, bytes_, _I64])
        builder.call(memset, [target, ir.IntType(8)(0), _I64(BLOCK * size), i1(0)])
        builder.call(memcpy, [target, builder.inttoptr(args[2], bytes_), builder.mul(args[3], _I64(size)), i1(0)])
        return args[1]

    return types.uint64(kind, types.uint64, types.uint64, types.uint64), generate


@intrinsic
def scratch(typing, tag):
    """The address of room for two blocks on the stack of the function that says this; 0 if its tag needs none."""

    def generate(context, builder, signature, args):
        if not (asked(tag, "stats") or tag.instance_class is Measure):
            return _I64(0)
        with builder.goto_entry_block():
            place = builder.alloca(ir.ArrayType(_I64, 2 * BLOCK))
            place.align = 64
        return builder.ptrtoint(place, _I64)

    return types.uint64(tag), generate
