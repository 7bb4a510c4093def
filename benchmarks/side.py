"""Steps the contestants of one commit when compare.py tells it to, by the clock of this one.

Orders are lines of JSON on standard input, answers on standard output. {"row": ...} makes a contestant and takes its
first steps, so that everything is compiled; {"calls": n} is a turn of so many steps. Nothing but fastadam's public
names is used, because fastadam may be of a commit that lies otherwise.
"""

import gc
import json
import os
import sys
import zlib
from itertools import count

import fastadam

from . import cases, clock
from .contestants import STEPS, Start
from .ours import FastadamTorch, by_backend
from .suites import TORCH


def main():
    """Follow orders until there are no more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print
    turn = None
    for line in sys.stdin:
        order = json.loads(line)
        if "row" in order:
            del turn  # the arrays of the last row, before there are others
            answer, turn = prepared(**order["row"])
        else:
            answer = {"seconds": turn(order["calls"])}
        print(json.dumps(answer), file=answers, flush=True)


def prepared(rule, case, name, format):
    """Return {"calls": of a turn, "bits": a checksum of p after two steps}, and a function that takes a turn."""
    kind = cases.Precision(format)
    setting = cases.Setting(rule, getattr(fastadam, rule), {}, kind, cases.chores(case))
    cls = FastadamTorch if name == TORCH else by_backend(name.rpartition(" ")[2])
    one = cls(Start(cases.shapes(case), kind.dtype), setting, fastadam.get_num_threads())
    steps, bits = count(), 0
    for _ in range(STEPS):
        one.give(next(steps))
        one.step()
    for p in one.params():
        bits = zlib.crc32(p.reshape(-1).view("u1"), bits)
    quick, calls = clock.calibrated(one, steps)
    gc.collect()
    gc.disable()
    return {"calls": calls, "bits": bits}, lambda calls: clock.rested_turn(one, calls, quick, steps)


if __name__ == "__main__":
    main()
