"""Reads the gradients' addresses natively from the headers of NumPy's arrays.

Python's ways to an address take 1 to 2 µs an array (`ctypes.data`, `__array_interface__`): 10 µs for a small MLP whose
whole step takes 5. The head of PyArrayObject (data, nd, dimensions, strides, base, descr, flags) is part of NumPy's C
ABI; `readable` checks it at first use, and where it differs every gradient takes the way through Python.
"""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import types

from .entry import native_text
from .words import put_word, word

_HEAD = object.__basicsize__  # reference count and type
TYPE, (_DATA, _ND, _DIMENSIONS, _STRIDES, _, _DESCR, _FLAGS) = 1, range(2, 9)  # in words of 8 bytes
_WRITEABLE = 0x0400


class Headers(NamedTuple):
    """Holds what `place` gets: numbers and addresses, those of arrays of int64."""

    leaves: int  # how many
    objects: int  # the id() of each gradient,
    params: int  # of each parameter,
    anchors: int  # of a view of that parameter made at construction,
    grads: int  # and of an array like the gradients so far
    nbytes: int  # of each gradient
    none: int  # the id() of None
    ndarray: int  # and of numpy.ndarray
    pieces: int  # how many pieces of memory gradients must not touch
    starts: int  # where they begin, ascending
    ends: int  # and end
    table: int  # where gradients' addresses go
    columns: int  # of the table


LEAVES, OBJECTS, PARAMS, ANCHORS, GRADS, NBYTES, NONE, NDARRAY, PIECES, STARTS, ENDS, TABLE, COLUMNS = range(
    len(Headers._fields)
)


def _read(address: int, k: int = 0, kind: Any = ctypes.c_int64) -> int:
    return int(kind.from_address(address + 8 * k).value)


@cache
def readable() -> bool:
    """Return whether arrays of this NumPy under this Python have the head that `place` reads."""
    probe = np.empty((2, 3, 5), np.float64).transpose(2, 0, 1)
    frozen = np.frombuffer(b"12345678", np.float64)
    at = id(probe)
    return (
        _HEAD == 16
        and _read(at, TYPE) == id(np.ndarray)
        and _read(at, _DATA) == probe.ctypes.data
        and _read(at, _ND, ctypes.c_int32) == probe.ndim
        and tuple(_read(_read(at, _DIMENSIONS), k) for k in range(3)) == probe.shape
        and tuple(_read(_read(at, _STRIDES), k) for k in range(3)) == probe.strides
        and _read(at, _DESCR) == id(probe.dtype)
        and _read(at, _FLAGS, ctypes.c_int32) & _WRITEABLE == _WRITEABLE
        and _read(id(frozen), _FLAGS, ctypes.c_int32) & _WRITEABLE == 0
    )


def _alike(a, b):
    """Tell whether two arrays, by the id() of each, have one dtype, shape and strides."""
    nd = word(a, _ND) & 0xFFFFFFFF
    if word(a, _DESCR) != word(b, _DESCR) or nd != word(b, _ND) & 0xFFFFFFFF:
        return False
    for j in range(nd):
        if word(word(a, _DIMENSIONS), j) != word(word(b, _DIMENSIONS), j):
            return False
        if word(word(a, _STRIDES), j) != word(word(b, _STRIDES), j):
            return False
    return True


def _place(seen):
    """Write the address of every gradient into column 1 of a table, or refuse without judging.

    seen: the address of Headers. Returns how many gradients are None; or -1 - k where leaf k needs Python's judgement:
    not an ndarray of the very dtype, shape and strides as before, or overlapping a parameter; or a parameter that is
    not as it was.
    """
    missing = 0
    for k in range(word(seen, LEAVES)):
        g, p = word(word(seen, OBJECTS), k), word(word(seen, PARAMS), k)
        if g == word(seen, NONE):
            missing += 1
            continue
        if word(g, TYPE) != word(seen, NDARRAY):
            return -1 - k
        if not _alike(g, word(word(seen, GRADS), k)) or not _alike(p, word(word(seen, ANCHORS), k)):
            return -1 - k
        row = word(seen, TABLE) + 8 * word(seen, COLUMNS) * k
        if word(p, _DATA) != word(row, 0) or not word(p, _FLAGS) & _WRITEABLE:
            return -1 - k
        first = word(g, _DATA)
        last = first + word(word(seen, NBYTES), k)
        low, high = 0, word(seen, PIECES) if first < last else 0
        while low < high:  # bisection; np.searchsorted would import SciPy when loaded from the cache
            middle = (low + high) // 2
            if word(word(seen, STARTS), middle) < last:
                low = middle + 1
            else:
                high = middle
        if low > 0 and word(word(seen, ENDS), low - 1) > first:  # the last piece that begins before this gradient ends
            return -1 - k
        put_word(row, 1, first)
    return missing


@cache
def place() -> Any:
    """Return _place in native code."""
    return native_text("place", _place, types.int64(types.int64)).entry_point
