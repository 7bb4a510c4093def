"""Writes README's speed tables from results/: `python benchmarks/report.py`; with `--check`, only compares.

core-speed: the newest core result, whatever machine it is from, and what DESIGN asks of it.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

if not __package__:  # a script of a clone, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fastadam.benchmarks.summary import duration, number, show

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
OURS = "fastadam numba"


class Target(NamedTuple):
    """How many times as fast as `other` fastadam on Numba shall be."""

    case: str
    other: str
    least: float
    noise: bool = False  # missed only if all three processes say so


TARGETS = (
    Target("2^26", "limit", 0.97),
    Target("2^26", "torch fused", 1.0, noise=True),
    Target("2^26", "DeepSpeedCPUAdam", 1.0, noise=True),
    Target("2^20", "torch fused", 1.3),
    Target("2^20", "DeepSpeedCPUAdam", 1.2),
    Target("2^17", "torch fused", 1.3),
    Target("2^17", "DeepSpeedCPUAdam", 1.2),
    Target("2^10", "torch fused", 5.0),
    Target("2^10", "DeepSpeedCPUAdam", 2.0),
    Target("mlp", "torch fused", 5.0),
    Target("resnet50", "torch fused", 1.2),
)


def newest(bench):
    found = [json.loads(path.read_text()) for path in (HERE / "results").glob(f"{bench}-*.json")]
    return max(found, key=lambda result: result["date"], default=None)


def table(head, rows):
    """Markdown: the first column to the left, numbers to the right."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "|".join(["---"] + ["---:"] * (len(head) - 1)) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def cell(case, name, result):
    """One contestant's time of one case, with ns/param where that says more than the call."""
    if name in result["absent"]:
        return "absent"
    if name in case.get("wrong", {}):
        return "wrong"
    if name in case.get("left_out", {}):
        return "not run"
    if name not in case.get("contestants", {}):
        return case.get("skipped", "")
    of = case["contestants"][name]
    return duration(of["seconds"]) + (f" ({of['ns_per_param']:.3f})" if case["in"] == "memory" else "")


def times(result):
    """Every case, every contestant."""
    names = [name for case in result["cases"].values() for name in case.get("contestants", {})]
    names = sorted({*names, *result["absent"]}, key=[*names, *result["absent"]].index)
    names.sort(key=lambda name: name != OURS)  # ours first, the rest as they ran
    rows = []
    for label, case in result["cases"].items():
        contestants = case.get("contestants", {})
        share = contestants[OURS]["of_limit"] if OURS in contestants else None
        title = f"{label}: {case['n']:,} in {case['tensors']}"
        rows.append([title, *(cell(case, name, result) for name in names), number(share[0]) if share else ""])
    yield from table(["parameters in tensors", *names, "of limit"], rows)


def verdicts(result):
    """Every target, and whether it is met."""
    rows = []
    for target in TARGETS:
        case = result["cases"].get(target.case, {})
        of = case.get("contestants", {}).get(OURS)
        found = of and (of["of_limit"] if target.other == "limit" else of["times_faster_than"].get(target.other))
        asked = f"≥ {target.least:g}" + (" within noise" if target.noise else "")
        if not found:
            rows.append([f"{target.case} against {target.other}", asked, "", "not measured"])
            continue
        median, low, high = found
        met = (high if target.noise else median) >= target.least
        measured = f"{number(median)} ({number(low)}–{number(high)})"
        rows.append([f"{target.case} against {target.other}", asked, measured, "met" if met else "**missed**"])
    yield from table(["times as fast", "asked", "measured", ""], rows)


def core_speed(result):
    machine, of = result["machine"], result["versions"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items() if "instruction" not in name)
    used = ", ".join(f"{name} {of[name]}" for name in ("numpy", "numba", "torch", "deepspeed") if of.get(name))
    yield "Float32 Adam, one step: the whole call, in brackets ns per parameter where the arrays exceed the caches."
    yield "*limit* moves the same bytes with trivial arithmetic on the same kind of arrays."
    yield ""
    yield from times(result)
    yield ""
    yield from verdicts(result)
    yield ""
    yield (
        f"{machine['cpu']}, {machine['cores']} cores ({caches}), {machine['memory_gib']} GiB; "
        f"{result['threads']} threads for everyone; torch's tensors on huge pages, as large NumPy arrays are; {used}; "
        f"commit {result['commit']}, {result['date'][:10]}; load before the run {machine['load_before']}. "
        f"Medians of {result['processes']} processes of {result['rounds']} interleaved rounds; ranges over processes."
    )
    for name, why in result["absent"].items():
        yield f"Absent: {name} ({why['reason']})" + (f": `{why['install']}`." if why["install"] else ".")


TABLES = {"core-speed": ("core", core_speed)}


def filled(text):
    """README with every table that has its markers and a result."""
    for mark, (bench, write) in TABLES.items():
        pattern = re.compile(f"(<!-- {mark} -->).*?(<!-- /{mark} -->)", re.DOTALL)
        if not pattern.search(text):
            sys.exit(f"README.md has no <!-- {mark} --> and <!-- /{mark} --> for the table to stand between")
        if result := newest(bench):
            body = "\n".join(write(result))
            text = pattern.sub(lambda found, body=body: f"{found[1]}\n{body}\n{found[2]}", text)
    return text


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if README differs from the results")
    parser.add_argument("--summary", nargs="+", metavar="FILE.json", help="print these results instead, in few lines")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the newest core result instead (needs matplotlib)")
    args = parser.parse_args(argv)
    if args.plot:
        from fastadam.benchmarks import plot

        plot.draw(newest("core"), args.plot)
        return
    if args.summary:
        for path in args.summary:
            show(json.loads(Path(path).read_text(encoding="utf-8")))
        return
    before = README.read_text(encoding="utf-8")
    after = filled(before)
    if args.check:
        sys.exit("README.md: run python benchmarks/report.py" if after != before else 0)
    README.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
