"""Says what each format of parameters and moments takes in memory and in time on this machine, and which one to
take."""

import math
import os
import time
from typing import Any, NamedTuple

import numpy as np

from fastadam import methods
from fastadam.arrays.flat import FlatBuffer
from fastadam.arrays.tree import Structure
from fastadam.backend import choose
from fastadam.host.threads import get_num_threads
from fastadam.kernels.formats import FORMATS
from fastadam.tools.console import TextTable

MEASURED = 1 << 22  # parameters of the largest steps that are timed: more bytes than caches hold, a few ms each
ROUNDS = 7
UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
GPUS = {"A100": 2039e9, "H100": 3350e9, "H200": 4800e9}  # bytes a second, by their makers' data sheets (80 GB, SXM)


class Way(NamedTuple):
    """Is one choice of formats: of parameters and gradients, of moments, and of what keeps a parameter's other
    digits."""

    params: str
    moments: str
    master: str | None
    cost: str  # what it does to training, in words

    @property
    def name(self) -> str:
        """Return what a user writes."""
        chosen = [f"moments={self.moments!r}"] if self.moments != FORMATS[self.params].compute.name else []
        return ", ".join([f"{self.params} parameters", *chosen, *([f"master={self.master!r}"] * bool(self.master))])

    def stored(self) -> float:
        """Return the bytes per parameter that parameter, gradient and state take."""
        return 2 * width(self.params) + 2 * width(self.moments) + self.low()

    def moved(self) -> float:
        """Return the bytes per parameter that a step reads and writes: all but the gradient twice."""
        return 2 * self.stored() - width(self.params)

    def low(self) -> float:
        """Return the bytes per parameter of what stands in master."""
        return width(self.master) if self.master else 0.0


STOCHASTIC = "the second moment is rounded stochastically"
CODES = "moments have 8 bits, as good as float32's for β2 up to 0.999"
WAYS = (  # the first that fits is recommended: they get smaller, and rounder
    Way("float32", "float32", None, "nothing is rounded"),
    Way("bfloat16", "float32", "remainder", "steps are float32's to the bit; gradients have 16 bits"),
    Way("float32", "bfloat16", None, STOCHASTIC),
    Way("float32", "8bit", None, CODES),
    Way("bfloat16", "bfloat16", "remainder", f"{STOCHASTIC}; gradients have 16 bits"),
    Way("bfloat16", "8bit", "remainder", f"{CODES}; gradients have 16 bits"),
    Way("bfloat16", "bfloat16", None, "parameters are rounded stochastically, too"),
    Way("bfloat16", "8bit", None, f"parameters are rounded stochastically; {CODES}"),
)


def width(format: str) -> float:
    """Return the bytes of one number in a format, scales included."""
    return FORMATS[format].bytes_of(MEASURED) / MEASURED


def in_bytes(memory: str | float) -> float:
    """Return a size such as "24GB", "16 GiB" or a number of bytes. Raises ValueError for anything else.

    A text without a unit is refused: who writes "24" means gigabytes.
    """
    text = str(memory).replace(" ", "").upper() + "B" * (not isinstance(memory, str))
    number = text.rstrip("BKMGTI")
    try:
        size = float(number) * UNITS[text[len(number) :]]
    except (ValueError, KeyError):
        size = math.nan
    if not 0 < size < math.inf:
        raise ValueError(f"memory is {memory!r}, expected a size such as '24GB' or '16GiB', or bytes as a number")
    return size


def in_words(size: float) -> str:
    """Return a number of bytes in three digits and a unit."""
    unit = next((unit for unit in ("TB", "GB", "MB", "KB") if size >= UNITS[unit]), "B")
    return f"{size / UNITS[unit]:.3g} {unit}"


def milliseconds(seconds: float) -> str:
    """Return a time in milliseconds, in three digits or more."""
    ms = seconds * 1e3
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def count(params: Any) -> int:
    """Return the number of parameters: of a tree of arrays, or the number itself. Raises TypeError, ValueError."""
    if isinstance(params, int | float) and not isinstance(params, bool):
        if not 1 <= params < 2**62:
            raise ValueError(f"params is {params!r}, expected at least 1 parameter, or a tree of arrays")
        return round(params)
    leaves = Structure(params).leaves
    if bad := [leaf for leaf in leaves if not hasattr(leaf, "size") and not isinstance(leaf, FlatBuffer)]:
        raise TypeError(f"params holds {type(bad[0]).__name__}, expected arrays, or the number of parameters")
    return max(1, sum((leaf.array if isinstance(leaf, FlatBuffer) else leaf).size for leaf in leaves))


def measured(n: int) -> dict[Way, float]:
    """Return the seconds of a step of AdamW over n parameters: the median of rounds in which all take turns."""
    steps: dict[Way, Any] = {}
    for way in WAYS:
        try:
            p, g = (np.full(n, value, FORMATS[way.params].dtype) for value in (1, 1e-3))
            FORMATS[way.moments].dtype  # noqa: B018
        except ImportError:  # ml_dtypes
            continue
        steps[way] = methods.AdamW(p, moments=way.moments, master=way.master), g
    seconds: dict[Way, list[float]] = {way: [] for way in steps}
    for turn in range(-1, ROUNDS):
        for way, (opt, g) in steps.items():
            start = time.perf_counter()
            opt.step(g)
            if turn >= 0:  # the turn before compiles, and touches the memory
                seconds[way].append(time.perf_counter() - start)
    return {way: float(np.median(times)) for way, times in seconds.items()}


def advise(params: Any, memory: str | float | None = None, gpu: str | None = None) -> dict[str, Any]:
    """Say what each format takes for so many parameters on this machine, and which one to take, as plain data.

    params: the number of parameters, or a tree of arrays.
    memory: what parameters, gradients and state may take: bytes, or a text such as "24GB" or "16GiB"; None: no limit.
    gpu: "A100", "H100" or "H200": step times of that GPU by a model, bytes over its data sheet's bandwidth, in place of
        this machine's. No step can be quicker; nobody has measured how much slower it is.

    A step of AdamW is timed in each format on this machine, in about a second; the first time Numba compiles before.
    More than 4,194,304 parameters are predicted from so many, in proportion: both exceed the caches.

    Returns {"parameters", "memory", "place", "basis", "formats", "recommended", "reason"}; "formats" lists {"format",
    "params", "moments", "master", "bytes", "bytes_per_step", "seconds", "fits", "cost"} with sizes in bytes and seconds
    a step, None where ml_dtypes is missing to measure it. "recommended" is the "format" of one, or None if none fits.

    >>> advice = fastadam.advise(1.3e9, memory="16GB", gpu="H100")
    >>> advice["recommended"]
    "float32 parameters, moments='bfloat16'"

    Raises TypeError, ValueError that name the argument.
    """
    n, room = count(params), None if memory is None else in_bytes(memory)
    if gpu is None:
        size = min(n, MEASURED)
        seconds = {way: one * n / size for way, one in measured(size).items()}
        place = f"this machine, {choose('auto').name}, {get_num_threads()} threads"
        basis = f"measured on {size:,} parameters" + ", in proportion" * (size < n)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        if load > 0.5:
            basis += f"; not a quiet machine (load average {load:.1f}), so the times say less"
    elif isinstance(gpu, str) and gpu in GPUS:
        seconds = {way: way.moved() * n / GPUS[gpu] for way in WAYS}
        place = gpu
        basis = f"a model: bytes over {GPUS[gpu] / 1e9:,.0f} GB/s of the data sheet; never measured"
    else:
        raise ValueError(f"gpu is {gpu!r}, expected one of {', '.join(GPUS)}, or None for this machine")
    rows: list[dict[str, Any]] = [
        {
            "format": way.name, "params": way.params, "moments": way.moments, "master": way.master,
            "bytes": round(way.stored() * n), "bytes_per_step": round(way.moved() * n),
            "seconds": seconds.get(way),
            "fits": room is None or way.stored() * n <= room, "cost": way.cost,
        }
        for way in WAYS
    ]  # fmt: skip
    best = next((row for row in rows if row["fits"]), None)
    if best is None:
        least = min(row["bytes"] for row in rows)
        reason = f"none fits: the smallest takes {in_words(least)}; shard the parameters over several machines"
    elif room is None:
        reason = f"no limit was given, and with this one {best['cost']}"
    else:
        reason = f"of those that fit in {in_words(room)} it rounds the least: {best['cost']}"
    return {
        "parameters": n, "memory": room, "place": place, "basis": basis, "formats": rows,
        "recommended": None if best is None else best["format"], "reason": reason,
    }  # fmt: skip


def show(advice: dict[str, Any]) -> None:
    """Print an advice as a table, and the recommendation below it."""
    title = f"AdamW over {advice['parameters']:,} parameters: {advice['place']}"
    table = TextTable("format", "memory", "ms a step", "what it does", title=title)
    for row in advice["formats"]:
        ms = "pip install ml_dtypes" if row["seconds"] is None else milliseconds(row["seconds"])
        table.add(row["format"], in_words(row["bytes"]) + " (too much)" * (not row["fits"]), ms, row["cost"])
    table.show()
    print(f"times: {advice['basis']}")
    print(f"take: {advice['recommended'] or 'none'}\nbecause {advice['reason']}")
