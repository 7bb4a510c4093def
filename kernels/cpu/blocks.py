"""Writes sums of squares and largest magnitudes of one block, in the order of kernels/chores.py, on whole vectors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..chores import BLOCK, LANES
from .elements import Measure, asked, coded
from .words import I64, place


@contextmanager
def each(builder: Any, start: Any, stop: Any, step: int = 1) -> Iterator[Any]:
    """Write a loop whose body is what is written meanwhile, for every step-th index from start to before stop,
    unsigned."""
    before, (head, body, end) = builder.block, (builder.append_basic_block() for _ in range(3))
    builder.branch(head)
    builder.position_at_end(head)
    i = builder.phi(I64)
    i.add_incoming(start, before)
    builder.cbranch(builder.icmp_unsigned("<", i, stop), body, end)
    builder.position_at_end(body)
    yield i
    i.add_incoming(builder.add(i, I64(step)), builder.block)
    builder.branch(head)
    builder.position_at_end(end)


def _vectors(builder: Any, kind: Any, address: Any) -> Iterator[Any]:
    """Yield the block's elements, LANES at a time."""
    first = place(builder, address, ir.VectorType(kind, LANES))
    for k in range(BLOCK // LANES):
        yield builder.load(builder.gep(first, [I64(k)]), align=1)


def _in_halves(builder: Any, vector: Any, combine: Any) -> Any:
    """Return one scalar of a vector: its upper half onto the lower, until one is left."""
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


def sum_of_squares(builder: Any, kind: Any, address: Any) -> Any:
    """Return the float64 sum of the squares of BLOCK floats of a kind of LLVM's."""
    return block_sum(builder, kind, address, squared=True)


def block_sum(builder: Any, kind: Any, address: Any, squared: bool = False) -> Any:
    """Return the float64 sum of BLOCK floats of a kind of LLVM's, or of their squares."""
    total, wide = None, ir.VectorType(ir.DoubleType(), LANES)
    for x in _vectors(builder, kind, address):
        x = x if x.type == wide else builder.fpext(x, wide)
        x = builder.fmul(x, x) if squared else x
        total = x if total is None else builder.fadd(total, x)
    return _in_halves(builder, total, builder.fadd)


def largest(builder: Any, kind: Any, address: Any) -> Any:
    """Return the largest magnitude of BLOCK floats, NaN if there is one: compared as integers, where NaN is above
    all."""
    bits = 32 if kind == ir.FloatType() else 64
    integers = ir.VectorType(ir.IntType(bits), LANES)
    mask = ir.Constant(integers, [2 ** (bits - 1) - 1] * LANES)

    def larger(a: Any, b: Any) -> Any:
        return builder.select(builder.icmp_signed(">", a, b), a, b)

    top = None
    for x in _vectors(builder, kind, address):
        x = builder.and_(builder.bitcast(x, integers), mask)
        top = x if top is None else larger(top, x)
    scalar = builder.bitcast(_in_halves(builder, top, larger), kind)
    return builder.fpext(scalar, ir.DoubleType()) if bits == 32 else scalar


def difference(builder: Any, kind: Any, a: Any, b: Any) -> None:
    """Set a to b - a over BLOCK floats."""
    first = place(builder, a, ir.VectorType(kind, LANES))
    for k, (x, y) in enumerate(zip(*(_vectors(builder, kind, at) for at in (a, b)), strict=True)):
        builder.store(builder.fsub(y, x), builder.gep(first, [I64(k)]), align=1)


def put(builder: Any, room: Any, i: Any, x: Any) -> None:
    """Store x as number i from an address on."""
    builder.store(x, place(builder, room, x.type, i), align=1)


@intrinsic
def scratch(typing, tag):
    """Return the address of room for two blocks, for one of each slot of 8 bits, and for one of a gradient that is
    several arrays, on the stack of the function that says this; 0 if its tag needs none."""
    noting = asked(tag, "stats") or asked(tag, "summing") or tag.instance_class is Measure
    more = len(coded(tag)) + asked(tag, "several")
    count = 2 + more if noting or more else 0

    def generate(context, builder, signature, args):
        if not count:
            return I64(0)
        with builder.goto_entry_block():
            room = builder.alloca(ir.ArrayType(I64, count * BLOCK))
            room.align = 64
        return builder.ptrtoint(room, I64)

    return types.uint64(tag), generate


def room_of(number: int) -> int:
    """Return where in scratch, in bytes, the block of the number-th slot of 8 bits begins: after statistics' two; the
    gradient's is behind them.

    Apart within a page, as slots are: see fastadam's arrays.allocate_beside.
    """
    return 2 * BLOCK * 8 + number * (BLOCK * 4 + 1344)
