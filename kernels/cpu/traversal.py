"""One walk over memory for every kernel and every storage format.

Each stream (p, g, each slot) is a column of one table of addresses, a row per leaf of the user's tree. The kernel
follows the class of `tag`, formats and absent slots its fields. Every load and store carries an alias scope per stream,
so LLVM vectorises without overlap checks, in parallel and in serial code: without them AMSGrad's five streams ran
14 times slower.
"""

import logging
from types import FunctionType
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from fastadam.kernels.cpu.cache import keep
from fastadam.kernels.cpu.elements import KERNEL_OF, compute_type, element, storage

log = logging.getLogger("fastadam")

u64 = np.uint64
_I64 = ir.IntType(64)


def _scoped(builder: Any, access: Any, column: int) -> Any:
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


def _pointer(context: Any, builder: Any, base: Any, column: int, index: Any, dtype: Any) -> Any:
    """The address of element `index` of a stream whose leaf begins at base[column]."""
    start = builder.inttoptr(builder.extract_value(base, column), ir.PointerType(context.get_data_type(dtype)))
    return builder.gep(start, [index])


@intrinsic
def _bases(typing, table, tag, leaf, first, g_leaf, g_first):
    """Where element `first` of a leaf lies in each stream, g's from a place of its own: a tuple of addresses."""
    width = len(tag.types)
    result = types.UniTuple(types.uint64, width)

    def generate(context, builder, signature, args):
        rows = context.make_array(signature.args[0])(context, builder, args[0])
        out = [_I64(0)] * width
        for k, dtype in storage(signature.args[1]):
            leaf, first = args[4:] if k == 1 else args[2:4]
            place = builder.add(builder.mul(leaf, _I64(width)), _I64(k))
            base = builder.load(builder.gep(rows.data, [place]))
            size = context.get_abi_sizeof(context.get_data_type(dtype))
            out[k] = builder.add(base, builder.mul(first, _I64(size)))
        return context.make_tuple(builder, result, out)

    return result(table, tag, types.uint64, types.uint64, types.uint64, types.uint64), generate


@intrinsic
def _load(typing, tag, base, i):
    """Element i of every stream; None for a slot that is absent."""
    present = dict(storage(tag))
    result = types.Tuple([present.get(k, types.none) for k in range(len(tag.types))])

    def generate(context, builder, signature, args):
        values = [context.get_dummy_value()] * len(tag.types)
        for k, dtype in present.items():
            values[k] = _scoped(builder, builder.load(_pointer(context, builder, args[1], k, args[2], dtype)), k)
        return context.make_tuple(builder, result, values)

    return result(tag, base, types.uint64), generate


@intrinsic
def _store(typing, tag, base, i, values):
    """Write p and the slots back: every stream but g, which the element does not return."""

    def generate(context, builder, signature, args):
        for k, dtype in storage(signature.args[0]):
            if k != 1:
                value = builder.extract_value(args[3], k - (k > 1))
                _scoped(builder, builder.store(value, _pointer(context, builder, args[1], k, args[2], dtype)), k)
        return context.get_dummy_value()

    return types.void(tag, base, types.uint64, values), generate


@intrinsic
def _coefficients(typing, tag, rows, r):
    """Row r of the float64 table, each number rounded once to the compute type, as the kernel's named tuple."""
    cls = KERNEL_OF[tag.instance_class].Coefficients
    width, dtype = len(cls._fields), compute_type(tag)
    result = types.NamedUniTuple(dtype, width, cls)

    def generate(context, builder, signature, args):
        table = context.make_array(signature.args[1])(context, builder, args[1])
        first = builder.mul(args[2], builder.extract_value(table.shape, 1))
        numbers = [builder.load(builder.gep(table.data, [builder.add(first, _I64(k))])) for k in range(width)]
        if dtype == types.float32:
            numbers = [builder.fptrunc(number, ir.FloatType()) for number in numbers]
        return context.make_tuple(builder, result, numbers)

    return result(tag, rows, types.int64), generate


@intrinsic
def _take(typing, spans, worker):
    """spans[worker, 0] before adding 1 to it, atomically: the next chunk of that worker's span."""

    def generate(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        index = builder.mul(args[1], builder.extract_value(array.shape, 1))
        return builder.atomic_rmw("add", builder.gep(array.data, [index]), _I64(1), "monotonic")

    return types.int64(spans, types.int64), generate


def _walk(table, tag, chunks, spans, row, rows, counts, carried):
    """Step every leaf once, then advance its count. The arguments: see fastadam.plan.Plan."""
    workers, zeros = spans.shape[0], u64(table.shape[0] - 1)
    before = _enter(workers)  # noqa: F821  given by _compiled
    for w in range(workers):
        spans[w, 0] = spans[w, 1]
    for w in prange(workers):
        for turn in range(workers):  # its own span first, which its cache may still hold, then what others have left
            victim = (w + turn) % workers
            k = _take(spans, victim)
            while k < spans[victim, 2]:
                leaf, first, n = u64(chunks[k, 0]), u64(chunks[k, 1]), u64(chunks[k, 2])
                r = row[leaf]
                if r >= 0:
                    for now in range(r - chunks[k, 5], r + 1):  # the steps it has missed, then this one
                        c = _coefficients(tag, rows, now)
                        g_leaf = u64(chunks[k, 3]) if now == r else zeros
                        g_first = u64(chunks[k, 4]) if now == r else u64(0)
                        base = _bases(table, tag, leaf, first, g_leaf, g_first)
                        for i in range(u64(0), n):  # a signed range is not vectorised
                            _store(tag, base, i, element(tag, _load(tag, base, i), c))
                k = _take(spans, victim)
    for leaf in range(counts.shape[0]):
        r = row[leaf]
        if r >= 0:
            counts[leaf] += 1
            for j in range(carried.shape[1]):
                carried[leaf, j] = rows[r, rows.shape[1] - carried.shape[1] + j]
    _leave(before)  # noqa: F821


OPTIONS: Any = {"error_model": "numpy", "nogil": True}  # any other error model tests each division for zero


# The threading layer's own symbols: numba.set_num_threads holds a pointer of this process, which cannot be cached.
_get_num_threads = types.ExternalFunction("get_num_threads", types.intc())
_set_num_threads = types.ExternalFunction("set_num_threads", types.void(types.intc))


@njit(**OPTIONS)
def _limit_threads(n):
    before = _get_num_threads()
    _set_num_threads(n)
    return before


@njit(**OPTIONS)
def _restore_threads(before):
    _set_num_threads(before)


@njit(**OPTIONS)
def _nothing(n):
    return n


def _compiled(name: str, enter: Any, leave: Any, **options: Any) -> Any:
    """The walk under a name of its own, with its own way to enter and leave a parallel region."""
    function = FunctionType(_walk.__code__, {**globals(), "_enter": enter, "_leave": leave}, name)
    function.__qualname__ = name
    return keep(njit(**OPTIONS, **options)(function), name)


# Serial code never touches a threading layer: it is the way out in a forked child and while another thread walks.
walk_serial = _compiled("walk_serial", _nothing, _nothing)
walk_parallel = _compiled("walk_parallel", _limit_threads, _restore_threads, parallel=True)


def walk_for(workers: int) -> Any:
    """The walk on so many threads."""
    if workers == 1:
        return walk_serial
    try:  # loads the threading layer: without its symbols, linking walk_parallel ends the process
        numba.get_num_threads()
    except ValueError as error:
        log.warning("no threading layer: %s. Steps run on one thread", error)
        return walk_serial
    return walk_parallel


def compiled_for(function: Any, args: tuple[Any, ...]) -> Any:
    """The native function for arguments of these types, compiled or loaded now.

    Called directly, without the dispatcher's look at every argument, a step over 2^10 parameters takes 0.8 µs, not 1.8.
    Whoever calls it must pass just these types.
    """
    return function.compile(tuple(map(numba.typeof, args)))
