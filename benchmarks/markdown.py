"""Writes results as Markdown: tables of times, what was asked, what they were taken on."""

from . import machine, targets
from .cases import Precision
from .summary import duration, main_contestant, number


def table(head, rows):
    """Yield the lines of a table: the first column to the left, numbers to the right."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "|".join(["---"] + ["---:"] * (len(head) - 1)) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def cell(result, case, name):
    """Return one contestant's time of one case, with ns per parameter where that says more than the call."""
    entry = result["cases"][case]
    if name in result["absent"]:
        return "absent"
    if name in entry.get("wrong", {}):
        return "wrong"
    if name in entry.get("left_out", {}):
        return "not run"
    if name not in entry.get("contestants", {}):
        return entry.get("skipped", "")
    of = entry["contestants"][name]
    return duration(of["seconds"]) + (f" ({of['ns_per_param']:.3f})" if entry["in"] == "memory" else "")


def times(result):
    """Yield a row for each case, a column for each contestant; the share of the limit where that was timed."""
    names = [name for case in result["cases"].values() for name in case.get("contestants", {})]
    names = list(dict.fromkeys([*names, *result["absent"]]))
    shares = {case: share_of_limit(entry) for case, entry in result["cases"].items()}
    rows = []
    for case, entry in result["cases"].items():
        title = f"{case}: {entry['n']:,} in {entry['tensors']}"
        rows.append([title, *(cell(result, case, name) for name in names), *[shares[case]] * any(shares.values())])
    yield from table(["parameters in tensors", *names, *["of limit"] * any(shares.values())], rows)


def share_of_limit(entry):
    """Return how near fastadam's quickest comes to the limit."""
    of = entry.get("contestants", {}).get(main_contestant(entry), {}).get("of_limit")
    return number(of[0]) if of else ""


def by_format(result):
    """Yield a row for each case and format, a column for each contestant: ns per parameter; and the bytes of ours."""
    parts = {label: split(label, result["dtype"]) for case in result["cases"].values() for label in case["contestants"]}
    names = list(dict.fromkeys(name for name, _ in parts.values()))
    rows = []
    for case, entry in result["cases"].items():
        contestants = entry["contestants"]
        for format in dict.fromkeys(parts[label][1] for label in contestants):
            of_format = {parts[label][0]: of for label, of in contestants.items() if parts[label][1] == format}
            plain = contestants.get(names[0])  # ours in the usual format
            share = number(of_format[names[0]]["seconds"] / plain["seconds"]) if plain and names[0] in of_format else ""
            cells = [nanoseconds(of_format[name], entry["n"]) if name in of_format else "" for name in names]
            moved = f"{next(iter(of_format.values()))['bytes']:g}"
            rows.append([f"{case}: {words(format)}", moved, share, *cells])
    yield from table(["", "bytes", f"of {result['dtype']}'s time", *names], rows)


def split(label, usual):
    """Split a contestant's label into (name, format)."""
    name, _, format = label.rpartition(" ")
    is_format = name and format.partition(":")[0] in ("float64", "float32", "bfloat16", "float16")
    return (name, format) if is_format else (label, usual)


def words(name):
    """Say a format in words: p, g, m, v bfloat16."""
    format = Precision(name)
    dtype, master = name.partition(":")[0], format.options.get("master")
    moments = format.options.get("moments", "").replace("8bit", "8-bit")
    if dtype == "float32":
        return f"m, v {moments}" if moments else dtype
    text = f"p, g, m, v {dtype}" if moments == dtype else f"p, g {dtype}" + (f", m, v {moments}" if moments else "")
    return text + (", p's other 16 bits beside" if master == "remainder" else "")


def nanoseconds(of, n):
    """Return ns per parameter: median (p10–p90)."""
    low, middle, high = (number(of[key] / n * 1e9) for key in ("p10", "seconds", "p90"))
    return f"{middle} ({low}–{high})"


def verdicts(result):
    """Yield a row for each target: what is asked, what was measured, whether it is met."""
    rows = []
    for target in targets.of(result):
        measured = target.measured(result)
        if not measured:
            rows.append([target.title, target.asked, "", "not measured"])
            continue
        median, low, high, met = measured
        shown = f"{number(median)} ({number(low)}–{number(high)})"
        rows.append([target.title, target.asked, shown, "met" if met else "**missed**"])
    yield from table(["", "asked", "measured", ""], rows)


def taken_on(result, *packages):
    """Say which machine it was, what was measured with, and whether the machine was quiet."""
    of, versions = result["machine"], result["versions"]
    caches = ", ".join(f"{name} {size}" for name, size in of["caches"].items() if "instruction" not in name)
    used = ", ".join(f"{name} {versions[name]}" for name in ("numpy", "numba", *packages) if versions.get(name))
    processes, rounds = result.get("processes", 1), result["rounds"]
    runs = f"{processes} processes of {rounds} rounds; ranges over processes" if processes > 1 else f"{rounds} rounds"
    return (
        f"{of['cpu']}, {of['cores']} cores ({caches}), {of['memory_gib']} GiB; "
        f"{result['threads']} threads for everyone; torch's tensors on huge pages, as large NumPy arrays are; {used}; "
        f"commit {result['commit']}, {result['date'][:10]}; "
        + (machine.unquiet(of) or f"load average {of['load_before']:g} before the run")
        + f". Medians of {runs}."
    )


def origin(result, *packages):
    """Say in one line which machine a result is from, with what, of which commit and when, and how busy it was."""
    of, versions = result["machine"], result["versions"]
    used = [f"{name} {versions[name]}" for name in packages if versions.get(name)]
    load = machine.unquiet(of) or f"load average {of['load_before']:g} before the run"
    parts = [f"{of['cpu']}, {of['cores']} cores", ", ".join(used), f"commit {result['commit']}, {result['date'][:10]}"]
    return "; ".join([*filter(None, parts), f"medians of {result['rounds']} rounds", load]) + "."


def absent(result):
    """Yield who was not there, a line each."""
    for name, why in result["absent"].items():
        yield f"Absent: {name} ({why['reason']})" + (f": `{why['install']}`." if why["install"] else ".")
