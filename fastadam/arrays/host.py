"""Looks at arrays of the host: what the library accepts, and how it lies in memory. Arrays on CUDA devices: see
device.py.

What only rearranges axes works on both.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadam.kernels.formats import FLOATS

Array = NDArray[Any]
LINE, PAGE = 64, 4096  # bytes of a cache line, which is the widest vector, and of a page


def is_array(x: Any) -> bool:
    """Return whether x is a NumPy array without a mask. numpy.ma, which takes 30 ms to load, is asked of subclasses
    alone."""
    return type(x) is np.ndarray or (isinstance(x, np.ndarray) and not isinstance(x, np.ma.MaskedArray))


def describe(x: Any) -> str:
    """Return what errors call an object: float32(3, 4), FlatBuffer of float32(12,), or the name of its type."""
    if hasattr(x, "array") and hasattr(x, "views"):  # a FlatBuffer
        return f"{type(x).__name__} of {describe(x.array)}"
    if type(x).__module__.partition(".")[0] == "cupy" and hasattr(x, "device"):
        return f"{x.dtype}{x.shape} on cuda:{x.device.id}"
    return f"{x.dtype}{x.shape}" if is_array(x) else type(x).__name__


def plain(x: Any) -> Any:
    """Return x without what a subclass of numpy.ndarray changes, such as matrix; CuPy's arrays are as they are."""
    return np.asarray(x) if isinstance(x, np.ndarray) else x


def memory_order(x: Array) -> tuple[int, ...]:
    """Return the axes from the slowest in memory to the fastest."""
    return tuple(sorted(range(x.ndim), key=lambda axis: -x.strides[axis]))


def flat(x: Array) -> Array | None:
    """Return x as one dimension in the order of its memory, without a copy; None if x has gaps or overlaps itself."""
    straight = plain(x).transpose(memory_order(x))
    return straight.reshape(-1) if straight.flags.c_contiguous else None


def flat_like(g: Array, p: Array) -> Array | None:
    """Return the values of g as one dimension in the order of p's memory, without a copy; None if that takes one."""
    straight = plain(g).transpose(memory_order(p))
    return straight.reshape(-1) if straight.flags.c_contiguous else None


def shaped_like(values: Array, p: Array) -> Array:
    """Return the inverse of flat_like: a view of flat values in the shape and memory order of p."""
    order = memory_order(p)
    return values.reshape([p.shape[axis] for axis in order]).transpose(np.argsort(order).tolist())


def check_owned(name: str, x: Any) -> None:
    """Refuse, naming it, what cannot be updated in place."""
    if not is_array(x):
        raise TypeError(f"{name} is {describe(x)}, expected a numpy.ndarray")
    if x.dtype.name not in FLOATS or not x.dtype.isnative:
        expected = f"one of {', '.join(FLOATS)}, in native byte order"
        raise TypeError(f"{name} is {x.dtype.str} ({describe(x)}), expected {expected}")
    if not x.flags.writeable:
        raise ValueError(f"{name} is read-only, expected an array that can be updated in place")
    if flat(x) is None:
        raise ValueError(
            f"{name} has strides {x.strides} for shape {x.shape}, expected dense memory in any axis order, without gaps"
        )


def target(name: str, x: Array) -> int:
    """Return the address of memory that compiled code writes; raises ValueError where x is read-only.

    The one place where such addresses are taken: native code would write to a file's pages and die, or to bytes that
    Python holds to be immutable.
    """
    if not x.flags.writeable:
        raise ValueError(f"{name} is read-only, expected memory that a step can write")
    return x.ctypes.data


def writable(x: Any) -> Any:
    """Return a copy of an array that is read-only, as pickle and joblib may leave what they read; else x itself."""
    return np.array(x, order="K") if isinstance(x, np.ndarray) and not x.flags.writeable else x


def extent(x: Array) -> tuple[int, int]:
    """Return the addresses of the first byte of x and of the first byte beyond it."""
    if isinstance(x, np.ndarray):
        if x.flags.c_contiguous:  # 1 µs, where NumPy's function takes 5
            return x.ctypes.data, x.ctypes.data + x.nbytes
        low, high = np.lib.array_utils.byte_bounds(x)
        return int(low), int(high)
    ends = [(n - 1) * stride if n else 0 for n, stride in zip(x.shape, x.strides, strict=True)]
    start: int = x.data.ptr
    return start + sum(e for e in ends if e < 0), start + sum(e for e in ends if e > 0) + x.itemsize


def separate(pieces: Iterable[tuple[int, int, str]], what: str = "arrays") -> list[tuple[int, int, str]]:
    """Return (first byte, first byte beyond, name) of some pieces of memory, sorted, none of them empty.

    Raises ValueError that names the first two that overlap: two threads would write there at once.
    """
    ordered = sorted(pieces)
    for (_, end, name), (start, _, other) in pairwise(ordered):
        if start < end:
            raise ValueError(f"{name} and {other} share memory, expected separate {what}")
    return ordered


class Memory:
    """Knows pieces of memory that must not overlap."""

    def __init__(self, named: Iterable[tuple[str, Array]]) -> None:
        """Raises ValueError that names the first two arrays that share memory."""
        pieces = separate((*extent(x), name) for name, x in named if x.size)
        self.starts = np.array([piece[0] for piece in pieces], np.int64)
        self.ends = np.array([piece[1] for piece in pieces], np.int64)
        self._names = [piece[2] for piece in pieces]

    def touched_by(self, x: Array) -> str | None:
        """Return the name of a piece that x overlaps, if any."""
        first, last = extent(x)
        k = int(np.searchsorted(self.starts, last)) - 1
        return self._names[k] if x.size and k >= 0 and self.ends[k] > first else None


def allocate(n: int, dtype: Any) -> Array:
    """Return n zeros from the start of a page. From 4 MiB on NumPy asks Linux for huge pages itself.

    Huge pages are worth 0.47 against 0.62 ns/param. Written here, not left to calloc, so that the first step is no
    slower than the others.
    """
    itemsize = np.dtype(dtype).itemsize
    raw = np.empty(n * itemsize + PAGE, np.uint8)
    raw.fill(0)
    start = -raw.ctypes.data % PAGE
    return raw[start : start + n * itemsize].view(dtype)


def allocate_beside(params: Sequence[Array], column: int, dtype: Any, sizes: Sequence[int]) -> list[Array]:
    """Return flat zeros of a dtype and these sizes, for each of these parameters, in one piece of memory.

    Each is aligned to 64 bytes, and in a page begins (column + 1)·1024 bytes after its parameter. A load waits for an
    older store to the same place of another page: with slots 48 bytes after p, a step over 2^10 parameters took 2.9 µs,
    apart like this 1.8 (2 Zen 4 cores).
    """
    starts, end, width = [], 0, np.dtype(dtype).itemsize
    for p, size in zip(params, sizes, strict=True):
        place = (p.ctypes.data // LINE * LINE + (column + 1) * 1024) % PAGE
        start = end + (place - end) % PAGE if p.nbytes >= PAGE else -(-end // LINE) * LINE
        starts.append(start)
        end = start + size * width
    memory = allocate(end, np.uint8)
    return [memory[at : at + size * width].view(dtype) for at, size in zip(starts, sizes, strict=True)]


class Host:
    """Is the processor's own memory: what an optimizer asks of the place where its arrays lie."""

    allocate = staticmethod(allocate)
    allocate_beside = staticmethod(allocate_beside)
    is_array = staticmethod(is_array)

    @staticmethod
    def near(arrays: Iterable[Any], owners: Sequence[Any] = ()) -> AbstractContextManager[Any]:
        """Within it, what is allocated or filled lies where these arrays do, and is done when their owners work."""
        return nullcontext()

    @staticmethod
    def owned(name: str, x: Any) -> Array:
        """Return the array to update in place; raises TypeError, ValueError where it is none."""
        check_owned(name, x)
        owned: Array = x
        return owned

    @staticmethod
    def read(x: Any, name: str = "the array") -> Array:
        """Return what is_array took, as an array to read from; raises ValueError where its memory is none."""
        read: Array = x
        return read

    @staticmethod
    def to_write(name: str, x: Any) -> Array:
        """Return what is_array took, as an array to write to; raises ValueError where it is read-only."""
        if not x.flags.writeable:
            raise ValueError(f"{name} is read-only, expected an array that can be written")
        written: Array = x
        return written

    @staticmethod
    def get(x: Array) -> Array:
        """Return a copy as a NumPy array in C order."""
        return x.copy()

    @staticmethod
    def put(x: Array) -> Array:
        """Return a copy of a NumPy array, here, in x's order of axes."""
        return x.copy(order="K")

    @staticmethod
    def write(x: Array, values: Array) -> None:
        """Set x[...] to values, a NumPy array of the same shape and dtype."""
        x[...] = values
