"""How compiled code reaches memory: addresses, loads and stores of streams, rows of coefficients.

Each stream is a column of one table of addresses, in the order of ../streams.py, a row per leaf of the user's tree.
Every load and store carries an alias scope per stream, so LLVM vectorises without overlap checks, in parallel and in
serial code: without them AMSGrad's five streams ran 14 times slower.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..chores import Numbers
from ..formats import BFLOAT16, REMAINDER, Format, format_of
from .elements import (
    KERNEL_OF,
    asked,
    columns,
    compute_type,
    loaded,
    remainder,
    stochastic,
    stochastic_elements,
    storage,
    streams_of,
)
from .formats import TEXTS, decode, encode, join, resized, split

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def scoped(builder: Any, access: Any, column: int) -> Any:
    """Tell LLVM that this load or store of one stream overlaps no other stream, and is aligned to nothing."""
    module = builder.module
    if not hasattr(module, "streams"):
        domain = module.add_metadata([ir.MetaDataString(module, "streams")])
        module.streams = [module.add_metadata([ir.MetaDataString(module, f"stream {k}"), domain]) for k in range(16)]
    others = [scope for k, scope in enumerate(module.streams) if k != column]
    access.set_metadata("alias.scope", module.add_metadata([module.streams[column]]))
    access.set_metadata("noalias", module.add_metadata(others))
    access.align = 1
    return access


def pointer(builder: Any, base: Any, column: int, index: Any, format: Format) -> Any:
    """The address of element `index` of a stream whose leaf begins at base[column]."""
    start = builder.inttoptr(builder.extract_value(base, column), ir.PointerType(TEXTS[format].bits))
    return builder.gep(start, [index])


@intrinsic
def bases(typing, table, tag, leaf, first, g_leaf, g_first):
    """Where element `first` of a leaf lies in each stream, g's from a place of its own: a tuple of addresses.

    Last, its index among all elements: the table's last column says the leaf's first.
    """
    streams = streams_of(tag)
    result = types.UniTuple(types.uint64, streams + 1)

    def generate(context, builder, signature, args):
        rows = context.make_array(signature.args[0])(context, builder, args[0])
        out = [_I64(0)] * streams
        width = builder.extract_value(rows.shape, 1)
        for k, format in storage(signature.args[1]):
            leaf, first = args[4:] if k == columns(tag).g else args[2:4]
            place = builder.add(builder.mul(leaf, width), _I64(k))
            base = builder.load(builder.gep(rows.data, [place]))
            if format.block > 1:  # a chunk begins with a block
                first = builder.udiv(first, _I64(format.block))
            out[k] = builder.add(base, builder.mul(first, _I64(format.bytes)))
        end = builder.sub(builder.mul(builder.add(args[2], _I64(1)), width), _I64(1))
        out.append(builder.add(builder.load(builder.gep(rows.data, [end])), args[3]))
        return context.make_tuple(builder, result, out)

    return result(table, tag, types.uint64, types.uint64, types.uint64, types.uint64), generate


@intrinsic
def first_index(typing, base):
    """The index among all elements of the one that `bases` was asked for."""

    def generate(context, builder, signature, args):
        return builder.extract_value(args[0], base.count - 1)

    return types.uint64(base), generate


def values_of(context: Any, builder: Any, tag: Any, resting: Any) -> Any:
    """An element of every stream that is read as one, in the compute type, in the order of streams.

    resting(k, format): it as it rests in stream k.
    """
    values = [context.get_dummy_value()] * streams_of(tag)
    for k in loaded(tag):
        values[k] = _one(builder, tag, k, resting)
    return context.make_tuple(builder, values_type(tag), values)


def values_type(tag: Any) -> Any:
    """Numbers in the compute type, None where a stream is absent, and for the copy: it is not read."""
    present = loaded(tag)
    return types.Tuple([compute_type(tag) if k in present else types.none for k in range(streams_of(tag))])


def _one(builder: Any, tag: Any, k: int, resting: Any) -> Any:
    """An element of one stream in the compute type."""
    formats = dict(storage(tag))
    more = remainder(tag) if k == columns(tag).p else None
    format = _in_walk(tag, formats[k])
    value = resting(k, format)
    if more is None:
        return decode(builder, value, format, formats[columns(tag).p])
    return join(builder, value, resting(more, REMAINDER))


def _in_walk(tag: Any, format: Format) -> Format:
    """The format that an element is loaded from and stored in: what is computed with where blocks' are in scratch."""
    return format_of(storage(tag)[0][1].compute) if format.block > 1 else format


def at_rest(builder: Any, base: Any, i: Any) -> Any:
    """A function that loads element i of stream k from a format."""
    return lambda k, format: scoped(builder, builder.load(pointer(builder, base, k, i, format)), k)


@intrinsic
def load(typing, tag, base, i):
    """Element i of every stream: see values_of."""

    def generate(context, builder, signature, args):
        return values_of(context, builder, tag, at_rest(builder, *args[1:]))

    return values_type(tag)(tag, base, types.uint64), generate


@intrinsic(prefer_literal=True)
def fetch(typing, tag, column, base, i):
    """Element i of one stream in the compute type."""

    def generate(context, builder, signature, args):
        return _one(builder, tag, column.literal_value, at_rest(builder, *args[2:]))

    return compute_type(tag)(tag, column, base, types.uint64), generate


def resting_values(builder: Any, tag: Any, values: Any, random: Any) -> Any:
    """(stream, its format, the new value in that) of every stream but g, unless it is to be cleared.

    random: 32 bits where any stream is rounded stochastically.
    """
    at, drawn, more = columns(tag), stochastic_elements(tag), remainder(tag)
    draws: Any = None
    other: Any = None
    if drawn:
        upper = builder.lshr(random, _I32(16))
        draws = builder.and_(builder.xor(random, upper), _I32(0xFFFF)), upper
    # What is worked out from bfloat16 alone has NaNs whose low bits are 0: rounding cannot carry them to infinity.
    safe = all(format is BFLOAT16 for _, format in storage(tag))
    for k, format in storage(tag):
        if k == at.g and not asked(tag, "clear"):
            continue
        format = _in_walk(tag, format)
        if k == more:
            value = other
        elif k == at.p and more is not None:
            value, other = split(builder, builder.extract_value(values, k))
        else:
            draw = draws[k != at.p] if k in drawn else None
            value = encode(builder, builder.extract_value(values, k), format, draw, safe)
        yield k, format, value


@intrinsic
def store(typing, tag, base, i, values, random):
    """Write an element's new values back: see resting_values."""

    def generate(context, builder, signature, args):
        for k, format, value in resting_values(builder, tag, *args[3:]):
            scoped(builder, builder.store(value, pointer(builder, args[1], k, args[2], format)), k)
        return context.get_dummy_value()

    return types.void(tag, base, types.uint64, values, random), generate


def _row(cls, tag, rows, r, first):
    """len(cls) numbers of row r of the float64 table, each rounded once to the compute type, as a named tuple."""
    width, dtype = len(cls._fields), compute_type(tag)
    result = types.NamedUniTuple(dtype, width, cls)

    def generate(context, builder, signature, args):
        table = context.make_array(signature.args[1])(context, builder, args[1])
        columns = builder.extract_value(table.shape, 1)
        start = builder.add(
            builder.mul(args[2], columns), _I64(first) if first >= 0 else builder.add(columns, _I64(first))
        )
        numbers = [builder.load(builder.gep(table.data, [builder.add(start, _I64(k))])) for k in range(width)]
        numbers = [resized(builder, number, context.get_data_type(dtype)) for number in numbers]
        return context.make_tuple(builder, result, numbers)

    return result(tag, rows, types.int64), generate


@intrinsic
def coefficients(typing, tag, rows, r):
    """The kernel's numbers of row r."""
    return _row(KERNEL_OF[tag.instance_class].Coefficients, tag, rows, r, 0)


@intrinsic
def numbers(typing, tag, rows, r):
    """The chores' numbers of row r: its last."""
    return _row(Numbers, tag, rows, r, -len(Numbers._fields))


@intrinsic
def key(typing, tag, rows, r):
    """What row r says of randomness: the last of the chores' numbers, all its bits kept; None if nothing is drawn."""

    def generate(context, builder, signature, args):
        if not stochastic(tag):
            return context.get_dummy_value()
        table = context.make_array(signature.args[1])(context, builder, args[1])
        end = builder.mul(builder.add(args[2], _I64(1)), builder.extract_value(table.shape, 1))
        return builder.load(builder.gep(table.data, [builder.sub(end, _I64(1))]))

    return (types.float64 if stochastic(tag) else types.none)(tag, rows, types.int64), generate


@intrinsic
def take(typing, spans, worker):
    """spans[worker, 0] before adding 1 to it, atomically: the next chunk of that worker's span."""

    def generate(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        index = builder.mul(args[1], builder.extract_value(array.shape, 1))
        return builder.atomic_rmw("add", builder.gep(array.data, [index]), _I64(1), "monotonic")

    return types.int64(spans, types.int64), generate
