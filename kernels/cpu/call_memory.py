"""The memory of one step that XLA calls: its coefficients, the addresses of its streams, the list of its chunks.

Filled from the call's attributes, which hold all that was known when the step was traced, and from its operands.
"""

from typing import NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..chores import BLOCK, CHUNK_WORDS, NOTES, TAKEN, Numbers
from ..formats import key
from ..streams import Columns
from .frame import FLOAT64, attribute, buffer, elements, half
from .program import run
from .tracing import Unsigned
from .traversal import Job
from .words import call_three, float_at, number, put_int32, put_number, put_word, word


class Head(NamedTuple):
    """Begins the attribute `program`; then come the rows' outputs, what is carried, and the operations.

    Outputs: (rows, numbers) registers, -1 for the key of random bits. Carried: a register each. See program.py.
    """

    inputs: int  # operands of one number each, before the count
    carried: int  # operands after it, a float64 each
    leaves: int
    columns: int  # streams that a leaf may have
    rows: int  # of coefficients
    numbers: int  # a row's
    constants: int
    operations: int
    scale: int  # registers: what gradients are multiplied by first,
    limit: int  # and the largest norm; -1 for none
    largest: int  # magnitude of a coefficient
    seed: int  # of random bits
    chunk: int  # elements
    norm: int  # whether the norm is the last result


class Desk(NamedTuple):
    """Holds what this process decides. After these, from PIECES on, pairs: the key of a piece and its address."""

    make: int  # f(text, its length, 2·signature + measures) makes a piece for a key that is not there yet: its address
    work: int  # xla_work, and
    decide: int  # xla_decide, once gradients are clipped by a norm
    parallel_from: int  # elements from which a step runs on several threads
    pieces: int  # how many there are
    unaliased: int  # messages of errors: a result lies elsewhere than its operand,
    coefficients: int  # a coefficient is not finite, or too large,
    piece: int  # no piece can be made


(
    INPUTS, CARRIED, LEAVES, COLUMNS, ROWS, WIDTH, CONSTANTS, OPERATIONS, SCALE, LIMIT, LARGEST, SEED, CHUNK, NORM,
) = range(len(Head._fields))  # fmt: skip
MAKE, WORK, DECIDE, PARALLEL_FROM, COUNT_OF_PIECES, UNALIASED, COEFFICIENTS, NO_PIECE = range(len(Desk._fields))
PIECES = 16
FORMS, KEYS, LAYOUT, NUMBERS, PROGRAM = range(5)  # attributes, which XLA sorts by name
SIGNATURE, ROW, FIRST, HOMES = range(4)  # of a leaf in `layout`: then, per column, its operand, and its first byte
GRADIENT = HOMES + Columns._fields.index("g")  # which alone is always an array of the leaf's own

# A step's own memory. Counters lie a cache line apart.
NEXT, DONE, NEXT_MEASURED, DONE_MEASURED, DECIDED, USERS = range(0, 48, 8)
(
    API, PROMISE, CHUNKS, STEP_PIECES, MEASURE_PIECES, LIST, JOB, ROW_OF, NOTED, SUMS, HEAD_AT, REGISTERS, ROWS_AT,
    RESULT, ALL, DECIDER,
) = range(48, 64)  # fmt: skip
OWN = 64
WORD, WORDS_OF_HEAD, WORDS_OF_JOB, EXTRA = 8, len(Head._fields), len(Job._fields), len(Numbers._fields)
JOB_FIELDS = "row", "rows", "numbers", "table", "columns", "leaves", "chunks", "notes", "blocks"
(
    ROW_FIELD, ROWS_FIELD, NUMBERS_FIELD, TABLE_FIELD, COLUMNS_FIELD, LEAVES_FIELD, CHUNKS_FIELD, NOTES_FIELD,
    BLOCKS_FIELD,
) = map(Job._fields.index, JOB_FIELDS)  # fmt: skip
LAST_COUNT = 2**31 - 1

malloc = types.ExternalFunction("malloc", types.int64(types.int64))


@intrinsic
def key_of(typing, seed, count):
    """Return formats.key as a float64."""

    def generate(context, builder, signature, args):
        bits = key(*(Unsigned(builder, x) for x in args))
        return builder.uitofp(bits.value, ir.DoubleType())

    return types.float64(types.int64, types.int64), generate


def coefficients(frame, block):
    """Run the program, fill the rows and what is carried; tell whether a step can take the rows."""
    head, registers, inputs = word(block, HEAD_AT), word(block, REGISTERS), word(word(block, HEAD_AT), INPUTS)
    carried, constants = word(head, CARRIED), word(head, CONSTANTS)
    counter = buffer(frame, inputs)
    count = min(half(word(counter, 3), 0), LAST_COUNT - 1) + 1
    put_number(registers, 0, float(count))
    for k in range(inputs):
        operand = buffer(frame, k)
        put_number(registers, 1 + k, float_at(word(operand, 3), half(operand, 2) == FLOAT64))
    for k in range(carried):
        put_number(registers, 1 + inputs + k, float_at(word(buffer(frame, inputs + 1 + k), 3), 1))
    numbers = word(attribute(frame, NUMBERS), 2)
    for k in range(constants):
        put_number(registers, 1 + inputs + carried + k, number(numbers, k))
    outputs, count_of_outputs = head + WORD * WORDS_OF_HEAD, word(head, ROWS) * word(head, WIDTH)
    operations = outputs + WORD * (count_of_outputs + carried)
    run(operations, word(head, OPERATIONS), registers, 1 + inputs + carried + constants)
    largest, rows, width = number(registers, word(head, LARGEST)), word(block, ROWS_AT), word(head, WIDTH)
    for k in range(count_of_outputs):
        source = word(outputs, k)
        x = number(registers, source) if source >= 0 else key_of(word(head, SEED), count)
        if k % width < width - EXTRA and not abs(x) <= largest:
            return False
        put_number(rows, k, x)
    for k in range(carried):
        put_number(word(buffer(frame, inputs + 1 + k), 3), 0, number(registers, word(outputs, count_of_outputs + k)))
    put_int32(word(counter, 3), count)
    return True


def piece_of(frame, desk, signature, measures):
    """Return the address of the piece for a signature, made now if this process has none; 0 if it cannot be made."""
    wanted = word(word(attribute(frame, KEYS), 2), 2 * signature + measures)
    for k in range(word(desk, COUNT_OF_PIECES)):
        if word(desk, PIECES + 2 * k) == wanted:
            return word(desk, PIECES + 2 * k + 1)
    text = attribute(frame, FORMS)
    return call_three(word(desk, MAKE), word(text, 0), word(text, 1), 2 * signature + measures)


def lay_out(frame, block, desk):
    """Fill the table of addresses, the pieces, the list of chunks; tell whether each signature has its piece."""
    head, layout = word(block, HEAD_AT), word(attribute(frame, LAYOUT), 2)
    columns, chunk, measures = word(head, COLUMNS), word(head, CHUNK), word(head, LIMIT) >= 0
    table, place, before, step, measure = word(word(block, JOB), TABLE_FIELD), word(block, LIST), -1, 0, 0
    for leaf in range(word(head, LEAVES)):
        of_leaf, at = layout + WORD * leaf * (HOMES + 2 * columns), table + WORD * leaf * (columns + 1)
        if word(of_leaf, SIGNATURE) != before:
            before = word(of_leaf, SIGNATURE)
            step = piece_of(frame, desk, before, 0)
            measure = piece_of(frame, desk, before, 1) if measures else 0
        if step == 0 or (measures and measure == 0):
            return False
        put_word(word(block, STEP_PIECES), leaf, step)
        put_word(word(block, MEASURE_PIECES), leaf, measure)
        put_word(word(block, ROW_OF), leaf, word(of_leaf, ROW))
        for k in range(columns):
            operand = word(of_leaf, HOMES + k)
            home = word(buffer(frame, operand), 3) + word(of_leaf, HOMES + columns + k) if operand >= 0 else 0
            put_word(at, k, home)
        put_word(at, columns, word(of_leaf, FIRST))
        n = elements(buffer(frame, word(of_leaf, GRADIENT)))
        for first in range(0, n, chunk):
            put_word(place, 0, leaf)
            put_word(place, 1, first)
            put_word(place, 2, min(chunk, n - first))
            put_word(place, 3, leaf)
            put_word(place, 4, first)
            put_word(place, 5, 0)
            put_word(place, TAKEN, 0)
            place += CHUNK_WORDS * WORD
    return not measures or word(desk, DECIDE) != 0


def prepare(frame, head):
    """Return the address of a step's own memory, with where each of its arrays begins; free it, or let `work` do so."""
    leaves, columns, chunk = word(head, LEAVES), word(head, COLUMNS), word(head, CHUNK)
    layout, count, total = word(attribute(frame, LAYOUT), 2), 0, 0
    for leaf in range(leaves):
        n = elements(buffer(frame, word(layout, leaf * (HOMES + 2 * columns) + GRADIENT)))
        count += (n + chunk - 1) // chunk
        total += n
    registers = 1 + word(head, INPUTS) + word(head, CARRIED) + word(head, CONSTANTS) + word(head, OPERATIONS)
    rows, measures = word(head, ROWS) * word(head, WIDTH), word(head, LIMIT) >= 0
    blocks = chunk // BLOCK
    table = (leaves + 1) * (columns + 1)
    notes = NOTES * blocks * count if measures else 0
    sums = NOTES * (leaves + 1) if measures else 0
    lists = CHUNK_WORDS * count + notes + sums
    block = malloc(WORD * (OWN + registers + rows + 3 * leaves + 1 + table + WORDS_OF_JOB + lists))
    at = block + WORD * OWN
    put_word(block, REGISTERS, at)
    at += WORD * registers
    put_word(block, ROWS_AT, at)
    at += WORD * rows
    put_word(block, STEP_PIECES, at)
    at += WORD * leaves
    put_word(block, MEASURE_PIECES, at)
    at += WORD * leaves
    put_word(block, ROW_OF, at)
    at += WORD * (leaves + 1)
    put_word(block, JOB, at)
    job, at = at, at + WORD * WORDS_OF_JOB
    put_word(job, TABLE_FIELD, at)
    at += WORD * table
    put_word(block, LIST, at)
    put_word(job, CHUNKS_FIELD, at)
    at += WORD * CHUNK_WORDS * count
    put_word(block, NOTED, at)
    put_word(job, NOTES_FIELD, at)
    at += WORD * notes
    put_word(block, SUMS, at)
    for k in range(sums):
        put_word(at, k, 0)
    put_word(job, COLUMNS_FIELD, columns + 1)
    put_word(job, LEAVES_FIELD, leaves)
    put_word(job, ROW_FIELD, word(block, ROW_OF))
    put_word(job, ROWS_FIELD, word(block, ROWS_AT))
    put_word(job, NUMBERS_FIELD, word(head, WIDTH))
    put_word(job, BLOCKS_FIELD, blocks)
    for counter in range(NEXT, USERS, WORD):
        put_word(block, counter, 0)
    put_word(block, USERS, 1)
    put_word(block, PROMISE, 0)
    put_word(block, HEAD_AT, head)
    put_word(block, CHUNKS, count)
    put_word(block, API, word(frame, 2))
    put_word(block, ALL, total)
    return block
