"""A step as a typed custom call of XLA's on CPUs: one C function, of a call frame, for all kernels and formats.

The frame, its buffers and XLA's functions lie as xla/ffi/api/c_api.h says. Operands, in this order: numbers that a
program takes, the count, what the rule carries, the streams that a step writes, the gradients. Results: the count and
all that is written, each in its operand's place; then the norm, if gradients are clipped by theirs.

What this process decides, such as where compiled pieces begin, lies on a desk, whose address plus 1 the function gets
once in place of a frame. Large steps run on XLA's own threads: under two devices Numba's abort the process.
"""

import math
from functools import cache

from numba import types

from ..chores import BLOCK, CHUNK_WORDS, NOTES
from .cache import Code
from .call_memory import (
    ALL,
    API,
    CHUNK,
    CHUNKS,
    COEFFICIENTS,
    DECIDE,
    DECIDED,
    DECIDER,
    DONE,
    DONE_MEASURED,
    HEAD_AT,
    INPUTS,
    JOB,
    LEAVES,
    LIMIT,
    LIST,
    MEASURE_PIECES,
    NEXT,
    NEXT_MEASURED,
    NO_PIECE,
    NORM,
    NOTED,
    PARALLEL_FROM,
    PROGRAM,
    PROMISE,
    REGISTERS,
    RESULT,
    ROW_OF,
    ROWS,
    ROWS_AT,
    SCALE,
    STEP_PIECES,
    SUMS,
    UNALIASED,
    USERS,
    WIDTH,
    WORD,
    WORK,
    coefficients,
    lay_out,
    prepare,
)  # fmt: skip
from .entry import native_text
from .frame import (
    AVAILABLE,
    EXECUTE,
    FUTURE,
    INTERNAL,
    INVALID,
    METADATA,
    SCHEDULE,
    attribute,
    buffer,
    elements,
    forget,
    half,
    refused,
    threads,
)  # fmt: skip
from .norm import of_leaves
from .subnormals import gradual, restore
from .words import (
    call,
    call_nothing,
    call_piece,
    number,
    put_float32,
    put_int32,
    put_number,
    put_word,
    remembered,
    room,
    share,
    take,
    word,
)  # fmt: skip

free = types.ExternalFunction("free", types.void(types.int64))
give_way = types.ExternalFunction("sched_yield", types.int32())


def aliased(frame, head):
    """Tell whether every result that stands for an operand lies in its place."""
    inputs, results = word(head, INPUTS), word(frame, 12) - word(head, NORM)
    for k in range(results):
        before, after = buffer(frame, inputs + k), word(word(frame, 14), k)
        if word(before, 3) != word(after, 3) and elements(before) > 0:
            return False
    return True


def spread(frame, block, task, workers):
    """Let XLA's pool help with the work, and promise XLA its end."""
    args = room()
    put_word(args, 0, 24)
    put_word(args, 1, 0)
    put_word(args, 2, 0)
    error = call(word(word(frame, 2), FUTURE), args)
    if error != 0:
        forget(frame, error)
        return
    put_word(block, PROMISE, word(args, 2))
    put_word(frame, 21, word(args, 2))
    put_word(block, USERS, workers)
    put_word(args, 0, 40)
    put_word(args, 2, word(frame, 3))
    put_word(args, 3, task)
    put_word(args, 4, block)
    for _ in range(workers - 1):
        error = call(word(word(frame, 2), SCHEDULE), args)
        if error != 0:
            forget(frame, error)
            share(block + WORD * USERS, -1)


def _decide(block):
    """Multiply the rows by the factor that clips the gradients to the limit, from what was noted of their blocks."""
    head, registers, sums = word(block, HEAD_AT), word(block, REGISTERS), word(block, SUMS)
    noted, blocks = word(block, NOTED), word(head, CHUNK) // BLOCK
    of_leaves(word(block, LIST), word(block, CHUNKS), noted, blocks, word(block, ROW_OF), sums)
    many = word(head, LEAVES)
    for k in range(many):
        put_number(sums, k, number(sums, NOTES * k))
    while many > 1:  # in pairs of neighbours, as chores.in_pairs
        pairs = many // 2
        for k in range(pairs):
            put_number(sums, k, number(sums, 2 * k) + number(sums, 2 * k + 1))
        if many % 2:
            put_number(sums, pairs, number(sums, many - 1))
        many = pairs + many % 2
    limit = number(registers, word(head, LIMIT))
    norm = abs(number(registers, word(head, SCALE))) * math.sqrt(number(sums, 0))
    factor = 1.0 if norm <= limit else limit / norm
    rows, width = word(block, ROWS_AT), word(head, WIDTH)
    for r in range(word(head, ROWS)):
        put_number(rows, r * width, number(rows, r * width) * factor)
    put_float32(word(block, RESULT), norm)


def _work(block):
    """Take chunks until there are none. Who does the last fulfils the promise; who leaves last frees the memory."""
    mode, count, chunks, job = gradual(), word(block, CHUNKS), word(block, LIST), word(block, JOB)
    if word(word(block, HEAD_AT), LIMIT) >= 0:
        if count == 0:
            call_nothing(word(block, DECIDER), block)
            share(block + WORD * DECIDED, 1)
        k = take(block + WORD * NEXT_MEASURED)
        while k < count:
            call_piece(word(word(block, MEASURE_PIECES), word(chunks, CHUNK_WORDS * k)), job, k, k + 1)
            if share(block + WORD * DONE_MEASURED, 1) == count - 1:
                call_nothing(word(block, DECIDER), block)
                share(block + WORD * DECIDED, 1)
            k = take(block + WORD * NEXT_MEASURED)
        while share(block + WORD * DECIDED, 0) == 0:  # who does the rest is running: no chunk waits for a thread
            give_way()
    k, done = take(block + WORD * NEXT), 0
    while k < count:
        call_piece(word(word(block, STEP_PIECES), word(chunks, CHUNK_WORDS * k)), job, k, k + 1)
        done = share(block + WORD * DONE, 1) + 1
        k = take(block + WORD * NEXT)
    restore(mode)  # before the promise: XLA may run what follows within the call that fulfils it
    if done == count and word(block, PROMISE) != 0:
        args = room()
        put_word(args, 0, 24)
        put_word(args, 1, 0)
        put_word(args, 2, word(block, PROMISE))
        call(word(word(block, API), AVAILABLE), args)
    if share(block + WORD * USERS, -1) == 1:
        free(block)


def _step(frame):
    desk = remembered(frame - 1 if frame & 1 else 0)
    if frame & 1:
        return 0
    extension = word(frame, 1)
    if extension != 0 and half(extension, 1) == METADATA:
        answer = word(extension, 3)
        put_word(answer, 3, 1 << 32)  # version 0.1, the oldest that XLA takes: it refuses those newer than itself
        put_int32(answer + 32, 0)
        return 0
    if half(frame, 4) != EXECUTE:
        return 0
    head = word(attribute(frame, PROGRAM), 2)
    if not aliased(frame, head):
        return refused(frame, INTERNAL, word(desk, UNALIASED))
    mode = gradual()
    block = prepare(frame, head)
    laid_out = lay_out(frame, block, desk)
    ready = laid_out and coefficients(frame, block)
    restore(mode)
    if not ready:
        free(block)
        return refused(frame, INVALID, word(desk, COEFFICIENTS if laid_out else NO_PIECE))
    put_word(block, DECIDER, word(desk, DECIDE))
    if word(head, NORM):
        put_word(block, RESULT, word(word(word(frame, 14), word(frame, 12) - 1), 3))
    if word(block, ALL) >= word(desk, PARALLEL_FROM):
        workers = min(threads(frame), word(block, CHUNKS))
        if workers > 1:
            spread(frame, block, word(desk, WORK), workers)
    call_nothing(word(desk, WORK), block)
    return 0


@cache
def step() -> Code:
    """Return what XLA calls."""
    return native_text("xla_step", _step, types.int64(types.int64), for_c=True)


@cache
def work() -> Code:
    """Return what does a step's chunks, on any thread."""
    return native_text("xla_work", _work, types.void(types.int64), for_c=True)


@cache
def decide() -> Code:
    """Return what decides about clipping by a norm."""
    return native_text("xla_decide", _decide, types.void(types.int64), for_c=True)
