"""kill -9 at random moments of a loop that saves: never a wrong bit, never a checkpoint less than promised."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoint import writer

import fastadam as fa

HOWS = "plain", "background", "still", "alone", "two"


class Truth:
    """The digest of every count of an uninterrupted run."""

    def __init__(self):
        self._opt = writer.optimizer()
        self._digests = {0: writer.digest(self._opt)}

    def __getitem__(self, t):
        while self._opt.t < t:
            writer.step(self._opt)
            self._digests[self._opt.t] = writer.digest(self._opt)
        return self._digests[t]


def begin(path, how):
    package = str(Path(fa.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package, str(Path(__file__).parents[1])])}
    return subprocess.Popen(
        [sys.executable, "-Werror", writer.__file__, path, how], env=environment, text=True, stdout=subprocess.PIPE
    )


def lines(process, letter):
    return [line.split()[1:] for line in process if line.startswith(letter) and line.endswith("\n")]


@pytest.mark.parametrize("how", HOWS)
def test_kills_lose_nothing(how, tmp_path, request):
    """Each process resumes with the very bits of the uninterrupted run, from the last promised count or a later one."""
    kills = 40 if request.config.getoption("--all") else 4
    truth, rng, path, promised, resumed = Truth(), random.Random(HOWS.index(how)), str(tmp_path / "run"), 0, 0
    for k in range(kills):
        processes = [begin(path, how) for _ in range(2 if how == "two" else 1)]
        heads = [process.stdout.readline() for process in processes]
        if k == 0:  # however slow the machine, there is something to lose
            assert processes[0].stdout.readline().startswith("S")
        time.sleep(rng.uniform(0.0, 0.4))
        for process in processes:
            process.kill()
        said = [list(process.stdout) for process in processes]
        for process in processes:
            process.wait()
            process.stdout.close()
        for head in heads:
            letter, t, digest = head.split()
            assert (letter, digest) == ("R", truth[int(t)])
            assert int(t) >= promised or how == "two"
            resumed = max(resumed, int(t))
        for each in said:
            last = max((int(t) for (t,) in lines(each, "S")), default=0)
            promised = max(promised, last)
            if how == "two" and last:  # the other's are newer, but this one's are there
                assert any(found.endswith(f"-step-{last}") for found in fa.checkpoint.Folder(path).checkpoints())
    assert resumed > 0
    opt = writer.optimizer()
    extra = fa.checkpoint.load(path, opt) if how == "alone" else fa.checkpoint.Folder(path).load(opt)
    assert extra == {"t": opt.t}
    assert writer.digest(opt) == truth[opt.t]
    if how == "alone":  # what the killed ones left is swept by the next save
        fa.checkpoint.save(path, opt)
        assert len(os.listdir(path)) == 2
    else:
        fa.checkpoint.Folder(path, keep=1).save(opt)
        assert len(os.listdir(path)) == 1


def test_a_live_savers_folder_is_not_swept(tmp_path):
    """While one saver is at work another saves and sweeps: the first one's files stay, and both checkpoints appear."""
    from fastadam.checkpoint.places import Series, Single

    for place in (Series, Single):
        path = str(tmp_path / place.__name__)
        slow = place(path, 9) if place is Series else place(path)
        folder = slow.begin()
        Path(folder, "rank-00000.safetensors").write_bytes(b"under way")
        opt = writer.optimizer()
        if place is Series:
            fa.checkpoint.Folder(path).save(opt)
        else:
            fa.checkpoint.save(path, opt)
        assert Path(folder, "rank-00000.safetensors").read_bytes() == b"under way"
        slow.abandon()
        assert not os.path.exists(folder)
