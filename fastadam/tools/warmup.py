"""Fills the cache of compiled code, so that no first step waits for a compiler."""

import sys

import numpy as np

from fastadam.kernels.formats import DTYPES
from fastadam.tools.cover import kernels_in_use


def run() -> int:
    """Compile or load every kernel for every dtype, and what walks on several threads."""
    from fastadam.backend import backends
    from fastadam.tools.console import track

    if (status := backends()["numba"]) != "ready":
        print(f"nothing to compile: {status}", file=sys.stderr)
        return 1
    from fastadam.kernels.cpu import cache

    jobs = [(variant, dtype) for variant in kernels_in_use() for dtype in DTYPES]
    before = len(cache.failures)
    for (method, chosen), dtype in track(jobs, "compiling"):
        p = np.zeros(100_000, dtype)
        method(p, backend="numba", **chosen).step(np.zeros_like(p))
    root = cache.directory()
    print(f"pieces compiled: {len(jobs)}; cache: {root if root else 'off: FASTADAM_CACHE=0, or no home'}")
    if failures := cache.failures[before:]:
        print(f"but {len(failures)} were not kept, and a new process compiles them again: {failures[-1]}")
        return 1
    return 0
