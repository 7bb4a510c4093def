"""What samples say: one entry per case and contestant, the same in JSON, tables and plots."""

import statistics

from fastadam.benchmarks import cases, clock
from fastadam.tools.console import Table

OURS = ("fastadam cuda", "fastadam numba", "fastadam numpy")  # the first that is there is compared with the others
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def middle(values, low=None, high=None):
    """[median, smallest, largest] over processes; of one process, what its spread allows."""
    return [statistics.median(values), *((min(values), max(values)) if len(values) > 1 else (low, high))]


def case(name, runs, cache, l2=0):
    """One case's events in all processes -> its entry. cache, l2: bytes of the last cache, of the GPU's."""
    n, tensors = cases.size(cases.shapes(name)), len(cases.shapes(name))
    out = {"n": n, "tensors": tensors}
    if skipped := [run["skipped"] for run in runs if "skipped" in run]:
        return out | {"skipped": skipped[0]}
    out["processes"] = len(runs)
    for key in ("wrong", "left_out", "chose"):
        out[key] = {one: why for run in runs for one, why in run.get(key, {}).items()}
    moved = runs[0].get("bytes", {})
    names = [one for one in moved if all(run.get("samples", {}).get(one) for run in runs)]
    pooled = {one: clock.spread([t for run in runs for t in run["samples"][one]]) for one in names}
    medians = {one: [statistics.median(run["samples"][one]) for run in runs] for one in names}
    out["in"] = _where(n, moved.get(names[0] if names else "", 28), cache)
    out["contestants"] = {}
    for one in names:
        seconds, on_gpu = statistics.median(medians[one]), "cuda" in one
        p10, _, p90 = pooled[one]
        over = {
            other: middle(
                [b / a for a, b in zip(medians[one], medians[other], strict=True)],
                pooled[other][0] / p90,
                pooled[other][2] / p10,
            )
            for other in names
            if other != one
        }
        out["contestants"][one] = {
            "seconds": seconds,
            "medians": medians[one],
            "best": min(t for run in runs for t in run["samples"][one]),
            "p10": p10,
            "p90": p90,
            "samples": sum(len(run["samples"][one]) for run in runs),
            "in": _where(n, moved[one], l2 if on_gpu else cache),
            "bytes": moved[one],
            "ns_per_param": seconds / n * 1e9,
            "gb_per_s": moved[one] * n / seconds * 1e-9,
            "ulps": max(run["ulps"][one] for run in runs),
            "of_limit": over.pop(limit_of(one), None),
            "times_faster_than": over,
        }
    return out


def _where(n, moved, cache):
    """Whether p, slots and both sets of gradients stay in the last cache from one call to the next."""
    return "cache" if n * (moved + 12) / 2 <= cache else "memory"


def ours(entry):
    """The contestant of fastadam's that the others are compared with."""
    return next((name for name in OURS if name in entry.get("contestants", {})), None)


def limit_of(name):
    """The limit of a contestant's processor."""
    return "limit cuda" if "cuda" in name else "limit"


def unit(seconds):
    """(its size, its name)."""
    return next((pair for pair in UNITS if seconds >= pair[0]), UNITS[-1])


def duration(seconds):
    """Three digits and a unit."""
    scale, name = unit(seconds)
    return f"{digits(seconds / scale)} {name}"


def digits(x):
    """Three digits, or all before the point."""
    return f"{x:.{max(0, 3 - len(str(int(x))))}f}"


def number(x):
    """A ratio."""
    return digits(x) if x >= 100 else f"{x:.2f}" if x < 10 else f"{x:.1f}"


HEAD = ("", "time", "p10–p90", "ns/param", "GB/s", "of limit", "ulp", "× ours")


def table(name, entry):
    """One case as a table, or as a line where it was skipped."""
    what = f"{name}: {entry['n']:,} parameters in {entry['tensors']} array{'s' * (entry['tensors'] > 1)}"
    if "skipped" in entry:
        return f"{what}: skipped: {entry['skipped']}"
    main, place = ours(entry), "hot in the caches" if entry["in"] == "cache" else "in DRAM"
    out = Table(*HEAD, title=f"{what}, {place}")
    for one, of in entry["contestants"].items():
        over = entry["contestants"][main]["times_faster_than"].get(one) if main else None
        if main and one == limit_of(main):
            over = entry["contestants"][main]["of_limit"]
        scale, _ = unit(of["seconds"])
        out.add(
            one,
            duration(of["seconds"]),
            f"{digits(of['p10'] / scale)}–{digits(of['p90'] / scale)}",
            digits(of["ns_per_param"]),
            digits(of["gb_per_s"]),
            number(of["of_limit"][0]) if of["of_limit"] else "",
            number(of["ulps"]),
            number(over[0]) if over else "",
        )
    for one in entry["wrong"]:
        out.add(one, "wrong", *[""] * (len(HEAD) - 2))
    return out


def notes(entry):
    """Why somebody is not in a case's table: a line each."""
    for name, why in entry.get("wrong", {}).items():
        yield f"  {name} is wrong, so not timed: {why}"
    for name, why in entry.get("left_out", {}).items():
        yield f"  {name} is not run: {why}"
    for name, what in entry.get("chose", {}).items():
        yield f"  {name}: {what}"


def crossover(result):
    """From which size on the GPU is faster than the CPU, without and with moving the data: lines of text."""
    flats = sorted((c for k, c in result["cases"].items() if k not in cases.MODELS), key=lambda c: c["n"])
    for name, what in (("fastadam cuda", "data on the GPU"), ("fastadam cuda, moved", "gradients in, parameters out")):
        pairs = [
            (c["n"], c["contestants"][name]["seconds"] < c["contestants"]["fastadam numba"]["seconds"])
            for c in flats
            if {name, "fastadam numba"} <= c.get("contestants", {}).keys()
        ]
        wins = [n for k, (n, _) in enumerate(pairs) if all(won for _, won in pairs[k:])]
        if pairs:
            first = f"from {cases.flat(wins[0])} parameters on" if wins else f"nowhere up to {cases.flat(pairs[-1][0])}"
            yield f"the GPU wins, {what}: {first}"


def show(result):
    """Print the whole run in few lines: fastadam's speed and how many times as fast it is as each other, by case."""
    columns = [(k, c) for k, c in result["cases"].items() if ours(c)]
    if not columns:
        print("fastadam was not timed")
        return
    names = dict.fromkeys(name for _, c in columns for name in c["contestants"])
    title = f"{result['rule']} {result['dtype']}: speed, and how many times as fast as each other (×)"
    out = Table(ours(columns[0][1]), *(k for k, _ in columns), title=title)
    mine = [c["contestants"][ours(c)] for _, c in columns]
    out.add("ns/param", *(digits(of["ns_per_param"]) for of in mine))
    out.add("GB/s", *(digits(of["gb_per_s"]) for of in mine))
    out.add("of limit", *(number(of["of_limit"][0]) if of["of_limit"] else "" for of in mine))
    for name in names:
        over = [of["times_faster_than"].get(name) for of in mine]
        if any(over):
            out.add(f"× {name}", *(number(x[0]) if x else "" for x in over))
    out.show()
    for line in (*crossover(result), *marks(result)):
        print(line)


REPLAY = "2^10", "fastadam cuda, graph", 5e-6  # case, contestant, the most seconds for a replay


def marks(result):
    """What is asked of a GPU alone: lines of text."""
    case, name, most = REPLAY
    of = result["cases"].get(case, {}).get("contestants", {}).get(name)
    if of and result["dtype"] == "float32":
        verdict = "met" if of["seconds"] <= most else "missed"
        yield f"a replay of {case}: {duration(of['seconds'])}, asked ≤ {duration(most)}: {verdict}"
