"""A loss of power at any moment, whatever of what was not synced the disk then has, loses no promised checkpoint."""

import os
import shutil
import tempfile

import numpy as np
import pytest
from checkpoint import replay

import fastadam as fa
from fastadam.checkpoint import manifest, writing

SAVES = 4


def optimizer():
    params = {"w": np.arange(4000, dtype=np.float32), "b": [np.ones(5, np.float32)]}
    return fa.SGD(params, lr=0.5, momentum=0.5, backend="numpy")


def step(opt):
    opt.step({"w": np.ones(4000, np.float32), "b": [np.full(5, 2, np.float32)]})


def bits(opt):
    leaves = [opt.params["w"], opt.params["b"][0], *(x["m"] for x in opt.moments().values())]
    return opt.t, b"".join(x.tobytes() for x in leaves)


class InFolder:
    name = "run"

    def __init__(self, path, background):
        self.folder, self.background = fa.checkpoint.Folder(path, keep=2), background

    def save(self, opt):
        handle = self.folder.save(opt, {"t": opt.t}, background=self.background)
        if handle is not None:
            handle.wait()

    def load(self, opt):
        extra = self.folder.load(opt)
        return extra and extra["t"]


class Alone:
    name = "model.ckpt"

    def __init__(self, path, background):
        self.path = path

    def save(self, opt):
        fa.checkpoint.save(self.path, opt, {"t": opt.t})

    def load(self, opt):
        try:
            return fa.checkpoint.load(self.path, opt)["t"]
        except FileNotFoundError:
            return None


@pytest.fixture
def quick():
    """A folder in memory, where there is one: thousands of small ones are made in it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield folder


@pytest.mark.parametrize("small", [False, True], ids=["one write", "many writes"])
@pytest.mark.parametrize(
    ("kind", "background"), [(InFolder, False), (InFolder, True), (Alone, False)], ids=["folder", "background", "alone"]
)
def test_no_loss_of_power_loses_what_was_promised(kind, background, small, tmp_path, quick, request):
    """Saves, each time over the one before, are recorded, and replayed up to every call. After each save's return that
    checkpoint or a later one is loaded, to the bit."""
    root, again = tmp_path / "disk", os.path.join(quick, "again")
    root.mkdir()
    opt, states = optimizer(), {}
    with pytest.MonkeyPatch.context() as patch:
        if small:
            for module in (writing, manifest):
                patch.setattr(module, "SPAN", 8192)
            patch.setattr(writing, "CHUNK", 4096)
        recorder = replay.Recorder(root, patch)
        saver = kind(str(root / "sub" / kind.name), background)
        for _ in range(SAVES):
            step(opt)
            states[opt.t] = bits(opt)
            saver.save(opt)
            recorder.promise(opt.t)
    fresh, loaded, tried = optimizer(), set(), 0
    for promised, changes in replay.crashes(recorder.log, 100 if request.config.getoption("--all") else 6):
        shutil.rmtree(again, ignore_errors=True)
        replay.build(changes, again)
        t = kind(os.path.join(again, "sub", kind.name), False).load(fresh)
        assert (t or 0) >= (promised or 0), f"{promised} was promised, {t} loaded, of {changes}"
        assert t is None or bits(fresh) == states[t]
        loaded.add(t)
        tried += 1
    assert loaded == {None, *states}
    assert tried > 300


def test_the_replay_finds_what_is_missing(tmp_path, quick):
    """Without any one of the calls that make names durable, or with the manifest first, the replay loses something."""
    from fastadam.checkpoint import disk

    def lost(name, replacement):
        root = tmp_path / name
        root.mkdir()
        opt, states, fresh = optimizer(), {}, optimizer()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(disk, name, replacement)
            recorder = replay.Recorder(root, patch)
            folder = fa.checkpoint.Folder(str(root / "run"), keep=1)
            for _ in range(2):
                step(opt)
                states[opt.t] = bits(opt)
                folder.save(opt, {"t": opt.t})
                recorder.promise(opt.t)
        for k, (promised, changes) in enumerate(replay.crashes(recorder.log, 0)):
            again = os.path.join(quick, f"{name} {k}")
            replay.build(changes, again)
            try:
                extra = fa.checkpoint.Folder(os.path.join(again, "run")).load(fresh)
            except fa.checkpoint.Damaged:
                return True
            if promised is not None and (extra is None or extra["t"] < promised):
                return True
        return False

    assert lost("sync", lambda fd: None)
    assert lost("sync_folder", lambda path: None)
