"""How many threads a walk gets, and when it must not use any."""

import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fastadam.checks import integer

# Elements from which two threads are worth while. On two Zen 4 cores Adam in float32 took 6.7 µs on one and 6 on two at
# 2^14, 11.5 and 8.6 at 2^15, 22 and 14 at 2^16. Where something else holds a core, a parallel step waits for it, for
# milliseconds: not worth risking for less than a quarter.
PARALLEL_FROM = 32_768

_chosen: int | None = None
_after_fork_under_openmp = False
_pool = threading.Lock()  # the workqueue layer aborts the process on two concurrent parallel regions


def _on_fork() -> None:
    """In a forked child: libgomp ends a process that uses its parent's pool, and locks of other threads stay shut."""
    global _pool, _after_fork_under_openmp
    _pool = threading.Lock()
    numba_parallel = sys.modules.get("numba.np.ufunc.parallel")
    if getattr(numba_parallel, "_threading_layer", None) == "omp":
        _after_fork_under_openmp = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_on_fork)


def _quota() -> float:
    """The CPUs that a container may use at once, by its cgroup (versions 2 and 1); infinity without a limit."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = [word for file in files for word in Path("/sys/fs/cgroup", file).read_text().split()]
            quota, period = map(int, words)
        except (OSError, ValueError):  # no such version here, or the word "max"
            continue
        if quota > 0 and period > 0:
            return quota / period
    return math.inf


def limits() -> dict[str, int]:
    """Every limit on the number of threads, by what sets it."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = {"affinity": affinity}
    if (quota := _quota()) < math.inf:
        found["cgroup quota"] = max(1, math.ceil(quota))
    asked = os.environ.get("NUMBA_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        found["NUMBA_NUM_THREADS"] = int(asked)
    if _chosen is not None:
        found["set_num_threads"] = _chosen
    return found


def get_num_threads() -> int:
    """The threads that the next step may use."""
    return min(limits().values())


def set_num_threads(n: int) -> None:
    """Let each later step use at most n threads; results do not depend on it.

    The count is the least of n, the CPUs this process may run on, its container's quota and NUMBA_NUM_THREADS.
    Raises TypeError, ValueError if n is no integer of at least 1.
    """
    global _chosen, _current
    _chosen = integer("n", n, low=1)
    _current = get_num_threads()


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """set_num_threads(n) for a while: `with num_threads(1): ...`. Process-wide, like set_num_threads."""
    global _chosen, _current
    before = _chosen
    set_num_threads(n)
    try:
        yield
    finally:
        _chosen = before
        _current = get_num_threads()


_current = get_num_threads()  # read once: asking the system takes 20 µs, as long as a small step


def threads_for(n: int) -> int:
    """The threads for a walk over n elements here and now."""
    return 1 if n < PARALLEL_FROM or _after_fork_under_openmp else _current


def exclusively(run: Callable[[int], None], workers: int) -> None:
    """run(workers), or run(1) while another thread of this process is in a parallel walk."""
    if _pool.acquire(blocking=False):
        try:
            run(workers)
        finally:
            _pool.release()
    else:
        run(1)
