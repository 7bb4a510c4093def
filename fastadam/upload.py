"""Small tables on their way to a CUDA device: copied by the device from memory that nobody writes meanwhile."""

from typing import Any

import numpy as np

from fastadam.arrays import Array


class Uploaded:
    """Memory on the current device, and a way to fill it on the current stream without waiting for the device.

    The device copies from page-locked buffers some time later. Each is guarded by an event, and used again once that
    has come; if none is free there is one more, so there are as many as the host is steps ahead.
    """

    def __init__(self, nbytes: int) -> None:
        import cupy

        self._cupy, self._nbytes = cupy, nbytes
        self.memory = cupy.empty(nbytes, np.uint8)
        self._buffers: list[tuple[Array, Any]] = []  # page-locked memory, the event after its last copy
        self._spare = [self._buffer()]  # during a capture memory must not be allocated, nor events asked
        self._captured: list[Any] = []  # a CUDA graph copies from these whenever it is replayed

    @property
    def address(self) -> int:
        return int(self.memory.data.ptr)

    def _buffer(self) -> tuple[Array, Any]:
        pinned = self._cupy.cuda.alloc_pinned_memory(self._nbytes)
        return np.frombuffer(pinned, np.uint8, self._nbytes), self._cupy.cuda.Event(disable_timing=True)

    def __call__(self, values: Array) -> None:
        """Let the first bytes on the device be those of `values`, after what the current stream has to do before."""
        stream = self._cupy.cuda.get_current_stream()
        if capturing := stream.is_capturing():
            buffer = self._spare.pop() if self._spare else self._buffer()
            self._captured.append(buffer)
        else:
            self._spare = self._spare or [self._buffer()]
            k = next((k for k, (_, event) in enumerate(self._buffers) if event.done), None)
            buffer = self._buffer() if k is None else self._buffers.pop(k)
        source = buffer[0][: values.nbytes]
        source[:] = values.reshape(-1).view(np.uint8)
        self.memory[: values.nbytes].set(source, stream=stream)
        if not capturing:
            buffer[1].record(stream)
            self._buffers.append(buffer)


class AnySize:
    """Uploads of any size: one Uploaded for each power of two, so that none is outgrown while the device reads it."""

    def __init__(self) -> None:
        self._by_size: dict[int, Uploaded] = {}

    def __call__(self, values: Array) -> int:
        """The address on the device, until the next call, of what are there the bytes of `values`."""
        size = values.nbytes.bit_length()
        if size not in self._by_size:
            self._by_size[size] = Uploaded(1 << size)
        self._by_size[size](values)
        return self._by_size[size].address
