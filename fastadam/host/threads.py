"""Says how many threads a walk gets, and when it must not use any."""

import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from fastadam.checks import integer

log = logging.getLogger("fastadam")

# Elements from which two threads are worth while. On two Zen 4 cores Adam in float32 took 6.7 µs on one and 6 on two at
# 2^14, 11.5 and 8.6 at 2^15, 22 and 14 at 2^16. Where something else holds a core, a parallel step waits for it, for
# milliseconds: not worth risking for less than a quarter. Under OpenMP, that is; Numba takes TBB where it finds it, and
# there 2^17 took 55 µs on two threads, 49 on one, 32 under OpenMP.
PARALLEL_FROM = 32_768

LAYERS = ("default", "safe", "forksafe", "threadsafe", "tbb", "omp", "workqueue")  # what Numba may be asked for

_chosen: int | None = None
_of_thread: ContextVar[int | None] = ContextVar(
    "_of_thread", default=None
)  # num_threads' choice, for this thread of Python alone
_exactly: ContextVar[int | None] = ContextVar("_exactly", default=None)
_layerless = False  # whether Numba has found no threading layer
_held: list[Any] = []  # the locks of Numba's compiler, during a fork
_walking: dict[str, int] = {}  # "parallel": the thread of Python that may be in a parallel walk


def _numba(name: str) -> object | None:
    """Return a module of Numba's if something has loaded it."""
    return sys.modules.get(name)


def _before_fork() -> None:
    """Let no other thread hold a lock of Numba's compiler across a fork: the child could never compile.

    First Numba's, then LLVM's, as a thread that compiles takes them; one that frees code takes only LLVM's.
    What nobody can hold is Python's own: a thread that imports Numba, for the first optimizer, may not be forked under.
    """
    compiler = getattr(_numba("numba.core.compiler_lock"), "global_compiler_lock", None)
    llvm = getattr(getattr(_numba("llvmlite.binding.ffi"), "lib", None), "_lock", None)
    for lock in (compiler, llvm):
        if lock is not None:
            lock.__enter__()
            _held.append(lock)


def _after_fork() -> None:
    while _held:
        _held.pop().__exit__(None, None, None)


def _after_fork_in_child() -> None:
    """Forget other threads and their walks, and what OpenMP had in the parent: a child has none of them."""
    global _serial
    # A layer that bears a fork may still not bear one while another thread is in its parallel region: TBB hung 1 in 8.
    amid = any(thread != threading.get_ident() for thread in _walking.values())
    _walking.clear()
    _serial = _serial or amid or not _bears_forks()
    _after_fork()


def _layer() -> str | None:
    """Return Numba's threading layer, if it has been chosen."""
    return getattr(_numba("numba.np.ufunc.parallel"), "_threading_layer", None)


def _bears_forks() -> bool:
    """Return whether Numba's threading layer, chosen or yet to be chosen, is one that a forked child may use.

    In a child, OpenMP waits for ever for the threads of its parent, which anyone's code may have started: torch's too.
    """
    asked = os.environ.get("NUMBA_THREADING_LAYER", "")
    return (_layer() or asked.lower()) in ("tbb", "workqueue", "safe", "forksafe")


def _forked_under_openmp() -> bool:
    """Return whether this process, which imports this file only now, is a forked child in which OpenMP is loaded
    already."""
    try:
        flags = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[6])
        forked = flags & 0x40  # PF_FORKNOEXEC
        return bool(forked) and re.search(r"/lib[gi]?omp", Path("/proc/self/maps").read_text()) is not None
    except (OSError, ValueError, IndexError):  # not Linux
        return False


_serial = _forked_under_openmp() and not _bears_forks()  # every walk of this process is serial


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


def _quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float:
    """Return the CPUs that this process may use at once by its cgroup and those above it; infinity without a limit."""
    least = math.inf
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return least
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, files = root, ["cpu.max"]  # version 2: "quota period"
        elif "cpu" in controllers.split(","):
            base, files = root / "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        group = base / path.lstrip("/")
        for place in (group, *group.parents):
            try:
                quota, period = map(int, " ".join((place / file).read_text() for file in files).split())
            except (OSError, ValueError):  # not visible from this container, or the word "max"
                quota = period = -1
            if quota > 0 and period > 0:
                least = min(least, quota / period)
            if place == base:
                break
    return least


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fixed() -> dict[str, int]:
    """Return the limits that do not change while a process runs, but for Numba's, which is known once Numba is
    loaded."""
    limits = {}
    if (quota := _quota()) < math.inf:
        limits["cgroup quota"] = max(1, math.ceil(quota))
    if (module := _numba("numba.core.config")) is not None:
        limits["NUMBA_NUM_THREADS"] = int(getattr(module, "NUMBA_NUM_THREADS", 1))
    else:
        asked = os.environ.get("NUMBA_NUM_THREADS", "").strip()
        if asked.isdecimal() and int(asked) > 0:
            limits["NUMBA_NUM_THREADS"] = int(asked)
    if _layerless or os.environ.get("NUMBA_THREADING_LAYER", "default").lower() not in LAYERS:
        limits["no threading layer"] = 1
    return limits


_limits = _fixed()
_looked_at = -math.inf  # seconds on the monotonic clock, when the first plan had loaded Numba or a later one was made


def refresh() -> None:
    """Look again: Numba is loaded now, and launches no more threads than it has decided on."""
    global _limits
    _limits = _fixed()
    if (asked := os.environ.get("NUMBA_THREADING_LAYER", "default")).lower() not in LAYERS:
        _say_once(f"NUMBA_THREADING_LAYER is {asked!r}, expected one of {', '.join(LAYERS)}: steps run on one thread")


def refresh_if_old() -> None:
    """Look again for a plan that is made, once a second: to read the quota for each took a fifth of making it."""
    global _looked_at
    if (now := time.monotonic()) >= _looked_at + 1:
        _looked_at = now
        refresh()


@cache
def _say_once(text: str) -> None:
    log.warning(text)


def without_layer() -> None:
    """Count with one thread from here on: Numba has found no threading layer."""
    global _layerless
    _layerless = True
    refresh()


def serial() -> bool:
    """Return whether every walk of this process is serial: it is a forked child, in which OpenMP may not be used."""
    return _serial


def limits() -> dict[str, int]:
    """Return every limit on the number of threads, by what sets it."""
    if (exact := _exactly.get()) is not None:
        return {"exactly": exact}
    limit_of = {"affinity": _affinity(), **_limits}
    if _serial:
        limit_of["fork under OpenMP"] = 1
    if (of_thread := _of_thread.get()) is not None:
        limit_of["num_threads"] = of_thread
    elif _chosen is not None:
        limit_of["set_num_threads"] = _chosen
    return limit_of


def get_num_threads() -> int:
    """Return the threads that the next step of this thread of Python may use.

    >>> with fa.num_threads(1):
    ...     fa.get_num_threads()
    1
    """
    return min(limits().values())


def set_num_threads(n: int) -> None:
    """Let each later step use at most n threads; results do not depend on it.

    The count is the least of n, the CPUs this process may run on, its container's quota and NUMBA_NUM_THREADS.
    Inside `with num_threads`, it holds until that ends. Raises TypeError, ValueError if n is no integer of at least 1.

    >>> fa.set_num_threads(1)
    >>> fa.get_num_threads()
    1
    """
    global _chosen
    n = integer("n", n, low=1)
    if _of_thread.get() is None:
        _chosen = n
    else:
        _of_thread.set(n)


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Call set_num_threads(n) for a while, in this thread of Python alone: `with num_threads(1): ...`.

    >>> with fa.num_threads(1):
    ...     _ = fa.SGD(np.ones(3)).step(np.ones(3))
    """
    token = _of_thread.set(integer("n", n, low=1))
    try:
        yield
    finally:
        _of_thread.reset(token)


@contextmanager
def exactly(n: int) -> Iterator[None]:
    """Let large walks have n threads, whatever the limits, of no more than Numba has started: for verify."""
    token = _exactly.set(n)
    try:
        yield
    finally:
        _exactly.reset(token)


def threads_for(n: int) -> int:
    """Return the threads for a walk over n elements here and now."""
    return 1 if n < PARALLEL_FROM or _serial else get_num_threads()


def crowded() -> bool:
    """Return whether another thread of Python may be in a parallel region that this layer does not bear.

    The workqueue layer aborts the process on two concurrent parallel regions, whoever's they are: there, only a process
    with one thread of Python walks in parallel.
    """
    return _layer() == "workqueue" and threading.active_count() > 1


def exclusively(run: Callable[[int], None], workers: int) -> None:
    """Call run(workers), or run(1) while another thread of this process is, or may be, in a parallel region."""
    me = threading.get_ident()
    # setdefault is one step that no signal can divide, and an entry that Ctrl-C left behind is its own thread's again.
    if crowded() or _walking.setdefault("parallel", me) != me:
        run(1)
        return
    try:
        run(workers)
    finally:
        _walking.pop("parallel", None)
