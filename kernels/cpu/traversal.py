"""One walk over memory for every kernel, every storage format and every chore.

What a piece of memory gets follows the class of `tag` (elements.py): a kernel's step, a sum for the norm, or an
addition; formats, absent streams and chores follow its fields. Chunks are shared out in one place, here.
"""

import logging
from types import FunctionType
from typing import Any

import numba
import numpy as np
from numba import njit, prange, types
from numba.extending import overload, register_jitable

from ..chores import BLOCK as BLOCK_ELEMENTS
from ..chores import Numbers
from .blocks import scratch
from .cache import keep
from .codes import closed, opened
from .elements import (
    Accumulate,
    Measure,
    element,
    random,
    random_end,
    random_next,
    random_start,
    zero,
)
from .memory import bases, coefficients, first_index, key, load, numbers, store, take
from .pairs import load_two, paired, store_two
from .statistics import after, before, measured, stride

log = logging.getLogger("fastadam")

u64 = np.uint64
BLOCK, ONE, TWO, EXTRA_NUMBERS = u64(BLOCK_ELEMENTS), u64(1), u64(2), len(Numbers._fields)


def _piece(tag, table, chunks, k, row, rows, notes):
    """What chunk k gets."""


def _step(tag, table, chunks, k, row, rows, notes):
    leaf, first, n, zeros = u64(chunks[k, 0]), u64(chunks[k, 1]), u64(chunks[k, 2]), u64(table.shape[0] - 1)
    r, room = row[leaf], scratch(tag)
    if r >= 0:
        for now in range(r - chunks[k, 5], r + 1):  # the steps it has missed, then this one
            c, x, drawn = coefficients(tag, rows, now), numbers(tag, rows, now), key(tag, rows, now)
            g_leaf = u64(chunks[k, 3]) if now == r else zeros
            g_first = u64(chunks[k, 4]) if now == r else u64(0)
            base = bases(table, tag, leaf, first, g_leaf, g_first)
            index = first_index(base)
            for start in range(u64(0), n, stride(tag)):
                end = min(n, start + stride(tag))
                before(tag, base, start, end, room, notes, k)
                here, at = opened(tag, base, room, start, end), start
                while at < end:
                    bits, until = random_start(tag, drawn, index, at), random_end(tag, index, at, end)
                    run(tag, here, at, until, c, x, bits)
                    at = until
                closed(tag, base, room, start, end, drawn)
                after(tag, base, start, end, room, notes, k)


def run(tag, base, at, until, c, x, bits):
    """Step elements at to until - 1. bits: what `random` needs for the first."""


# Inlined, or the arguments of each piece would be passed and broadcast anew.
@overload(run, jit_options={"forceinline": True})
def _run(tag, base, at, until, c, x, bits):
    return _two_by_two if paired(tag) else _one_by_one


@register_jitable(forceinline=True)
def _one(tag, base, i, c, x, bits):
    store(tag, base, i, element(tag, load(tag, base, i), c, x), random(tag, bits))


def _one_by_one(tag, base, at, until, c, x, bits):
    for i in range(at, until):  # a signed range is not vectorised
        _one(tag, base, i, c, x, bits)
        bits = random_next(tag, bits)


def _two_by_two(tag, base, at, until, c, x, bits):
    pairs = (until - at) // TWO
    for k in range(pairs):
        i, other = at + TWO * k, random_next(tag, bits)
        first, second = load_two(tag, base, i)
        new = element(tag, first, c, x), element(tag, second, c, x)
        store_two(tag, base, i, *new, random(tag, bits), random(tag, other))
        bits = random_next(tag, other)
    if at + TWO * pairs < until:
        _one(tag, base, until - ONE, c, x, bits)


def _measure(tag, table, chunks, k, row, rows, notes):
    leaf, n = u64(chunks[k, 0]), u64(chunks[k, 2])
    if row[leaf] >= 0:
        room = scratch(tag)
        base = bases(table, tag, leaf, u64(0), u64(chunks[k, 3]), u64(chunks[k, 4]))
        for start in range(u64(0), n, BLOCK):
            measured(tag, base, start, n, room, notes[k, start // BLOCK])


def _accumulate(tag, table, chunks, k, row, rows, notes):
    leaf, first, n = u64(chunks[k, 0]), u64(chunks[k, 1]), u64(chunks[k, 2])
    if row[leaf] >= 0:
        base = bases(table, tag, leaf, first, leaf, first)
        for i in range(u64(0), n):
            total, g = load(tag, base, i)
            store(tag, base, i, (g if row[leaf] == 0 else total + g, zero(tag, g)), None)


@overload(_piece)
def _piece_of(tag, table, chunks, k, row, rows, notes):
    return {Measure: _measure, Accumulate: _accumulate}.get(tag.instance_class, _step)


def _walk(table, tag, chunks, spans, row, rows, counts, carried, notes):
    """Give every chunk its piece of work once, then advance the counts. The arguments: see Plan."""
    workers = spans.shape[0]
    before = _enter(workers)  # noqa: F821  given by _compiled
    for w in range(workers):
        spans[w, 0] = spans[w, 1]
    for w in prange(workers):
        for turn in range(workers):  # its own span first, which its cache may still hold, then what others have left
            victim = (w + turn) % workers
            k = take(spans, victim)
            while k < spans[victim, 2]:
                _piece(tag, table, chunks, k, row, rows, notes)
                k = take(spans, victim)
    for leaf in range(counts.shape[0]):
        r = row[leaf]
        if r >= 0:
            counts[leaf] += 1
            for j in range(carried.shape[1]):
                carried[leaf, j] = rows[r, rows.shape[1] - EXTRA_NUMBERS - carried.shape[1] + j]
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
