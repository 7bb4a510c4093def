"""Says what numbers are taken on: processor, caches, memory, versions, commit. Names no host and no user."""

import os
import platform
import re
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import fastadam

PACKAGES = (
    "numpy", "numba", "llvmlite", "torch", "deepspeed", "jax", "optax", "thinc", "bitsandbytes", "torchao", "scipy",
    "scikit-learn", "keras", "tensorflow-cpu", "cupy-cuda12x", "cupy-cuda13x",
)  # fmt: skip
ROOT = Path(fastadam.__file__).resolve().parent.parent
QUIET = 0.25  # load average up to which nothing else is running
RESERVE = 0.1  # of the memory that is free, left alone


def read(path, default="unknown"):
    """Return what a file holds, or the default."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return default


def machine():
    """Describe the machine: processor, caches, memory, system, and what else ran."""
    cpu = Path("/sys/devices/system/cpu/cpu0/cache")
    caches = {f"L{read(c / 'level')} {read(c / 'type').lower()}": read(c / "size") for c in sorted(cpu.glob("index*"))}
    model = re.search(r"model name\s*: (.*)", read("/proc/cpuinfo"))
    ids = re.search(r"cpu family\s*: (\d+)\nmodel\s*: (\d+)", read("/proc/cpuinfo"))
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "family, model": list(map(int, ids.groups())) if ids else None,
        "cores": fastadam.get_num_threads(),
        "caches": caches,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "huge_pages": read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "load_before": round(os.getloadavg()[0], 2),
    }


def unquiet(of):
    """Return a sentence for a machine on which something else ran before the measurement; "" for a quiet one.

    Parallel steps wait for their slowest thread: beside one other process a step of 33 µs took 8 ms, two ticks of the
    scheduler (2^17, two Zen 4 cores). So what counts is the load, not its share of the cores.
    """
    load = of.get("load_before", 0.0)
    return f"not a quiet machine: load average {load:g} before the run, so the times say less" if load > QUIET else ""


def gpu():
    """Describe the first GPU: name, memory, cache. Asked in the process that uses it."""
    import cupy

    of = cupy.cuda.runtime.getDeviceProperties(0)
    return {
        "name": of["name"].decode(),
        "memory_gib": round(of["totalGlobalMem"] / 2**30, 1),
        "l2": of["l2CacheSize"],
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "runtime": cupy.cuda.runtime.runtimeGetVersion(),
    }


def versions():
    """Return the versions of what may take part; None for what is not installed."""
    installed = {"python": platform.python_version(), "fastadam": fastadam.__version__}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = None
    return installed


def commit():
    """Return the clone's commit, with a + if files differ from it; the version of an installed package."""

    def git(*words):
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True).stdout.strip()

    if (ROOT / ".git").exists():
        try:
            return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain") else "")
        except (OSError, subprocess.CalledProcessError):
            pass
    return f"fastadam {fastadam.__version__}"


def date():
    """Return the time in UTC, as 2026-01-31T12:00:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def in_bytes(text):
    """Turn 32768K into 33554432."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else 0


def last_cache(caches):
    """Return the bytes of the largest cache; 32 MiB where the system does not say."""
    return max(map(in_bytes, caches.values()), default=0) or 2**25


def _cgroup():
    """Return the bytes that the innermost cgroup still allows; infinity without a limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        root = Path("/sys/fs/cgroup")
        cgroups = [
            line.split(":", 2)[2] for line in read("/proc/self/cgroup", "").splitlines() if line.startswith("0:")
        ]
        for place in (root / (cgroups[0].lstrip("/") if cgroups else ""), root):
            most, now = read(place / limit), read(place / used)
            if most.isdecimal() and now.isdecimal():
                return int(most) - int(now)
    return float("inf")


def available_memory():
    """Return the bytes that this process may still take of the machine's, its container's and its own limit."""
    free = re.search(r"MemAvailable:\s*(\d+) kB", read("/proc/meminfo"))
    room = [int(free[1]) * 1024 if free else float("inf"), _cgroup()]
    try:
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        if most != resource.RLIM_INFINITY:
            room.append(most - int(read("/proc/self/statm", "0").split()[0]) * os.sysconf("SC_PAGE_SIZE"))
    except ImportError:  # not on Windows
        pass
    return min(room) * (1 - RESERVE)


def available_gpu_memory():
    """Return the bytes of the GPU that are free, but for a reserve."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    return cupy.cuda.runtime.memGetInfo()[0] * (1 - RESERVE)
