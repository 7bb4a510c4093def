"""Times every method, format and ready backend by pytest-benchmark: `pytest benchmarks/ --benchmark-json FILE`.

From the same tables, contestants, oracle and limit as `bench`; extra_info holds bytes, GB/s and the share of the limit.
"""

import statistics
from functools import cache

import numpy as np
import pytest

import fastadam
from fastadam.benchmarks import cases, clock, truth
from fastadam.benchmarks.contestants import Start
from fastadam.benchmarks.limits import Limit, LimitCuda
from fastadam.benchmarks.ours import by_backend
from fastadam.benchmarks.ours_cuda import MAIN

CASES = ("2^14", "2^22")  # in the caches; in DRAM
BACKENDS = [name for name, status in fastadam.backends().items() if status == "ready"]
THREADS = fastadam.get_num_threads()


@cache
def limit(cls, rule, format, case):
    """Return seconds for the same streams, or None where nothing measures them."""
    setting = cases.setting(rule, format)
    if cls.missing(setting):
        return None
    rng = np.random.default_rng(0)
    one = cls(Start(cases.shapes(case), setting.dtype), setting, THREADS)
    return statistics.median(clock.race([one], 7, rng)[one.name])


def waited(one):
    """Return a step that has ended when it returns."""
    if one.device == "cpu":
        return one.step
    import cupy

    def step():
        one.step()
        cupy.cuda.runtime.deviceSynchronize()

    return step


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("format", cases.formats())
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", cases.settings())
@pytest.mark.benchmark(max_time=0.2, min_rounds=5, disable_gc=True)
def test_step(benchmark, rule, backend, format, case):
    if backend == "numpy" and case != CASES[0]:
        pytest.skip("the reference is timed on the smaller case only")
    setting = cases.setting(rule, format)
    start = Start(cases.shapes(case), setting.dtype)
    one = (MAIN if backend == "cuda" else by_backend(backend))(start, setting, THREADS)
    ulps, wrong = truth.check([one], start, np.random.default_rng(0))
    assert not wrong
    benchmark.group = f"{rule} {format} {case}"
    one.give(0)
    benchmark(waited(one))
    n, moved = cases.size(start.shapes), one.bytes(setting)
    best = limit(LimitCuda if one.device == "cuda" else Limit, rule, format, case)
    benchmark.extra_info |= {"n": n, "bytes": moved * n, "threads": THREADS, "ulps": ulps[one.name]}
    if benchmark.stats is not None:  # None with --benchmark-disable
        seconds = benchmark.stats.stats.median
        benchmark.extra_info |= {"gb_per_s": moved * n / seconds * 1e-9, "of_limit": best and best / seconds}
