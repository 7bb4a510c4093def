"""Keeps what fastadam.advise says of a machine, for the table of fastadam/README.md, held against the clock of bench.

`python -m fastadam.benchmarks.advice --json benchmarks/results/advise-NAME.json`, then `python benchmarks/report.py`.
"""

import argparse
import sys
from itertools import count
from pathlib import Path

import fastadam as fa
from fastadam.tools.advise import ROUNDS, WAYS

from . import cases, clock, files, machine
from .contestants import Start
from .markdown import table, taken_on
from .ours import by_backend
from .suites import ALL, CODED, PLAIN

PARAMETERS = 10**9
SIZE = 2**24  # parameters of the steps that bench's clock times: four times as many as advise times itself
HELD = (PLAIN, ALL, CODED)  # formats by which advise is judged
TURNS = 9
WITHIN = 0.2  # of bench's time


def held():
    """Return {format: {"seconds", "ratio": [p10, median, p90]}}: bench's time of a step; advise's over it, in turns.

    In each turn advise predicts all formats, then each contestant is timed, since a machine's memory gets faster and
    slower within minutes.
    """
    contestants, ratios, seconds = {}, {}, {}
    for format in HELD:
        setting = cases.setting("AdamW", format)
        one = by_backend("numba")(Start([(SIZE,)], setting.dtype), setting, fa.get_num_threads())
        contestants[format] = one, count(), *clock.calibrated(one, count())
    names = {f"{way.params}:moments={way.moments}" + f":master={way.master}" * bool(way.master): way for way in WAYS}
    for _ in range(TURNS):
        predicted = {row["format"]: row["seconds"] for row in fa.advise(SIZE)["formats"]}
        for format, (one, steps, quick, calls) in contestants.items():
            name = format if ":" in format else f"{format}:moments={format}"
            taken = clock.rested_turn(one, calls, quick, steps)
            seconds.setdefault(format, []).append(taken)
            ratios.setdefault(format, []).append(predicted[names[name].name] / taken)
    return {
        format: {"seconds": clock.spread(seconds[format])[1], "ratio": clock.spread(ratios[format])} for format in HELD
    }


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
    ratios = ", ".join(f"{name} {row['ratio'][1]:.2f}" for name, row in result["held"].items())
    if quiet:
        yield f"{taken_on(result)} Advice over what `bench` measures at 2^24, median of {TURNS} turns: {ratios}."
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
    rows = {row["format"]: row for row in fa.advise(PARAMETERS)["formats"]}
    judged = held()
    files.write(Path(args.json), {**about, "cases": rows, "held": judged})
    for format, row in judged.items():
        low, ratio, high = row["ratio"]
        verdict = "met" if abs(ratio - 1) <= WITHIN else "missed"
        print(
            f"{format}: {ratio:.2f} ({low:.2f}-{high:.2f}) of what bench measures, asked within {WITHIN:.0%}: {verdict}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
