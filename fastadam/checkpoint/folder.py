"""Has what users call: Folder, the checkpoints of a run; save, load and read of one checkpoint without it."""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from fastadam.arrays.host import Array
from fastadam.checkpoint import contents, manifest
from fastadam.checkpoint.background import Handle
from fastadam.checkpoint.contents import Shards
from fastadam.checkpoint.disk import log
from fastadam.checkpoint.loading import Loading, is_torch
from fastadam.checkpoint.manifest import Damaged
from fastadam.checkpoint.places import DONE, Place, Series, Single, is_foreign, numbered
from fastadam.checkpoint.reading import Opened, open_newer
from fastadam.checkpoint.saving import Gather, Saving, Team
from fastadam.checkpoint.source import Source
from fastadam.checks import flag, integer

LACKING = errno.EMFILE, errno.ENFILE, errno.ENOMEM  # what this process has not enough of: no checkpoint is at fault


def prepared(place: Place, opt: Any, extra: Any, accumulated: bool, shards: Shards, team: Team) -> Saving:
    """Return a save that is ready to begin. Raises TypeError, ValueError before anything is written."""
    manifest.check_json("extra", extra)
    if is_torch(opt):
        from fastadam.checkpoint import of_torch

        if accumulated:
            raise ValueError("accumulated is True, expected False for a PyTorch optimizer: its p.grad is the program's")
        return Saving(place, of_torch.snapshot(opt, shards), extra, team)
    return Saving(place, contents.snapshot(opt, shards, accumulated), extra, team)


def finish(saving: Saving) -> None:
    """Write and make the checkpoint appear; clear up, whatever happens."""
    try:
        saving.write()
    finally:
        saving.close()


class Folder:
    """Keeps the checkpoints of a run: a folder of folders, each of which is there whole or not at all.

    path: the folder; it is made by the first save. keep: how many of the newest checkpoints a save leaves.

    One that fails, or is killed at any point, leaves the ones before it as they were. Several processes may save into
    one folder at once: each makes a checkpoint of its own.

    >>> opt = fa.Adam(np.ones(3, np.float32))
    >>> folder = fa.checkpoint.Folder("run7", keep=3)
    >>> _ = folder.save(opt, extra={"epoch": 1})
    >>> folder.load(opt)
    {'epoch': 1}
    """

    def __init__(self, path: str | os.PathLike[str], keep: int = 3) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.keep = integer("keep", keep, low=1)
        if os.path.exists(os.path.join(self.path, manifest.NAME)):
            raise ValueError(f"{self.path} is one checkpoint, expected a folder of them: checkpoint.load loads one")
        self._handle: Handle | None = None
        self._rooms: list[Any] = []  # memory for the copies of saves in the background, while none uses it

    def save(
        self, opt: Any, extra: Any = None, *, background: bool = False, copy: bool = True, memory: int | None = None,
        accumulated: bool = False, shards: Shards = None, rank: int = 0, size: int = 1, gather: Gather | None = None,
    ) -> Handle | None:  # fmt: skip
        """Save an optimizer: its parameters, state, counts, hyperparameters (of lr only a number) and seed.

        extra: anything that JSON gives back as it was.
        background: copy what is to be saved, return a Handle, write in a thread. It takes the file's size in memory,
            kept for the next such save, which waits for this one. An OSError comes from the handle's wait() and goes to
            the log, not to the training loop.
        copy: False, with background=True and arrays of the host: copy nothing; no step may be taken before wait()
            has returned.
        memory: with background=True, bytes that the copy may take: what exceeds them is written before save returns.
        accumulated: also what opt.accumulate has added up and no step has used; load takes it over where it is.
        shards: which leaves are parts, {path: Shard}; every rank saves with its own, each into a file of its own.
        rank, size, gather: this process among those that save together; gather takes one object and returns the list of
            every rank's, such as torch.distributed.all_gather_object. All of them see the same folder, and all raise if
            one of them cannot save.
        Raises OSError where the disk refuses or another rank could not save; then the checkpoints before are untouched.
        Without background it takes 24 MB beside the arrays.
        """
        for name, value in {"background": background, "copy": copy, "accumulated": accumulated}.items():
            flag(name, value)
        limit = None if memory is None else integer("memory", memory, low=0)
        if not background and (limit is not None or copy is not True):
            raise ValueError("copy and memory are given, expected them with background=True")
        self.settle()
        saving = prepared(Series(self.path, self.keep), opt, extra, accumulated, shards, Team(rank, size, gather))
        if not background:
            finish(saving)
            return None
        if saving.on_device and not copy:
            saving.close()
            raise ValueError("copy is False, expected True for arrays on a device: only this thread's stream is theirs")
        failed: OSError | None = None
        room: Any = None
        try:
            with suppress(IndexError):
                room = self._rooms.pop() if copy else None
            if copy:
                room = saving.stage(room, limit)
        except OSError as error:
            failed = error
        except BaseException:
            saving.close()
            raise

        def work() -> None:
            if failed is not None:
                saving.close()
                raise failed
            try:
                finish(saving)
            finally:
                if room is not None:
                    self._rooms[:] = [room]

        try:
            self._handle = handle = Handle(work)
        except BaseException:  # no thread can be started
            saving.close()
            raise
        return handle

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.keep)  # a save that is under way is this process's

    def settle(self) -> None:
        """Wait for a save in the background, if there is one; what went wrong in it goes to the log."""
        if self._handle is not None:
            self._handle.settle()

    def checkpoints(self) -> list[str]:
        """Return the paths of the checkpoints, the newest first."""
        try:
            return [os.path.join(self.path, name) for _, name in numbered(self.path, DONE)]
        except FileNotFoundError:
            return []

    def load(self, opt: Any, *, strict: bool = True, shards: Shards = None) -> Any:
        """Load the newest checkpoint that is whole, and return its extra; None where there is no checkpoint yet.

        The optimizer has the same method over a tree of the same paths, shapes and dtypes, or a FlatBuffer of one. The
        checkpoint's hyperparameters win over the constructor's; an lr that is a callable stays. Other moments are
        rounded as opt.convert does, which the log says. What was accumulated is
        dropped, or replaced by what was saved of it. It takes the checkpoint's
        size in memory: nothing changes before all of it is read and its checksums agree.

        strict: False loads the leaves that fit; returns (extra, a list of texts, what did not).
        shards: which leaves are parts, {path: Shard}, of whatever number of ranks; each reads what it needs.
        Raises ValueError that names what differs, Damaged where there are checkpoints and none is whole.
        """
        loading = self.prepared(opt, strict=strict, shards=shards)
        return None if loading is None else loading.take()

    def prepared(self, opt: Any, *, strict: bool = True, shards: Shards = None) -> Loading | None:
        """Read the newest checkpoint that is whole, as `load` does, and change nothing before the result's `take()`.

        So ranks can agree between the two; None where there is no checkpoint yet. Arguments and errors as of `load`.
        """
        self.settle()
        reasons: list[str] = []
        tried: set[str] = set()
        while paths := [path for path in self.checkpoints() if path not in tried]:  # others may save meanwhile
            tried.add(paths[0])
            try:
                with Opened(paths[0]) as saved:
                    return Loading(saved, opt, shards, strict)
            except (Damaged, OSError) as error:
                if isinstance(error, OSError) and error.errno in LACKING:
                    raise
                reasons.append(f"{os.path.basename(paths[0])}: {error}")
                log.warning("%s is passed over: %s", paths[0], error)
        if reasons and self.checkpoints():
            raise Damaged(f"no checkpoint in {self.path} is whole: {'; '.join(reasons)}")
        return None


def path_of_one(path: str | os.PathLike[str]) -> str:
    """Return a path, absolute. Raises ValueError where it leads to a folder of checkpoints."""
    where = os.path.abspath(os.fspath(path))
    if os.path.isdir(where) and numbered(where, DONE):
        raise ValueError(f"{where} is a folder of checkpoints, expected another path, or checkpoint.Folder")
    return where


def save(
    path: str | os.PathLike[str], opt: Any, extra: Any = None, *, accumulated: bool = False, shards: Shards = None,
    rank: int = 0, size: int = 1, gather: Gather | None = None,
) -> None:  # fmt: skip
    """Save one checkpoint, in place of the one that was there; arguments and errors as of Folder.save.

    A save that fails or is killed leaves the one before it.

    >>> _ = fa.checkpoint.save("model.ckpt", fa.Adam(np.ones(3, np.float32)))
    """
    flag("accumulated", accumulated)
    where = path_of_one(path)
    if is_foreign(where):
        raise ValueError(
            f"{where} has a {manifest.NAME} of something else, expected another path: it would be replaced"
        )
    finish(prepared(Single(where), opt, extra, accumulated, shards, Team(rank, size, gather)))


def load(path: str | os.PathLike[str], opt: Any, *, strict: bool = True, shards: Shards = None) -> Any:
    """Load one checkpoint and return its extra; arguments and errors as of Folder.load.

    Raises FileNotFoundError where there is none, Damaged where it is not as it was written.

    >>> opt = fa.Adam(np.ones(3, np.float32))
    >>> _ = fa.checkpoint.save("model.ckpt", opt, extra={"epoch": 1})
    >>> fa.checkpoint.load("model.ckpt", opt)
    {'epoch': 1}
    """
    with open_newer(path_of_one(path)) as saved:
        return Loading(saved, opt, shards, strict).take()


def read(path: str | os.PathLike[str], name: str, rows: slice | None = None) -> Array:
    """Return one tensor of a checkpoint, or some of its rows, without an optimizer.

    path: a checkpoint, or a folder of them, whose newest is taken. name: such as params['w'], m['w'], ema['w'].
    rows: a slice of the first axis, of step 1.

    Returns an array that cannot be written: mapped from the file where it lies in one piece, decoded to float32 where
    it rests in 8 bits. The bytes it lies in are checked, and the up to 32 MB around them that share a checksum.
    Raises KeyError that lists the names, Damaged where a checksum differs.

    >>> _ = fa.checkpoint.save("model.ckpt", fa.Adam({"w": np.ones(3, np.float32)}))
    >>> fa.checkpoint.read("model.ckpt", "params['w']").tolist()
    [1.0, 1.0, 1.0]
    """
    where = os.path.abspath(os.fspath(path))
    if not os.path.exists(os.path.join(where, manifest.NAME)) and (inside := Folder(where).checkpoints()):
        where = inside[0]
    with open_newer(where, mapped=True) as saved:
        source = Source(saved)
        stream, leaf = source.split(name)
        shape = source.shape(stream, leaf) or ()
        first, stop = 0, int(np.prod(shape, dtype=np.int64))
        if rows is not None:
            if not isinstance(rows, slice) or not shape or rows.step not in (None, 1):
                raise ValueError(f"rows is {rows!r}, expected a slice of step 1; {name} has the shape {shape}")
            low, high, _ = rows.indices(shape[0])
            width, high = stop // max(1, shape[0]), max(low, high)
            first, stop, shape = low * width, high * width, (high - low, *shape[1:])
        values = source.wide(stream, leaf, first, stop).reshape(shape)
        values.flags.writeable = False
        return values


def opened_all(path: str) -> Iterator[str]:
    """Yield the checkpoints at a path: itself, or those in it, the oldest first."""
    if os.path.exists(os.path.join(path, manifest.NAME)):
        yield path
    elif os.path.isdir(path):
        yield from reversed(Folder(path).checkpoints())
