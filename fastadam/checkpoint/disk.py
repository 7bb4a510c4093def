"""Holds the calls that change a disk, each once. tests/checkpoint replays a power loss between any two of them.

What is durable when: a file's bytes after `sync` of the file, its name after `sync_folder` of the folder it stands in.
"""

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

log = logging.getLogger("fastadam.checkpoint")

DIRECT: int = getattr(os, "O_DIRECT", 0)  # past the page cache, where the system has it
FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync leaves bytes in the disk's own cache


def sync(fd: int) -> None:
    """Return once the bytes and the length of this file, or the names in this folder, survive a power loss."""
    if FULL_SYNC is not None:
        fcntl.fcntl(fd, FULL_SYNC)
    os.fsync(fd)


@contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    """Open a file; its descriptor is closed at the end of the block."""
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def sync_folder(path: str) -> None:
    """Return once the names in this folder survive a power loss."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        sync(fd)


def ensure_folder(path: str) -> None:
    """Make a folder and those above it, durably, as far as they are missing."""
    above = os.path.dirname(path)
    if not os.path.isdir(path):
        if above != path:
            ensure_folder(above)
        try:
            os.mkdir(path)
        except FileExistsError:
            if not os.path.isdir(path):
                raise NotADirectoryError(errno.ENOTDIR, "is a file, expected a folder of checkpoints", path) from None
    with suppress(PermissionError):  # of a folder above that is not ours to read, and was there before
        sync_folder(above)


def create(path: str, direct: bool) -> int:
    """Return a descriptor of a new file, past the page cache where that is asked for and the file system has it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    if direct and DIRECT:
        try:
            return os.open(path, flags | DIRECT, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            log.debug("%s: no O_DIRECT on this file system", path)
            with suppress(FileNotFoundError):  # some systems refuse after they have made the file
                os.unlink(path)
    return os.open(path, flags, 0o666)


def write_at(fd: int, data: memoryview, at: int) -> None:
    """Write all of `data` from byte `at` on."""
    while data:
        try:
            n = os.pwrite(fd, data, at)
        except OSError as error:
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
            if error.errno != errno.EINVAL or not flags & DIRECT:
                raise
            fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~DIRECT)  # a disk of larger blocks, or the rest of a short write
            continue
        if n == 0:
            raise OSError(errno.EIO, "the file system took no bytes")
        data, at = data[n:], at + n


def write_whole(path: str, data: bytes) -> None:
    """Make a small file durably; its name is durable once its folder is synced."""
    fd = create(path, direct=False)
    try:
        write_at(fd, memoryview(data), 0)
        sync(fd)
    finally:
        os.close(fd)


def open_file(path: str) -> tuple[int, int]:
    """Return a descriptor to read a regular file by, and its size. Neither a link nor a pipe is followed or waited
    for."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is no regular file", path)
    return fd, status.st_size


def read_at(fd: int, room: memoryview, at: int) -> int:
    """Fill `room` from byte `at` on; return how many bytes there were."""
    done = 0
    while done < len(room):
        n = os.preadv(fd, [room[done:]], at + done)
        if n == 0:
            break
        done += n
    return done


def lock(path: str) -> int | None:
    """Return a descriptor of a folder that no other process has locked; None where one has. Its end, however, unlocks
    it.

    Raises OSError where the folder is gone, or its file system has no locks.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        os.close(fd)
        raise
    return fd


def unlock(fd: int) -> None:
    """Give a lock back, although a process that was forked meanwhile still has the descriptor, and close it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def is_still(path: str, fd: int) -> bool:
    """Return whether a path still leads to the folder of this descriptor."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def remove_folder(path: str) -> None:
    """Remove a folder of files; what is gone already is no error."""
    try:
        for name in os.listdir(path):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(path, name))
        os.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("cannot remove %s: %s", path, error)
