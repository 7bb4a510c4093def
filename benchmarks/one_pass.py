"""Measures the methods of one pass against the limit of their own bytes, and the newer ones against their packages.

`python -m fastadam.benchmarks.one_pass --json FILE` writes a result. All of a case take turns, round by round, and only
ratios of one round are compared. Peers that are not installed are printed as missing.
"""

import argparse
import os
import statistics
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import fastadam as fa
from fastadam.host.threads import get_num_threads
from fastadam.tools.console import TextTable

from . import files, machine, markdown
from .targets import OF_LIMIT, PACKAGES

LIMIT = "limit"
METHODS = {
    "Adam": (fa.Adam, {}), "AdamW cautious": (fa.AdamW, {"cautious_decay": True}), "ADOPT": (fa.ADOPT, {}),
    "Lion cautious": (fa.Lion, {"cautious_decay": True}), "AdEMAMix": (fa.AdEMAMix, {}),
    "ScheduleFreeAdamW": (fa.ScheduleFreeAdamW, {}), "ScheduleFreeSGD": (fa.ScheduleFreeSGD, {}),
}  # fmt: skip


def arrays(name, n):
    """Return {contestant: a function of one step} of a method and of the walk over as many streams."""
    from . import limit

    method, chosen = METHODS[name]
    p, g = np.ones(n, np.float32), np.full(n, 1e-3, np.float32)
    opt = method(p, lr=1e-6, **chosen)
    like = p.copy()
    slots = [limit.beside([like], 64 * k)[0] for k in range(1, 1 + len(opt.moments()["params"]))]
    streams = [like, g.copy(), *slots]
    laid, walk = limit.plan([streams], get_num_threads()), limit.walk_for(n, get_num_threads())

    def walked():
        walk(*laid, np.float32(1e-9))
        return streams  # of which the plan has addresses alone

    return {name: lambda: opt.step(g), LIMIT: walked}


def tensors(n, fast, of_package):
    """Return {contestant: a function of one step} of two optimizers of PyTorch's tensors over n parameters each."""
    import torch

    steps = {}
    for name, make in (("fastadam.torch", fast), ("peer", of_package)):
        p = torch.nn.Parameter(torch.ones(n))
        p.grad = torch.full((n,), 1e-3)
        steps[name] = make([p]).step
    return steps


def schedulefree(n):
    """Return the steps of ScheduleFreeAdamW and of the authors' package, whose step changes its gradients."""
    import schedulefree as package

    import fastadam.torch as fat

    def trained(params):
        opt = package.AdamWScheduleFree(params, lr=1e-6)
        opt.train()
        return opt

    return tensors(n, lambda params: fat.ScheduleFreeAdamW(params, lr=1e-6), trained)


def prodigyopt(n):
    """Return the steps of Prodigy and of the authors' package, which both read memory twice."""
    import prodigyopt as package

    import fastadam.torch as fat

    return tensors(n, fat.Prodigy, package.Prodigy)


def bitsandbytes(n):
    """Return the steps of AdEMAMix in 8 bits, ours and theirs."""
    import bitsandbytes as package

    import fastadam.torch as fat

    return tensors(
        n, lambda params: fat.AdEMAMix(params, lr=1e-6, moments="8bit"),
        lambda params: package.optim.AdEMAMix8bit(params, lr=1e-6),
    )  # fmt: skip


def race(steps, rounds):
    """Return {contestant: seconds of each round}, after a round that compiles and touches memory."""
    seconds = {name: [] for name in steps}
    for turn in range(-1, rounds):
        for name in sorted(steps, reverse=turn % 2 == 0):
            start = time.perf_counter()
            steps[name]()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def cases(n, small):
    """Yield (case, contestants' steps), or why there are none."""
    for name in METHODS:
        yield f"{name} of its limit", lambda name=name: arrays(name, n)
    for name, peer in zip(PACKAGES, (schedulefree, prodigyopt, bitsandbytes), strict=True):
        yield name, (lambda peer=peer: peer(small)) if find_spec(name) else None


def rows(result):
    """Yield (case, ms of ours, ms of the limit or the peer, ratio with p10 and p90, what was asked), as text."""
    for name, seconds in result["cases"].items():
        peer = next(each for each in (LIMIT, "peer") if each in seconds)
        contestant = next(each for each in seconds if each != peer)
        ratios = sorted(b / a for a, b in zip(seconds[contestant], seconds[peer], strict=True))
        low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
        times = [f"{1e3 * statistics.median(seconds[each]):.1f}" for each in (contestant, peer)]
        yield (
            name,
            *times,
            f"{statistics.median(ratios):.2f} ({low:.2f}-{high:.2f})",
            f"{PACKAGES.get(name, OF_LIMIT):g}",
        )


HEAD = "case", "ms", "limit or peer, ms", "times as fast (p10-p90)", "asked"


def section(result):
    """Yield the Markdown of a result."""
    yield f"Steps over {result['n']:,} float32 parameters beside the limit of their own bytes, over {result['small']:,}"
    yield "beside a package's: medians, and ratios of one round."
    yield ""
    yield from markdown.table(HEAD, rows(result))
    yield ""
    of, versions = result["machine"], result["versions"]
    used = ", ".join(f"{name} {versions[name]}" for name in ("numpy", "numba", "torch") if versions.get(name))
    when = f"commit {result['commit']}, {result['date'][:10]}; {result['rounds']} rounds"
    yield f"{of['cpu']}, {of['cores']} cores; {used}; {when}; load average {of['load_after']} after the run."


def main(argv=None):
    """Measure, print a table, and write the result where that is asked."""
    parser = argparse.ArgumentParser(prog="python -m fastadam.benchmarks.one_pass", description=__doc__)
    parser.add_argument("--n", type=int, default=1 << 26, help="parameters of the steps beside their limit")
    parser.add_argument("--small", type=int, default=1 << 22, help="parameters of the steps beside a package's")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    args = parser.parse_args(argv)
    of, measured, absent = machine.machine(), {}, []
    for name, make in cases(args.n, args.small):
        if make is None:
            absent.append(name)
        else:
            measured[name] = race(make(), args.rounds)
    of["load_after"] = round(os.getloadavg()[0], 2)
    result = {"bench": "one-pass", "date": machine.date(), "commit": machine.commit(), "machine": of}
    result |= {"versions": machine.versions(), "threads": get_num_threads(), "rounds": args.rounds}
    result |= {"n": args.n, "small": args.small, "cases": measured}
    table = TextTable(*HEAD)
    for row in rows(result):
        table.add(*row)
    table.show()
    print("".join(f"not installed: {name}\n" for name in absent), end="")
    if args.json:
        files.write(args.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
