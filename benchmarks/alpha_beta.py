"""Models a sharded step on 8 to 1,024 nodes; nothing here is measured: `python -m fastadam.benchmarks.alpha_beta`.

A message of B bytes takes alpha + B/beta. An exchange of B bytes with N nodes, each of which ends with a part or with
all, moves (N - 1)/N·B through each node's link, in N - 1 messages around a ring or log2(N) where halves are swapped,
the better of which is taken; in k buckets around a ring it pays k·(N - 1)·alpha. A step moves its bytes at the memory's
speed. Sharded: gradients to their owners, 1/N of the step, parameters to all. Replicated: the same exchanges (an
all-reduce is both), and the whole step. Nothing overlaps.

--write FILE puts the tables between its marks <!-- model --> and <!-- /model -->.
"""

import argparse
import sys
from math import log2
from pathlib import Path
from typing import NamedTuple

ALPHA, BETA = 5e-6, 25e9  # seconds a message; bytes a second and direction
BUCKET = 64e6  # bytes
MEMORY = {"CPU node, 300 GB/s": 300e9, "GPU, 3 TB/s": 3e12}


class Footprint(NamedTuple):
    """Says what an AdamW's parameter takes.

    gradient, weight: bytes that travel. sharded, replicated: bytes that a step moves. held: on every node; shared: once
    over all nodes; whole: on every node where nothing is sharded.
    """

    gradient: float
    weight: float
    sharded: float
    replicated: float
    held: float
    shared: float
    unsharded: float


FORMATS = {
    "float32": Footprint(4, 4, 28, 28, 8, 8, 16),
    # float32 parameters at their owner, who reads and writes them, and writes the copy
    "bfloat16, 8-bit moments": Footprint(2, 2, 2 + 8 + 4.25 + 2, 10.25, 4, 4 + 2.125, 6.125),
}


def exchange(nbytes, nodes, buckets=None):
    """Return the seconds of one exchange; buckets: in so many around a ring, else as is best in one."""
    messages = min(nodes - 1, log2(nodes)) if buckets is None else buckets * (nodes - 1)
    return messages * ALPHA + (nodes - 1) / nodes * nbytes / BETA


def rows(parameters, stored, memory):
    """Yield (nodes, seconds of the exchanges, in buckets, of the sharded step, of the whole one, GB each, GB whole)."""
    for nodes in (8, 64, 1024):
        travels = [parameters * stored.gradient, parameters * stored.weight]
        best = sum(exchange(nbytes, nodes) for nbytes in travels)
        bucketed = sum(exchange(nbytes, nodes, max(1, nbytes / BUCKET)) for nbytes in travels)
        gigabytes = parameters * (stored.held + stored.shared / nodes) / 1e9, parameters * stored.unsharded / 1e9
        steps = parameters * stored.sharded / nodes / memory, parameters * stored.replicated / memory
        yield nodes, best, bucketed, *steps, *gigabytes


def lines():
    """Yield the tables as Markdown."""
    yield f"**A model, not a measurement** (`python -m fastadam.benchmarks.alpha_beta`): {ALPHA * 1e6:g} µs a message,"
    yield f"{BETA / 1e9:g} GB/s each way, no overlap; milliseconds. *In buckets*: of {BUCKET / 1e6:g} MB around a ring."
    for name, memory in MEMORY.items():
        for parameters, many in ((1e9, "1 B"), (70e9, "70 B")):
            yield ""
            columns = "nodes | exchange | in buckets | step, sharded | whole | sharded gains | GB a node"
            yield f"| {name}, {many} parameters | {columns} |"
            yield "|---|---:|---:|---:|---:|---:|---:|---:|"
            for kind, stored in FORMATS.items():
                for nodes, best, bucketed, step, unsharded, each, everything in rows(parameters, stored, memory):
                    gain = (best + unsharded) / (best + step)
                    cells = [f"{x * 1e3:,.{0 if x > 0.01 else 2}f}" for x in (best, bucketed, step, unsharded)]
                    memory_of_each = f"{each:,.1f} of {everything:,.0f}"
                    yield f"| {kind} | {nodes:,} | {' | '.join(cells)} | {gain:.2f}x | {memory_of_each} |"


MARKS = "<!-- model -->\n", "<!-- /model -->"


def written(text):
    """Return a text with the tables between its marks."""
    before, rest = text.split(MARKS[0])
    return before + MARKS[0] + "\n".join(lines()) + "\n" + MARKS[1] + rest.split(MARKS[1])[1]


def main(argv=None):
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(prog="python -m fastadam.benchmarks.alpha_beta", description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    if args.write:
        args.write.write_text(written(args.write.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n".join(lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
