"""Takes one file to disk: it is copied, summed and written at the same time, then synced."""

import os
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from fastadam.arrays.host import PAGE, Array, allocate
from fastadam.checkpoint import checksum, disk
from fastadam.checkpoint.checksum import SPAN

CHUNK = 1 << 23  # bytes of one write: a whole number of them make a span
PART = 1 << 20  # bytes that are copied and then summed while a cache has them
Fill = Callable[[Array, int], None]  # as Image.fill


class Lane:
    """Is a thread that writes what it is handed while the next bytes are made ready.

    It must be made where threads can still be started: at a process's end none can.
    """

    def __init__(self) -> None:
        self._jobs: queue.Queue[tuple[int, memoryview, int] | None] = queue.Queue(1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fastadam checkpoint writes")
        self._thread.start()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self._error is None:
                    disk.write_at(*job)
            except BaseException as error:
                self._error = error
            self._jobs.task_done()

    def write(self, fd: int, data: memoryview, at: int) -> None:
        """Have this written. When it returns, all but this and the write before it are done."""
        self._jobs.put((fd, data, at))
        self._check()

    def drain(self) -> None:
        """Wait until everything is written. Raises what writing raised."""
        self._jobs.join()
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread."""
        self._jobs.put(None)
        self._thread.join()


def rooms(pinned: bool) -> list[Array]:
    """Return three pieces of memory that chunks are made in: one is filled, one waits, one is written."""
    return [memory(CHUNK, pinned) for _ in range(3)]


def memory(n: int, pinned: bool) -> Array:
    """Return n bytes from the start of a page; pinned: to where a device copies directly."""
    if not pinned:
        return allocate(n, np.uint8)
    import cupy

    raw = np.frombuffer(cupy.cuda.alloc_pinned_memory(n + PAGE), np.uint8, n + PAGE)
    start = -raw.ctypes.data % PAGE
    return raw[start : start + n]


class File:
    """Is a new file that takes an image from the first byte to the last, a chunk at a time."""

    def __init__(self, path: str, size: int, lane: Lane, algorithm: str) -> None:
        self.path, self._size, self._lane = path, size, lane
        self._update, self.sums, self._sum = checksum.update(algorithm), list[int](), 0
        self._direct = size >= CHUNK  # a small file is one write either way
        self._fd = disk.create(path, self._direct)

    def copy(self, fill: Fill, first: int, stop: int, chunks: list[Array]) -> None:
        """Write the bytes from first to stop, made by `fill`. first: a multiple of CHUNK; stop: one, or the end."""
        for k, at in enumerate(range(first, stop, CHUNK)):
            chunk, n = chunks[k % len(chunks)], min(CHUNK, stop - at)
            for begin in range(0, n, PART):
                part = chunk[begin : min(begin + PART, n)]
                fill(part, at + begin)
                self._sum = self._update(part.data, self._sum)
            self._put(chunk, n, at)

    def take(self, staged: Array, first: int) -> None:
        """Write bytes that lie ready from the start of a page: all that follow `first`."""
        for at in range(first, self._size, CHUNK):
            begin, n = at - first, min(CHUNK, self._size - at)
            self._sum = self._update(staged[begin : begin + n].data, self._sum)
            self._put(staged[begin:], n, at)

    def _put(self, chunk: Array, n: int, at: int) -> None:
        end = at + n
        if end % SPAN == 0 or end == self._size:
            self.sums.append(self._sum)
            self._sum = 0
        length = n
        if self._direct and n % PAGE:  # past the page cache go whole pages; finish cuts the file to its size
            length = -(-n // PAGE) * PAGE
            chunk[n:length] = 0
        self._lane.write(self._fd, chunk[:length].data, at)

    def finish(self) -> dict[str, Any]:
        """Return once everything is on disk: what the manifest says of the file."""
        self._lane.drain()
        if self._direct and self._size % PAGE:
            os.ftruncate(self._fd, self._size)
        disk.sync(self._fd)
        self.close()
        return {"name": os.path.basename(self.path), "bytes": self._size, "checksums": self.sums}

    def close(self) -> None:
        """Give the descriptor back, once."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
