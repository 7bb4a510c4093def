"""Is one process: everyone on every case, or one contestant's first step. `bench` starts it and reads what it says.

The task is JSON on standard input, each event a line of JSON on standard output; what peers print goes to the errors.
"""

import json
import os
import sys
import time

import numpy as np

from . import admission, cases, clock, machine, truth
from .contestants import Start, named
from .everyone import everyone

SHARE = 1 / 4  # a case of 2^26 may take 16 times as long as one of 2^10, whose peers must be checked too
TELLING = 1 << 17  # parameters below which a step's time is the call's, and says nothing of larger cases


def main():
    """Read the task, do it, say what happens."""
    task = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # DeepSpeed talks

    def say(**event):
        print(json.dumps(event), file=out, flush=True)

    if hasattr(os, "sched_setaffinity"):  # the only count of threads that XLA obeys
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["threads"]])
    (first_use if "first_use" in task else table)(task, say)


def table(task, say):
    """Let everyone race on every case; then the examples of a training, if there are to be any."""
    rng = np.random.default_rng(task["seed"])
    present = admission.entrants(task, say)
    for one in {one.name: one for case in task["cases"] for one in present[case]}.values():
        if not one.peer:  # compiled before the time runs, for one thread and for all
            say(trying=one.name)
            for n in (1_024, TELLING):
                first_step(one, [(n,)], task)
    say(trying="")
    if any(one.device == "cuda" for entrants in present.values() for one in entrants):
        say(gpu=machine.gpu())
    until = time.time() + task["seconds"]
    pace = {}  # seconds per parameter in the last telling case
    for k, case in enumerate(task["cases"]):
        say(case=case)
        left = until - time.time()
        if left < 0:
            say(skipped="no time left")
            continue
        weights = [cases.size(cases.shapes(name)) ** SHARE for name in task["cases"][k:]]
        try:
            race(cases.shapes(case), present[case], task, left * weights[0] / sum(weights), pace, rng, say)
        except MemoryError:
            say(skipped="memory ran out", trying="")
    if task.get("training"):
        from . import training  # which needs torch and scikit-learn

        say(examples=training.examples(task["training"], task["threads"]))


def first_step(one, shapes, task):
    """Return a contestant after its first step, which may compile."""
    ready = one(Start(shapes, one.setting.dtype, task.get("seed", 0)), one.setting, task["threads"])
    ready.give(0)
    ready.step()
    ready.finish()
    return ready


def race(shapes, present, task, seconds, pace, rng, say):
    """Race everyone who fits on one case, in about so many seconds."""
    begin, n = time.time(), cases.size(shapes)
    fitting, why = admission.admitted(n, present, pace, seconds)
    if all(one.peer for one in fitting):
        say(skipped=next(iter(why.values()), "fastadam is not here to run it"))
        return
    starts = {one.setting.dtype: Start(shapes, one.setting.dtype, task["seed"]) for one in fitting}
    racers, ulps, wrong = [], {}, {}
    for cls in fitting:
        say(trying=cls.name)
        racers.append(cls(starts[cls.setting.dtype], cls.setting, task["threads"]))
    for dtype, start in starts.items():
        alike = [one for one in racers if one.setting.dtype == dtype]
        off, mistakes = truth.check(alike, start, rng, report=lambda name: say(trying=name))
        ulps, wrong = ulps | off, wrong | mistakes
    moved = {one.name: one.moved(n) for one in racers}
    chose = {one.name: one.chose for one in racers if one.chose}
    say(trying="", ulps=ulps, wrong=wrong, left_out=why, bytes=moved, chose=chose)
    fair, left = [one for one in racers if one.name not in wrong], max(0.0, begin + seconds - time.time())
    samples = clock.race(fair, task["rounds"], rng, lambda name, seconds: say(sample=name, seconds=seconds), left)
    if n >= TELLING:
        pace |= {name: min(times) / n for name, times in samples.items()}


def first_use(task, say):
    """Take one contestant's first step; say when it was done."""
    (cls,) = (one for one in everyone(task["backends"]) if one.name == task["first_use"])
    setting = cases.setting(task["rule"], task["format"])
    try:
        one = first_step(named(cls, cls.name, setting=setting), cases.shapes(task["case"]), task)
        done = time.time()
        one.params()
        say(done=done)
    except Exception as error:
        say(absent=cls.name, reason=cls.missing(setting) or f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
