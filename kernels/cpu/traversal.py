"""Is one walk over memory for every kernel, every storage format and every chore.

For each signature one *piece* is compiled, a C function `void piece(job, low, high)` that does the work of chunks low
to high - 1: a kernel's step, a sum for the norm, or an addition, by the class of its tag; formats, absent streams and
chores follow the tag's fields (elements.py). One driver serves them all: it shares the chunks out among threads, calls
the piece by its address, and advances the counts.
"""

import logging
import os
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite.binding import address_of_symbol
from numba import types

from ..chores import BLOCK as BLOCK_ELEMENTS
from ..chores import CHUNK_WORDS, NOTES, Numbers
from .blocks import scratch
from .cache import Code
from .codes import closed, opened
from .cores import allowed, core, leave, spreading, thread
from .draws import key, random_end, random_start
from .elements import Accumulate, Measure, asked, coded
from .entry import native_text
from .memory import add, bases, coefficients, first_index, move, numbers, taken
from .pairs import move_two, paired
from .prefetch import asking, period_of, prefetch
from .statistics import after, before, laid_from, lay, measured, summed
from .words import call_piece, call_workers, put_word, take, word

log = logging.getLogger("fastadam")


class Job(NamedTuple):
    """Holds what a piece and the driver get: all that one signature's work is, as numbers and addresses of int64 or
    float64.

    The arrays: see fastadam.plans.plan.Plan; spans: see fastadam.host.compiled.
    """

    piece: int  # the function for a range of chunks
    share: int  # the function for one worker
    parallel_for: int  # these three: the threading layer's functions; 0 where one thread walks
    get_threads: int
    set_threads: int
    workers: int
    spans: int
    chunks: int
    table: int
    columns: int  # of the table
    leaves: int  # rows of the table but its last, which has the zeros
    row: int
    rows: int
    numbers: int  # a row's
    counts: int
    counted: int  # how many counts are advanced
    carried: int
    carries: int  # numbers a leaf
    notes: int
    blocks: int  # a chunk's


(
    PIECE, SHARE, PARALLEL_FOR, GET_THREADS, SET_THREADS, WORKERS, SPANS, CHUNKS, TABLE, COLUMNS, LEAVES, ROW, ROWS,
    NUMBERS, COUNTS, COUNTED, CARRIED, CARRIES, NOTES_AT, BLOCKS,
) = range(len(Job._fields))  # fmt: skip
LEAF, FIRST, COUNT, G_LEAF, G_FIRST, MISSED = range(6)  # of a chunk
NEXT, BEGIN, END, THREAD, CORE = range(5)  # of a span; of the first, who walks, and where; behind all, where it may
NOWHERE = -2

u64 = np.uint64
WORD, CHUNK, SPAN, NOTE = 8, CHUNK_WORDS * 8, 8 * 8, NOTES * 8  # bytes
BLOCK, ONE, TWO, EXTRA_NUMBERS = u64(BLOCK_ELEMENTS), u64(1), u64(2), len(Numbers._fields)
WHOLE = u64(1 << 62)


# Pieces: each is made for one tag, which its text gets as what is known then, so what a tag lacks leaves no code.


def _step(tag, stats, in_pairs, stride, job, low, high):
    """Step. stride: elements between two looks at scratch."""
    table, columns, zeros = word(job, TABLE), word(job, COLUMNS), word(job, LEAVES)
    row, rows, width, room = word(job, ROW), word(job, ROWS), WORD * word(job, NUMBERS), scratch(tag)
    for k in range(low, high):
        chunk = word(job, CHUNKS) + CHUNK * k
        leaf, first, n, missed = word(chunk, LEAF), word(chunk, FIRST), u64(word(chunk, COUNT)), word(chunk, MISSED)
        r, note = word(row, leaf), word(job, NOTES_AT) + NOTE * k * word(job, BLOCKS)
        period = period_of(tag, n, BLOCK * u64(word(job, BLOCKS)))
        if r >= 0:
            for now in range(r - missed, r + 1):  # the steps it has missed, then this one
                at_row, row_end = rows + width * now, rows + width * (now + 1)
                c, x, drawn = coefficients(tag, at_row), numbers(tag, row_end), key(tag, row_end)
                g_leaf = word(chunk, G_LEAF) if now == r else zeros
                g_first = word(chunk, G_FIRST) if now == r else 0
                base = bases(tag, table, columns, leaf, first, g_leaf, g_first)
                index = first_index(base)
                for start in range(u64(0), n, stride):
                    end = min(n, start + stride)
                    if stats:
                        before(tag, base, start, end, room, u64(note) + u64(NOTE) * (start // BLOCK))
                    streams, at = opened(tag, base, room, start, end), start
                    while at < end:
                        if end - at >= period:  # asked of `period` alone, LLVM makes all loops twice
                            prefetch(tag, base, at)
                        bits = random_start(tag, drawn, index, at)
                        until = random_end(tag, index, at, min(end, at + period))
                        if in_pairs:
                            pairs = (until - at) // TWO
                            for j in range(u64(0), pairs):
                                bits = move_two(tag, streams, at + TWO * j, c, x, bits)
                            if at + TWO * pairs < until:
                                move(tag, streams, until - ONE, c, x, bits)
                        else:
                            for i in range(at, until):  # a signed range is not vectorised
                                bits = move(tag, streams, i, c, x, bits)
                        at = until
                    closed(tag, base, room, start, end, drawn)
                    if stats:
                        after(tag, base, start, end, room, u64(note) + u64(NOTE) * (start // BLOCK))
            taken(tag, chunk)


def _sum(tag, job, low, high):
    """Add up what a step must know of whole leaves first."""
    table, columns, rows = word(job, TABLE), word(job, COLUMNS), word(job, ROWS)
    width, room = WORD * word(job, NUMBERS), scratch(tag)
    for k in range(low, high):
        chunk = word(job, CHUNKS) + CHUNK * k
        leaf, first, n = word(chunk, LEAF), word(chunk, FIRST), u64(word(chunk, COUNT))
        period = period_of(tag, n, BLOCK * u64(word(job, BLOCKS)))
        r, note = word(word(job, ROW), leaf), u64(word(job, NOTES_AT) + NOTE * k * word(job, BLOCKS))
        if r >= 0:
            c, x = coefficients(tag, rows + width * r), numbers(tag, rows + width * (r + 1))
            base = bases(tag, table, columns, leaf, first, word(chunk, G_LEAF), word(chunk, G_FIRST))
            for start in range(u64(0), n, BLOCK):
                end = min(n, start + BLOCK)
                streams = opened(tag, base, room, start, end)
                laid = laid_from(tag, room, start)
                for at in range(start, end, period):
                    if end - at >= period:
                        prefetch(tag, base, at)
                    for i in range(at, min(end, at + period)):
                        lay(tag, streams, i, c, x, laid)
                summed(tag, room, end - start, note + u64(NOTE) * (start // BLOCK))


def _measure(tag, job, low, high):
    """Sum squares of gradients and find their largest magnitudes."""
    room = scratch(tag)
    for k in range(low, high):
        chunk = word(job, CHUNKS) + CHUNK * k
        leaf, n = word(chunk, LEAF), u64(word(chunk, COUNT))
        note = u64(word(job, NOTES_AT) + NOTE * k * word(job, BLOCKS))
        if word(word(job, ROW), leaf) >= 0:
            g_leaf, g_first = word(chunk, G_LEAF), word(chunk, G_FIRST)
            base = bases(tag, word(job, TABLE), word(job, COLUMNS), leaf, 0, g_leaf, g_first)
            for start in range(u64(0), n, BLOCK):
                measured(tag, base, start, n, room, note + u64(NOTE) * (start // BLOCK))


def _accumulate(tag, job, low, high):
    """Add gradients up."""
    for k in range(low, high):
        chunk = word(job, CHUNKS) + CHUNK * k
        leaf, first, n = word(chunk, LEAF), word(chunk, FIRST), u64(word(chunk, COUNT))
        r, period = word(word(job, ROW), leaf), period_of(tag, n, BLOCK * u64(word(job, BLOCKS)))
        if r >= 0:
            base = bases(tag, word(job, TABLE), word(job, COLUMNS), leaf, first, leaf, first)
            for at in range(u64(0), n, period):
                if n - at >= period:
                    prefetch(tag, base, at)
                for i in range(at, min(n, at + period)):
                    add(tag, base, i, r == 0)


def _walk(spread, job):
    """Give every chunk of a job to its piece once, then advance the counts. spread: whether workers choose their
    core."""
    spans, workers = word(job, SPANS), word(job, WORKERS)
    if workers == 1:
        call_piece(word(job, PIECE), job, word(spans, BEGIN), word(spans, END))
    else:
        for w in range(workers):
            put_word(spans + SPAN * w, NEXT, word(spans + SPAN * w, BEGIN))
        if spread:
            put_word(spans, THREAD, thread())
            put_word(spans, CORE, core() if allowed(spans + SPAN * workers) == 0 else NOWHERE)
        parallel_for, get_threads, set_threads = word(job, PARALLEL_FOR), word(job, GET_THREADS), word(job, SET_THREADS)
        call_workers(parallel_for, get_threads, set_threads, word(job, SHARE), spans, SPAN, workers, job)
    width, carries, carried = word(job, NUMBERS), word(job, CARRIES), word(job, CARRIED)
    for leaf in range(word(job, COUNTED)):
        r = word(word(job, ROW), leaf)
        if r >= 0:
            put_word(word(job, COUNTS), leaf, word(word(job, COUNTS), leaf) + 1)
            numbers_end = word(job, ROWS) + WORD * (width * (r + 1) - EXTRA_NUMBERS - carries)
            for j in range(carries):
                put_word(carried, carries * leaf + j, word(numbers_end, j))


def _share(spread, spans, shares, strides, job):
    """Do what the threading layer asks of some workers, shares[0] of them from the one whose span spans[0] names."""
    workers, all_spans, piece = word(job, WORKERS), word(job, SPANS), word(job, PIECE)
    if spread and core() == word(all_spans, CORE) and thread() != word(all_spans, THREAD):
        leave(word(all_spans, CORE), all_spans + SPAN * workers)
    for w in range((word(spans, 0) - all_spans) // SPAN, (word(spans, 0) - all_spans) // SPAN + word(shares, 0)):
        for turn in range(workers):  # its own span first, which its cache may still hold, then what others have left
            victim = all_spans + SPAN * ((w + turn) % workers)
            k = take(victim)
            while k < word(victim, END):
                call_piece(piece, job, k, k + 1)
                k = take(victim)


pieces: dict[Any, Code] = {}  # by the types of their tags


def piece(tag: Any) -> int:
    """Return the address of the piece for a tag, compiled or loaded now."""
    kind = numba.typeof(tag)
    if kind not in pieces:
        pieces[kind] = _piece(type(tag), kind)
    return pieces[kind].address


def _piece(tag: Any, kind: Any) -> Code:
    signature, constants = types.void(*[types.int64] * 3), {"tag": kind}
    function = {Measure: _measure, Accumulate: _accumulate}.get(tag, _sum if asked(kind, "summing") else _step)
    if function is _step:
        stats = asked(kind, "stats")
        in_scratch = stats or coded(kind) or asked(kind, "several")
        constants |= {"stats": stats, "in_pairs": paired(kind), "stride": BLOCK if in_scratch else WHOLE}
    of = str(kind) + ", asking" * asking(kind)
    return native_text(function.__name__.strip("_"), function, signature, of, for_c=True, constants=constants)


@cache
def walk() -> Any:
    """Return the driver, to be called with a job's address: serial and parallel, for it never names a threading
    layer."""
    return _driver("walk", _walk, 1, spreading()).entry_point


def _driver(name: str, function: Any, arguments: int, spread: bool, **how: Any) -> Code:
    signature = types.void(*[types.int64] * arguments)
    return native_text(name, function, signature, "spread" * spread, constants={"spread": spread}, **how)


class ThreadingLayer(NamedTuple):
    """Holds the addresses of what a parallel walk calls: one worker's share, and the threading layer's functions."""

    share: int
    parallel_for: int
    get_threads: int
    set_threads: int


# GNU's OpenMP lets a thread that is done pause 300,000 times before it sleeps: 6 to 14 ms, in which it holds a core
# that BLAS needs for the next product. On two Zen 4 cores an epoch of scikit-learn's MLP stepped here was 0.68 times as
# fast as with scikit-learn's Adam, with 3,000 pauses 1.36 times. Steps in a row are as fast as before: 2^16 took 40 µs
# with 0 pauses, 29 with 300, 21 with 3,000 and with 300,000. On two Intel Xeon cores a step over 2^20 parameters of
# PyTorch took 460 µs with 6,000, 425 with 10,000 and with 300,000, where scikit-learn's epoch took 1.55, 1.50 and 0.84
# times as long as this one's.
PAUSES = "10000"


def load_layer() -> None:
    """Load Numba's threading layer, OpenMP's with PAUSES unless the environment says how its threads wait.

    Raises ValueError where there is none.
    """
    chosen = os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    if not chosen:  # read once, while the library is loaded; other libraries bring an OpenMP of their own
        os.environ["GOMP_SPINCOUNT"] = PAUSES
    try:
        numba.get_num_threads()
    finally:
        if not chosen:
            del os.environ["GOMP_SPINCOUNT"]


@cache
def layer() -> ThreadingLayer | None:
    """Return what a job needs for more than one worker; None where Numba has no threading layer."""
    try:
        load_layer()
    except ValueError as error:
        log.warning("no threading layer: %s. Steps run on one thread", error)
        return None
    spread = spreading() and numba.threading_layer() != "workqueue"  # type: ignore[attr-defined]  # where who walks waits
    share = _driver("share", _share, 4, spread, for_c=True)
    symbols = map(address_of_symbol, ("numba_parallel_for", "get_num_threads", "set_num_threads"))
    return ThreadingLayer(share.address, *symbols)
