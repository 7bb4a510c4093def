"""Keeps what fastadam.advise says of a machine, for the table of fastadam/README.md.

`python -m fastadam.benchmarks.advice --json benchmarks/results/advise-NAME.json`, then `python benchmarks/report.py`.
"""

import argparse
import sys
from pathlib import Path

import fastadam as fa
from fastadam.tools.advise import ROUNDS

from . import files, machine
from .markdown import table, taken_on

PARAMETERS = 10**9


def section(result):
    """Yield the lines of the table: bytes per parameter; the time of a step against float32's on a quiet machine."""
    quiet = not machine.unquiet(result["machine"])
    first = next(iter(result["cases"].values()))
    rows = [
        [
            f"`{name}`",
            f"{row['bytes'] / PARAMETERS:g}",
            f"{row['bytes_per_step'] / PARAMETERS:g}",
            *[f"{row['seconds'] / first['seconds']:.2f}"] * quiet,
            row["cost"],
        ]
        for name, row in result["cases"].items()
    ]
    head = ["AdamW over", "bytes", "bytes moved by a step", *["time, of float32's"] * quiet, "what it does to training"]
    yield from table(head, rows)
    yield ""
    if quiet:
        yield taken_on(result)
    else:
        yield "Bytes are per parameter, with its gradient and state. Times are left out: the machine was not quiet."


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True, metavar="FILE.json")
    args = parser.parse_args(argv)
    about = {
        "bench": "advise", "date": machine.date(), "commit": machine.commit(), "machine": machine.machine(),
        "versions": machine.versions(), "threads": fa.get_num_threads(), "rounds": ROUNDS,
    }  # fmt: skip
    cases = {row["format"]: row for row in fa.advise(PARAMETERS)["formats"]}
    files.write(Path(args.json), {**about, "cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main())
