"""Times what a first step waits for a compiler, in units that are alike on all machines: part of `bench --first-use`.

The unit is what Numba takes to compile a plain parallel loop of Adam, one function over four arrays, cold and in the
same round. Processes are fresh, their caches empty; their start and the import of Numba do not count, but where caches
are full: there a process from its start to its first step stands beside one that imports Numba and loads a loop.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fastadam.tools.console import TextTable

from . import bench
from .targets import FIRST_USE, WARM_USE

N = 2**20  # parameters
STEPS = {"plain": {}, "8-bit": {"moments": "8bit"}, "chores": {"max_norm": 1.0, "ema_decay": 0.9, "stats": "group"}}


def loop(cached=""):
    """Compile the plain loop, or load it. Returns the seconds, and this process's seconds of processor."""
    import numba
    import numpy as np

    def adam(p, g, m, v, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, rsqrt_bias2, eps):
        for i in numba.prange(p.size):
            m[i] = beta1 * m[i] + one_minus_beta1 * g[i]
            v[i] = beta2 * v[i] + one_minus_beta2 * (g[i] * g[i])
            p[i] -= step_size * m[i] / (np.sqrt(v[i]) * rsqrt_bias2 + eps)

    streams = [np.ones(N, np.float32) for _ in range(4)]
    numbers = map(np.float32, (0.9, 0.1, 0.999, 0.001, 0.01, 1.0, 1e-8))
    start = time.perf_counter(), time.process_time()
    numba.njit(parallel=True, cache=bool(cached))(adam)(*streams, *numbers)
    return _since(start)


def steps(name):
    """Construct and step AdamW, then with AMSGrad too: a signature more. Returns (seconds, of processor) of both."""
    import numba  # noqa: F401  what it takes to import is not ours
    import numpy as np

    import fastadam as fa

    p, g = np.ones(N, np.float32), np.ones(N, np.float32)
    times = []
    for more in ({}, {"amsgrad": True}):
        start = time.perf_counter(), time.process_time()
        fa.AdamW(p, backend="numba", **STEPS[name], **more).step(g)
        times.append(_since(start))
    return times


def warm(who):
    """Do what a process with warm caches does first: ours, or a loop of Numba's."""
    if who == "loop":
        return loop("cached")
    import numpy as np

    import fastadam as fa

    p = np.ones(N, np.float32)
    fa.AdamW(p, backend="numba").step(np.ones_like(p))
    return None


def _since(start):
    return time.perf_counter() - start[0], time.process_time() - start[1]


def apart(threads, folder, *words):
    """Run a function of this file in a process of its own. Returns its result, and the seconds it all took."""
    env = bench.environment(threads) | {
        "FASTADAM_CACHE_DIR": f"{folder}/fastadam",
        "NUMBA_CACHE_DIR": f"{folder}/numba",
    }
    env.pop("FASTADAM_CACHE", None)
    command = [sys.executable, "-m", "fastadam.benchmarks.compiling", *words]
    start = time.perf_counter()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout), time.perf_counter() - start


def measure(rounds, threads):
    """Return {what: [times of each round]}: pairs of seconds and of processor seconds; with warm caches, seconds."""
    times = {}

    def note(what, x):
        times.setdefault(what, []).append(x)

    for k in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            note("loop", apart(threads, Path(folder, "loop"), "loop")[0])
            for name in STEPS:
                (first, further), _ = apart(threads, Path(folder, name), "steps", name)
                note(name, first)
                note(f"{name}, further", further)
            for who in ("loop", "step"):
                apart(threads, Path(folder, "warm"), "warm", who)
            for who in ("loop", "step"):
                note(f"warm {who}", apart(threads, Path(folder, "warm"), "warm", who)[1])
        print(f"compiling, round {k + 1} of {rounds}", flush=True)
    return times


def show(times):
    """Print a result: medians over the rounds, each round's ratio to the loop of the same round."""
    title = f"first step of AdamW over {N:,} float32, empty caches, in plain parallel loops that Numba compiles"
    table = TextTable("first step", "seconds", "plain loops", "of processor time", "asked", "", title=title)
    table.add("the loop", _median(seconds for seconds, _ in times["loop"]), "1", "1", "", "")
    for name, asked in FIRST_USE.items():
        for what, most in zip((name, f"{name}, further"), asked, strict=True):
            ratios = [
                statistics.median(x[k] / unit[k] for x, unit in zip(times[what], times["loop"], strict=True))
                for k in (0, 1)
            ]
            seconds = _median(seconds for seconds, _ in times[what])
            table.add(
                what, seconds, *(f"{x:.2f}" for x in ratios), f"≤ {most}", "met" if ratios[0] <= most else "missed"
            )
    table.show()
    ratio = statistics.median(a / b for a, b in zip(times["warm step"], times["warm loop"], strict=True))
    verdict = "met" if ratio <= WARM_USE else "missed"
    warm_step, warm_loop = (_median(times[f"warm {who}"]) for who in ("step", "loop"))
    print(
        f"with warm caches, process start included: {warm_step} s, a cached loop of Numba's {warm_loop} s; "
        f"{ratio:.2f} times,"
    )
    print(f"asked ≤ {WARM_USE}: {verdict}")


def _median(times):
    return f"{statistics.median(times):.2f}"


if __name__ == "__main__":
    function, *rest = sys.argv[1:]
    print(json.dumps(globals()[function](*rest)))
    sys.stdout.flush()
    os._exit(0)  # what ends a process is not a step's
