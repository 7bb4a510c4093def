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
        self._buffers: list[tuple[Any, Array, Any]] = []  # page-locked memory, a view of it, the event
        self._captured: list[Any] = []  # a CUDA graph copies from these whenever it is replayed

    @property
    def address(self) -> int:
        return int(self.memory.data.ptr)

    def __call__(self, values: Array) -> None:
        """Let the first bytes on the device be those of `values`, after what the current stream has to do before."""
        stream = self._cupy.cuda.get_current_stream()
        buffer = next((one for one in self._buffers if one[2].done), None)
        if buffer is None:
            pinned = self._cupy.cuda.alloc_pinned_memory(self._nbytes)
            event = self._cupy.cuda.Event(disable_timing=True)
            buffer = pinned, np.frombuffer(pinned, np.uint8, self._nbytes), event
        else:
            self._buffers.remove(buffer)
        source = buffer[1][: values.nbytes]
        source[:] = values.reshape(-1).view(np.uint8)
        self.memory[: values.nbytes].set(source, stream=stream)
        if stream.is_capturing():
            self._captured.append(buffer)
        else:
            buffer[2].record(stream)
            self._buffers.append(buffer)
