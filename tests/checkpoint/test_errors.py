"""A disk that refuses: a clear error, the checkpoint before untouched, and in the background a loop that goes on."""

import copy
import errno
import logging
import os
import pickle
import shutil
import threading
import time

import numpy as np
import pytest
from checkpoint.replay import CALLS
from checkpoint.team import together

import fastadam as fa
from fastadam.checkpoint import disk

CHANGING = [name for name in CALLS if name != "close"]
ERRORS = errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES


def optimizer():
    return fa.AdamW({"w": np.arange(3000, dtype=np.float32)}, lr=0.1, backend="numpy")


def step(opt):
    opt.step({"w": np.ones(3000, np.float32)})


def bits(opt):
    return opt.t, opt.params["w"].tobytes(), opt.moments()["params['w']"]["v"].tobytes()


class Refusing:
    """Lets the calls of os through but the one of this number, below a path."""

    def __init__(self, patch, root, number, error):
        self.left, self.error, self.refused = number, error, ""
        for name in CHANGING:
            patch.setattr(os, name, self._guarded(name, getattr(os, name), str(root)))

    def _guarded(self, name, real, root):
        def call(first, *rest, **named):
            path = first if isinstance(first, str) else os.readlink(f"/proc/self/fd/{first}")
            if path.startswith(root):
                self.left -= 1
                if self.left < 0 and not self.refused:
                    self.refused = name
                    raise OSError(self.error, os.strerror(self.error), path)
            return real(first, *rest, **named)

        return call


def saver(alone, path):
    return (lambda opt: fa.checkpoint.save(path, opt)) if alone else fa.checkpoint.Folder(path, keep=1).save


def loader(alone, path):
    return (lambda opt: fa.checkpoint.load(path, opt)) if alone else fa.checkpoint.Folder(path).load


@pytest.mark.parametrize("alone", [False, True], ids=["folder", "alone"])
def test_every_call_may_fail(alone, tmp_path):
    """Whichever call the disk refuses: an OSError, or a save that is whole; the next one works and leaves nothing."""
    refused = set()
    for number in range(100):
        path = str(tmp_path / str(number))
        opt, fresh = optimizer(), optimizer()
        step(opt)
        saver(alone, path)(opt)
        before = bits(opt)
        step(opt)
        with pytest.MonkeyPatch.context() as patch:
            refusing = Refusing(patch, path, number, ERRORS[number % len(ERRORS)])
            try:
                saver(alone, path)(opt)
                error = None
            except OSError as caught:
                error = caught
        if not refusing.refused:
            break
        refused.add(refusing.refused)
        assert error is None or error.errno == refusing.error
        loader(alone, path)(fresh)
        assert bits(fresh) in ([before, bits(opt)] if error else [bits(opt)])
        step(opt)
        saver(alone, path)(opt)
        loader(alone, path)(fresh)
        assert bits(fresh) == bits(opt)
        assert len(os.listdir(path)) == (2 if alone else 1)
    else:
        pytest.fail("no end of calls")
    assert refused >= {"open", "pwrite", "fsync", "mkdir", "replace" if alone else "rename"}


def test_a_file_that_grows_too_large(tmp_path, fresh):
    """The limit is the system's, not a stand-in's."""
    text = """
import resource, signal, sys
import numpy as np
import fastadam as fa
path = sys.argv[1]
opt = fa.SGD(np.zeros(100_000, np.float32), lr=0.5, momentum=0.5, backend="numpy")
folder = fa.checkpoint.Folder(path, keep=1)
folder.save(opt, "first")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
opt.step(np.ones(100_000, np.float32))
try:
    folder.save(opt)
except OSError as error:
    print(error.strerror)
print(folder.load(opt), opt.t, len(folder.checkpoints()))
"""
    assert fresh(text, tmp_path / "run").splitlines() == ["File too large", "first 0 1"]


def test_a_folder_that_vanishes(tmp_path, monkeypatch):
    opt, path = optimizer(), tmp_path / "run"
    folder = fa.checkpoint.Folder(path)
    real = os.fsync

    def fsync(fd):
        shutil.rmtree(path, ignore_errors=True)
        return real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(FileNotFoundError, match="saving"):
            folder.save(opt)
    assert folder.load(opt) is None
    folder.save(opt, "again")
    assert folder.load(opt) == "again"


def test_a_path_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(NotADirectoryError, match="file"):
            fa.checkpoint.Folder(path).save(optimizer())
    assert (tmp_path / "file").read_text() == "mine"


def test_the_two_kinds_of_folders_are_not_mixed(tmp_path):
    opt = optimizer()
    fa.checkpoint.save(tmp_path / "one", opt)
    fa.checkpoint.Folder(tmp_path / "run").save(opt)
    with pytest.raises(ValueError, match="is one checkpoint"):
        fa.checkpoint.Folder(tmp_path / "one")
    for work in (fa.checkpoint.save, fa.checkpoint.load):
        with pytest.raises(ValueError, match="is a folder of checkpoints"):
            work(tmp_path / "run", opt)


# ---- in the background


def test_training_goes_on_where_the_background_fails(tmp_path, monkeypatch, caplog):
    opt, folder = optimizer(), fa.checkpoint.Folder(tmp_path / "run")
    folder.save(opt, "first")
    for memory in (None, 0):
        step(opt)
        with monkeypatch.context() as patch:
            Refusing(patch, tmp_path, 3, errno.ENOSPC)
            caplog.clear()
            handle = folder.save(opt, "second", background=True, memory=memory)
            with pytest.raises(OSError, match="No space left"):
                handle.wait()
        assert handle.done
        assert "was not saved: OSError" in caplog.text
        assert folder.load(optimizer()) == "first"
    with monkeypatch.context() as patch:
        Refusing(patch, tmp_path, 3, errno.ENOSPC)
        handle = folder.save(opt, "third", background=True)
        while not handle.done:
            time.sleep(0.001)
    caplog.clear()
    folder.save(opt, "fourth", background=True).wait()  # says what nobody has asked for, and goes on
    assert "the checkpoint before was not saved: OSError: [Errno 28]" in caplog.text
    assert folder.load(opt) == "fourth"


def test_the_background_saves_what_was_not_what_is(tmp_path):
    """With a copy, or with as much of one as memory allows, steps taken meanwhile do not show."""
    path = tmp_path / "run"
    for memory in (None, 0, 5000, 10**9):
        opt, folder, fresh = optimizer(), fa.checkpoint.Folder(path), optimizer()
        step(opt)
        before = bits(opt)
        with pytest.MonkeyPatch.context() as patch:
            gate, real = threading.Event(), os.fsync
            patch.setattr(os, "fsync", lambda fd, gate=gate, real=real: (gate.wait(), real(fd)))
            waits = memory is None or memory == 10**9
            if not waits:  # save writes itself, before it returns
                gate.set()
            handle = folder.save(opt, background=True, memory=memory)
            step(opt)
            assert not (waits and handle.done)
            gate.set()
            handle.wait()
        folder.load(fresh)
        assert bits(fresh) == before


def test_memory_is_not_taken_beyond_what_is_allowed(tmp_path, monkeypatch):
    """What exceeds it is on its way before save returns, and the rest is copied in one moment."""
    from fastadam.checkpoint import saving, writing

    monkeypatch.setattr(writing, "CHUNK", 4096)
    monkeypatch.setattr(saving, "CHUNK", 4096)
    opt, folder, taken = optimizer(), fa.checkpoint.Folder(tmp_path / "run"), []
    real = saving.memory
    monkeypatch.setattr(saving, "memory", lambda n, pinned: (taken.append(n), real(n, pinned))[1])
    step(opt)
    handle = folder.save(opt, background=True, memory=10_000)
    handle.wait()
    assert taken == [8192]
    fresh = optimizer()
    folder.load(fresh)
    assert bits(fresh) == bits(opt)


def test_the_end_of_the_process_waits(tmp_path, fresh):
    text = """
import os, sys, time
import numpy as np
import fastadam as fa
real = os.fsync
os.fsync = lambda fd: (time.sleep(0.2), real(fd))
opt = fa.SGD(np.zeros(100_000, np.float32), lr=0.5, momentum=0.5, backend="numpy")
fa.checkpoint.Folder(sys.argv[1]).save(opt, "at the end", background=True)
"""
    assert fresh(text, tmp_path / "run") == ""
    opt = fa.SGD(np.zeros(100_000, np.float32), lr=0.5, momentum=0.5, backend="numpy")
    assert fa.checkpoint.Folder(tmp_path / "run").load(opt) == "at the end"


def test_a_folder_is_copied_while_it_saves(tmp_path):
    folder = fa.checkpoint.Folder(tmp_path / "run", keep=7)
    folder.save(optimizer(), "saved", background=True)
    for other in (copy.deepcopy(folder), pickle.loads(pickle.dumps(folder))):
        assert (other.path, other.keep) == (folder.path, 7)
    folder.settle()
    assert other.load(optimizer()) == "saved"


@pytest.mark.parametrize("name", ["background", "copy", "accumulated"])
def test_what_only_counts_as_true_is_refused(name, tmp_path):
    """background="no" would be a save in the background."""
    opt = optimizer()
    with pytest.raises(TypeError, match=f"{name} is 'no', expected True or False"):
        fa.checkpoint.Folder(tmp_path / "run").save(opt, **{name: "no"})
    assert not (tmp_path / "run").exists()
    fa.checkpoint.save(tmp_path / "one", opt)
    with pytest.raises(TypeError, match="strict is 'no', expected True or False"):
        fa.checkpoint.load(tmp_path / "one", opt, strict="no")


def test_copy_and_memory_are_for_the_background(tmp_path):
    for named in ({"copy": False}, {"memory": 5}):
        with pytest.raises(ValueError, match="background=True"):
            fa.checkpoint.Folder(tmp_path / "run").save(optimizer(), **named)
    with pytest.raises(ValueError, match="memory is -1"):
        fa.checkpoint.Folder(tmp_path / "run").save(optimizer(), background=True, memory=-1)


# ---- several savers


def test_an_error_of_one_rank_is_everyones(tmp_path):
    """No rank waits for ever, and no checkpoint appears."""
    path = tmp_path / "run"

    def work(rank, gather):
        opt = fa.AdamW({"w": np.zeros(100 + rank, np.float32)}, backend="numpy")  # which do not belong together
        return fa.checkpoint.Folder(path).save(opt, rank=rank, size=3, gather=gather)

    errors = together(3, work)
    assert ["could not save" in str(error) or "params['w'] is" in str(error) for error in errors] == [True] * 3
    assert os.listdir(path) == []


def test_ranks_are_checked(tmp_path):
    for named, words in (
        ({"rank": 1}, "rank is 1"),
        ({"size": 0}, "size is 0"),
        ({"size": 2}, "gather is None"),
        ({"gather": lambda x: [x, x]}, "gather returned 2"),
    ):
        with pytest.raises(ValueError, match=words):
            fa.checkpoint.Folder(tmp_path / "run").save(optimizer(), **named)
    assert fa.checkpoint.Folder(tmp_path / "run").load(optimizer()) is None


def test_savers_at_the_same_time_make_checkpoints_of_their_own(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    opts = [optimizer() for _ in range(4)]
    for k, opt in enumerate(opts):
        for _ in range(k + 1):
            step(opt)

    def work(rank, gather):
        for _ in range(5):
            fa.checkpoint.Folder(tmp_path / "run", keep=50).save(opts[rank], {"t": rank + 1})
            fa.checkpoint.save(tmp_path / "one", opts[rank], {"t": rank + 1})

    assert together(4, work) == [None] * 4
    folder, fresh = fa.checkpoint.Folder(tmp_path / "run"), optimizer()
    paths = folder.checkpoints()
    assert len(paths) == 20
    for path in [*paths, tmp_path / "one"]:
        extra = fa.checkpoint.load(path, fresh)
        assert bits(fresh) == bits(opts[extra["t"] - 1])
    assert len(os.listdir(tmp_path / "one")) <= 5  # what a saver saw locked, the next one sweeps
    assert caplog.text == ""


def test_one_folder_saves_from_several_threads_in_the_background(tmp_path):
    """Each save's copy has memory of its own until it is on disk."""
    folder = fa.checkpoint.Folder(tmp_path / "run", keep=50)
    opts = [fa.SGD(np.full(200_000, k, np.float32), lr=0.5, backend="numpy") for k in range(4)]

    def work(rank, gather):
        for _ in range(5):
            folder.save(opts[rank], rank, background=True).wait()

    assert together(4, work) == [None] * 4
    fresh = fa.SGD(np.full(200_000, -1, np.float32), lr=0.5, backend="numpy")
    paths = folder.checkpoints()
    assert len(paths) == 20
    for path in paths:
        rank = fa.checkpoint.load(path, fresh)
        assert (fresh.params == rank).all()


def test_a_file_system_without_locks_keeps_no_more_than_asked(tmp_path, monkeypatch):
    def flock(fd, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    opt, folder = optimizer(), fa.checkpoint.Folder(tmp_path / "run", keep=2)
    for t in range(4):
        step(opt)
        folder.save(opt, t)
        fa.checkpoint.save(tmp_path / "one", opt, t)
    assert sorted(os.listdir(tmp_path / "run")) == ["00000003-step-3", "00000004-step-4"]
    assert len(os.listdir(tmp_path / "one")) == 2
    assert fa.checkpoint.load(tmp_path / "one", opt) == folder.load(opt) == 3


def test_a_process_forked_during_a_save_keeps_no_lock(tmp_path):
    """Its descriptors are copies of this one's, as dup makes them."""
    from fastadam.checkpoint.places import Series

    place = Series(str(tmp_path), 9)
    place.begin()
    inherited = os.dup(place._lock)
    path = os.path.join(tmp_path, place._publish(b"", 0))
    place._unlock()
    lock = disk.lock(path)
    os.close(inherited)
    assert lock is not None
    disk.unlock(lock)


def test_a_manifest_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "an extension of a browser"}')
    with pytest.raises(ValueError, match=r"has a manifest\.json of something else"):
        fa.checkpoint.save(tmp_path, optimizer())
    assert os.listdir(tmp_path) == ["manifest.json"]
    one = tmp_path / "one"
    for text in (b"", b"fastadam", None):  # a damaged one of ours is replaced, and one whose files are gone
        fa.checkpoint.save(one, optimizer())
        if text is None:
            for name in os.listdir(one):
                shutil.rmtree(one / name, ignore_errors=True)
        else:
            (one / "manifest.json").write_bytes(text)
        fa.checkpoint.save(one, optimizer(), "again")
        assert fa.checkpoint.load(one, optimizer()) == "again"


def test_no_thread_for_the_background_is_an_error(tmp_path, monkeypatch):
    """What the save has begun ends with it: no thread waits for ever, no folder stays."""
    opt, folder, real = optimizer(), fa.checkpoint.Folder(tmp_path / "run"), threading.Thread.start

    def start(thread):
        if thread.name == "fastadam checkpoint":
            raise RuntimeError("can't start new thread")
        real(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="new thread"):
            folder.save(opt, background=True)
        with pytest.raises(RuntimeError, match="new thread"):
            folder.save(opt, background=True, memory=0)
    assert not [x for x in threading.enumerate() if x.name.startswith("fastadam checkpoint")]
    assert os.listdir(tmp_path / "run") == []
    folder.save(opt, "again", background=True).wait()
    assert folder.load(opt) == "again"


def test_what_is_no_optimizer_is_refused(tmp_path):
    for opt in (None, {"w": 1}, fa.AdamW):
        with pytest.raises(TypeError, match=f"opt is {type(opt).__name__}, expected an optimizer"):
            fa.checkpoint.save(tmp_path / "one", opt)
    assert not os.listdir(tmp_path)
