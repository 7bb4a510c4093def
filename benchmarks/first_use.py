"""`bench --first-use`: from the start of a process to its first finished step, with empty caches and with full ones."""

import json
import os
import tempfile
import time
from pathlib import Path

from fastadam.benchmarks import bench, machine
from fastadam.console import Table

# Where each library keeps what it has compiled; all of them inside one folder that is new.
CACHES = (
    "FASTADAM_CACHE_DIR", "NUMBA_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR",
    "JAX_COMPILATION_CACHE_DIR", "CUPY_CACHE_DIR", "CUDA_CACHE_PATH", "XDG_CACHE_HOME",
)  # fmt: skip


def run(args):
    """Time everyone on the first case. Returns the exit status: 1 where fastadam could not step."""
    from fastadam.benchmarks.ours import everyone

    case = args.cases[0]
    chosen = [one for one in everyone(args.backends) if not args.peers or not one.peer or one.name in args.peers]
    names = [one.name for one in chosen if not one.name.startswith("limit") and not one.name.endswith("moved")]
    print(f"{args.rule} {args.dtype}, {case}: seconds from the start of a process to the end of its first step")
    found = {}
    for name in names:
        task = {
            "rule": args.rule, "dtype": args.dtype, "threads": args.threads, "backends": args.backends, "case": case,
            "first_use": name,
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            env = bench.environment(args.threads) | {key: str(Path(folder, key.lower())) for key in CACHES}
            env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            for key in CACHES:
                os.mkdir(env[key])
            found[name] = cold = once(task, env)
            if "seconds" in cold:
                found[name] = {"empty": cold["seconds"], "warm": once(task, env).get("seconds")}
        print(f"{name}: {line(found[name])}", flush=True)
    print()
    table = Table("first step", "empty caches", "warm caches")
    for name, of in found.items():
        if "empty" in of:
            table.add(name, seconds(of["empty"]), seconds(of["warm"]))
    table.show()
    if args.json:
        result = {
            "bench": "first-use", "date": machine.date(), "commit": machine.commit(), "machine": machine.machine(),
            "versions": machine.versions(), "rule": args.rule, "dtype": args.dtype, "case": case,
            "threads": args.threads, "contestants": found,
        }  # fmt: skip
        args.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        print(f"written: {args.json}")
    return int(any("empty" not in of for name, of in found.items() if name.startswith("fastadam")))


def once(task, env):
    """{"seconds"} of one process, or {"absent": why}."""
    begin = time.time()
    absent = ""
    for event in bench.events(task, env):
        if "done" in event:
            return {"seconds": event["done"] - begin}
        absent = event.get("reason") or absent or event.get("words", "")
    return {"absent": absent}


def line(of):
    if "empty" in of:
        return f"{seconds(of['empty'])} with empty caches, {seconds(of['warm'])} with warm ones"
    return f"absent: {of['absent']}"


def seconds(x):
    return "failed" if x is None else f"{x:.2f} s"
