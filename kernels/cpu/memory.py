"""Says how compiled code reaches memory: addresses, loads and stores of streams, rows of coefficients.

Each stream is a column of one table of addresses, in the order of ../streams.py, a row per leaf of the user's tree.
Every load and store carries an alias scope per stream, so LLVM vectorises without overlap checks, in parallel and in
serial code: without them AMSGrad's five streams ran 14 times slower.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..chores import TAKEN, Numbers
from ..formats import BFLOAT16, FLOAT32, REMAINDER, Format, format_of
from .elements import (
    KERNEL_OF,
    added,
    asked,
    columns,
    compute_type,
    element,
    loaded,
    remainder,
    rounded,
    stochastic_elements,
    storage,
    streams_of,
)
from .formats import TEXTS, decode, encode, followed, join, mixed, next_draws, resized, split
from .tracing import Number
from .words import I32, I64, place


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
    """Return the address of element `index` of a stream whose leaf begins at base[column]."""
    return place(builder, builder.extract_value(base, column), TEXTS[format].bits, index)


@intrinsic
def bases(typing, tag, table, width, leaf, first, g_leaf, g_first):
    """Return where element `first` of a leaf lies in each stream, g's from a place of its own: a tuple of addresses.

    table, width: the table's address, and how many columns it has. Last in the tuple, the element's index among all:
    the table's last column says the leaf's first. Of a gradient that is several arrays, where their list lies, and
    before that index how many bytes into each of them the element lies.
    """
    streams, several = streams_of(tag), asked(tag, "several")
    result = types.UniTuple(types.uint64, streams + several + 1)

    def generate(context, builder, signature, args):
        _, table, width, leaf, first, g_leaf, g_first = args

        def at(leaf, column):
            return builder.load(place(builder, table, I64, builder.add(builder.mul(leaf, width), column)))

        out = [I64(0)] * streams
        for k, format in storage(tag):
            leaf_of_k, begin = (g_leaf, g_first) if k == columns(tag).g else (leaf, first)
            if format.block > 1:  # a chunk begins with a block
                begin = builder.udiv(begin, I64(format.block))
            out[k], within = at(leaf_of_k, I64(k)), builder.mul(begin, I64(format.bytes))
            if several and k == columns(tag).g:
                out.append(within)
            else:
                out[k] = builder.add(out[k], within)
        out.append(builder.add(at(leaf, builder.sub(width, I64(1))), first))
        return context.make_tuple(builder, result, out)

    return result(tag, *[types.int64] * 6), generate


@intrinsic
def first_index(typing, base):
    """Return the index among all elements of the one that `bases` was asked for."""

    def generate(context, builder, signature, args):
        return builder.extract_value(args[0], base.count - 1)

    return types.uint64(base), generate


def values_of(builder: Any, tag: Any, resting: Any) -> list[Any]:
    """Return an element of every stream in the compute type, in the order of streams; None for those that are not read
    as one.

    resting(k, format): it as it rests in stream k.
    """
    values: list[Any] = [None] * streams_of(tag)
    for k in loaded(tag):
        values[k] = Number(builder, value_of(builder, tag, k, resting))
    return values


def value_of(builder: Any, tag: Any, k: int, resting: Any) -> Any:
    """Return an element of one stream in the compute type."""
    formats = dict(storage(tag))
    if k == columns(tag).p and remainder(tag) is not None:
        return join(builder, resting(k, BFLOAT16), resting(remainder(tag), REMAINDER))
    if k == columns(tag).p and rounded(tag) is not None:
        return master(builder, tag, resting)[0]
    format = in_walk(tag, k, formats[k])
    return decode(builder, resting(k, format), format, formats[columns(tag).p])


def master(builder: Any, tag: Any, resting: Any) -> tuple[Any, Any]:
    """Return an element of a p that is a master, after what was set from outside is taken over; and whether it was."""
    short = rounded(tag)
    assert short is not None
    column, format = short
    return followed(builder, resting(columns(tag).p, FLOAT32), resting(column, format), format)


def counter(builder: Any) -> Any:
    """Return the number on the stack, 0 at first, in which the function that is built counts elements."""
    function = builder.function
    if not hasattr(function, "counter"):
        with builder.goto_entry_block():
            function.counter = builder.alloca(I32)
            builder.store(I32(0), function.counter)
    return function.counter


def in_walk(tag: Any, k: int, format: Format) -> Format:
    """Return the format that an element of stream k is loaded from and stored in: what is computed with where it is in
    scratch."""
    in_scratch = format.block > 1 or (k == columns(tag).g and asked(tag, "several"))
    return format_of(storage(tag)[0][1].compute) if in_scratch else format


def at_rest(builder: Any, base: Any, i: Any) -> Any:
    """Return a function that loads element i of stream k from a format."""
    return lambda k, format: scoped(builder, builder.load(pointer(builder, base, k, i, format)), k)


def resting_values(builder: Any, tag: Any, values: Any, random: Any) -> Any:
    """Yield (stream, its format, the new value in that) of every stream but g, unless it is to be cleared.

    values: as element gives them. random: what is mixed for this element, where any stream is rounded stochastically.
    """
    at, drawn, more = columns(tag), stochastic_elements(tag), remainder(tag)
    halves: Any = None
    other: Any = None
    if drawn:
        random = mixed(builder, random)
        upper = builder.lshr(random, I32(16))
        halves = builder.and_(builder.xor(random, upper), I32(0xFFFF)), upper
    # What is worked out from bfloat16 alone has NaNs whose low bits are 0: rounding cannot carry them to infinity.
    safe = all(format is BFLOAT16 for _, format in storage(tag))
    for k, format in storage(tag):
        if k == at.g and (asked(tag, "several") or not asked(tag, "clear")):
            continue
        format = in_walk(tag, k, format)
        if k == more:
            value = other
        elif k == at.p and more is not None:
            value, other = split(builder, values[k].value)
        else:
            draw = halves[k != at.p] if k in drawn else None
            value = encode(builder, values[k].value, format, draw, safe)
        yield k, format, value


def store(builder: Any, tag: Any, base: Any, i: Any, values: Any, random: Any) -> None:
    """Write an element's new values back: see resting_values."""
    for k, format, value in resting_values(builder, tag, values, random):
        scoped(builder, builder.store(value, pointer(builder, base, k, i, format)), k)


def unpacked(builder: Any, numbers: Any, kind: Any) -> Any:
    """Return a named tuple of compiled code as one of Numbers."""
    return kind(*(Number(builder, builder.extract_value(numbers, k)) for k in range(len(kind._fields))))


@intrinsic
def move(typing, tag, base, i, c, x, bits):
    """Step element i: load it from every stream, store what `element` makes of it; returns the next element's bits.

    c, x: the kernel's numbers and the chores'. bits: what is mixed for the element.
    """

    def generate(context, builder, signature, args):
        _, base, i, c, x, bits = args
        values = values_of(builder, tag, at_rest(builder, base, i))
        c, x = (unpacked(builder, *pair) for pair in zip((c, x), kinds(tag), strict=True))
        if rounded(tag) is not None:
            _, outside = master(builder, tag, at_rest(builder, base, i))
            count = builder.add(builder.load(counter(builder)), builder.zext(outside, I32))
            builder.store(count, counter(builder))
        store(builder, tag, base, i, element(tag, values, c, x), bits)
        return next_draws(builder, bits) if stochastic_elements(tag) else bits

    return bits(tag, base, types.uint64, c, x, bits), generate


@intrinsic
def taken(typing, tag, chunk):
    """Write down in a chunk how many elements of a master `move` has found set from outside since the last chunk."""

    def generate(context, builder, signature, args):
        if rounded(tag) is not None:
            home = counter(builder)
            builder.store(builder.zext(builder.load(home), I64), place(builder, args[1], I64, I64(TAKEN)))
            builder.store(I32(0), home)
        return context.get_dummy_value()

    return types.void(tag, types.int64), generate


@intrinsic
def add(typing, tag, base, i, fresh):
    """Add element i of a gradient to its total, or store it there if `fresh`."""

    def generate(context, builder, signature, args):
        _, base, i, fresh = args
        values = values_of(builder, tag, at_rest(builder, base, i))
        store(builder, tag, base, i, added(values, fresh), None)
        return context.get_dummy_value()

    return types.void(tag, base, types.uint64, types.boolean), generate


def kinds(tag: Any) -> tuple[Any, Any]:
    """Return the named tuples of a kernel's numbers and of the chores'."""
    return KERNEL_OF[tag.instance_class].Coefficients, Numbers


def _row(cls, tag, first):
    """Return len(cls) float64 numbers from the first-th after an address, each rounded once to the compute type, as a
    named tuple."""
    width, dtype = len(cls._fields), compute_type(tag)
    result = types.NamedUniTuple(dtype, width, cls)

    def generate(context, builder, signature, args):
        numbers = [builder.load(place(builder, args[1], ir.DoubleType(), I64(first + k))) for k in range(width)]
        numbers = [resized(builder, number, context.get_data_type(dtype)) for number in numbers]
        return context.make_tuple(builder, result, numbers)

    return result(tag, types.int64), generate


@intrinsic
def coefficients(typing, tag, start):
    """Return the kernel's numbers of the row that starts at an address."""
    return _row(kinds(tag)[0], tag, 0)


@intrinsic
def numbers(typing, tag, end):
    """Return the chores' numbers of the row that ends at an address: its last."""
    return _row(Numbers, tag, -len(Numbers._fields))
