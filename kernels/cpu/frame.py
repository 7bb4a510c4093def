"""The frame in which XLA hands a custom call on, and what its functions answer: the layout of xla/ffi/api/c_api.h.

Words of 8 bytes: of the frame, 1: extension, 2: functions, 3: context, 4: stage, 7 and 9: operands' count and list,
12 and 14: results', 20: attributes, 21: a promise of the call's end. Of a buffer, 2: dtype, 3: memory, 4, 5: axes.
"""

from .words import call, call_nothing, put_word, room, word

ERROR, DESTROY, SCHEDULE, THREADS, FUTURE, AVAILABLE = 6, 8, 17, 18, 19, 20  # words of XLA's functions in its table
EXECUTE, METADATA, FLOAT64, INVALID, INTERNAL = 3, 1, 12, 3, 13  # a stage, an extension, a dtype, codes of errors


def half(address, k):
    """Return the k-th 8 bytes from an address on, of which the first 4 mean something."""
    return word(address, k) & 0xFFFFFFFF


def buffer(frame, k):
    """Return operand k of a call."""
    return word(word(frame, 9), k)


def elements(operand):
    """Return how many elements an operand has."""
    n = 1
    for k in range(word(operand, 4)):
        n *= word(word(operand, 5), k)
    return n


def attribute(frame, k):
    """Return the array or text of attribute k: its length at word 1 (of an array) and its memory at word 2."""
    return word(word(frame, 20), k)


def refused(frame, code, message):
    """Return an error of XLA's, which XLA raises and frees."""
    args = room()
    put_word(args, 0, 28)
    put_word(args, 1, 0)
    put_word(args, 2, message)
    put_word(args, 3, code)
    return call(word(word(frame, 2), ERROR), args)


def forget(frame, error):
    """Free an error of XLA's."""
    args = room()
    put_word(args, 0, 24)
    put_word(args, 1, 0)
    put_word(args, 2, error)
    call_nothing(word(word(frame, 2), DESTROY), args)


def threads(frame):
    """Return how many threads XLA's pool has; 1 where it has no pool."""
    args, answer = room(), room()
    put_word(answer, 0, 1)
    put_word(args, 0, 32)
    put_word(args, 1, 0)
    put_word(args, 2, word(frame, 3))
    put_word(args, 3, answer)
    error = call(word(word(frame, 2), THREADS), args)
    if error != 0:
        forget(frame, error)
        return 1
    return word(answer, 0)
