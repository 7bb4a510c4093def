"""What README says of benchmarks/narrow.py's result."""

from fastadam.benchmarks import narrow
from fastadam.benchmarks.summary import number

TITLES = {
    narrow.PLAIN: "float32",
    narrow.MOMENTS: "m, v bfloat16",
    narrow.ALL: "p, g, m, v bfloat16",
    narrow.REMAINDER: "p, g, m, v bfloat16, p's other 16 bits beside",
    narrow.CODED: "m, v 8-bit",
    narrow.SHORT_CODED: "p, g bfloat16, m, v 8-bit",
    narrow.WIDE_STATE: "p, g bfloat16",
}


def section(result):
    """Lines of Markdown: the times, the targets, the machine, who is absent."""
    from fastadam.benchmarks.report import table, taken_on  # which imports this

    names = list(dict.fromkeys(name for name, _ in narrow.ENTRANTS + narrow.SLOW))
    yield f"Adam on {result['size']:,} parameters: bytes that a step moves and ns, per parameter; median (p10–p90)."
    yield ""
    yield from table(["", "bytes", "of float32's time", *names], times(result, names))
    yield ""
    yield from table(["fastadam", "asked", "measured", ""], targets(result))
    yield ""
    yield taken_on(result, "torch", "deepspeed", "bitsandbytes", "torchao")
    for one in result["absent"]:
        yield f"Absent: {one['name']}, {TITLES[one['format']]} ({one['reason']})."


def times(result, names):
    """A row for each format and size."""
    own = narrow.found(result, narrow.OURS, narrow.PLAIN)
    for format, size in dict.fromkeys((one["format"], one["size"]) for one in result["entries"]):
        title = TITLES[format] + (f"; {size:,} parameters" if size != result["size"] else "")
        there = [one for one in result["entries"] if (one["format"], one["size"]) == (format, size)]
        mine = narrow.found(result, narrow.OURS, format, size)
        share = number(mine["ns"][1] / own["ns"][1]) if mine and own and size == own["size"] else ""
        yield [title, f"{there[0]['bytes']:g}", share, *(cell(result, name, format, size) for name in names)]


def cell(result, name, format, size):
    """One contestant's time."""
    if any((one["name"], one["format"], one["size"]) == (name, format, size) for one in result["wrong"]):
        return "wrong"
    if not (entry := narrow.found(result, name, format, size)):
        return ""
    low, middle, high = entry["ns"]
    return f"{number(middle)} ({number(low)}–{number(high)})"


def targets(result):
    """A row for each."""
    for target in narrow.TARGETS:
        measured = target.measured(result)
        verdict = [number(measured[0]), "met" if measured[1] else "**missed**"] if measured else ["", "not measured"]
        against = f"{TITLES[target.format]} against {target.other}, {TITLES[target.other_format]}"
        yield [against, target.asked, *verdict]
