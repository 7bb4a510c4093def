"""Adam's step in fewer bytes against float32's: `python -m fastadam.benchmarks.narrow --help`.

Everyone steps as many parameters, in one process and in turns, once held against the oracle (truth.py). Peers whose
8-bit moments are slow on a CPU are timed after that on fewer parameters, beside ours once more.
"""

import argparse
import os
import sys
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

import fastadam as fa
from fastadam.benchmarks import bench, cases, clock, files, options, truth
from fastadam.benchmarks.contestants import Start, named
from fastadam.benchmarks.everyone import everyone

OURS, FUSED, DEEPSPEED = "fastadam numba", "torch fused", "DeepSpeedCPUAdam"
PLAIN, MOMENTS, ALL, REMAINDER, CODED, SHORT_CODED, WIDE_STATE = (
    "float32", "float32:moments=bfloat16", "bfloat16:moments=bfloat16", "bfloat16:moments=bfloat16:master=remainder",
    "float32:moments=8bit", "bfloat16:moments=8bit", "bfloat16",
)  # fmt: skip
ENTRANTS = (
    *((OURS, format) for format in (PLAIN, MOMENTS, ALL, REMAINDER, CODED, SHORT_CODED)),
    *((FUSED, format) for format in (PLAIN, ALL)),
    *((DEEPSPEED, format) for format in (PLAIN, WIDE_STATE, ALL)),
)
SLOW = ((OURS, CODED), ("bitsandbytes 8-bit", CODED), ("torchao 8-bit", CODED))
SLOW_SIZE = 2**20  # parameters
NEEDS = 140  # bytes of memory per parameter, everyone together


class Target(NamedTuple):
    """At most so much of another's time, or at least so many times as fast as it: ours in that format."""

    format: str
    other: str
    other_format: str
    most: float | None = None
    least: float | None = None

    @property
    def asked(self):
        return f"≤ {self.most:g} of its time" if self.most else f"≥ {self.least:g} times as fast"

    def measured(self, result):
        """(the ratio of the medians, whether it is met); None where one of them was not timed."""
        other = found(result, self.other, self.other_format)
        mine = other and found(result, OURS, self.format, other["size"])
        if not mine:
            return None
        share = mine["ns"][1] / other["ns"][1]
        return (share, share <= self.most) if self.most else (1 / share, 1 / share >= self.least)


TARGETS = (
    Target(PLAIN, FUSED, PLAIN, least=0.97),
    Target(MOMENTS, OURS, PLAIN, most=0.85),
    Target(ALL, OURS, PLAIN, most=0.85),
    Target(ALL, FUSED, ALL, least=1.1),
    Target(ALL, DEEPSPEED, ALL, least=1.1),
    Target(REMAINDER, OURS, PLAIN, most=1.0),
    Target(CODED, OURS, PLAIN, most=0.9),
    Target(CODED, "bitsandbytes 8-bit", CODED, least=20),
    Target(CODED, "torchao 8-bit", CODED, least=20),
)  # at 2^24 on two cores


def found(result, name, format, size=None):
    """The entry of a contestant in a format, on so many parameters; None: whichever there is. None if there is none."""
    for one in result["entries"]:
        if (one["name"], one["format"], one["size"]) == (name, format, size or one["size"]):
            return one
    return None


def main(argv=None):
    args = parsed(argv)
    needed = bench.environment(args.threads)
    os.environ.update({key: needed[key] for key in ("PATH", "THP_MEM_ALLOC_ENABLE")})
    result = bench.head("narrow", args)
    result |= {"size": args.size, "rounds": args.rounds, "entries": [], "absent": [], "wrong": []}
    print("ns per parameter, median (p10-p90)", flush=True)
    status = 0
    try:
        for size, entrants in ((args.size, ENTRANTS), (min(args.size, SLOW_SIZE), SLOW)):
            race(size, entrants, args, result)
    except KeyboardInterrupt:
        print("interrupted")
        result["partial"], status = "interrupted", 130
    print("\n".join(verdicts(result)))
    if args.json and result["entries"]:
        files.write(args.json, result)
    return status or int(any(one["name"] == OURS for one in result["wrong"]))


def parsed(argv):
    parser = argparse.ArgumentParser(prog="python -m fastadam.benchmarks.narrow", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=options.size, default=2**24, metavar="N", help="parameters (2^24)")
    parser.add_argument("--rounds", type=options.count, default=41, metavar="N", help="turns of each (41)")
    parser.add_argument("--json", type=options.target, metavar="FILE", help="write the result")
    parser.set_defaults(rule="Adam", format="float32 and shorter", threads=fa.get_num_threads())
    args = parser.parse_args(argv)
    options.need(parser, args.size, NEEDS)
    if not find_spec("ml_dtypes"):
        parser.error("bfloat16 needs ml_dtypes: pip install ml_dtypes")
    return args


def race(size, entrants, args, result):
    """Check and time those who are there on so many parameters; print each."""
    known, starts, racers, rng = {one.name: one for one in everyone(["numba"])}, {}, [], np.random.default_rng(0)
    for name, format in entrants:
        cls, setting = known[name], cases.setting("Adam", format)
        if why := cls.missing(setting):
            mend = cls.install if "not installed" in why else ""
            result["absent"].append({"name": name, "format": format, "reason": why, "install": mend})
            print(f"{name:18} {format:45} absent: {why}" + (f"; {mend}" if mend else ""), flush=True)
            continue
        if setting.dtype not in starts:
            starts[setting.dtype] = Start([(size,)], setting.dtype)
        racers.append(named(cls, f"{name} {format}", called=name)(starts[setting.dtype], setting, args.threads))
    wrong = {}
    for dtype, start in starts.items():
        wrong |= truth.check([one for one in racers if one.setting.dtype == dtype], start, rng)[1]
    samples = clock.race([one for one in racers if one.name not in wrong], args.rounds, rng)
    for one in racers:
        entry = {"name": one.called, "format": one.setting.format.name, "size": size}
        if one.name in wrong:
            result["wrong"].append(entry | {"reason": wrong[one.name]})
            print(f"{one.called:18} {entry['format']:45} WRONG, not timed: {wrong[one.name]}", flush=True)
            continue
        moved = one.opt.bytes_per_step / size if one.called == OURS else one.bytes(one.setting)
        ns = [seconds / size * 1e9 for seconds in clock.spread(samples[one.name])]
        result["entries"].append(entry | {"ns": ns, "bytes": moved, "gb_per_s": moved / ns[1]})
        print(line(result["entries"][-1]), flush=True)


def line(entry):
    """What is printed of one contestant."""
    (low, middle, high), moved = entry["ns"], f"{entry['bytes']:g} bytes, {entry['gb_per_s']:.1f} GB/s"
    where = f"{entry['name']:18} {entry['format']:45} {cases.flat(entry['size'])}"
    return f"{where} {middle:7.3f} ({low:.3f}-{high:.3f})  {moved}"


def verdicts(result):
    """Every target, and whether it is met: lines of text."""
    for target in TARGETS:
        measured = target.measured(result)
        verdict = f"{measured[0]:.2f}, {'met' if measured[1] else 'missed'}" if measured else "not measured"
        yield f"{target.format} against {target.other} {target.other_format}: asked {target.asked}: {verdict}"


def show(result):
    """Print a result."""
    print(f"steps in fewer bytes, {result['threads']} threads: ns per parameter, median (p10-p90)")
    for entry in result["entries"]:
        print(line(entry))
    for one in (*result["absent"], *result["wrong"]):
        print(f"{one['name']:18} {one['format']:45} not timed: {one['reason']}")
    for text in verdicts(result):
        print(text)


if __name__ == "__main__":
    sys.exit(main())
