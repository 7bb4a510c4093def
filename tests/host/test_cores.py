"""Workers leave the core of the thread that walks with them, and nobody else's affinity changes."""

import ctypes
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from numba import types

from fastadam.kernels.cpu import cores, traversal
from fastadam.kernels.cpu.entry import native_text
from fastadam.kernels.cpu.words import put_word

LINUX = sys.platform == "linux"
ALLOWED = os.sched_getaffinity(0) if LINUX else set()
pytestmark = pytest.mark.skipif(len(ALLOWED) < 2, reason=f"needs Linux and two cores; this process has {len(ALLOWED)}")


def _seen(address):
    put_word(address, 0, cores.core())
    put_word(address, 1, cores.thread())


def in_thread(act):
    """What act() returns in a thread of its own, whose affinity is nobody else's."""
    results = []
    one = threading.Thread(target=lambda: results.append(act()))
    one.start()
    one.join()
    return results[0]


def shared_by(at, walker):
    """Where a thread that runs on one core may run after its share of a walk of nothing. walker: (core, whether it is
    this thread itself)."""
    share = traversal._driver("share", traversal._share, 4, for_c=True)
    seen = native_text("seen", _seen, types.void(types.int64), "test")

    def act():
        os.sched_setaffinity(0, {at})
        numbers, spans, shares = np.zeros(2, np.int64), np.zeros((1, 8), np.int64), np.ones(1, np.int64)
        seen.entry_point(numbers.ctypes.data)
        assert numbers[0] == at
        core, same = walker
        spans[0, traversal.CORE], spans[0, traversal.THREAD] = core, numbers[1] if same else 0
        job = np.zeros(len(traversal.Job._fields), np.int64)
        job[traversal.WORKERS], job[traversal.SPANS] = 1, spans.ctypes.data
        first = np.array([spans.ctypes.data])
        function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(share.address)
        function(first.ctypes.data, shares.ctypes.data, 0, job.ctypes.data)
        return os.sched_getaffinity(0)

    return in_thread(act)


def test_a_worker_leaves_the_core_of_the_walker(monkeypatch):
    for name in cores.BINDING:
        monkeypatch.delenv(name, raising=False)
    a, b, *_ = sorted(ALLOWED)
    assert shared_by(a, (a, False)) == ALLOWED - {a}
    assert shared_by(b, (b, False)) == ALLOWED - {b}
    assert shared_by(a, (b, False)) == {a}, "it was elsewhere already"
    assert shared_by(a, (a, True)) == {a}, "the walker itself moved"
    assert os.sched_getaffinity(0) == ALLOWED


@pytest.mark.parametrize("name", sorted(cores.BINDING))
def test_bound_threads_stay(name, monkeypatch):
    monkeypatch.setenv(name, "0")
    a = min(ALLOWED)
    assert not cores.spreading()
    assert shared_by(a, (a, False)) == {a}


PROGRAM = """
import glob, os, time
import numpy as np
import fastadam as fa

fa.set_num_threads(2)
allowed, earlier = os.sched_getaffinity(0), set(glob.glob("/proc/self/task/*"))
opt, g = fa.AdamW(np.ones(70_001, np.float32), backend="numba"), np.ones(70_001, np.float32)
for _ in range(20):
    time.sleep(0.01)
    opt.step(g)
assert os.sched_getaffinity(0) == allowed
workers = set(glob.glob("/proc/self/task/*")) - earlier
masks = {task: os.sched_getaffinity(int(task.rpartition("/")[2])) for task in workers}
assert all(len(allowed - mask) <= 1 and mask <= allowed for mask in masks.values()), masks
print("ok")
"""


def test_the_walking_thread_keeps_its_cores():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.stdout == "ok\n", done.stderr


def test_a_process_of_one_core_steps():
    """No core is left to go to: the kernel refuses, and nothing changes."""
    one = "fa.set_num_threads(2)\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    text = PROGRAM.replace("fa.set_num_threads(2)", one)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120)
    assert done.stdout == "ok\n", done.stderr
