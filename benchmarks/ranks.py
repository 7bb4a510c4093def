"""Times steps over several processes: `python -m fastadam bench --distributed`, or `-m fastadam.benchmarks.ranks`.

Every rank has one thread, all parameters as one float32 array, and gradients of its own. In one program, in turns of
random order that all ranks share:

allreduce + full step: MPI's Allreduce of the gradients, then AdamW over everything on every rank.
sharded: fastadam.distributed.Sharded, whose gradients are added in the order of the ranks.
fastest: the same with reproducible=False, whose gradients MPI adds as it likes.
torch DDP + ZeRO: DistributedDataParallel and ZeroRedundancyOptimizer(AdamW) over gloo. The gradient of the sum of all
parameters costs next to nothing, but for writing it; what that takes under no_sync() in the same round is subtracted.

A turn's time is that of its slowest rank, from one barrier to the return. With "norm" gradients are clipped to a
global norm, which DDP's row, without it, is not asked for.
"""

import argparse
import importlib.util
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

import fastadam as fa
from fastadam.tools.console import TextTable

from . import files, machine, markdown
from .targets import RANKS

SHARDED, OTHERS, DDP = "sharded", "allreduce + full step", "torch DDP + ZeRO"
FAST, WITH_NORM = "fastest", ", norm"
NAMES = (SHARDED, OTHERS, SHARDED + WITH_NORM, OTHERS + WITH_NORM, FAST, FAST + WITH_NORM, DDP)


def contestants(n, world):
    """Return {name: (work before the clock starts, timed work)} over n parameters."""
    g, summed = np.random.default_rng(world.rank).standard_normal(n).astype(np.float32), np.empty(n, np.float32)
    every = {}

    def add(name, make):
        for suffix, chosen in (("", {}), (WITH_NORM, {"max_norm": 1.0})):
            every[name + suffix] = make(chosen)

    def full(chosen):
        opt = fa.AdamW(np.zeros(n, np.float32), **chosen)

        def step():
            world.Allreduce(g, summed)
            opt.step(summed, grad_scale=1 / world.size)

        return None, step

    def sharded(reproducible):
        def make(chosen):
            opt = fa.distributed.Sharded(fa.AdamW, np.zeros(n, np.float32), world, reproducible=reproducible, **chosen)
            return None, lambda: opt.step(g)

        return make

    add(OTHERS, full)
    add(SHARDED, sharded("ranks"))
    add(FAST, sharded(False))
    with suppress(ImportError):
        every[DDP] = ddp(n)
    return every


def ddp(n):
    """Return the same for PyTorch: its backward alone is what is done before the clock starts."""
    import torch
    import torch.distributed as dist
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    class Sum(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(n))

        def forward(self):
            return self.p.sum()

    torch.set_num_threads(1)
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    model = DistributedDataParallel(Sum(), gradient_as_bucket_view=True)
    opt = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, fused=True, parameters_as_bucket_view=True)

    def backward():
        opt.zero_grad()
        with model.no_sync():
            model().backward()

    def step():
        opt.zero_grad()
        model().backward()
        opt.step()

    return backward, step


def measure(n, rounds, world):
    """Return {name: seconds of each round} of the slowest rank."""
    every = contestants(n, world)
    seconds = {name: [] for name in every}
    draw = random.Random(0)

    def clocked(work):
        world.Barrier()
        start = time.perf_counter()
        work()
        return max(world.allgather(time.perf_counter() - start))

    for k in range(rounds + 1):
        for name in draw.sample(sorted(every), len(every)):
            before, work = every[name]
            alone = 0.0 if before is None else clocked(before)
            took = clocked(work) - alone
            if k:  # the first round warms up
                seconds[name].append(took)
    return seconds


def worker(args):
    """Be one rank; rank 0 writes the result."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    fa.set_num_threads(1)
    os.environ.update(RANK=str(world.rank), WORLD_SIZE=str(world.size))
    cases = {str(n): measure(n, args.rounds, world) for n in args.sizes}
    if world.rank == 0:
        Path(args.worker).write_text(json.dumps(cases))
    if "torch" in sys.modules and sys.modules["torch"].distributed.is_initialized():
        sys.modules["torch"].distributed.destroy_process_group()


def mpiexec():
    """Return the path of mpiexec, beside this Python first; end the program where there is none, or no mpi4py."""
    path = shutil.which("mpiexec", path=f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ.get('PATH', '')}")
    if path is None or importlib.util.find_spec("mpi4py") is None:
        raise SystemExit("no mpiexec and mpi4py: pip install 'fastadam[mpi]'")
    return path


def launch(args):
    """Return what `ranks` processes measure."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "result.json")
        sizes = ",".join(map(str, args.sizes))
        command = [mpiexec(), "-n", str(args.ranks), sys.executable, "-m", "mpi4py", "-m", "fastadam.benchmarks.ranks"]
        command += ["--worker", str(out), "--sizes", sizes, "--rounds", str(args.rounds)]
        subprocess.run(command, check=True, env={"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), **os.environ})
        return json.loads(out.read_text())


def installed(*names):
    """Yield (name, version) of the packages that are installed: MPI may be the system's."""
    for name in names:
        with suppress(PackageNotFoundError):
            yield name, version(name)


def free_port():
    """Return the number of a port that nobody listens on."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def ratio(seconds, name, against):
    """Return (median, p10, p90) of the ratio of two contestants, round by round."""
    ratios = sorted(a / b for a, b in zip(seconds[name], seconds[against], strict=True))
    return statistics.median(ratios), ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]


def section(result):
    """Yield the Markdown of a result."""
    columns = [f"{int(n):,}" for n in result["cases"]]
    yield f"Milliseconds of a step of {result['ranks']} ranks of one thread, by float32 parameters: median (p10–p90)."
    yield ""
    yield from markdown.table(
        ["", *columns],
        [[name, *(spread(seconds[name], 1e3, 1) for seconds in result["cases"].values())] for name in NAMES],
    )
    yield ""
    rows = []
    for against, most in RANKS.items():
        name = SHARDED + WITH_NORM * against.endswith(WITH_NORM)
        of_sizes = [ratio(seconds, name, against) for seconds in result["cases"].values()]
        rows.append(
            [f"{name} / {against}, at most {most:.2f}", *(f"{m:.2f} ({a:.2f}–{b:.2f})" for m, a, b in of_sizes)]
        )
    yield from markdown.table(["asked", *columns], rows)
    yield ""
    of, versions = result["machine"], result["versions"]
    used = ", ".join(f"{name} {versions[name]}" for name in ("numpy", "mpi4py", "mpich", "torch") if versions.get(name))
    when = f"commit {result['commit']}, {result['date'][:10]}; {result['rounds']} rounds"
    yield f"{of['cpu']}, {of['cores']} cores; {used}; {when}"
    load = f"load average {of['load_before']} before the run and {of['load_after']} after it"
    yield f"in turns, ratios round by round; {load}."


def spread(seconds, factor, digits):
    """Return the text of a median and the range around it."""
    ordered = sorted(seconds)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    median = statistics.median(ordered)
    return f"{median * factor:.{digits}f} ({low * factor:.{digits}f}–{high * factor:.{digits}f})"


def show(n, seconds):
    """Print the times of one size and what was asked."""
    table = TextTable("", "ms", "p10-p90", title=f"{int(n):,} float32 parameters")
    for name, each in sorted(seconds.items(), key=lambda item: statistics.median(item[1])):
        ordered = sorted(each)
        low, high = ordered[len(each) // 10], ordered[-1 - len(each) // 10]
        table.add(name, f"{statistics.median(each) * 1e3:.1f}", f"{low * 1e3:.1f}-{high * 1e3:.1f}")
    table.show()
    for against, most in RANKS.items():
        name = SHARDED + WITH_NORM * against.endswith(WITH_NORM)
        if name in seconds and against in seconds:
            median, low, high = ratio(seconds, name, against)
            verdict = "met" if median <= most else "missed"
            print(f"{name} / {against}: {median:.2f} ({low:.2f}-{high:.2f}), asked at most {most:.2f}: {verdict}")
    print()


def main(argv=None):
    """Measure, print a table for each size, and write the result where that is asked."""
    parser = argparse.ArgumentParser(prog="python -m fastadam.benchmarks.ranks", description=__doc__)
    parser.add_argument("--ranks", type=int, default=2, help="processes, of one thread each: no more than cores")
    parser.add_argument("--sizes", default="16777216,33554432", help="how many parameters, as 16777216,33554432")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.sizes = [int(n) for n in args.sizes.split(",")]
    if args.worker:
        worker(args)
        return 0
    mpiexec()
    of = machine.machine()
    if machine.unquiet(of):
        print(machine.unquiet(of))
    result = {
        "bench": "ranks", "date": machine.date(), "commit": machine.commit(), "machine": of,
        "versions": machine.versions() | dict(installed("mpi4py", "mpich")),
        "threads": 1, "ranks": args.ranks, "rounds": args.rounds,
        "cases": launch(args),
    }  # fmt: skip
    result["machine"]["load_after"] = round(os.getloadavg()[0], 2)
    for n, seconds in result["cases"].items():
        show(n, seconds)
    if args.json:
        files.write(args.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
