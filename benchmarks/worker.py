"""One process: everyone on every case, or one contestant's first step. `bench` starts it and reads what it says.

The task is JSON on standard input, each event a line of JSON on standard output; what peers print goes to the errors.
"""

import json
import os
import sys
import time


def main():
    task = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # DeepSpeed talks

    def say(**event):
        print(json.dumps(event), file=out, flush=True)

    if hasattr(os, "sched_setaffinity"):  # the only count of threads that XLA obeys
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["threads"]])
    (first_use if "first_use" in task else table)(task, say)


def table(task, say):
    """Everyone on every case."""
    import numpy as np

    from fastadam.benchmarks import cases, contestants, machine
    from fastadam.benchmarks.everyone import everyone

    setting = cases.setting(task["rule"], task["format"])
    rng = np.random.default_rng(task["seed"])
    present = []
    for one in everyone(task["backends"]):
        asked = one.name in task["peers"]
        if (task["peers"] and one.peer and not asked) or one.name in task["without"]:
            continue
        say(trying=one.name)
        if one.on_request and not asked:
            say(absent=one.name, reason=f"{one.on_request}: only if asked for by --peers", install=one.install)
        elif why := one.missing(setting):
            say(absent=one.name, reason=why, install=one.install if "not installed" in why else "")
        else:
            present.append(one)
    for one in present:  # compiled before the time runs, for one thread and for all
        if not one.peer:
            say(trying=one.name)
            for n in (1_024, TELLING):
                ready = one(contestants.Start([(n,)], setting.dtype, task["seed"]), setting, task["threads"])
                ready.give(0)
                ready.step()
                ready.finish()
    say(trying="")
    if any(one.device == "cuda" for one in present):
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
            _case(cases.shapes(case), present, setting, task, left * weights[0] / sum(weights), pace, rng, say)
        except MemoryError:
            say(skipped="memory ran out", trying="")


def _case(shapes, present, setting, task, seconds, pace, rng, say):
    """Everyone who fits on one case, in about so many seconds."""
    from fastadam.benchmarks import cases, clock, contestants, truth

    begin, n = time.time(), cases.size(shapes)
    there, why = admitted(n, present, setting, pace, seconds)
    if all(one.peer for one in there):
        say(skipped=next(iter(why.values()), "fastadam is not here to run it"))
        return
    start = contestants.Start(shapes, setting.dtype, task["seed"])
    racers = []
    for cls in there:
        say(trying=cls.name)
        racers.append(cls(start, setting, task["threads"]))
    ulps, wrong = truth.check(racers, start, rng, report=lambda name: say(trying=name))
    moved, chose = {one.name: one.bytes(setting) for one in there}, {one.name: one.chose for one in racers if one.chose}
    say(trying="", ulps=ulps, wrong=wrong, left_out=why, bytes=moved, chose=chose)
    fair, left = [one for one in racers if one.name not in wrong], max(0.0, begin + seconds - time.time())
    samples = clock.race(fair, task["rounds"], rng, lambda name, seconds: say(sample=name, seconds=seconds), left)
    if n >= TELLING:
        pace |= {name: min(times) / n for name, times in samples.items()}


SHARE = 1 / 4  # a case of 2^26 may take 16 times as long as one of 2^10, whose peers must be checked too
TELLING = 1 << 17  # parameters below which a step's time is the call's, and says nothing of larger cases
PREPARING = 5e-8  # seconds per parameter and contestant for its arrays and for what the oracle compares
SLOWEST = 0.5  # seconds for one step, by what one took in the case before, from which a contestant stays out


def admitted(n, present, setting, pace, seconds=float("inf")):
    """Those for whom memory and so many seconds suffice, in order, and why the others are left out."""
    from fastadam.benchmarks import contestants, machine

    array = n * setting.dtype.itemsize
    sets = contestants.Start.sets(n)
    room = {"cpu": machine.available_memory() - array * (1 + sets)}
    if any(one.device == "cuda" for one in present):
        room["cuda"] = machine.available_gpu_memory()
    copies, there, why = set(), [], {}
    for one in present:
        library = one.needs[-1:] if one.needs else ()
        shared = 0 if library in copies or (one.device == "cpu" and library == ()) else sets
        need = array * (1 + setting.slots + shared + one.spare)
        step = pace.get(one.name, 0.0) * n
        if need > room[one.device]:
            free = max(0.0, room[one.device]) / 2**30
            why[one.name] = f"needs {need / 2**30:.1f} GiB of memory, {free:.1f} GiB are left"
        elif step > SLOWEST:
            why[one.name] = f"a step would take about {step:.1f} s"
        else:
            room[one.device] -= need - array * one.spare  # temporaries come one after the other
            copies.add(library)
            there.append(one)
    return in_time(n, there, why, pace, seconds)


def in_time(n, there, why, pace, seconds):
    """Leave out the slowest, but not fastadam's quickest nor the limits, until everyone else is done in time."""
    from fastadam.benchmarks.clock import FEWEST

    def cost(one):
        return n * (pace.get(one.name, 0.0) * (FEWEST + 4) + PREPARING)

    there, optional = list(there), [one for one in there if one.peer or one.name == "fastadam numpy"]
    optional = [one for one in sorted(optional, key=cost) if one is not there[0]]
    while optional and sum(map(cost, there)) > seconds:
        slowest = optional.pop()
        there.remove(slowest)
        why[slowest.name] = f"would take about {cost(slowest):.0f} of the {seconds:.0f} s for this case"
    return there, why


def first_use(task, say):
    """One contestant's first step; says when it was done."""
    from fastadam.benchmarks import cases, contestants
    from fastadam.benchmarks.everyone import everyone

    setting = cases.setting(task["rule"], task["format"])
    (cls,) = (one for one in everyone(task["backends"]) if one.name == task["first_use"])
    try:
        one = cls(contestants.Start(cases.shapes(task["case"]), setting.dtype), setting, task["threads"])
        one.give(0)
        one.step()
        one.finish()
        done = time.time()
        one.params()
        say(done=done)
    except Exception as error:
        say(absent=cls.name, reason=cls.missing(setting) or f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
