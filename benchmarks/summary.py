"""Sums samples up: one entry per case and contestant, the same in JSON, tables and plots."""

import statistics

from fastadam.tools.console import TextTable

from . import cases, clock

CONTESTANTS = (
    "fastadam cuda",
    "fastadam numba",
    "fastadam.torch",
    "fastadam.jax",
    "fastadam numpy",
)  # the first that is there is compared with the others
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def middle(values, low=None, high=None):
    """Return [median, smallest, largest] over processes; of one process, what its spread allows."""
    return [statistics.median(values), *((min(values), max(values)) if len(values) > 1 else (low, high))]


def case(name, runs, cache, l2=0):
    """Return the entry of one case from its events in all processes. cache, l2: bytes of the last caches."""
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
    out["in"] = _where(n, moved.get(names[0] if names else "", 28), cache)
    contestants = out["contestants"] = {}
    for one in names:
        medians = [statistics.median(run["samples"][one]) for run in runs]
        seconds, on_gpu = statistics.median(medians), "cuda" in one
        p10, _, p90 = pooled[one]
        contestants[one] = {
            "seconds": seconds,
            "medians": medians,
            "best": min(t for run in runs for t in run["samples"][one]),
            "p10": p10,
            "p90": p90,
            "samples": sum(len(run["samples"][one]) for run in runs),
            "in": _where(n, moved[one], l2 if on_gpu else cache),
            "bytes": moved[one],
            "ns_per_param": seconds / n * 1e9,
            "gb_per_s": moved[one] * n / seconds * 1e-9,
            "ulps": max(run["ulps"][one] for run in runs),
        }
    return out | {"contestants": compared(contestants)}


def compared(contestants):
    """Add to entries of contestants how each compares with the limit and with the others."""
    for one, entry in contestants.items():
        ratios = {other: over(entry, contestants[other]) for other in contestants if other != one}
        entry |= {"of_limit": ratios.pop(limit_of(one), None), "times_faster_than": ratios}
    return contestants


def over(one, other):
    """Return how many times as fast one entry is as another: median, least and most over processes."""
    ratios = [b / a for a, b in zip(one["medians"], other["medians"], strict=True)]
    return middle(ratios, other["p10"] / one["p90"], other["p90"] / one["p10"])


def _where(n, moved, cache):
    """Say whether p, slots and both sets of gradients stay in the last cache from one call to the next."""
    return "cache" if n * (moved + 12) / 2 <= cache else "memory"


def main_contestant(entry):
    """Name the contestant of fastadam's that the others are compared with."""
    return next((name for name in CONTESTANTS if name in entry.get("contestants", {})), None)


def limit_of(name):
    """Name the limit of a contestant's processor."""
    return "limit cuda" if "cuda" in name else "limit"


def unit(seconds):
    """Return (size in seconds, name) of the unit that suits a time."""
    return next((pair for pair in UNITS if seconds >= pair[0]), UNITS[-1])


def duration(seconds):
    """Write a time in three digits and a unit."""
    scale, name = unit(seconds)
    return f"{digits(seconds / scale)} {name}"


def digits(x):
    """Write three digits of a number, or all before the point."""
    return f"{x:.{max(0, 3 - len(str(int(x))))}f}"


def number(x):
    """Write a ratio."""
    return digits(x) if x >= 100 else f"{x:.2f}" if x < 10 else f"{x:.1f}"


HEAD = ("", "time", "p10–p90", "ns/param", "GB/s", "of limit", "ulp", "× ours")


def table(name, entry):
    """Return one case as a table, or as a line where it was skipped."""
    what = f"{name}: {entry['n']:,} parameters in {entry['tensors']} array{'s' * (entry['tensors'] > 1)}"
    if "skipped" in entry:
        return f"{what}: skipped: {entry['skipped']}"
    main, place = main_contestant(entry), "hot in the caches" if entry["in"] == "cache" else "in DRAM"
    out = TextTable(*HEAD, title=f"{what}, {place}")
    for one, of in entry["contestants"].items():
        ratio = entry["contestants"][main]["times_faster_than"].get(one) if main else None
        if main and one == limit_of(main):
            ratio = entry["contestants"][main]["of_limit"]
        scale, _ = unit(of["seconds"])
        out.add(
            one,
            duration(of["seconds"]),
            f"{digits(of['p10'] / scale)}–{digits(of['p90'] / scale)}",
            digits(of["ns_per_param"]),
            digits(of["gb_per_s"]),
            number(of["of_limit"][0]) if of["of_limit"] else "",
            number(of["ulps"]),
            number(ratio[0]) if ratio else "",
        )
    for one in entry["wrong"]:
        out.add(one, "wrong", *[""] * (len(HEAD) - 2))
    return out


def notes(entry):
    """Yield why somebody is not in a case's table: a line each."""
    for name, why in entry.get("wrong", {}).items():
        yield f"  {name} is wrong, so not timed: {why}"
    for name, why in entry.get("left_out", {}).items():
        yield f"  {name} is not run: {why}"
    for name, what in entry.get("chose", {}).items():
        yield f"  {name}: {what}"


def crossover(result):
    """Yield from which size on the GPU is faster than the CPU, without and with moving the data."""
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
    columns = [(k, c) for k, c in result["cases"].items() if main_contestant(c)]
    if not columns:
        print("fastadam was not timed")
        return
    names = dict.fromkeys(name for _, c in columns for name in c["contestants"])
    title = f"{result['rule']} {result['dtype']}: speed, and how many times as fast as each other (×)"
    out = TextTable(main_contestant(columns[0][1]), *(k for k, _ in columns), title=title)
    entries = [c["contestants"][main_contestant(c)] for _, c in columns]
    out.add("ns/param", *(digits(of["ns_per_param"]) for of in entries))
    out.add("GB/s", *(digits(of["gb_per_s"]) for of in entries))
    out.add("of limit", *(number(of["of_limit"][0]) if of["of_limit"] else "" for of in entries))
    for name in names:
        ratios = [of["times_faster_than"].get(name) for of in entries]
        if any(ratios):
            out.add(f"× {name}", *(number(x[0]) if x else "" for x in ratios))
    out.show()
    for line in crossover(result):
        print(line)
