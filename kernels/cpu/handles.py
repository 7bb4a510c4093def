"""Asks how PyTorch's tensors lie, through torch's C functions in one call for all: see fastadam.torch.native."""

from functools import cache
from typing import Any

from numba import types

from .entry import native_text
from .ndarray import TYPE
from .words import ask, put_word, word

FAILED = -1


def _differing(n, objects, kinds, handle, functions, forms, firsts, homes, apart, fixed):
    """Return the first of n tensors that lies otherwise than its form says, or -1.

    All are numbers, most of them addresses of int64. objects: the id() of each tensor. kinds: the id() of the two
    types they may have. handle: where in such an object torch's handle lies. functions: the addresses of torch's for
    layout, dtype, dimensions, sizes, strides and data. forms: of each tensor from its number in `firsts` on, the first
    three results, its sizes and its strides. homes: where the tensors' addresses stand, `apart` bytes apart: compared
    if `fixed`, else written.
    """
    for k in range(n):
        x, form, home = word(objects, k), forms + 8 * word(firsts, k), homes + apart * k
        kind, tensor = word(x, TYPE), x + handle
        if kind != word(kinds, 0) and kind != word(kinds, 1):
            return k
        for j in range(3):
            if ask(word(functions, j), tensor) != word(form, j):
                return k
        dimensions = word(form, 2)
        sizes, strides = ask(word(functions, 3), tensor), ask(word(functions, 4), tensor)
        if sizes == FAILED or strides == FAILED:
            return k
        size = 1
        for j in range(dimensions):
            size *= word(sizes, j)
            if word(sizes, j) != word(form, 3 + j) or word(strides, j) != word(form, 3 + dimensions + j):
                return k
        place = ask(word(functions, 5), tensor)
        if place == FAILED or (place == 0 and size > 0):
            return k
        if not fixed:
            put_word(home, 0, place)
        elif word(home, 0) != place:
            return k
    return -1


@cache
def differing() -> Any:
    """Return _differing in native code, which keeps the GIL."""
    signature = types.int64(*[types.int64] * 9, types.boolean)
    return native_text("differing", _differing, signature, nogil=False).entry_point
