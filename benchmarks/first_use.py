"""Times a process from its start to its first finished step, with empty caches and with full ones: `--first-use`."""

import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from fastadam.tools.console import TextTable

from . import bench, compiling, files, machine, markdown
from .everyone import everyone

# Where each library keeps what it has compiled; all of them inside one folder that is new.
CACHES = (
    "FASTADAM_CACHE_DIR", "NUMBA_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR",
    "JAX_COMPILATION_CACHE_DIR", "CUPY_CACHE_DIR", "CUDA_CACHE_PATH", "XDG_CACHE_HOME",
)  # fmt: skip
ROUNDS, CASE = 3, "2^10"
HOW = ("empty", "warm")  # the caches


def run(args):
    """Time everyone. Returns the exit status: 1 where fastadam could not step, 2 and 130 as `bench` does."""
    result, status = bench.head("first-use", args.rule, args.format, args.threads), 0
    result |= {"rounds": args.rounds, "cases": {case: {} for case in args.cases}, "absent": {}}
    try:
        measure(args, result)
        if any("fastadam numba" in case for case in result["cases"].values()):
            result["compiling"] = compiling.measure(args.rounds, args.threads)
    except bench.Refused as refused:
        print(refused, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        result["partial"], status = "interrupted", 130
        if not any(result["cases"].values()):
            print("interrupted before anything was finished")
            return status
    print()
    show(result)
    if machine.unquiet(result["machine"]):
        print(machine.unquiet(result["machine"]))
    if args.json:
        files.write(args.json, result)
    asked = [one.name for one in everyone(args.backends) if not one.on_request or one.name in args.peers]
    failed = [name for name in result["absent"] if name.startswith("fastadam") and name in asked]
    failed += [
        one
        for case in result["cases"].values()
        for one, of in case.items()
        if None in of["warm"] and one.startswith("fastadam")
    ]
    return status or int(bool(failed))


def measure(args, result):
    """Run rounds in which everyone comes once, in random order, in fresh processes: with empty caches, then warm."""
    present, absent = [], result["absent"]
    for one in everyone(args.backends):
        asked = one.name in args.peers
        if one.name.startswith("limit") or one.name.endswith("moved") or (args.peers and one.peer and not asked):
            continue
        if one.on_request and not asked:
            absent[one.name] = {"reason": f"{one.on_request}: only if asked for by --peers", "install": one.install}
            continue
        present.append(one)
    print("seconds from the start of a process to the end of its first step, with empty caches and with warm ones")
    for k in range(args.rounds):
        for case in args.cases:
            for one in random.Random(k).sample(present, len(present)):
                if one.name in absent:
                    continue
                empty, warm = starts(one.name, case, args)
                if "seconds" not in empty:
                    absent[one.name] = {"reason": empty["absent"], "install": ""}
                    if "not installed" in empty["absent"]:
                        absent[one.name]["install"] = one.install
                    if one.name in args.peers:
                        raise bench.Refused(bench.refusal({"absent": one.name, **absent[one.name]}))
                    continue
                times = result["cases"][case].setdefault(one.name, {how: [] for how in HOW})
                for how, seconds in zip(HOW, (empty, warm), strict=True):
                    times[how].append(seconds.get("seconds"))
                shown = ", ".join(duration(times[how][-1]) for how in HOW)
                print(f"round {k + 1} of {args.rounds}, {case}, {one.name}: {shown}", flush=True)


def starts(name, case, args):
    """Return what `once` says with empty caches, then with what that left in them."""
    task = {
        "rule": args.rule, "format": args.format, "threads": args.threads, "backends": args.backends, "case": case,
        "first_use": name,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        env = bench.environment(args.threads) | {key: str(Path(folder, key.lower())) for key in CACHES}
        env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        for key in CACHES:
            os.mkdir(env[key])
        empty = once(task, env)
        return empty, once(task, env) if "seconds" in empty else empty


def once(task, env):
    """Return {"seconds"} of one process, or {"absent": why}."""
    begin = time.time()
    absent = ""
    for event in bench.events(task, env):
        if "done" in event:
            return {"seconds": event["done"] - begin}
        absent = event.get("reason") or absent or event.get("words", "")
    return {"absent": absent}


def section(result):
    """Yield the lines of benchmarks/README.md."""
    yield "Seconds from the start of a process to the end of its first step, imports included: median (range). *Empty*:"
    yield "nothing has been compiled on this machine before; *warm*: an earlier process has."
    yield ""
    rows = [
        [f"{name}, {case}", *(spread(of[how]) for how in HOW)]
        for case, entry in result["cases"].items()
        for name, of in entry.items()
    ]
    yield from markdown.table(["", "empty caches", "warm caches"], rows)
    yield ""
    yield markdown.origin(result, "numpy", "numba", "torch")


def show(result):
    """Print a result: medians, ranges where there are several rounds."""
    rounds = max((len(of["empty"]) for case in result["cases"].values() for of in case.values()), default=0)
    table = TextTable("first step", "case", "empty caches", "warm caches", title=f"median (range) of {rounds} rounds")
    for case, entry in result["cases"].items():
        for name, of in entry.items():
            table.add(name, case, *(spread(of[how]) for how in HOW))
    table.show()
    if "compiling" in result:
        compiling.show(result["compiling"])
    for name, why in result["absent"].items():
        print(f"absent: {name}: {why['reason']}" + (f"; {why['install']}" if why["install"] else ""))


def spread(times):
    """Write the median of times and their range."""
    done = [t for t in times if t is not None]
    if len(done) < len(times):
        return "failed"
    text = duration(statistics.median(done))
    return text if len(done) == 1 else f"{text} ({min(done):.2f}–{max(done):.2f})"


def duration(seconds):
    """Write a time in seconds."""
    return "failed" if seconds is None else f"{seconds:.2f} s"
