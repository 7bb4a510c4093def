"""Sends small tables to a CUDA device: they are copied by the device from memory that nobody writes meanwhile."""

from collections import deque
from itertools import starmap
from operator import call
from typing import Any

import numpy as np

from fastadam.arrays.host import Array
from fastadam.cuda.nvrtc import function
from fastadam.kernels.cuda import THREADS, WORDS, Pass

BY_VALUE = np.dtype([("leaves", "i8"), ("arrays", "i8"), ("words", "u8", WORDS)])


class Uploaded:
    """Is memory on the current device, with a way to fill it on the current stream without waiting for the device.

    The device copies from page-locked buffers some time later. Each is guarded by an event, and used again once that
    has come; if none is free there is one more, so there are as many as the host is steps ahead. Into a graph that is
    captured, where no memory may be allocated and no event asked, the bytes go by value.
    """

    def __init__(self, nbytes: int) -> None:
        import cupy

        self._cupy, self._nbytes = cupy, -(-nbytes // 8) * 8
        self.memory = cupy.empty(self._nbytes, np.uint8)
        self._buffers: list[tuple[Array, Any]] = []  # page-locked memory, the event after its last copy

    @property
    def address(self) -> int:
        return int(self.memory.data.ptr)

    def _buffer(self) -> tuple[Array, Any]:
        pinned = self._cupy.cuda.alloc_pinned_memory(self._nbytes)
        return np.frombuffer(pinned, np.uint8, self._nbytes), self._cupy.cuda.Event(disable_timing=True)

    def __call__(self, values: Array) -> None:
        """Let the first bytes on the device be those of `values`, after what the current stream has to do before."""
        if self._cupy.cuda.get_current_stream().is_capturing():
            self._carry(values.reshape(-1).view(np.uint8))
        else:
            deque(starmap(call, self.calls(values)), maxlen=0)

    def calls(self, values: Array) -> list[tuple[Any, ...]]:
        """Return what does so outside a capture, to be called at once, and before `calls` again. All memory is there
        then."""
        stream, given = self._cupy.cuda.get_current_stream(), values.reshape(-1).view(np.uint8)
        free = next((one for one in self._buffers if one[1].done), None)
        if free is None:
            self._buffers.append(free := self._buffer())
        source, event = free[0][: given.size], free[1]
        source[:] = given
        return [(self.memory[: given.size].set, source, stream), (event.record, stream)]

    def load(self) -> None:
        """Compile or load what carries bytes into a graph: impossible while it is captured."""
        function(self.memory.device.id, Pass("CARRY"))

    def _carry(self, given: Array) -> None:
        carry, words = function(self.memory.device.id, Pass("CARRY")), np.zeros(-(-given.size // 8), np.uint64)
        words.view(np.uint8)[: given.size] = given
        for k in range(0, words.size, WORDS):
            piece, part = np.zeros((), BY_VALUE), words[k : k + WORDS]
            piece["leaves"], piece["words"][: part.size] = part.size, part
            carry((-(-part.size // THREADS),), (THREADS,), (self.memory[8 * k :], piece))


class AnySize:
    """Uploads tables of any size: it has one Uploaded for each power of two, so that none is outgrown while the device
    reads it."""

    def __init__(self) -> None:
        self._by_size: dict[int, Uploaded] = {}

    def __call__(self, values: Array) -> int:
        """Return the address on the device, until the next call, of what are there the bytes of `values`."""
        size = values.nbytes.bit_length()
        if size not in self._by_size:
            self._by_size[size] = Uploaded(1 << size)
        self._by_size[size](values)
        return self._by_size[size].address
