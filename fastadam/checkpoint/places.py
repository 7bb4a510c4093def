"""Says where checkpoints lie, and the order of calls by which one appears there whole or not at all.

In a Series, the folder of a run, each checkpoint is a folder that nobody writes to again: 00000007-step-42. It is
filled under another name, .saving-..., and renamed. A Single is one checkpoint that is saved over: a folder with
manifest.json, and of each time it was saved a folder of files, 00000007-0123456789abcdef; a new manifest.json takes the
old one's place in one step.

Whoever saves keeps its new folder locked until it is done, so that others can tell it from what a dead one has left.
"""

import errno
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from fastadam.checkpoint import disk, manifest
from fastadam.checkpoint.disk import log

DONE = re.compile(r"(\d{8,20})-step-\d+")
GENERATION = re.compile(r"(\d{8,20})-[0-9a-f]{16}")
NO_LOCKS = errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL  # of file systems without
SAVING, REMOVED = ".saving-", ".removed-"


def numbered(root: str, pattern: re.Pattern[str]) -> list[tuple[int, str]]:
    """Return the folders whose names match, the newest first, with their numbers."""
    matches = [(pattern.fullmatch(name), name) for name in os.listdir(root)]
    return sorted(((int(match[1]), name) for match, name in matches if match), reverse=True)


def is_foreign(root: str) -> bool:
    """Return whether a folder has a file of the manifest's name that no checkpoint of ours, even a damaged one,
    explains."""
    try:
        with open(os.path.join(root, manifest.NAME), "rb") as file:
            return manifest.FORMAT.encode() not in file.read(100) and not numbered(root, GENERATION)
    except (FileNotFoundError, NotADirectoryError):
        return False


class Place:
    """Is where one save at a time puts its files: begin, then commit or abandon.

    folder: where the files go meanwhile. prefix: of their names in the manifest.
    """

    prefix = ""

    def __init__(self, root: str) -> None:
        self.root, self.folder, self._lock = root, "", -1

    def begin(self) -> str:
        """Make the folder for the files, and lock it."""
        disk.ensure_folder(self.root)
        while True:
            self.folder = os.path.join(self.root, self._name(secrets.token_hex(8)))
            os.mkdir(self.folder)
            try:
                lock = disk.lock(self.folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                # Nor will others remove what they cannot lock.
                log.debug("%s cannot be locked: %s", self.folder, error)
                return self.folder
            if lock is not None and disk.is_still(self.folder, lock):
                self._lock = lock
                return self.folder
            if lock is not None:  # somebody took it for a dead one's in the moment before it was locked
                disk.unlock(lock)

    def _name(self, token: str) -> str:
        raise NotImplementedError

    def _publish(self, text: bytes, t: int) -> str:
        raise NotImplementedError

    def _sweep(self) -> None:
        raise NotImplementedError

    def commit(self, text: bytes, t: int) -> str:
        """Make the checkpoint appear, durably, then remove what is no longer needed; return its path."""
        path = self._publish(text, t)
        self._unlock()
        try:
            self._sweep()
        except OSError as error:  # the checkpoint stands; the next save sweeps again
            log.warning("cannot remove what is old from %s: %s", self.root, error)
        return path

    def abandon(self) -> None:
        """Remove what was begun."""
        if self.folder:
            disk.remove_folder(self.folder)
        self._unlock()

    def _unlock(self) -> None:
        self.folder, lock, self._lock = "", self._lock, -1
        if lock >= 0:
            disk.unlock(lock)


class Series(Place):
    """Is a folder of checkpoints, of which the newest `keep` stay."""

    def __init__(self, root: str, keep: int) -> None:
        super().__init__(root)
        self.keep = keep

    def _name(self, token: str) -> str:
        return SAVING + token

    def _publish(self, text: bytes, t: int) -> str:
        disk.write_whole(os.path.join(self.folder, manifest.NAME), text)
        disk.sync_folder(self.folder)
        while True:
            last = max((number for number, _ in numbered(self.root, DONE)), default=0)
            path = os.path.join(self.root, f"{last + 1:08d}-step-{t}")
            try:
                os.rename(self.folder, path)
            except OSError as error:  # another saver was quicker
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                continue
            self.folder = ""
            disk.sync_folder(self.root)
            return path

    def _sweep(self) -> None:
        for _, name in numbered(self.root, DONE)[self.keep :]:
            removed = os.path.join(self.root, REMOVED + secrets.token_hex(8))
            with suppress(FileNotFoundError):  # another saver's sweep
                os.rename(os.path.join(self.root, name), removed)
                disk.remove_folder(removed)  # without a lock, which not every file system has: nobody writes to it
        for name in os.listdir(self.root):
            if name.startswith((SAVING, REMOVED)):
                _remove_if_dead(os.path.join(self.root, name))


class Single(Place):
    """Is one checkpoint that is saved over."""

    _superseded: frozenset[str] = frozenset()

    def _name(self, token: str) -> str:
        last = max((number for number, _ in numbered(self.root, GENERATION)), default=0)
        return f"{last + 1:08d}-{token}"

    def begin(self) -> str:
        super().begin()
        self.prefix = os.path.basename(self.folder) + "/"
        return self.folder

    def _publish(self, text: bytes, t: int) -> str:
        written = os.path.join(self.folder, manifest.NAME)
        disk.write_whole(written, text)
        disk.sync_folder(self.folder)
        disk.sync_folder(self.root)
        before = self._current() or frozenset()
        os.replace(written, os.path.join(self.root, manifest.NAME))
        self.folder = ""
        disk.sync_folder(self.root)
        self._superseded = before
        return self.root

    def _sweep(self) -> None:
        for name in self._superseded:  # without a lock, which not every file system has: nobody writes to them
            if not self._is_current(name):
                disk.remove_folder(os.path.join(self.root, name))
        for _, name in numbered(self.root, GENERATION):
            _remove_if_dead(os.path.join(self.root, name), partial(self._is_current, name))

    def _is_current(self, name: str) -> bool:
        """Return whether the manifest speaks of this generation, or cannot be read."""
        current = self._current()
        return current is None or name in current

    def _current(self) -> frozenset[str] | None:
        """Return the generations that the manifest speaks of; None where there is none, or it cannot be read."""
        try:
            with open(os.path.join(self.root, manifest.NAME), "rb") as file:
                files = manifest.decode(file.read())["files"]
        except (FileNotFoundError, ValueError):
            return None
        return frozenset(file["name"].partition("/")[0] for file in files)


def _remove_if_dead(path: str, spare: Callable[[], bool] = lambda: False) -> None:
    """Remove a folder, unless somebody who saves has locked it, or `spare`, asked once it is locked, says so."""
    try:
        lock = disk.lock(path)
    except OSError:
        return
    if lock is None:
        return
    try:
        if not spare():
            disk.remove_folder(path)
    finally:
        disk.unlock(lock)
