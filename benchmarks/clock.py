"""Times everyone by one clock: a warm-up, then interleaved rounds in random order.

A turn of one contestant is a rest, calls that are not counted, and calls that are: one sample, their time per call.
The rest is for libgomp, whose idle threads spin for 4 ms (measured) and would take a core from the next contestant.
On a GPU, CUDA events stand around each call, on the stream that CuPy and PyTorch use unless told otherwise.
"""

import gc
import statistics
import time
from itertools import count

import numpy as np

FLOOR = 2e-3  # seconds that a turn's counted calls last at least
REST = 8e-3
SETTLED = 1e-2  # a call this long needs no calls before it: waking the threads and filling the cache is below 1 % of it
PATIENCE = 1.0  # seconds for the counted calls of one contestant in one race; slow ones sit rounds out, not below ...
FEWEST = 5  # ... this many samples: the ranges of two equal contestants miss each other in 1 race of 126, with 3 in 10

now = time.perf_counter  # seconds; tests put another clock here


def turn(one, calls, steps):
    """Return seconds per call, over some calls with fresh gradients."""
    if one.device == "cuda":
        return _turn_on_gpu(one, calls, steps)
    spent = 0.0
    for _ in range(calls):
        one.give(next(steps))
        begin = now()
        one.step()
        spent += now() - begin
    return spent / calls


def _turn_on_gpu(one, calls, steps):
    """Time calls between events; by the wall, with everything finished, where a library has streams of its own."""
    import cupy

    spent = 0.0
    if not one.needs_wall:
        marks = []
        for _ in range(calls):
            one.give(next(steps))
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            begin.record()
            one.step()
            end.record()
            marks.append((begin, end))
        marks[-1][1].synchronize()
        spent = sum(cupy.cuda.get_elapsed_time(begin, end) for begin, end in marks) * 1e-3
    else:
        one.finish()
        begin = now()
        for _ in range(calls):
            one.give(next(steps))
            one.step()
        one.finish()
        spent = now() - begin
    return spent / calls


def calibrated(one, steps):
    """Return (seconds of a quick call, calls that a turn counts) of a contestant."""
    quick = min(turn(one, 1, steps) for _ in range(2))
    return quick, max(1, round(FLOOR / max(quick, 1e-9)))


def rested_turn(one, calls, quick, steps):
    """Return seconds per call after a rest and calls that warm up; quick: seconds of a quick call."""
    time.sleep(REST)
    if quick < SETTLED:
        turn(one, max(4, calls // 2), steps)  # both sets of gradients, twice
    return turn(one, calls, steps)


def race(contestants, rounds, rng, report=lambda name, seconds: None, seconds=float("inf")):
    """Return {name: seconds per call of each of its turns}. report(name, seconds) follows each turn.

    seconds: for everyone together, shared out evenly; nobody gets fewer than FEWEST turns for that, nor `rounds`.
    """
    begin, steps = now(), {one.name: count() for one in contestants}
    calls, turns, quick = {}, {}, {}
    for one in contestants:
        name = one.name
        quick[name], calls[name] = calibrated(one, steps[name])
        counted = quick[name] * calls[name]
        patience = min(PATIENCE / counted, seconds / len(contestants) / (REST + 1.5 * counted))
        turns[name] = min(rounds, max(FEWEST, int(patience)))
    samples = {one.name: [] for one in contestants}
    gc.collect()
    gc.disable()
    try:
        for r in range(rounds):
            if now() - begin > seconds and min(map(len, samples.values()), default=0) >= FEWEST:
                break  # calls that were quick at first are not
            for one in rng.permutation(np.array(contestants, object)):
                name = one.name
                if r * turns[name] % rounds < turns[name]:  # so many of the rounds, evenly
                    samples[name].append(rested_turn(one, calls[name], quick[name], steps[name]))
                    report(name, samples[name][-1])
    finally:
        gc.enable()
    return samples


def spread(samples):
    """Return (p10, median, p90); of few samples, the extremes."""
    ordered = sorted(samples)
    tenth = len(ordered) // 10
    return ordered[tenth], statistics.median(ordered), ordered[-1 - tenth]
