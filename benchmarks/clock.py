"""One clock for all: check, warm up, then interleaved rounds in random order.

A turn of one contestant is a rest, calls that are not counted, and calls that are: one sample, their time per call.
The rest is for libgomp, whose idle threads spin for 4 ms (measured) and would take a core from the next contestant.
"""

import gc
import time
from itertools import count

import numpy as np
from peers import tolerance

FLOOR = 2e-3  # seconds that a turn's counted calls last at least
REST = 8e-3
SETTLED = 1e-2  # a call this long needs no calls before it: waking the threads and filling the cache is below 1 % of it
PATIENCE = 1.5  # seconds for the counted calls of one contestant in one race; slow ones sit rounds out, not below ...
FEWEST = 3  # ... this many samples
BLOCK = 1 << 20  # elements checked at once


def check(contestants, start):
    """Two steps of everyone against the float64 oracle, every element. Returns {name: what is wrong}."""
    wrong = {}
    for one in contestants:
        for k in (0, 1):
            one.give(k)
            one.step()
    for leaf, p in enumerate(start.params):
        for part in (slice(a, a + BLOCK) for a in range(0, p.size, BLOCK)):
            before, *sets = (array.reshape(-1)[part] for array in (p, *(some[leaf] for some in start.grads)))
            truths = {}
            for one in contestants:
                if one.oracle not in truths:
                    truths[one.oracle] = one.oracle(before, sets), tolerance(before, len(sets))
                truth, allowed = truths[one.oracle]
                error = np.abs(one.params()[leaf].reshape(-1)[part] - truth)
                if not (error <= allowed).all():  # NaN is not
                    worst = int(np.argmax(np.nan_to_num(error - allowed, nan=np.inf)))
                    where = f"leaf {leaf}, element {part.start + worst}"
                    wrong.setdefault(one.name, f"{where}: off by {error[worst]:.2g}, allowed {allowed[worst]:.2g}")
    return wrong


def turn(one, calls, steps):
    """Seconds per call, over some calls with fresh gradients."""
    spent = 0
    for _ in range(calls):
        one.give(next(steps))
        begin = time.perf_counter_ns()
        one.step()
        spent += time.perf_counter_ns() - begin
    return spent / calls * 1e-9


def race(contestants, rounds, rng):
    """{name: one time per call, in seconds, for each of its turns}."""
    steps = {one.name: count() for one in contestants}
    calls, every = {}, {}
    for one in contestants:
        quick = min(turn(one, 1, steps[one.name]) for _ in range(3))
        calls[one.name] = max(1, round(FLOOR / quick))
        turns = max(FEWEST, min(rounds, int(PATIENCE / (quick * calls[one.name]))))
        every[one.name] = -(-rounds // turns), quick
    samples = {one.name: [] for one in contestants}
    gc.collect()
    gc.disable()
    try:
        for r in range(rounds):
            for one in rng.permutation(np.array(contestants, object)):
                stride, quick = every[one.name]
                if r % stride == 0:
                    time.sleep(REST)
                    if quick < SETTLED:
                        turn(one, max(4, calls[one.name] // 2), steps[one.name])  # both sets of gradients, twice
                    samples[one.name].append(turn(one, calls[one.name], steps[one.name]))
    finally:
        gc.enable()
    return samples
