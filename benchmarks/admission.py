"""Decides who takes part in a race: who is present at all, for whom memory suffices, and for whom time does."""

from . import cases, machine
from .clock import FEWEST
from .contestants import Start, named
from .everyone import everyone
from .ours import FastadamTorch
from .suites import label

PREPARING = 5e-8  # seconds per parameter and contestant for its arrays and for what the oracle compares
SLOWEST = 0.5  # seconds for one step, by what one took in the case before, from which a contestant stays out


def entrants(task, say):
    """Return {case: those who are to step it, each a contestant's class with a `setting`}; say who is absent, and why.

    task["entrants"] has the pairs of a name and a format of each case; a case without any is everyone's.
    """
    classes = {one.name: one for one in everyone(task["backends"])}
    everyones = [(name, task["format"]) for name in classes]
    classes[FastadamTorch.name] = FastadamTorch
    judged, present = {}, {}
    for case in task["cases"]:
        pairs = task["entrants"].get(case) or everyones
        present[case] = []
        for name, format in pairs:
            key = name, format, cases.chores(case)
            if key not in judged:
                judged[key] = _entrant(classes[name], *key[1:], task, pairs is not everyones, say)
            present[case] += [judged[key]] if judged[key] else []
    return present


def _entrant(cls, format, chores, task, listed, say):
    """Return a contestant's class for a setting; None if it is not asked for or is absent. listed: by the suite."""
    name = label(cls.name, format, task["format"])
    asked = cls.name in task["peers"]
    if (task["peers"] and cls.peer and not asked) or name in task["without"]:
        return None
    say(trying=name)
    setting = cases.setting(task["rule"], format, chores)
    if cls.on_request and not asked and not listed:
        say(absent=name, reason=f"{cls.on_request}: only if asked for by --peers", install=cls.install)
    elif why := cls.missing(setting):
        say(absent=name, reason=why, install=cls.install if "not installed" in why else "")
    else:
        return named(cls, name, setting=setting)
    return None


def admitted(n, present, pace, seconds=float("inf")):
    """Return those for whom memory and so many seconds suffice, in order, and why the others are left out.

    pace: seconds per parameter that a contestant of that name took in the case before.
    """
    sets = Start.sets(n)
    starts = sum(
        n * itemsize for itemsize in {one.setting.dtype: one.setting.dtype.itemsize for one in present}.values()
    )
    room = {"cpu": machine.available_memory() - starts * (1 + sets)}
    if any(one.device == "cuda" for one in present):
        room["cuda"] = machine.available_gpu_memory()
    copies, fitting, why = set(), [], {}
    for one in present:
        array, library = n * one.setting.dtype.itemsize, one.needs[-1:]
        kept = library, one.setting.dtype  # a library's copies of the gradients
        shared = 0 if kept in copies or (one.device == "cpu" and library == ()) else sets
        need = array * (1 + one.setting.slots + shared + one.spare)
        step = pace.get(one.name, 0.0) * n
        if need > room[one.device]:
            free = max(0.0, room[one.device]) / 2**30
            why[one.name] = f"needs {need / 2**30:.1f} GiB of memory, {free:.1f} GiB are left"
        elif step > SLOWEST:
            why[one.name] = f"a step would take about {step:.1f} s"
        else:
            room[one.device] -= need - array * one.spare  # temporaries come one after the other
            copies.add(kept)
            fitting.append(one)
    return in_time(n, fitting, why, pace, seconds)


def in_time(n, fitting, why, pace, seconds):
    """Leave out the slowest, but not fastadam's quickest nor the limits, until everyone else is done in time."""

    def cost(one):
        return n * (pace.get(one.name, 0.0) * (FEWEST + 4) + PREPARING)

    remaining, optional = list(fitting), [one for one in fitting if one.peer or one.name == "fastadam numpy"]
    optional = [one for one in sorted(optional, key=cost) if one is not remaining[0]]
    while optional and sum(map(cost, remaining)) > seconds:
        slowest = optional.pop()
        remaining.remove(slowest)
        why[slowest.name] = f"would take about {cost(slowest):.0f} of the {seconds:.0f} s for this case"
    return remaining, why
