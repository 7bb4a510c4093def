"""Writes README's speed tables from results/: `python benchmarks/report.py`; with `--check`, only compares.

core-speed: the newest core result, whatever machine it is from, and what DESIGN asks of it. chain: the newest of a
whole step. narrow: of steps in fewer bytes. measure.py makes these anew. fidelity: the newest study of formats;
fidelity.py makes it anew.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

if not __package__:  # a script of a clone, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fastadam.benchmarks import (
    chain,
    fidelity_report,
    files,
    first_use,
    machine,
    narrow,
    narrow_report,
    options,
    summary,
)
from fastadam.benchmarks.summary import duration, number

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
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


CHAIN = {"plain": "Adam alone", "clip": "clip and Adam", "full": "the whole step"}
CHAIN_TARGETS = {"clip": 1.3, "full": 1.4}  # times as fast as PyTorch's passes, at 2^24 on two cores


def newest(bench):
    """The last finished result of this kind that a CPU gave; None if there is none. Raises files.Unusable."""
    found = [files.read(path, bench) for path in RESULTS.glob(f"{bench}-*.json")]
    found = [result for result in found if "partial" not in result and result.get("device", "cpu") == "cpu"]
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


def taken_on(result, *packages):
    """The machine, what was measured with, and whether the machine was quiet."""
    of, versions = result["machine"], result["versions"]
    caches = ", ".join(f"{name} {size}" for name, size in of["caches"].items() if "instruction" not in name)
    used = ", ".join(f"{name} {versions[name]}" for name in ("numpy", "numba", *packages) if versions.get(name))
    return (
        f"{of['cpu']}, {of['cores']} cores ({caches}), {of['memory_gib']} GiB; "
        f"{result['threads']} threads for everyone; torch's tensors on huge pages, as large NumPy arrays are; {used}; "
        f"commit {result['commit']}, {result['date'][:10]}; "
        + (machine.unquiet(of) or f"load average {of['load_before']:g} before the run")
        + "."
    )


def core_speed(result):
    yield "Float32 Adam, one step: the whole call, in brackets ns per parameter where the arrays exceed the caches."
    yield "*limit* moves the same bytes with trivial arithmetic on the same kind of arrays."
    yield ""
    yield from times(result)
    yield ""
    yield from verdicts(result)
    yield ""
    rounds = (
        f"Medians of {result['processes']} processes of {result['rounds']} interleaved rounds; ranges over processes."
    )
    yield f"{taken_on(result, 'torch', 'deepspeed')} {rounds}"
    for name, why in result["absent"].items():
        yield f"Absent: {name} ({why['reason']})" + (f": `{why['install']}`." if why["install"] else ".")


def whole_step(result):
    rows = []
    for kind, title in CHAIN.items():
        entry, least = result["kinds"].get(kind, {}), CHAIN_TARGETS.get(kind)
        sides = [_side(entry, name) for name in ("fastadam", "torch")]
        ratio = entry.get("times_as_fast")
        met = least and ratio and ("met" if ratio >= least else "**missed**")
        asked = f"≥ {least:g}, {met or 'not measured'}" if least else ""
        rows.append([title, *sides, number(ratio) if ratio else "", asked])
    yield f"ns per parameter and the bytes that it moves, {result['size']:,} float32 parameters; median (p10–p90)."
    yield ""
    yield from table(["", "fastadam, one pass", "PyTorch, a pass each", "times as fast", "asked"], rows)
    yield ""
    yield taken_on(result, "torch")


def pytorch(result):
    """Whole steps under PyTorch, and the share of a training step that they take."""
    rows = []
    for name, entry in result["steps"].items():
        (a, b), ratio = (
            (duration(entry[side][1] * 1e-6) for side in ("fastadam_us", "torch_us")),
            entry["times_as_fast"],
        )
        met = "met" if ratio >= entry["wanted"] else "**missed**"
        rows.append([name, a, b, number(ratio), f"≥ {entry['wanted']:g}, {met}"])
    yield "AdamW, one whole `opt.step()` against torch's fused; with max_norm, against clip_grad_norm_ and that."
    yield ""
    yield from table(["", "fastadam.torch", "torch", "times as fast", "asked"], rows)
    yield ""
    rows = []
    for name, entry in result.get("examples", {}).items():
        shares = [f"{entry[side]['us_per_step']:.0f} µs, {entry[side]['share']:.1%}" for side in ("fastadam", "torch")]
        apart = (f"{entry[key]:.1g}" for key in ("curves_apart", "torchs_apart"))
        rows.append([f"{name}, {entry['parameters']:,} parameters", *shares, *apart])
    yield "Learning digits: `opt.step()`, its share of a training step, and how far apart the two loss curves ever are,"
    yield "as rounding grows with training; beside that, how far those of torch's fused and its own for-loop are."
    yield ""
    yield from table(["", "fastadam.torch", "torch", "apart", "torch's two"], rows)
    yield ""
    yield taken_on(result, "torch").replace("torch's tensors on huge pages, as large NumPy arrays are; ", "")


def _side(entry, name):
    if name in entry.get("wrong", {}):
        return "wrong"
    if name not in entry:
        return "absent"
    (low, middle, high), moved = entry[name]["ns"], entry[name]["bytes"]
    return f"{number(middle)} ({number(low)}–{number(high)}), {moved} bytes"


TABLES = {
    "core-speed": ("core", core_speed),
    "chain": ("chain", whole_step),
    "narrow": ("narrow", narrow_report.section),
    "fidelity": ("fidelity", fidelity_report.section),
    "pytorch": ("pytorch", pytorch),
}


def filled(text):
    """README with every table that has its markers and a result."""
    for mark, (bench, write) in TABLES.items():
        pattern = re.compile(f"(<!-- {mark} -->).*?(<!-- /{mark} -->)", re.DOTALL)
        if not pattern.search(text):
            raise files.Unusable(f"README.md has no <!-- {mark} --> and <!-- /{mark} --> for a table to stand between")
        if result := newest(bench):
            body = "\n".join(write(result))
            text = pattern.sub(lambda found, body=body: f"{found[1]}\n{body}\n{found[2]}", text)
    return text


SHOW = {"core": summary.show, "first-use": first_use.show, "chain": chain.show, "narrow": narrow.show}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if README differs from the results")
    parser.add_argument("--summary", nargs="+", metavar="FILE.json", help="print these results instead, in few lines")
    parser.add_argument(
        "--plot",
        type=options.picture,
        metavar="FILE.png",
        help="draw the newest core result instead (needs matplotlib)",
    )
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except files.Unusable as unusable:
        print(f"report: {unusable}", file=sys.stderr)
        return 2


def _run(args):
    if args.plot:
        from fastadam.benchmarks import plot

        result = newest("core")
        if result is None:
            raise files.Unusable(f"{RESULTS}: no core-*.json to draw")
        plot.draw(result, args.plot)
        return 0
    if args.summary:
        return _summaries(args.summary)
    before = README.read_text(encoding="utf-8")
    after = filled(before)
    if args.check:
        if after != before:
            raise files.Unusable("README.md differs from the results: run python benchmarks/report.py")
        return 0
    README.write_text(after, encoding="utf-8")
    return 0


def _summaries(paths):
    """Print every result that can be read, and why another cannot; exit status 2 if there is one."""
    status = 0
    for path in paths:
        try:
            result = files.read(path, *SHOW)
        except files.Unusable as unusable:
            print(f"report: {unusable}", file=sys.stderr)
            status = 2
            continue
        SHOW[result["bench"]](result)
        if machine.unquiet(result["machine"]):
            print(machine.unquiet(result["machine"]))
    return status


if __name__ == "__main__":
    sys.exit(main())
