"""Saves, on one rank or several, by the same three steps, after each of which all ranks know whether it went well."""

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fastadam.arrays.host import PAGE
from fastadam.checkpoint import manifest
from fastadam.checkpoint.checksum import best
from fastadam.checkpoint.contents import Snapshot
from fastadam.checkpoint.places import Place
from fastadam.checkpoint.tensors import Image
from fastadam.checkpoint.writing import CHUNK, File, Lane, memory, rooms
from fastadam.checks import integer

Gather = Callable[[Any], list[Any]]  # one rank's object -> those of all ranks, in their order


class Team:
    """Joins the processes that save one checkpoint together. Each of its calls is made by all of them."""

    def __init__(self, rank: int, size: int, gather: Gather | None) -> None:
        self.size = integer("size", size, low=1)
        self.rank = integer("rank", rank, low=0, most=self.size - 1)
        if gather is None and self.size > 1:
            raise ValueError(
                f"gather is None with size={size}, expected a function: one object -> a list of every rank's"
            )
        self._gather: Gather = gather or (lambda x: [x])

    def share(self, work: Callable[[], Any]) -> list[Any]:
        """Return what each rank's work returns. Raises what it raised here, else OSError where it raised on another
        rank."""
        raised: BaseException | None = None
        try:
            report: tuple[str | None, Any] = None, work()
        except BaseException as error:
            raised, report = error, (f"{type(error).__name__}: {error}", None)
        reports = self._gather(report)
        if raised is not None:
            raise raised
        if len(reports) != self.size:
            raise ValueError(f"gather returned {len(reports)} objects, expected {self.size}")
        for rank, (wrong, _) in enumerate(reports):
            if wrong is not None:
                raise OSError(errno.EIO, f"rank {rank} could not save: {wrong}")
        return [result for _, result in reports]


class Saving:
    """Is one checkpoint on its way to disk: begin, or stage, then write; close comes last, whatever happened.

    on_device: whether arrays lie on a device, and bytes come from there through pinned memory.
    """

    def __init__(self, place: Place, contents: Snapshot, extra: Any, team: Team) -> None:
        self._place, self._contents, self._extra, self._team = place, contents, extra, team
        self.on_device = any(not isinstance(piece.values, np.ndarray) for piece in contents.pieces)
        self._image, self._algorithm = Image(contents.pieces), best()
        self._lane = Lane()
        self._file: File | None = None
        self._path = ""
        self._staged: Any = None
        self._cut = self._image.size  # the bytes before it are written straight from their arrays

    def begin(self) -> None:
        """Let rank 0 make the folder for every rank's file."""
        first = self._team.rank == 0
        folder = self._team.share(self._place.begin if first else lambda: None)[0]
        self._path = f"{folder}/rank-{self._team.rank:05d}.safetensors"

    def stage(self, room: Any, limit: int | None) -> Any:
        """Copy what is to be written, in `room` where that is large enough; return the room. Beyond limit bytes
        nothing is copied but written at once."""
        size = self._image.size
        self._cut = 0 if limit is None or limit >= size else min(size, -(-(size - limit) // CHUNK) * CHUNK)
        if self._cut:
            self.begin()
            self._team.share(self._write_straight)
        n = -(-(size - self._cut) // PAGE) * PAGE
        if room is None or len(room) < n:
            room = memory(n, self.on_device)
        self._image.fill(room[: size - self._cut], self._cut)
        self._staged = room
        return room

    def _open(self) -> File:
        if self._file is None:
            self._file = File(self._path, self._image.size, self._lane, self._algorithm)
        return self._file

    def _write_straight(self) -> None:
        self._open().copy(self._image.fill, 0, self._cut, rooms(self.on_device))

    def write(self) -> None:
        """Write what is left, and return once all ranks' files are on disk and the checkpoint has appeared."""
        if not self._path:
            self.begin()
        files = self._team.share(self._write)
        if self._team.rank == 0:
            self._team.share(lambda: self._place.commit(self._manifest(files), self._contents.t))
        else:
            self._team.share(lambda: None)

    def _write(self) -> tuple[dict[str, Any], Any, Any, Any]:
        if self._staged is None:
            self._write_straight()
        else:
            self._open().take(self._staged, self._cut)
        described = self._open().finish()
        places = [(replace(piece, values=None), offset)
                  for piece, offset in zip(self._image.pieces, self._image.offsets, strict=True)]  # fmt: skip
        return described, self._contents.head, self._contents.leaves, places

    def _manifest(self, files: list[Any]) -> bytes:
        """Return the text of the manifest. Raises ValueError where ranks do not belong together."""
        head, leaves, pieces = files[0][1], dict[str, Any](), []
        for rank, (_, head_of_rank, leaves_of_rank, places) in enumerate(files):
            for key in head:
                if key != "index_offset" and head_of_rank.get(key) != head[key]:
                    raise ValueError(f"rank {rank} has {key} {head_of_rank.get(key)!r}, rank 0 has {head[key]!r}")
            for path, numbers in leaves_of_rank.items():
                if leaves.setdefault(path, numbers) != numbers:
                    raise ValueError(f"rank {rank} has {numbers} for {path}, another has {leaves[path]}")
            pieces += [(rank, piece, offset) for piece, offset in places]
        described = [{**file, "name": self._place.prefix + file["name"]} for file, *_ in files]
        return manifest.encode(head, leaves, manifest.located(pieces), self._extra, self._algorithm, described)

    def close(self) -> None:
        """End what is under way; remove what has not become a checkpoint."""
        self._lane.close()
        if self._file is not None:
            self._file.close()
        self._place.abandon()
