"""A guest in other programs: forks, threads, threading layers, counts of processors, start-up, Ctrl-C.

Programs run in processes of their own. A hang is a failure after TIMEOUT seconds; no test asserts a time otherwise.
"""

import dis
import importlib
import importlib.util
import os
import re
import sys
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from cases import by_turns
from llvmlite.binding import ffi

import fastadam as fa
from fastadam.host import threads
from fastadam.kernels.cpu import traversal
from fastadam.plans.plan import CHUNK

TIMEOUT = 60

LAYERS = {"omp": "omppool", "workqueue": "workqueue", "tbb": "tbbpool"}


@pytest.fixture(params=LAYERS)
def layer(request):
    """One of Numba's threading layers, where it loads: TBB's in processes that are told where its wheel lies."""
    if request.param == "tbb" and Path(sys.prefix, "lib", "libtbb.so.12").exists():
        return request.param
    try:
        importlib.import_module(f"numba.np.ufunc.{LAYERS[request.param]}")
    except ImportError as error:
        pytest.skip(f"Numba's threading layer {request.param} does not load here: {error}")
    return request.param


@pytest.fixture
def foreign(pytestconfig):
    """The variables of a process that imports foreign.py: where it lies, and where Numba keeps its code."""
    path = os.pathsep.join(map(str, (Path(fa.__file__).parents[1], Path(__file__).parent)))
    return {"PYTHONPATH": path, "NUMBA_CACHE_DIR": pytestconfig.cache.mkdir("numba")}


# Before it compiles anything, Numba looks there for BLAS, for 0.25 s.
NO_SCIPY = 'import sys; sys.modules["scipy"] = None\n'

# What the programs below share: four threads whatever the machine has, a step that takes all of them, and children.
COMMON = """
import functools, os, signal, sys, threading, time, traceback
os.sched_getaffinity = lambda process: {0, 1, 2, 3}
import numpy as np
import numba
import fastadam as fa

N = 70_001  # nine chunks

@functools.cache
def numbers(seed, dtype):
    return np.random.default_rng(seed).standard_normal((2, N)).astype(dtype)

def start(seed, dtype=np.float32, backend="numba"):
    p, g = numbers(seed, dtype)
    p = p.copy()
    return fa.Adam(p, lr=0.1, weight_decay=0.01, backend=backend), p, g

def after(steps, seed, dtype=np.float32, backend="numpy"):
    opt, p, g = start(seed, dtype, backend)
    for _ in range(steps):
        opt.step(g)
    return p.tobytes()

def child(work):
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)

def ended(process):
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status == 0, f"a child ended with {status}"

def together(*works):
    failed = []
    def guarded(work):
        try:
            work()
        except BaseException:
            failed.append(traceback.format_exc())
    running = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in running:
        thread.start()
    return running, failed
"""

FORK = """
import multiprocessing
opt, p, g = start(1)
opt.step(g)
assert numba.threading_layer() == sys.argv[1] and fa.get_num_threads() > 1

def inherited(steps):
    opt.step(g)
    assert p.tobytes() == after(steps, 1)

def anew():
    for dtype in (np.float32, np.float64):
        fresh, q, h = start(2, dtype)
        for _ in range(3):
            fresh.step(h)
        assert q.tobytes() == after(3, 2, dtype)

def family():
    inherited(2)
    anew()
    running, failed = together(anew, anew)
    for thread in running:
        thread.join()
    assert not failed, failed
    ended(child(lambda: inherited(3)))

def forever():
    while True:
        opt.step(g)

for _ in range(2):
    ended(child(family))
victim = child(forever)
time.sleep(0.05)
os.kill(victim, signal.SIGKILL)
os.waitpid(victim, 0)
worker = multiprocessing.get_context("fork").Process(target=family)
worker.start()
worker.join()
assert worker.exitcode == 0
with multiprocessing.get_context("fork").Pool(2) as pool:
    pool.apply(anew)
    pool.map(inherited, [2, 2][:1])
inherited(2)
anew()
print("done")
"""


def test_a_threading_layer_that_there_is_not_is_named(fresh):
    """And counted with: steps run on one thread, as fastadam says."""
    text = (
        COMMON
        + """
assert fa.get_num_threads() == 1
assert after(3, 5, backend="numba") == after(3, 5)
print("done")
"""
    )
    output = fresh(text, NUMBA_THREADING_LAYER="nonsense", timeout=TIMEOUT)
    assert "NUMBA_THREADING_LAYER is 'nonsense', expected one of default, safe, forksafe" in output
    assert output.count("NUMBA_THREADING_LAYER") == 1
    assert "done" in output


@pytest.mark.parametrize("chosen", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}], ids=str)
@pytest.mark.parametrize("error", [None, ValueError("no layer")], ids=str)
def test_threads_of_openmp_soon_sleep_unless_the_environment_says_otherwise(monkeypatch, chosen, error):
    seen = []

    def loading():
        seen.append({name: os.environ[name] for name in NAMES if name in os.environ})
        if error:
            raise error

    NAMES = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(traversal.numba, "get_num_threads", loading)
    with pytest.raises(ValueError, match="no layer") if error else nullcontext():
        traversal.load_layer()
    assert seen == [chosen or {"GOMP_SPINCOUNT": "10000"}]
    assert {name: os.environ[name] for name in NAMES if name in os.environ} == chosen


def test_a_child_steps_after_its_parent(layer, fresh):
    assert "done\n" in fresh(COMMON + FORK, layer, NUMBA_THREADING_LAYER=layer, timeout=TIMEOUT)


OPENMP = """
import ctypes, os, re, sys
os.sched_getaffinity = lambda process: {0, 1, 2, 3}
from numba.np.ufunc import omppool  # loads OpenMP's library, and is not yet Numba's threading layer
library = ctypes.CDLL(re.search(r"/\\S*/lib\\w*omp\\S*", open("/proc/self/maps").read())[0])
seen = []
body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(seen.append)
library.GOMP_parallel(body, None, 4, 0)  # as the code of any other library does
assert len(seen) == 4
if sys.argv[1] == "before":
    import fastadam
process = os.fork()
if process == 0:
    status = 1
    try:
        import logging
        import numpy as np
        import fastadam as fa
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        logging.getLogger("fastadam").setLevel("DEBUG")
        p = np.ones(200_003, np.float32)
        fa.SGD(p, lr=0.5, backend="numba").step(np.ones_like(p))
        assert set(p) == {0.5}
        print("threads", fa.get_num_threads(), fa.info()["threads"]["from"])
        sys.stdout.flush()
        status = 0
    finally:
        os._exit(status)
assert os.waitpid(process, 0)[1] == 0
print("done")
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="finds OpenMP's library as Linux shows it")
@by_turns(asked=[None, "omp", "workqueue"], imported=["before", "after"])
def test_a_child_of_a_parent_that_used_openmp_elsewhere(imported, asked, fresh):
    """Such as torch's operations before a DataLoader's workers step: Numba had no threading layer yet."""
    try:
        importlib.import_module("numba.np.ufunc.omppool")
    except ImportError as error:
        pytest.skip(f"Numba's threading layer omp does not load here: {error}")
    output = fresh(OPENMP, imported, NUMBA_THREADING_LAYER=asked, NUMBA_NUM_THREADS=4, timeout=TIMEOUT)
    assert "done\n" in output
    if asked == "workqueue":
        assert re.search("^share (compiled|loaded)", output, re.MULTILINE)
        assert "threads 4 " in output
    else:
        assert not re.search("^share", output, re.MULTILINE)
        assert "threads 1 fork under OpenMP\n" in output


THREADS = """
opt, p, g = start(0)
opt.step(g)
assert numba.threading_layer() == sys.argv[1] and fa.get_num_threads() > 1
steps = int(sys.argv[2])
alone = [after(steps, seed) for seed in range(8)]
ten, two = after(10, 1), after(2, 0)

def work(seed, barrier, stop):
    stopped = False
    barrier.wait()
    while not stopped:
        stopped = stop.is_set()
        opt, p, g = start(seed)
        for _ in range(steps):
            opt.step(g)
        assert p.tobytes() == alone[seed], seed

def in_a_child():
    fresh, q, h = start(1)
    for _ in range(10):
        fresh.step(h)
    assert q.tobytes() == ten
    opt.step(g)  # stepped by no other thread
    assert p.tobytes() == two

for forks in (0, 8):
    barrier, stop = threading.Barrier(9), threading.Event()
    running, failed = together(*(lambda seed=seed: work(seed, barrier, stop) for seed in range(8)))
    barrier.wait()
    for _ in range(forks):
        ended(child(in_a_child))
    stop.set()
    for thread in running:
        thread.join()
    assert not failed, failed
print("done")
"""


def test_eight_threads_step_eight_optimizers_while_the_process_forks(layer, times, fresh):
    assert "done\n" in fresh(COMMON + THREADS, layer, times(50), NUMBA_THREADING_LAYER=layer, timeout=TIMEOUT)


COUNTS = """
assert fa.get_num_threads() == 4
numba.set_num_threads(3)
for n in (1, 2, 3, 4):
    opt, p, g = start(1)
    with fa.num_threads(n):
        for _ in range(3):
            opt.step(g)
    assert p.tobytes() == after(3, 1), n
    assert numba.get_num_threads() == 3, n
opt, p, g = start(1)
for n in (4, 1, 3):
    fa.set_num_threads(n)
    opt.step(g)
assert p.tobytes() == after(3, 1)
assert numba.get_num_threads() == 3

fa.set_num_threads(4)
def elsewhere():
    numba.set_num_threads(2)
    opt, p, g = start(1)
    opt.step(g)
    assert numba.get_num_threads() == 2
running, failed = together(elsewhere)
running[0].join()
assert not failed, failed
assert numba.get_num_threads() == 3
from foreign import count_threads
seen = np.zeros(64, np.int64)
count_threads(seen)
assert set(seen) == {3}
assert numba.threading_layer() == sys.argv[1]
print("done")
"""


def test_every_count_gives_the_same_and_leaves_numbas_own_setting(layer, fresh, foreign):
    assert "done\n" in fresh(COMMON + COUNTS, layer, NUMBA_THREADING_LAYER=layer, **foreign, timeout=TIMEOUT)


FOREIGN = """
from foreign import increment
x, stop = np.zeros(100_000), threading.Event()
increment(x)

def loop():
    while not stop.is_set():
        increment(x)

opt, p, g = start(1)
running, failed = together(loop)
for _ in range(200):
    opt.step(g)
stop.set()
running[0].join()
assert not failed, failed
assert numba.threading_layer() == sys.argv[1]
assert p.tobytes() == after(200, 1)
print("done")
"""


def test_another_thread_runs_parallel_code_of_its_own(layer, fresh, foreign):
    """Under workqueue two parallel regions at once end the process, whoever began them."""
    assert "done\n" in fresh(COMMON + FOREIGN, layer, NUMBA_THREADING_LAYER=layer, **foreign, timeout=TIMEOUT)


COMPILING = """
opt, p, g = start(1)
opt.step(g)
stop = threading.Event()

def compiles():
    while not stop.is_set():
        numba.njit(lambda x: x + 1)(1)

def steps():
    for dtype in (np.float32, np.float64):
        fresh, q, h = start(2, dtype)
        fresh.step(h)
        assert q.tobytes() == after(1, 2, dtype)
    assert numba.njit(lambda x: x + 2)(1) == 3

running, failed = together(compiles)
for _ in range(int(sys.argv[1])):
    ended(child(steps))
stop.set()
running[0].join()
assert not failed, failed
print("done")
"""


def test_a_child_compiles_though_another_thread_was_compiling_at_the_fork(times, fresh):
    assert "done\n" in fresh(COMMON + COMPILING, times(10), timeout=TIMEOUT)


FREEING = """
from llvmlite.binding import ffi
lock, held = ffi.lib._lock, threading.Event()
opt, p, g = start(1)
opt.step(g)

def frees():  # as whoever drops the last reference to compiled code does, without Numba's own lock
    with lock:
        held.set()
        time.sleep(0.2)

def steps():
    fresh, q, h = start(2)
    fresh.step(h)
    assert numba.njit(lambda x: x + 2)(1) == 3

running, failed = together(frees)
held.wait()
ended(child(steps))
running[0].join()
assert not failed, failed
steps()
print("done")
"""


def test_a_child_compiles_though_another_thread_was_freeing_code_at_the_fork(fresh):
    if not hasattr(ffi.lib, "_lock"):
        pytest.skip("this llvmlite has no lock of its own")
    assert "done\n" in fresh(NO_SCIPY + COMMON + FREEING, timeout=TIMEOUT)


POOL = (
    """
import os, sys
os.sched_getaffinity = lambda process: {0}
import numba
assert numba.config.NUMBA_NUM_THREADS == 1
"""
    + COMMON
    + """
opt, p, g = start(1)
for _ in range(20):
    opt.step(g)
assert p.tobytes() == after(20, 1)
print("done")
"""
)


def test_a_pool_that_was_made_for_fewer_threads(layer, fresh):
    """Numba read its count when someone else imported it; then this process was given more processors."""
    assert "done\n" in fresh(POOL, NUMBA_THREADING_LAYER=layer, timeout=TIMEOUT)


LOADER = """
import torch
from torch.utils.data import DataLoader, Dataset

class Steps(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, k):
        opt, p, g = start(k)
        for _ in range(3):
            opt.step(g)
        return torch.tensor(p.tobytes() == after(3, k))

x = torch.ones(500, 500)
x @ x  # on torch's own threads, before Numba has a threading layer
assert next(iter(DataLoader(Steps(), num_workers=2, batch_size=8, timeout=50, multiprocessing_context="fork"))).all()
for _ in range(2):
    opt, p, g = start(1)
    opt.step(g)
    assert numba.threading_layer() == sys.argv[1]
    torch.ones(1_000_000).sum()
    for workers in (1, 2):
        loader = DataLoader(Steps(), num_workers=workers, batch_size=2, timeout=50, multiprocessing_context="fork")
        assert all(batch.all() for batch in loader)
    opt.step(g)
    assert p.tobytes() == after(2, 1)
print("done")
"""


def test_the_workers_of_a_torch_dataloader_step_after_their_parent(layer, fresh):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    assert "done\n" in fresh(COMMON + LOADER, layer, NUMBA_THREADING_LAYER=layer, strict=False, timeout=TIMEOUT)


# ---- how many threads


@pytest.fixture
def machine():
    """machine(cpus, cgroup): from now on this process seems to run on so many CPUs, in a container with these files."""
    read = Path.read_text
    with pytest.MonkeyPatch.context() as patch:

        def seem(cpus, cgroup=(), asked=None):
            files = dict(cgroup)

            def read_text(path, *args, **named):
                if path == Path("/proc/self/cgroup"):
                    return "4:cpu,cpuacct:/\n0::/\n"
                if path.is_relative_to("/sys/fs/cgroup"):
                    if (name := path.relative_to("/sys/fs/cgroup").as_posix()) not in files:
                        raise FileNotFoundError(path)
                    return files[name]
                return read(path, *args, **named)

            patch.setattr(Path, "read_text", read_text)
            patch.setattr(os, "sched_getaffinity", lambda process: set(range(cpus)), raising=False)
            if asked is None:
                patch.delenv("NUMBA_NUM_THREADS", raising=False)
            else:
                patch.setenv("NUMBA_NUM_THREADS", asked)
            loaded = threads._numba
            patch.setattr(threads, "_numba", lambda name: None if name == "numba.core.config" else loaded(name))
            threads.refresh()

        yield seem
    threads.refresh()  # and the true count is known again


V1 = "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"
QUOTAS = [
    ({}, 8),
    ({"cpu.max": "150000 100000\n"}, 2),
    ({"cpu.max": "400000 100000\n"}, 4),
    ({"cpu.max": "100000 100000\n"}, 1),
    ({"cpu.max": "5000 100000\n"}, 1),
    ({"cpu.max": "25000 10000\n"}, 3),
    ({"cpu.max": "9000000 100000\n"}, 8),
    ({"cpu.max": "max 100000\n"}, 8),
    ({"cpu.max": "max\n"}, 8),
    ({"cpu.max": ""}, 8),
    ({"cpu.max": "some 100000\n"}, 8),
    ({"cpu.max": "0 0\n"}, 8),
    ({V1[0]: "150000\n", V1[1]: "100000\n"}, 2),
    ({V1[0]: "-1\n", V1[1]: "100000\n"}, 8),
    ({V1[0]: "150000\n"}, 8),
    ({V1[0]: "150000\n", V1[1]: "0\n"}, 8),
    ({"cpu.max": "max 100000\n", V1[0]: "300000\n", V1[1]: "100000\n"}, 3),
]


@pytest.mark.parametrize(("files", "count"), QUOTAS, ids=str)
def test_the_quota_of_a_container(files, count, machine):
    machine(8, files)
    assert fa.get_num_threads() == count


def test_a_quota_that_changes_holds_for_plans_made_a_second_later(monkeypatch):
    monkeypatch.setattr(threads, "_limits", threads._limits)
    monkeypatch.setattr(threads, "_looked_at", -np.inf)
    seconds, quota = [100.0], [1.0]
    monkeypatch.setattr(threads.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(threads, "_quota", lambda *at: quota[0])
    for seconds[0], quota[0], limit in [(100.0, 1.0, 1), (100.9, 3.0, 1), (101.0, 3.0, 3), (102.0, np.inf, None)]:
        fa.SGD(np.ones(8, np.float32), lr=0.1, backend="numba")
        assert threads._limits.get("cgroup quota") == limit


@pytest.mark.parametrize("chosen", [None, 1, 5])
@pytest.mark.parametrize("asked", [None, 1, 4])
@pytest.mark.parametrize("quota", [None, 2, 6])
@pytest.mark.parametrize("cpus", [1, 3, 8])
def test_the_least_of_all_limits_counts(cpus, quota, asked, chosen, machine):
    machine(cpus, {"cpu.max": f"{quota * 1000} 1000"} if quota else {}, str(asked) if asked else None)
    with fa.num_threads(chosen) if chosen else nullcontext():
        count = fa.get_num_threads()
        assert count == min(limit for limit in (cpus, quota, asked, chosen) if limit)
        if chosen:
            assert threads.threads_for(10**6) == count
        assert threads.threads_for(10) == 1


@pytest.mark.parametrize("asked", ["", "0", "-1", "x", "2.5", " "])
def test_a_count_in_the_environment_that_is_none_is_left_to_numba(asked, machine):
    machine(8, asked=asked)
    assert fa.get_num_threads() == 8


def test_counts_nest_and_survive_errors(machine):
    machine(8)
    assert fa.get_num_threads() == 8
    with fa.num_threads(5):
        assert fa.get_num_threads() == threads.threads_for(10**6) == 5
        with fa.num_threads(2):
            assert fa.get_num_threads() == 2
            with suppress(ZeroDivisionError), fa.num_threads(7):
                assert fa.get_num_threads() == 7
                raise ZeroDivisionError
            fa.set_num_threads(3)
            assert fa.get_num_threads() == threads.threads_for(10**6) == 3
        assert fa.get_num_threads() == threads.threads_for(10**6) == 5
    assert fa.get_num_threads() == threads.threads_for(10**6) == 8


@pytest.mark.parametrize("wrong", [0, -1, 1.0, "2", None, True, np.float64(2)])
def test_a_wrong_count_is_refused(wrong):
    before = fa.get_num_threads()
    with pytest.raises((TypeError, ValueError), match=re.escape(f"n is {wrong!r}, expected an integer of at least 1")):
        fa.set_num_threads(wrong)
    with pytest.raises((TypeError, ValueError)), fa.num_threads(wrong):
        pass
    assert fa.get_num_threads() == before


def test_a_count_of_numpys_is_a_count():
    with fa.num_threads(np.int64(1)):
        assert fa.get_num_threads() == 1


ALONE = """
import logging, os, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
logging.getLogger("fastadam").setLevel("DEBUG")
if "affinity" in sys.argv:
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import numpy as np
import fastadam as fa
if "set" in sys.argv:
    fa.set_num_threads(1)
print("threads", fa.get_num_threads())
p = np.ones(300_000, np.float32)
fa.SGD(p, lr=0.5, backend="numba").step(np.ones_like(p))
assert set(p) == {0.5}
"""


@pytest.mark.parametrize("limit", ["affinity", "NUMBA_NUM_THREADS", "set"])
def test_on_one_thread_nothing_is_parallel(limit, fresh):
    if limit == "affinity" and not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no sched_setaffinity")
    output = fresh(ALONE, limit, **({limit: 1} if limit.startswith("NUMBA") else {}), timeout=TIMEOUT)
    assert output.startswith("threads 1\n")
    assert re.search("^walk (compiled|loaded)", output, re.MULTILINE)
    assert not re.search("^share", output, re.MULTILINE)  # what threads call


# ---- start-up

HEAVY = ["numba", "llvmlite", "cupy", "torch", "jax", "tensorflow", "scipy", "sklearn", "rich", "matplotlib", "pandas"]
HEAVY += ["numpy.ma"]

IMPORTED = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s", level="DEBUG")
import fastadam as fa
print(sorted(name for name in HEAVY if name in sys.modules))
import numpy as np
p = np.ones(3, np.float32)
fa.FlatBuffer({"w": p})
fa.get_num_threads()
fa.set_num_threads(1)
logging.getLogger("fastadam").setLevel("WARNING")
fa.AdamW(p, backend="numpy").step(np.ones_like(p))
fa.adam_step(p, np.ones_like(p), p * 0, p * 0, t=1, lr=0.1, backend="numpy")
print(sorted(name for name in HEAVY if name in sys.modules))
"""


def test_the_import_loads_nothing_heavy_and_compiles_nothing(fresh, tmp_path):
    output = fresh(f"HEAVY = {HEAVY}" + IMPORTED, FASTADAM_CACHE_DIR=tmp_path / "cache", timeout=TIMEOUT)
    assert output.splitlines() == ["[]", "[]"]
    assert not (tmp_path / "cache").exists()


COUNTED = """
import sys
import numpy as np
before = set(sys.modules)
import fastadam as fa
added = {name for name in set(sys.modules) - before if name.partition(".")[0] != "fastadam"}
assert len(added) < 60, sorted(added)
assert {name.partition(".")[0] for name in added} <= {*sys.stdlib_module_names, "numpy"}
import numba
import logging
logging.basicConfig(stream=sys.stdout, format="%(message)s", level="DEBUG")
before = set(sys.modules)
p = np.ones(300_000, np.float32)
fa.SGD(p, lr=0.5, backend="numba").step(np.ones_like(p))
added = {name for name in set(sys.modules) - before if name.startswith(("numba.", "numpy."))}
print("added", len(added), sorted(added))
print("run time", numba.core.runtime.rtsys._init)
"""


def test_what_makes_the_start_quick(fresh, tmp_path):
    """In place of a time, which would be the machine's: 23 small modules; from a warm cache, 3 entries to read.

    What Numba imports only to compile, such as SciPy's functions, would take 0.3 s; its run time and numpy.ma, 30 ms
    each.
    """
    before = NO_SCIPY, ""
    first, second = (fresh(each + COUNTED, FASTADAM_CACHE_DIR=tmp_path, timeout=TIMEOUT) for each in before)
    assert "compiled for" in first
    assert "compiled for" not in second
    assert len(list(tmp_path.iterdir())) == second.count(" loaded for ") <= 4
    loaded = re.search(r"added (\d+)", second)
    assert int(loaded[1]) < 10, loaded.string
    assert "numpy.ma" not in second
    assert "run time False" in second
    assert not any(b"NRT_" in path.read_bytes() for path in tmp_path.iterdir())  # so that no code misses it


# ---- Ctrl-C: an interrupted step has happened or has not


def small_tree(backend, n):
    """An optimizer over leaves of two signatures; its parameters and gradients."""
    rng = np.random.default_rng(3)
    sizes = [(5, np.float32), (n, np.float64), (n, np.float32), (1, np.float64)]
    params, grads = ([rng.standard_normal(n).astype(dtype) for n, dtype in sizes] for _ in range(2))
    return fa.NAdam(params, lr=0.1, backend=backend), params, grads


def everything(opt, params):
    """All that a step changes, as text that can be compared."""
    kept = opt.state_dict()
    own = [[x.tobytes() if isinstance(x, np.ndarray) else x for x in leaf.values()] for leaf in kept["leaves"].values()]
    return kept["t"], [p.tobytes() for p in params], own


@cache
def handled_after(code):
    """After which instructions Python would run a signal's handler, by their places; each look at co_code copies it."""
    return [dis.opname[each].startswith(("CALL", "RESUME", "JUMP_BACKWARD")) for each in code.co_code]


def interrupted(act, k):
    """An act, as a step is, that Ctrl-C ends at the k-th place of the library where Python would run a signal handler.

    That is after a call, at the start of a function, and at the end of a loop's body. Returns whether it came so far.
    """
    library, seen, last = os.path.dirname(fa.__file__), 0, {}

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.startswith(library):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        handled = handled_after(frame.f_code)

        def instruction(frame, event, argument):
            nonlocal seen
            if event == "opcode":
                before = last.get(frame, True)
                last[frame] = handled[frame.f_lasti]
                if before:
                    seen += 1
                    if seen == k:
                        raise KeyboardInterrupt
            return instruction

        return instruction

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@by_turns(backend=["numba", "numpy"], missing=[False, True])
def test_an_interrupt_anywhere_leaves_the_step_done_or_not_begun(backend, missing, machine):
    machine(2)
    n = threads.PARALLEL_FROM // 2 if backend == "numba" else CHUNK + 1  # enough for two threads; for two chunks
    opt, params, grads = small_tree(backend, n)
    whole, wholes, _ = small_tree("numba", n)
    if missing:
        grads[2] = None
    for each in (opt, whole):
        for n in (1, 2):
            with fa.num_threads(n):  # both walks have been there: nothing compiles below
                each.step(grads)
    expected, done, k = everything(whole, wholes), 0, 1
    while interrupted(lambda: opt.step(grads), k):
        if whole.t < opt.t:
            whole.step(grads)
            done += 1
            expected = everything(whole, wholes)
        assert everything(opt, params) == expected, f"at place {k}"
        if backend == "numba":
            counts = []
            threads.exclusively(counts.append, 2)
            assert counts == [2], f"all steps after an interrupt at place {k} would be serial"
        k += 1
    assert k > 50
    assert done > 0  # the last places come after the work


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("otherwise", ["another dtype", "several", "rows"])
def test_an_interrupt_while_gradients_change_kind_harms_no_later_step(backend, otherwise):
    rng = np.random.default_rng(3)
    start, gradient = rng.standard_normal((2, 20, 3)).astype(np.float32)

    def made():
        params = [start.copy(), np.ones(4), start[:2].copy()]
        return params, fa.SGD(params, lr=0.1, momentum=0.9, backend=backend)

    (params, opt), (wholes, whole) = made(), made()
    usual = [gradient, np.ones(4), gradient[:2]]
    narrow = [x.astype(np.float16) for x in usual]
    acts = {
        "another dtype": lambda opt: opt.step(narrow),
        "several": lambda opt: opt.step(streams=[narrow, usual, usual]),
        "rows": lambda opt: opt.step_rows([(np.array([1, 5]), narrow[0][:2]), None, None]),
    }
    before, act, k = (narrow if otherwise == "rows" else usual), acts[otherwise], 1
    came = True
    while came:
        opt.step(before)
        whole.step(before)
        came = interrupted(lambda: act(opt), k)
        if opt.t > whole.t:
            act(whole)
        assert everything(opt, params) == everything(whole, wholes), f"at place {k}"
        act(opt)
        act(whole)
        assert everything(opt, params) == everything(whole, wholes), f"after an interrupt at place {k}"
        k += 1
    assert k > 50


def test_an_interrupt_while_a_stepper_changes_arrays_harms_no_later_call():
    ones = np.ones(300)
    k, came = 1, True
    while came:
        a, b = np.zeros((2, 300))
        step = fa.Stepper(fa.rules.SGD(), like=ones, backend="numba")
        step(a, ones, slots={}, t=1, lr=1.0)
        came = interrupted(lambda step=step, b=b: step(b, ones, slots={}, t=1, lr=1.0), k)
        done = b[0]
        step(a, ones, slots={}, t=2, lr=1.0)
        assert (a == -2).all(), f"at place {k}"
        assert (b == done).all(), f"at place {k}"
        assert done in (0, -1)
        k += 1
    assert k > 50


BETWEEN = """
import sys
import numpy as np
import fastadam as fa

params = [np.ones(3, np.float32), np.ones(3, np.float64)]
opt = fa.SGD(params, lr=0.5, backend="numba")
begun, seen = [], []

def watch(frame, event, argument):
    # Numba shows its native calls as frames of the functions that they were compiled from.
    if "/kernels/cpu/" in frame.f_code.co_filename.replace("\\\\", "/"):
        return
    done = [bool(p[0] != 1) for p in params] + [opt._table.counts[-1] > 0]
    if any(done) and not all(done):
        seen.append((frame.f_code.co_name, frame.f_code.co_filename, event))

sys.setprofile(watch)
opt.step([np.ones(3, np.float32), np.ones(3)])
sys.setprofile(None)
assert opt.t == 1 and params[0][0] == params[1][0] == 0.5
print(len(seen), seen[:3], seen[-3:])
"""


def test_no_python_runs_between_the_native_calls_of_the_very_first_step(fresh):
    """A signal's handler runs only where Python does. What Numba does once for new types must be done before."""
    assert fresh(BETWEEN, timeout=TIMEOUT).startswith("0 ")


CTRL_C = """
import os, random, signal, sys, time

backend, n, patience, rounds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
ask, answer = os.pipe(), os.pipe()
victim = os.getpid()
if os.fork() == 0:  # the user at the keyboard, who presses Ctrl-C once or, impatient, twice
    os.close(ask[1])
    rng = random.Random(1)
    while times := os.read(ask[0], 1):
        time.sleep(rng.random() * patience)
        os.kill(victim, signal.SIGINT)
        if times == b"2":
            time.sleep(rng.random() * 0.002)
            os.kill(victim, signal.SIGINT)
        os.write(answer[1], b".")
    os._exit(0)

os.sched_getaffinity = lambda process: {0, 1, 2, 3}
import numpy as np
import fastadam as fa

def tree():
    rng = np.random.default_rng(1)
    sizes = {"a": (n, np.float32), "b": (n // 2, np.float64), "c": (3, np.float32), "d": (1, np.float64)}
    return [{name: rng.standard_normal(k).astype(dtype) for name, (k, dtype) in sizes.items()} for _ in range(2)]

params, grads = tree()
expected, _ = tree()
opt, whole = fa.NAdam(params, lr=0.01, backend=backend), fa.NAdam(expected, lr=0.01, backend="numba")

def same():
    ours, theirs = opt.state_dict(), whole.state_dict()
    assert ours["t"] == theirs["t"]
    for name, own in ours["leaves"].items():
        for key, value in own.items():
            other = theirs["leaves"][name][key]
            assert np.array_equal(value, other), (name, key)
    for name, p in params.items():
        assert np.array_equal(p, expected[name]), name

stepping, received = False, 0
def handler(*_):
    global received
    received += 1
    if stepping:
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, handler)

for k in range(rounds):
    try:
        try:
            stepping = True
            os.write(ask[1], b"12"[k % 2:][:1])
            while True:
                opt.step(grads)
        except KeyboardInterrupt:
            pass
        stepping = False
    except KeyboardInterrupt:  # the second one came late
        stepping = False
    os.read(answer[0], 1)
    while whole.t < opt.t:
        whole.step(grads)
    same()
os.close(ask[1])
os.wait()
assert received >= rounds and opt.t > 0
print("done", opt.t)
"""


@pytest.mark.parametrize(("backend", "n", "patience"), [("numba", 2**20, 0.01), ("numpy", 2**18, 0.06)])
def test_ctrl_c_leaves_the_step_done_or_not_begun(backend, n, patience, times, fresh):
    """patience: how many seconds the user waits at most; a step takes about a tenth of that."""
    assert "done" in fresh(CTRL_C, backend, n, patience, times(40), timeout=TIMEOUT)
