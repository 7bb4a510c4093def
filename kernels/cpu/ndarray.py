"""The gradients' addresses, read natively from the headers of NumPy's arrays.

Python's ways to an address take 1 to 2 µs an array (`ctypes.data`, `__array_interface__`): 10 µs for a small MLP whose
whole step takes 5. The head of PyArrayObject (data, nd, dimensions, strides, base, descr, flags) is part of NumPy's C
ABI; `readable` checks it at first use, and where it differs every gradient takes the way through Python.
"""

import ctypes
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .cache import keep

_HEAD = object.__basicsize__  # reference count and type
TYPE, _DATA, _ND, _DIMENSIONS = 8, _HEAD, _HEAD + 8, _HEAD + 16
_STRIDES, _DESCR, _FLAGS, _WRITEABLE = _HEAD + 24, _HEAD + 40, _HEAD + 48, 0x0400


def _read(address: int, kind: Any = ctypes.c_int64) -> int:
    return int(kind.from_address(address).value)


@cache
def readable() -> bool:
    """Whether arrays of this NumPy under this Python have the head that `place` reads."""
    probe = np.empty((2, 3, 5), np.float64).transpose(2, 0, 1)
    frozen = np.frombuffer(b"12345678", np.float64)
    at = id(probe)
    return (
        _HEAD == 16
        and _read(at + TYPE) == id(np.ndarray)
        and _read(at + _DATA) == probe.ctypes.data
        and _read(at + _ND, ctypes.c_int32) == probe.ndim
        and tuple(_read(_read(at + _DIMENSIONS) + 8 * k) for k in range(3)) == probe.shape
        and tuple(_read(_read(at + _STRIDES) + 8 * k) for k in range(3)) == probe.strides
        and _read(at + _DESCR) == id(probe.dtype)
        and _read(at + _FLAGS, ctypes.c_int32) & _WRITEABLE == _WRITEABLE
        and _read(id(frozen) + _FLAGS, ctypes.c_int32) & _WRITEABLE == 0
    )


@intrinsic
def word_at(typing, address):
    """The 8 bytes at an address."""

    def generate(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], ir.PointerType(ir.IntType(64))))

    return types.int64(types.int64), generate


@njit(error_model="numpy", nogil=True)
def _alike(a, b):
    """Whether the arrays at two addresses have one dtype object, shape and strides."""
    nd = word_at(a + _ND) & 0xFFFFFFFF
    if word_at(a + _DESCR) != word_at(b + _DESCR) or nd != word_at(b + _ND) & 0xFFFFFFFF:
        return False
    for j in range(nd):
        if word_at(word_at(a + _DIMENSIONS) + 8 * j) != word_at(word_at(b + _DIMENSIONS) + 8 * j):
            return False
        if word_at(word_at(a + _STRIDES) + 8 * j) != word_at(word_at(b + _STRIDES) + 8 * j):
            return False
    return True


def _place(objects, params, anchors, grads, nbytes, none, ndarray, starts, ends, table):
    """Write the address of every gradient into column 1 of `table`, or refuse without judging.

    objects, params, anchors: (leaves,) int64, the id() of each gradient, of each parameter, and of a view of that
    parameter made at construction. grads: (leaves,) int64, the id() of an array like the gradients so far.
    nbytes: (leaves,) int64, of a gradient. none, ndarray: the id() of None and of numpy.ndarray.
    starts, ends: the memory that gradients must not touch, ascending.
    Returns how many gradients are None; or -1 - k where leaf k needs Python's judgement: not an ndarray of the
    very dtype, shape and strides as before, or overlapping a parameter; or a parameter that is not as it was.
    """
    missing = 0
    for k in range(objects.shape[0]):
        g, p, anchor, like = objects[k], params[k], anchors[k], grads[k]
        if g == none:
            missing += 1
            continue
        if word_at(g + TYPE) != ndarray or not _alike(g, like) or not _alike(p, anchor):
            return -1 - k
        if word_at(p + _DATA) != np.int64(table[k, 0]) or not word_at(p + _FLAGS) & _WRITEABLE:
            return -1 - k
        first, last = word_at(g + _DATA), word_at(g + _DATA) + nbytes[k]
        low, high = 0, starts.shape[0] * (first < last)
        while low < high:  # bisection; np.searchsorted would import SciPy when loaded from the cache
            middle = (low + high) // 2
            if starts[middle] < last:
                low = middle + 1
            else:
                high = middle
        if low > 0 and ends[low - 1] > first:  # the last piece that begins before this gradient ends
            return -1 - k
        table[k, 1] = first
    return missing


place = keep(njit(error_model="numpy", nogil=True)(_place), "place")
