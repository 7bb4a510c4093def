"""Opens a checkpoint to be read: its manifest, and its bytes, none given out before its checksum agrees."""

import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np

from fastadam.arrays.host import PAGE, Array
from fastadam.checkpoint import checksum, disk, manifest
from fastadam.checkpoint.manifest import Damaged
from fastadam.checkpoint.tensors import itemsize, numpy_dtype

PART = 1 << 20  # bytes that are read and then summed while a cache has them
WORKERS = 2  # threads that read and sum


class Opened:
    """Is one checkpoint that is being read. Its files stay open, so that it can be read to its end even if it is
    removed meanwhile.

    content: the manifest's, see there. mapped: whether bytes are mapped from the files instead of read into memory.

    Raises FileNotFoundError where there is none, Damaged where it is not as it was written, ValueError where another
    version wrote it.
    """

    def __init__(self, path: str, mapped: bool = False) -> None:
        self.path, self._mapped, self._fds = path, mapped, list[int]()
        try:
            data = self._manifest()
            self.content = manifest.decode(data)
            self._update = checksum.update(self.content["algorithm"])
            self.files: list[dict[str, Any]] = self.content["files"]
            for file in self.files:
                self._open(file)
            self._bytes: list[Array | None] = [None] * len(self.files)
            self._checked = [bytearray(len(file["checksums"])) for file in self.files]
        except BaseException:
            self.close()
            raise

    def _manifest(self) -> bytes:
        fd, size = disk.open_file(os.path.join(self.path, manifest.NAME))
        self._fds.append(fd)
        if size > manifest.LARGEST:
            raise Damaged(f"{manifest.NAME} has {size:,} bytes, expected at most {manifest.LARGEST:,}")
        room = bytearray(size)
        return bytes(room[: disk.read_at(fd, memoryview(room), 0)])

    def _open(self, file: dict[str, Any]) -> None:
        try:
            fd, size = disk.open_file(os.path.join(self.path, file["name"]))
        except FileNotFoundError:
            raise Damaged(f"{file['name']} is missing") from None
        self._fds.append(fd)
        if size != file["bytes"]:
            raise Damaged(f"{file['name']} has {size:,} bytes, {file['bytes']:,} were written")

    def _memory(self, k: int) -> Array:
        """Return the bytes of a file, where those that are checked are its own."""
        if (content_of_file := self._bytes[k]) is None:
            size = self.files[k]["bytes"]
            if self._mapped:
                with os.fdopen(os.dup(self._fds[k + 1]), "rb") as file:
                    content_of_file = np.memmap(file, np.uint8, "r", shape=(size,))
            else:
                raw = np.empty(size + PAGE, np.uint8)  # a page of it is taken up only when it is read
                start = -raw.ctypes.data % PAGE
                content_of_file = raw[start : start + size]
            self._bytes[k] = content_of_file
        return content_of_file

    def check_all(self) -> None:
        """Check, and read unless mapped, every byte. Raises Damaged that names the first file and place that differ."""
        self._fetch((k, span) for k, file in enumerate(self.files) for span in range(len(file["checksums"])))

    def _fetch(self, wanted: Iterable[tuple[int, int]]) -> None:
        spans = [(k, span) for k, span in wanted if not self._checked[k][span]]
        for k in {k for k, _ in spans}:
            self._memory(k)
        if len(spans) < 2:
            for each in spans:
                self._check(*each)
            return
        with ThreadPoolExecutor(WORKERS) as pool:
            for future in [pool.submit(self._check, *each) for each in spans]:
                try:
                    future.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise

    def _check(self, k: int, span: int) -> None:
        memory, first = self._memory(k), span * self.content["span"]
        part, total = memory[first : first + self.content["span"]], 0
        for at in range(0, len(part), PART):
            piece = part[at : at + PART].data
            if not self._mapped and disk.read_at(self._fds[k + 1], piece, first + at) < len(piece):
                raise Damaged(f"{self.files[k]['name']} ends within its bytes from {first + at:,} on")
            total = self._update(piece, total)
        if total != self.files[k]["checksums"][span]:
            raise Damaged(
                f"{self.files[k]['name']} is damaged in its {len(part):,} bytes from {first:,} on: the checksum differs"
            )
        self._checked[k][span] = 1

    def elements(self, name: str, first: int = 0, stop: int | None = None, raw: bool = False) -> Array:
        """Return a tensor's elements from first to stop, flat in C order: a view where one piece has them all, not
        writable.

        raw: as bytes. Raises Damaged where a checksum of the bytes they lie in differs.
        """
        tensor = self.content["tensors"][name]
        width = itemsize(tensor["dtype"])
        dtype = np.dtype(np.uint8) if raw else numpy_dtype(tensor["dtype"])
        stop = tensor["pieces"][-1][2] if stop is None else stop
        parts = []
        for file, begin, end, offset in tensor["pieces"]:
            low, high = max(begin, first), min(end, stop)
            if low < high:
                parts.append((file, offset + (low - begin) * width, offset + (high - begin) * width))
        span = self.content["span"]
        self._fetch((file, k) for file, low, high in parts for k in range(low // span, (high - 1) // span + 1))
        views = [self._memory(file)[low:high].view(dtype) for file, low, high in parts]
        values = views[0] if len(views) == 1 else np.concatenate(views) if views else np.empty(0, dtype)
        values.flags.writeable = False
        return values

    def close(self) -> None:
        """Give the descriptors back; arrays that were given out stay."""
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_newer(path: str, mapped: bool = False) -> Opened:
    """Open a checkpoint that may be saved over meanwhile: once more where its files went as they were opened."""
    for _ in range(20):
        before = _identity(path)
        try:
            return Opened(path, mapped)
        except Damaged:
            if _identity(path) == before:
                raise
            time.sleep(0.01)
    return Opened(path, mapped)


def _identity(path: str) -> tuple[int, ...]:
    status = os.stat(os.path.join(path, manifest.NAME))
    return status.st_ino, status.st_mtime_ns, status.st_size
