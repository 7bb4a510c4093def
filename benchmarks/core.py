"""The speed of the core: float32 Adam, everyone on the same work. `python benchmarks/core.py --help`.

Runs the table in three fresh processes (where pages land differs from one to the next), takes medians, prints a table
and writes JSON, from which report.py writes README's. Missing peers are named with the command that installs them.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cases

HERE = Path(__file__).resolve().parent
PACKAGES = ("fastadam", "numpy", "numba", "llvmlite", "torch", "deepspeed")
BYTES = 28  # per parameter and step: p, g, m, v read, p, m, v written
SPARE = 16  # float32 values per parameter that a case holds beside everyone's p, m, v: the start, temporaries


def read(path, default="unknown"):
    try:
        return Path(path).read_text().strip()
    except OSError:
        return default


def machine():
    """What the numbers were taken on. Names no host and no user."""
    cpu = Path("/sys/devices/system/cpu/cpu0/cache")
    caches = {f"L{read(c / 'level')} {read(c / 'type').lower()}": read(c / "size") for c in sorted(cpu.glob("index*"))}
    model = re.search(r"model name\s*: (.*)", read("/proc/cpuinfo"))
    ids = re.search(r"cpu family\s*: (\d+)\nmodel\s*: (\d+)", read("/proc/cpuinfo"))
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "family, model": list(map(int, ids.groups())) if ids else None,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "caches": caches,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "huge_pages": read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions():
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def commit():
    """The commit, with a + if files differ from it."""

    def git(*words):
        return subprocess.run(["git", "-C", HERE, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "--", HERE.parent) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def last_cache(caches):
    """Bytes of the largest cache; 32 MiB where the system does not say."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return max((int(s[:-1]) * units[s[-1]] for s in caches.values() if s[-1:] in units), default=2**25)


def available_memory():
    found = re.search(r"MemAvailable:\s*(\d+) kB", read("/proc/meminfo"))
    return int(found[1]) * 1024 if found else float("inf")


# One process: every case, everyone in it.


def work(names, rounds, threads, seed):
    """{"absent": {name: why and how to install}, "cases": {case: {"samples", "wrong"} or {"skipped"}}}."""
    import clock
    import numpy as np
    import peers

    rng = np.random.default_rng(seed)
    absent = {one.name: {"reason": why, "install": one.install} for one in peers.CORE if (why := one.available())}
    present = [one for one in peers.CORE if one.name not in absent]
    result = {"absent": absent, "cases": {}}
    for case in names:
        shapes = cases.CORE[case]
        need = cases.size(shapes) * 4 * (3 * len(present) + SPARE)
        if need > available_memory():
            result["cases"][case] = {"skipped": f"needs {need / 2**30:.0f} GiB"}
            continue
        start = peers.Start(shapes, seed)
        racers = [one(start, threads) for one in present]
        wrong = clock.check(racers, start)
        samples = clock.race([one for one in racers if one.name not in wrong], rounds, rng)
        result["cases"][case] = {"samples": samples, "wrong": wrong}
        del start, racers  # before the next case takes as much again
    return result


# The parent: three of them, and what their samples say.


def fresh(args, seed):
    """One run of `work` in a process of its own, all thread counts set before anything is imported."""
    n = str(args.threads)
    env = os.environ | {"OMP_NUM_THREADS": n, "MKL_NUM_THREADS": n, "OPENBLAS_NUM_THREADS": n, "NUMBA_NUM_THREADS": n}
    env.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's tensors on huge pages too, as NumPy's arrays are
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # DeepSpeed looks for ninja
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "result.json")
        task = json.dumps([args.cases, args.rounds, args.threads, seed])
        command = [sys.executable, __file__, "--work", task, str(out)]
        subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)  # DeepSpeed talks
        return json.loads(out.read_text())


def middle(values):
    """[median, smallest, largest]: of the three processes."""
    return [statistics.median(values), min(values), max(values)]


def summary(case, runs, cache):
    """What one case's samples in all processes say."""
    n = cases.size(cases.CORE[case])
    out = {"n": n, "tensors": len(cases.CORE[case])}
    if skipped := [run["skipped"] for run in runs if "skipped" in run]:
        return out | {"skipped": skipped[0]}
    out["in"] = "cache" if 20 * n <= cache else "memory"  # p, m, v, two gradients
    out["wrong"] = {name: text for run in runs for name, text in run["wrong"].items()}
    names = [name for name in runs[0]["samples"] if all(name in run["samples"] for run in runs)]
    medians = {name: [statistics.median(run["samples"][name]) for run in runs] for name in names}
    out["contestants"] = {}
    for name in names:
        pooled = sorted(t for run in runs for t in run["samples"][name])
        seconds = statistics.median(medians[name])
        over = {other: middle([b / a for a, b in zip(medians[name], medians[other], strict=True)]) for other in names}
        del over[name]
        out["contestants"][name] = {
            "seconds": seconds,
            "best": pooled[0],
            "p10": pooled[len(pooled) // 10],
            "p90": pooled[-1 - len(pooled) // 10],
            "samples": len(pooled),
            "ns_per_param": seconds / n * 1e9,
            "gb_per_s": BYTES * n / seconds * 1e-9,
            "of_limit": over.pop("limit", None),
            "times_faster_than": over,
        }
    return out


def lines(result):
    """The result as text."""
    of = result["machine"]
    yield f"{result['bench']}  {result['date']}  commit {result['commit']}  {result['seconds']:.0f} s"
    yield f"{of['cpu']}, {of['cores']} cores, {of['memory_gib']} GiB, {of['caches']}, huge pages {of['huge_pages']}"
    yield f"threads {result['threads']}, load before {of['load_before']}, " + ", ".join(
        f"{name} {number}" for name, number in result["versions"].items() if number
    )
    for case, one in result["cases"].items():
        yield ""
        where = one["skipped"] if "skipped" in one else one["in"]
        yield f"adam  float32  {case}  n = {one['n']:,} in {one['tensors']} tensors, {where}"
        for name, of in one.get("contestants", {}).items():
            share = f"{of['of_limit'][0]:6.2f} of limit" if of["of_limit"] else 15 * " "
            ours = one["contestants"].get("fastadam numba")
            over = ours["times_faster_than"].get(name) if ours else None
            yield (
                f"    {name:18s}{of['seconds'] * 1e6:12,.1f} us ({of['p10'] * 1e6:,.1f}-{of['p90'] * 1e6:,.1f})"
                f"{of['ns_per_param']:9.3f} ns/param{of['gb_per_s']:8.1f} GB/s{share}"
                + (f"   numba {over[0]:.2f}x as fast ({over[1]:.2f}-{over[2]:.2f})" if over else "")
            )
        for name, text in one.get("wrong", {}).items():
            yield f"    {name:18s} WRONG, not timed: {text}"
        for name in result["absent"]:
            yield f"    {name:18s} absent"
    for name, why in result["absent"].items():
        yield f"absent: {name}: {why['reason']}. {why['install']}"


def main():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = list(cases.CORE)
    parser.add_argument("--cases", nargs="+", choices=names, default=names, metavar="CASE", help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=25, help="turns of each contestant in each process")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--json", type=Path, help="default: results/core-MACHINE-COMMIT.json")
    args = parser.parse_args()
    begin = time.time()
    result = {
        "bench": "core",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "threads": args.threads,
        "rounds": args.rounds,
        "processes": args.processes,
    }
    runs = [fresh(args, seed) for seed in range(args.processes)]
    cache = last_cache(result["machine"]["caches"])
    result["absent"] = runs[0]["absent"]
    result["cases"] = {case: summary(case, [run["cases"][case] for run in runs], cache) for case in args.cases}
    result["seconds"] = time.time() - begin
    slug = re.sub(r"\W+", "-", result["machine"]["cpu"].lower()).strip("-")
    path = args.json or HERE / "results" / f"core-{slug}-{args.threads}-{result['commit'].rstrip('+')}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(*lines(result), sep="\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        Path(sys.argv[3]).write_text(json.dumps(work(*json.loads(sys.argv[2]))))
    else:
        main()
