"""Writes the tables of benchmarks/README.md from results/: `python benchmarks/report.py`; `--check` only compares.

Each is of the newest result of its suite, whatever machine that is from. measure.py makes the results anew; those of
fidelity, fidelity.py does. A table stands between its markers in any of FILES.
"""

import argparse
import re
import sys
from pathlib import Path

if not __package__:  # a script of a clone, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fastadam.benchmarks import files, first_use, machine, options, targets
from fastadam.benchmarks.sections import FRONT, SECTIONS
from fastadam.benchmarks.suites import SUITES

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
FILES = [
    HERE / "README.md",
    HERE / "METHODS.md",
    HERE / "FIDELITY.md",
    HERE / "GPU.md",
    HERE.parent / "README.md",
    *(
        HERE.parent / "fastadam" / name
        for name in ("README.md", "checkpoint/README.md", "distributed/README.md", "jax/README.md", "keras/README.md")
    ),
]
PICTURE = RESULTS / "speed.png"
NOT_YET = "No result of `{}` is kept yet."
SHOW = dict.fromkeys(SUITES, targets.show) | {"first-use": first_use.show}


def newest(bench):
    """Return the last finished result of this kind that no GPU gave; None if there is none. Raises files.Unusable."""
    results = [files.read(path, bench) for path in RESULTS.glob(f"{bench}-*.json")]
    results = [x for x in results if "partial" not in x and x["machine"].get("gpu", "none") == "none"]
    return max(results, key=lambda result: result["date"], default=None)


def label(result):
    """Return the bytes that a picture of this result has in it."""
    return f"core result of {result['date']}, commit {result['commit']}".encode()


def filled(text):
    """Return a text with every table in it that has its markers, or a sentence where there is no result."""
    for mark, section in (SECTIONS | FRONT).items():
        pattern = re.compile(f"(<!-- {mark} -->).*?(<!-- /{mark} -->)", re.DOTALL)
        if pattern.search(text):
            result = newest(mark.split()[0])
            body = NOT_YET.format(mark) if result is None else "\n".join(section(result))
            text = pattern.sub(lambda match, body=body: f"{match[1]}\n{body}\n{match[2]}", text)
    return text


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a table differs from its result")
    parser.add_argument("--summary", nargs="+", metavar="FILE.json", help="print these results instead, in few lines")
    parser.add_argument("--png", action="store_true", help="draw each of these as well, beside its file")
    parser.add_argument(
        "--plot",
        type=options.picture,
        metavar="FILE.png",
        help="draw the newest core result instead (needs matplotlib)",
    )
    parser.add_argument("--bars", type=options.picture, metavar="FILE.png", help="draw its speeds alone, for README.md")
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except files.Unusable as unusable:
        print(f"report: {unusable}", file=sys.stderr)
        return 2


def _run(args):
    if args.plot or args.bars:
        from fastadam.benchmarks import plot  # which needs matplotlib

        result = newest("core")
        if result is None:
            raise files.Unusable(f"{RESULTS}: no core-*.json to draw")
        if args.plot:
            plot.draw(result, args.plot)
        if args.bars:
            plot.draw_speeds(result, args.bars, label(result).decode())
        return 0
    if args.check and (result := newest("core")) and label(result) not in PICTURE.read_bytes():
        raise files.Unusable(f"{PICTURE} is of another result: run python benchmarks/report.py --bars {PICTURE}")
    if args.summary:
        return _summaries(args.summary, args.png)
    for path in FILES:
        before = path.read_text(encoding="utf-8")
        after = filled(before)
        if args.check and after != before:
            raise files.Unusable(f"{path} differs from the results: run python benchmarks/report.py")
        if after != before:
            path.write_text(after, encoding="utf-8")
    return 0


def _summaries(paths, png):
    """Print every result that can be read, and why another cannot; exit status 2 if there is one.

    png: then draw each, too; what cannot be drawn is said as well.
    """
    status, drawn = 0, {}
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
        if png and any(case.get("contestants") for case in result["cases"].values()):
            drawn[path] = result
    for path, result in drawn.items():
        from fastadam.benchmarks import plot  # which needs matplotlib

        try:
            plot.draw(result, Path(path).with_suffix(".png"))
        except Exception as error:  # of one picture, which holds up no other
            print(f"report: no picture of {path}: {type(error).__name__}: {error}", file=sys.stderr)
            status = 2
    return status


if __name__ == "__main__":
    sys.exit(main())
