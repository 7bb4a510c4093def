"""Workers leave the core of the thread that walks with them, and nobody else's affinity changes."""

import ctypes
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from numba import types

import fastadam as fa
from fastadam.host import compiled, threads
from fastadam.kernels.cpu import cores, traversal
from fastadam.kernels.cpu.entry import native_text
from fastadam.kernels.cpu.words import put_word

LINUX = sys.platform == "linux"
ALLOWED = os.sched_getaffinity(0) if LINUX else set()
pytestmark = pytest.mark.skipif(len(ALLOWED) < 2, reason=f"needs Linux and two cores; this process has {len(ALLOWED)}")


def _seen(address):
    put_word(address, 0, cores.core())
    put_word(address, 1, cores.thread())


@cache
def seen():
    """Stores on which core it runs and in which thread."""
    return native_text("seen", _seen, types.void(types.int64), "test")


@cache
def share(spread):
    """The driver's, under a name that no other code has."""
    signature = types.void(*[types.int64] * 4)
    return native_text("share", traversal._share, signature, f"test {spread}", for_c=True, constants={"spread": spread})


@pytest.fixture(autouse=True)
def unbound(monkeypatch):
    """An environment that binds no threads, asked anew."""
    for name in cores.BINDING:
        monkeypatch.delenv(name, raising=False)
    cores.spreading.cache_clear()
    yield
    monkeypatch.undo()
    cores.spreading.cache_clear()


def shared_by(at, walker, may=ALLOWED, spread=True):
    """Where a thread that runs on one core may run after its share of a walk of nothing.

    walker: (core, whether it is this thread itself); may: where the walker may run.
    """
    code, where = share(spread), seen()

    def act():
        os.sched_setaffinity(0, {at})
        numbers, spans, shares = np.zeros(2, np.int64), np.zeros((1 + compiled.MORE, 8), np.int64), np.ones(1, np.int64)
        where.entry_point(numbers.ctypes.data)
        assert numbers[0] == at
        core, same = walker
        spans[0, traversal.CORE], spans[0, traversal.THREAD] = core, numbers[1] if same else 0
        for k in may:
            spans.reshape(-1)[8 + k // 64] |= 1 << k % 64
        job = np.zeros(len(traversal.Job._fields), np.int64)
        job[traversal.WORKERS], job[traversal.SPANS] = 1, spans.ctypes.data
        first = np.array([spans.ctypes.data])
        function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(code.address)
        function(first.ctypes.data, shares.ctypes.data, 0, job.ctypes.data)
        return os.sched_getaffinity(0)

    with ThreadPoolExecutor(1) as pool:  # whose affinity is nobody else's
        return pool.submit(act).result()


def test_a_worker_leaves_the_core_of_the_walker():
    a, b, *_ = sorted(ALLOWED)
    assert shared_by(a, (a, False)) == ALLOWED - {a}
    assert shared_by(b, (b, False)) == ALLOWED - {b}
    assert shared_by(a, (a, False), may={a, b}) == {b}, "where the walker may not run"
    assert shared_by(a, (b, False)) == {a}, "it was elsewhere already"
    assert shared_by(a, (a, True)) == {a}, "the walker itself moved"
    assert shared_by(a, (a, False), may={a}) == {a}, "no core is left to go to"
    assert shared_by(a, (a, False), spread=False) == {a}
    assert os.sched_getaffinity(0) == ALLOWED


def test_a_parallel_walk_says_where_it_runs():
    opt, g = fa.AdamW(np.ones(70_001, np.float32), backend="numba"), np.ones(70_001, np.float32)
    with threads.exactly(2):
        opt.step(g)
    (spans,) = (x for x in opt._plan._calls[2].arrays if x.shape == (2 + compiled.MORE, 8))
    assert spans[0, traversal.THREAD] == threading.get_ident()
    assert spans[0, traversal.CORE] in ALLOWED
    bits = np.unpackbits(spans[2:].reshape(-1).view(np.uint8), bitorder="little")
    assert set(np.flatnonzero(bits).tolist()) == ALLOWED


def test_the_room_behind_spans_holds_a_set_of_cores():
    assert compiled.MORE * 8 * 64 == cores.SET


@pytest.mark.parametrize("name", sorted(cores.BINDING))
def test_bound_threads_choose_no_core(name, monkeypatch):
    assert cores.spreading()
    monkeypatch.setenv(name, "0")
    assert cores.spreading(), "asked twice in one process"
    cores.spreading.cache_clear()
    assert not cores.spreading()


PROGRAM = """
import glob, os, time
import numpy as np
import fastadam as fa
from fastadam.host import threads

{before}
allowed, earlier = os.sched_getaffinity(0), set(glob.glob("/proc/self/task/*"))
opt, g = fa.AdamW(np.ones(70_001, np.float32), backend="numba"), np.ones(70_001, np.float32)
with threads.exactly(2):
    for _ in range(20):
        time.sleep(0.01)
        opt.step(g)
assert os.sched_getaffinity(0) == allowed
workers = 0
for task in set(glob.glob("/proc/self/task/*")) - earlier:
    try:
        mask = os.sched_getaffinity(int(task.rpartition("/")[2]))
    except ProcessLookupError:  # it has ended
        continue
    assert mask <= allowed and len(allowed - mask) <= 1, (mask, allowed)
    workers += 1
print(workers > 0)
"""


@pytest.mark.parametrize(
    "before", ["", "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"], ids=["all cores", "one core"]
)
def test_the_walking_thread_keeps_its_cores(before):
    text = PROGRAM.replace("{before}", before)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120)
    assert done.stdout == "True\n", done.stderr
