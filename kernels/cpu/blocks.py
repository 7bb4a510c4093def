"""Sums of squares and largest magnitudes of one block, in the order of kernels/chores.py, on whole vectors."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..chores import BLOCK, LANES
from .elements import Measure, asked, coded

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
            x = x if x.type == wide else builder.fpext(x, wide)
            square = builder.fmul(x, x)
            total = square if total is None else builder.fadd(total, square)
        return _in_halves(builder, total, builder.fadd)

    return types.float64(kind, types.uint64), generate


@intrinsic
def largest(typing, kind, address):
    """The largest magnitude of BLOCK numbers, NaN if there is one: compared as integers, where NaN is above all."""

    def generate(context, builder, signature, args):
        bits = kind.dtype.bitwidth
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
def put(typing, room, i, x):
    """Number i from an address on <- x."""

    def generate(context, builder, signature, args):
        start = builder.inttoptr(args[0], ir.PointerType(context.get_data_type(x)))
        builder.store(args[2], builder.gep(start, [args[1]]), align=1)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, x), generate


@intrinsic
def scratch(typing, tag):
    """The address of room for two blocks, and for one of each slot of 8 bits, on the stack of the function that says
    this; 0 if its tag needs none."""
    count = 2 + len(coded(tag)) if asked(tag, "stats") or coded(tag) or tag.instance_class is Measure else 0

    def generate(context, builder, signature, args):
        if not count:
            return _I64(0)
        with builder.goto_entry_block():
            place = builder.alloca(ir.ArrayType(_I64, count * BLOCK))
            place.align = 64
        return builder.ptrtoint(place, _I64)

    return types.uint64(tag), generate


def room_of(number: int) -> int:
    """Where in scratch, in bytes, the block of the number-th slot of 8 bits begins: after statistics' two.

    Apart within a page, as slots are: see arrays.allocate_beside.
    """
    return 2 * BLOCK * 8 + number * (BLOCK * 4 + 1344)
