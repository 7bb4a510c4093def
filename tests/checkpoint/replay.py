"""What a power loss may leave of what a program wrote: recorded calls, replayed.

The method of ALICE (Pillai et al., OSDI 2014): what was synced is there, in order; of everything else any part may have
reached the disk, in any order. A file's bytes wait for fsync of the file, a name for fsync of the folder it stands in.
A rename within a folder is one change; between folders it is two, the new name and the old one's end.
"""

import os
import random
import threading
from dataclasses import dataclass

CALLS = "open", "close", "pwrite", "ftruncate", "fsync", "rename", "replace", "unlink", "rmdir", "mkdir"


@dataclass(frozen=True)
class Change:
    """One change that waits for a sync of `node`: kind is name, end, write or size."""

    kind: str
    node: int
    name: str = ""
    to: int = -1  # the node that gets the name
    at: int = 0
    data: bytes = b""
    gone: str = ""  # a name in the same folder that ends in the same moment
    folder: bool = False  # whether `to` is one


@dataclass(frozen=True)
class Sync:
    node: int


@dataclass(frozen=True)
class Promise:
    """A save has returned: what it saved must not be lost from here on."""

    number: int


class Recorder:
    """Records what happens below a folder while the calls of `os` are this one's. Nothing is synced for real."""

    def __init__(self, root, monkeypatch):
        self.root, self.log, self._lock = os.path.realpath(root), [], threading.RLock()
        self._fds, self._count = {}, 0
        self._new()  # the root's
        self._real = {name: getattr(os, name) for name in CALLS}
        self._names = {0: {}}  # folder -> name -> node
        for name in self._real:
            monkeypatch.setattr(os, name, getattr(self, name))

    def promise(self, number):
        self.log.append(Promise(number))

    def _new(self):
        self._count += 1
        return self._count - 1

    def _inside(self, path):
        return isinstance(path, str) and os.path.abspath(path).startswith(self.root + "/")

    def _find(self, path):
        """(folder's node, name) of a path below the root."""
        parts, node = os.path.relpath(os.path.abspath(path), self.root).split("/"), 0
        for part in parts[:-1]:
            node = self._names[node][part]
        return node, parts[-1]

    def _node(self, path):
        if os.path.abspath(path) == self.root:
            return 0
        folder, name = self._find(path)
        return self._names[folder].get(name)

    def open(self, path, flags, *mode, **named):
        with self._lock:
            fd = self._real["open"](path, flags, *mode, **named)
            if self._inside(path) or (isinstance(path, str) and os.path.abspath(path) == self.root):
                if flags & os.O_CREAT:
                    assert flags & os.O_EXCL, "a file that may be there already"
                    folder, name = self._find(path)
                    self._names[folder][name] = node = self._new()
                    self.log.append(Change("name", folder, name, node))
                self._fds[fd] = self._node(path)
            return fd

    def close(self, fd):
        with self._lock:
            self._fds.pop(fd, None)
            self._real["close"](fd)

    def pwrite(self, fd, data, at):
        with self._lock:
            if fd in self._fds:
                self.log.append(Change("write", self._fds[fd], at=at, data=bytes(data)))
            return self._real["pwrite"](fd, data, at)

    def ftruncate(self, fd, size):
        with self._lock:
            if fd in self._fds:
                self.log.append(Change("size", self._fds[fd], at=size))
            self._real["ftruncate"](fd, size)

    def fsync(self, fd):
        with self._lock:
            if fd in self._fds:
                self.log.append(Sync(self._fds[fd]))

    def mkdir(self, path, *mode):
        with self._lock:
            self._real["mkdir"](path, *mode)
            if self._inside(path):
                folder, name = self._find(path)
                self._names[folder][name] = node = self._new()
                self._names[node] = {}
                self.log.append(Change("name", folder, name, node, folder=True))

    def rename(self, source, target):
        with self._lock:
            self._real["rename"](source, target)
            (old, gone), (new, name) = self._find(source), self._find(target)
            node = self._names[old].pop(gone)
            self._names[new][name] = node
            if old == new:
                self.log.append(Change("name", new, name, node, gone=gone, folder=node in self._names))
            else:
                self.log += [Change("name", new, name, node, folder=node in self._names), Change("end", old, gone)]

    replace = rename

    def unlink(self, path, **named):
        with self._lock:
            self._real["unlink"](path, **named)
            if self._inside(path):
                folder, name = self._find(path)
                del self._names[folder][name]
                self.log.append(Change("end", folder, name))

    def rmdir(self, path, **named):
        with self._lock:
            self._real["rmdir"](path, **named)
            if self._inside(path):
                folder, name = self._find(path)
                del self._names[folder][name]
                self.log.append(Change("end", folder, name))


def crashes(log, several, seed=0):
    """(promised, changes) for a loss of power before every entry of the log and after the last: changes, in order, that
    the disk may then have. `several`: how many random parts of what was not synced are tried, beside the regular ones.
    """
    rng = random.Random(seed)
    for end in range(len(log) + 1):
        before = log[:end]
        if end < len(log) and isinstance(log[end], Promise):
            continue
        promised = max((x.number for x in before if isinstance(x, Promise)), default=None)
        last_sync = {x.node: k for k, x in enumerate(before) if isinstance(x, Sync)}
        changes = [(k, x) for k, x in enumerate(before) if isinstance(x, Change)]
        waiting = [k for k, x in changes if last_sync.get(x.node, -1) < k]
        seen = set()
        for chosen in _parts(waiting, several, rng):
            if chosen not in seen:
                seen.add(chosen)
                yield promised, _kept(changes, set(waiting), dict(chosen))


def _parts(waiting, several, rng):
    """How much of each waiting change the disk has: 1 all, 0 nothing, 0.5 the first half, -1 zeros in its place."""
    everything = [(k, 1) for k in waiting]
    yield tuple(everything)
    yield ()
    for j in range(len(waiting)):
        yield (everything[j],)  # one alone
        yield tuple(everything[:j] + everything[j + 1 :])  # all but one
        yield tuple(everything[:j])  # in order
        yield tuple(everything[j:])  # the last first
        for torn in (0.5, -1):
            yield tuple(everything[:j] + [(waiting[j], torn)] + everything[j + 1 :])
    for _ in range(several if len(waiting) > 1 else 0):
        yield tuple((k, part) for k in waiting if (part := rng.choice([0, 1, 1, 0.5, -1])))


def _kept(changes, waiting, chosen):
    kept = []
    for k, x in changes:
        part = chosen.get(k, 0) if k in waiting else 1
        if part and x.kind == "write" and part != 1:
            x = Change("write", x.node, at=x.at, data=bytes(len(x.data)) if part < 0 else x.data[: len(x.data) // 2])
        if part:
            kept.append(x)
    return kept


def build(changes, where):
    """Make the files that these changes leave, below the folder `where`."""
    names, data = {}, {}
    for x in changes:
        if x.kind == "name":
            entries = names.setdefault(x.node, {})
            if x.gone:
                entries.pop(x.gone, None)
            entries[x.name] = x.to, x.folder
        elif x.kind == "end":
            names.setdefault(x.node, {}).pop(x.name, None)
        elif x.kind == "write":
            content = data.setdefault(x.node, bytearray())
            content.extend(bytes(max(0, x.at + len(x.data) - len(content))))
            content[x.at : x.at + len(x.data)] = x.data
        else:
            content = data.setdefault(x.node, bytearray())
            content.extend(bytes(max(0, x.at - len(content))))
            del content[x.at :]
    _build(0, names, data, where)


def _build(node, names, data, where):
    os.makedirs(where, exist_ok=True)
    for name, (below, folder) in names.get(node, {}).items():
        path = os.path.join(where, name)
        if folder:
            _build(below, names, data, path)
        else:
            with open(path, "wb") as file:
                file.write(data.get(below, b""))
