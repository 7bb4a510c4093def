"""Times saving and loading a checkpoint against others and the disk: `python -m fastadam.benchmarks.checkpoints`.

Everyone saves the parameters and two moments of one AdamW in float32, and returns when the bytes are on disk; they take
turns in random order, each to a new file. "dd" writes as many zeros from one buffer with the same flags, O_DIRECT where
the file system has it, and one fsync at the end: what the disk can do. Loading: the file is read cold, evicted from the
page cache before, and warm; "read" reads it from the first byte to the last into new memory, and checks nothing.
"""

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import fastadam as fa
from fastadam.checkpoint.checksum import best
from fastadam.tools.console import TextTable

from . import files, machine, markdown

BLOCK = 1 << 23


def synced(path):
    """fsync a file that another library has written, and its folder."""
    for each in (path, path.parent):
        fd = os.open(each, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def optimizer(n):
    """Return an AdamW over n float32 parameters that has taken a step."""
    rng = np.random.default_rng(0)
    opt = fa.AdamW({"w": rng.standard_normal(n).astype(np.float32)})
    opt.step({"w": rng.standard_normal(n).astype(np.float32)})
    return opt


def arrays(opt):
    """Return the tensors that everyone saves."""
    leaf = opt.state_dict(copy=False)["leaves"]["params['w']"]
    return {"p": opt.params["w"], "m": leaf["m"], "v": leaf["v"]}


def savers(opt, folder):
    """Return {name: save(path)}, and why the others are absent."""
    tensors, absent = arrays(opt), {}
    nbytes = sum(x.nbytes for x in tensors.values())

    def dd(path):
        direct = ["oflag=direct"] if has_direct(folder) else []
        command = ["dd", "if=/dev/zero", f"of={path}", f"bs={BLOCK}", f"count={-(-nbytes // BLOCK)}", *direct]
        subprocess.run([*command, "conv=fsync", "status=none"], check=True)

    def npz(path):
        np.savez(path.with_suffix(".npz"), **tensors)
        synced(path.with_suffix(".npz"))

    one = {"fastadam": lambda path: fa.checkpoint.save(path, opt), "dd": dd, "np.savez + fsync": npz}
    try:
        import torch

        of_torch = {name: torch.from_numpy(x) for name, x in tensors.items()}

        def torch_save(path):
            torch.save(of_torch, path)
            synced(path)

        one["torch.save + fsync"] = torch_save
    except ImportError as error:
        absent["torch.save + fsync"] = str(error)
    try:
        from safetensors.numpy import save_file

        def safetensors(path):
            save_file(tensors, path)
            synced(path)

        one["safetensors + fsync"] = safetensors
    except ImportError as error:
        absent["safetensors + fsync"] = str(error)
    return one, absent, nbytes


def has_direct(folder):
    """Return whether the file system of this folder has O_DIRECT."""
    path = folder / "direct"
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except (OSError, AttributeError):
        return False
    finally:
        path.unlink(missing_ok=True)
    return True


def timed(work):
    """Return the seconds that work() takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def remove(path):
    """Remove what was saved under this name."""
    for each in path.parent.glob(path.name + "*"):
        shutil.rmtree(each) if each.is_dir() else each.unlink()


def measure_saves(opt, folder, rounds):
    """Return ({name: seconds of each round}, absent, bytes)."""
    one, absent, nbytes = savers(opt, folder)
    seconds = {name: [] for name in one}
    for k in range(rounds + 1):
        for name in random.sample(sorted(one), len(one)):
            path = folder / f"saved {k} {sorted(one).index(name)}"
            os.sync()
            took = timed(lambda name=name, path=path: one[name](path))
            if k:  # the first round warms up
                seconds[name].append(took)
            remove(path)
    return seconds, absent, nbytes


def evict(folder):
    """Have the page cache forget every file below a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def read_plainly(path):
    """Read a file from the first byte to the last into new memory."""
    memory = np.empty(path.stat().st_size, np.uint8)
    with open(path, "rb", buffering=0) as file:
        at = 0
        while n := file.readinto(memory[at : at + BLOCK]):
            at += n
    return memory


def measure_loads(opt, folder, rounds):
    """Return {what: {who: seconds of each round}}."""
    where = folder / "loaded"
    fa.checkpoint.save(where, opt)
    (file,) = where.glob("*/rank-00000.safetensors")
    who = {
        "fastadam": lambda: fa.checkpoint.load(where, opt),
        "read": lambda: read_plainly(file),
    }
    seconds = {"cold": {name: [] for name in who}, "warm": {name: [] for name in who}}
    for k in range(rounds + 1):
        for name in random.sample(sorted(who), len(who)):
            evict(where)
            cold = timed(who[name])
            read_plainly(file)
            warm = timed(who[name])
            if k:
                seconds["cold"][name].append(cold)
                seconds["warm"][name].append(warm)
    remove(where)
    return seconds


def measure_stalls(opt, folder, rounds):
    """Return {who: seconds of each round} of what a background save holds up, and of a copy of the same bytes."""
    run = fa.checkpoint.Folder(folder / "run", keep=1)
    tensors = list(arrays(opt).values())
    copies = [np.empty_like(x) for x in tensors]
    seconds = {"save(background=True)": [], "copy": []}
    for k in range(rounds + 1):
        stall = timed(lambda: run.save(opt, background=True))
        run.settle()
        copy = timed(lambda: [np.copyto(to, x) for to, x in zip(copies, tensors, strict=True)])
        if k:
            seconds["save(background=True)"].append(stall)
            seconds["copy"].append(copy)
    remove(folder / "run")
    return seconds


def section(result):
    """Yield the lines of fastadam/checkpoint/README.md."""
    yield f"Seconds for a checkpoint of {result['bytes'] / 1e6:,.0f} MB, which is on disk when a save returns, and how"
    yield "many times as fast as fastadam each is: median of the ratios of the same round (p10–p90)."
    for case, seconds in result["cases"].items():
        first = next(iter(seconds))
        rows = []
        for name, each in seconds.items():
            ratios = sorted(a / b for a, b in zip(seconds[first], each, strict=True))
            low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
            shown = "" if name == first else f"{statistics.median(ratios):.2f} ({low:.2f}–{high:.2f})"
            rows.append([f"`{name}`", f"{statistics.median(each):.3f}", shown])
        yield ""
        yield from markdown.table([CASES[case], "seconds", "times as fast"], rows)
    yield ""
    yield markdown.origin(result, "numpy", "torch")


CASES = {
    "save": "save; `dd` writes as many zeros",
    "load, cold": "load what is not in the page cache; `read` checks nothing",
    "load, warm": "load what is in the page cache",
    "stall": "what training waits for; `copy` copies as many bytes",
}


def show(title, seconds, nbytes, against):
    """Print a table of medians, and of how many times as fast as another each is."""
    table = TextTable("", "seconds", "GB/s", f"times {against}", "p10-p90 of the ratio", title=title)
    for name, each in sorted(seconds.items(), key=lambda item: statistics.median(item[1])):
        ratios = sorted(b / a for a, b in zip(each, seconds[against], strict=True))
        low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
        median = statistics.median(each)
        table.add(
            name, f"{median:.3f}", f"{nbytes / median / 1e9:.2f}", f"{statistics.median(ratios):.2f}",
            f"{low:.2f}-{high:.2f}",
        )  # fmt: skip
    table.show()
    print()


def main(argv=None):
    """Measure, print three tables, and write the result where that is asked."""
    parser = argparse.ArgumentParser(prog="python -m fastadam.benchmarks.checkpoints", description=__doc__)
    parser.add_argument("--parameters", type=int, default=1 << 26, help="how many; a checkpoint has 12 bytes of each")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", help="where to write; the system's folder for temporary files")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    args = parser.parse_args(argv)
    of = machine.machine()
    if machine.unquiet(of):
        print(machine.unquiet(of))
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder, opt = Path(name), optimizer(args.parameters)
        saves, absent, nbytes = measure_saves(opt, folder, args.rounds)
        loads = {f"load, {how}": each for how, each in measure_loads(opt, folder, args.rounds).items()}
        result = {
            "bench": "checkpoints", "date": machine.date(), "commit": machine.commit(), "machine": of,
            "versions": machine.versions(), "threads": fa.get_num_threads(), "bytes": nbytes,
            "direct": has_direct(folder), "checksum": best(), "rounds": args.rounds, "absent": absent,
            "cases": {"save": saves, **loads, "stall": measure_stalls(opt, folder, args.rounds)},
        }  # fmt: skip
    for case, against in (("save", "dd"), ("load, cold", "read"), ("load, warm", "read"), ("stall", "copy")):
        show(case, result["cases"][case], nbytes, against)
    print(f"checksums: {result['checksum']}")
    for name, why in absent.items():
        print(f"absent: {name}: {why}")
    if args.json:
        files.write(args.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
