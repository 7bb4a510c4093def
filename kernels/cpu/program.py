"""A program: a few float64 operations that work out a rule's coefficients where no Python runs.

Registers are float64 numbers from an address on: first what the program is given, then one for each operation's result.
An operation is four words: which it is, and the registers of its operands. Each is one IEEE operation or one function
of the C library, as in Python: the bits are Python's.
"""

import math

from .words import number, put_number, word

NAMES = ("add", "sub", "mul", "div", "pow", "less", "equal", "select", "sqrt", "exp", "expm1", "log")
ADD, SUB, MUL, DIV, POW, LESS, EQUAL, SELECT, SQRT, EXP, EXPM1, LOG = range(len(NAMES))
WORDS = 4  # of an operation


def run(program, operations, registers, given):
    """Do all operations of a program, the k-th into register given + k."""
    for k in range(operations):
        kind, at = word(program, WORDS * k), WORDS * k
        a, b = number(registers, word(program, at + 1)), number(registers, word(program, at + 2))
        if kind == ADD:
            x = a + b
        elif kind == SUB:
            x = a - b
        elif kind == MUL:
            x = a * b
        elif kind == DIV:
            x = a / b
        elif kind == POW:
            x = math.pow(a, b)
        elif kind == LESS:
            x = 1.0 if a < b else 0.0
        elif kind == EQUAL:
            x = 1.0 if a == b else 0.0
        elif kind == SELECT:
            x = a if number(registers, word(program, at + 3)) != 0.0 else b
        elif kind == SQRT:
            x = math.sqrt(a)
        elif kind == EXP:
            x = math.exp(a)
        elif kind == EXPM1:
            x = math.expm1(a)
        else:
            x = math.log(a)
        put_number(registers, given + k, x)
