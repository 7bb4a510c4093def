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

    from fastadam.benchmarks import cases, machine, ours

    setting, dtype = cases.settings()[task["rule"]], np.dtype(task["dtype"])
    rng = np.random.default_rng(task["seed"])
    present = []
    for one in ours.everyone(task["backends"]):
        asked = one.name in task["peers"]
        if (task["peers"] and one.peer and not asked) or one.name in task["without"]:
            continue
        say(trying=one.name)
        if one.on_request and not asked:
            say(absent=one.name, reason=f"{one.on_request}: only if asked for by --peers", install=one.install)
        elif why := one.missing(setting, dtype):
            say(absent=one.name, reason=why, install=one.install if "not installed" in why else "")
        else:
            present.append(one)
    say(trying="")
    if any(one.device == "cuda" for one in present):
        say(gpu=machine.gpu())
    pace = {}  # seconds per parameter in the last telling case
    for case in task["cases"]:
        say(case=case)
        if time.time() > task["until"]:
            say(skipped="no time left")
            continue
        try:
            _case(cases.shapes(case), present, setting, dtype, task, pace, rng, say)
        except MemoryError:
            say(skipped="memory ran out", trying="")


def _case(shapes, present, setting, dtype, task, pace, rng, say):
    """Everyone who fits on one case."""
    from fastadam.benchmarks import cases, clock, contestants, truth

    n = cases.size(shapes)
    there, why = admitted(n, present, setting, dtype, pace)
    if all(one.peer for one in there):
        say(skipped=next(iter(why.values()), "fastadam is not here to run it"))
        return
    start = contestants.Start(shapes, dtype, task["seed"])
    racers = []
    for cls in there:
        say(trying=cls.name)
        racers.append(cls(start, setting, task["threads"]))
    ulps, wrong = truth.check(racers, start, rng, report=lambda name: say(trying=name))
    moved = {one.name: one.bytes(setting, dtype) for one in there}
    say(trying="", ulps=ulps, wrong=wrong, left_out=why, bytes=moved)
    fair = [one for one in racers if one.name not in wrong]
    samples = clock.race(fair, task["rounds"], rng, report=lambda name, seconds: say(sample=name, seconds=seconds))
    if n >= TELLING:
        pace |= {name: min(times) / n for name, times in samples.items()}


TELLING = 1 << 17  # parameters below which a step's time is the call's, and says nothing of larger cases
SLOWEST = 0.5  # seconds for one step, by what one took in the case before, from which a contestant stays out


def admitted(n, present, setting, dtype, pace):
    """Those for whom memory and time suffice, in order, and why the others are left out."""
    from fastadam.benchmarks import contestants, machine

    array = n * dtype.itemsize
    sets = contestants.Start.sets(n)
    room = {"cpu": machine.available_memory() - array * (1 + sets)}
    if any(one.device == "cuda" for one in present):
        room["cuda"] = machine.available_gpu_memory()
    copies, there, why = set(), [], {}
    for one in present:
        library = one.needs[-1:] if one.needs else ()
        shared = 0 if library in copies or (one.device == "cpu" and library == ()) else sets
        need = array * (1 + setting.slots + shared + one.spare)
        if need > room[one.device]:
            free = max(0.0, room[one.device]) / 2**30
            why[one.name] = f"needs {need / 2**30:.1f} GiB of memory, {free:.1f} GiB are left"
        elif pace.get(one.name, 0.0) * n > SLOWEST:
            why[one.name] = f"a step would take about {pace[one.name] * n:.0f} s"
        else:
            room[one.device] -= need - array * one.spare  # temporaries come one after the other
            copies.add(library)
            there.append(one)
    return there, why


def first_use(task, say):
    """One contestant's first step; says when it was done."""
    import numpy as np

    from fastadam.benchmarks import cases, contestants, ours

    setting, dtype = cases.settings()[task["rule"]], np.dtype(task["dtype"])
    (cls,) = (one for one in ours.everyone(task["backends"]) if one.name == task["first_use"])
    try:
        one = cls(contestants.Start(cases.shapes(task["case"]), dtype), setting, task["threads"])
        one.give(0)
        one.step()
        one.finish()
        done = time.time()
        one.params()
        say(done=done)
    except Exception as error:
        say(absent=cls.name, reason=cls.missing(setting, dtype) or f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
