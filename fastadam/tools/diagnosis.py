"""Says what fastadam finds on this machine: versions, processor, threads, pages, cache, backends; and how to mend what
is missing."""

import os
import platform
import re
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fastadam.backend import backends
from fastadam.host import threads

EXECUTED = {  # how each backend's code has been executed by this project's own tests
    "numpy": "run on CPUs, held against the papers in float64",
    "numba": "run on CPUs, bit for bit numpy's",
    "cuda": "PTX executed by interpreter, bit for bit numpy's; what a GPU here makes of it: python -m fastadam verify",
}
PACKAGES = ("fastadam", "numpy", "numba", "llvmlite", "cupy-cuda12x", "cupy-cuda13x", "torch", "scikit-learn", "rich")


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version  # half of what importing the library would take

    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    import fastadam

    if versions["fastadam"] == "not installed":
        versions["fastadam"] = f"{fastadam.__version__}, not installed: from {Path(fastadam.__file__).parents[1]}"
    return versions


def _cpu(ready: bool) -> dict[str, Any]:
    """Return the processor that code is compiled for, and its vectors."""
    if not ready:
        return {"name": platform.processor() or platform.machine(), "features": [], "vector_bits": None}
    from numba.core.registry import cpu_target

    codegen = cpu_target.target_context.codegen()
    text = _assembly_of_a_sum(codegen)
    widths = [bits for name, bits in (("z", 512), ("y", 256), ("x", 128)) if re.search(rf"addps.*%{name}mm", text)]
    _, name, features = codegen.magic_tuple()  # of NUMBA_CPU_NAME, if that is set
    names = ("avx512f", "avx2", "avx", "sse4.2", "neon", "sve", "fma")
    return {
        "name": name,
        "features": [name for name in names if f"+{name}" in features.split(",")],
        "vector_bits": widths[0] if widths else None,
    }


@cache  # Numba's LLVM keeps every module that it is given
def _assembly_of_a_sum(codegen: Any) -> str:
    """Return what Numba's LLVM makes now of the loop a[i] += b[i] over float32.

    The loop is LLVM's already: before Numba compiles Python's, it registers all that it can compile, for half a second.
    """
    name = "fastadam.tools.diagnosis.sum"  # that no other code of the process has
    from llvmlite import ir
    from numba.core.cgutils import for_range
    from numba.core.compiler_lock import global_compiler_lock

    library = codegen.create_library(name)
    module, numbers = library.create_ir_module(name), ir.FloatType().as_pointer()
    probe = ir.Function(module, ir.FunctionType(ir.VoidType(), [numbers, numbers, ir.IntType(64)]), name)
    a, b, n = probe.args
    builder = ir.IRBuilder(probe.append_basic_block())
    with for_range(builder, n) as loop:
        to, of = (builder.gep(x, [loop.index]) for x in (a, b))
        builder.store(builder.fadd(builder.load(to), builder.load(of)), to)
    builder.ret_void()
    with global_compiler_lock:
        library.add_ir_module(module)
        library.finalize()
    return library.get_asm_str()  # type: ignore[no-any-return]


def _layer(status: str) -> dict[str, str]:
    """Return Numba's threading layer, which is chosen when it is first needed: here, if not before."""
    if status != "ready":
        return {"name": "none", "why": status}
    import numba

    from fastadam.kernels.cpu.traversal import load_layer

    asked = os.environ.get("NUMBA_THREADING_LAYER", "default")
    if threads.serial():  # asking would start it
        return {"name": "none", "why": "this process is a fork of one that may have used OpenMP: its walks are serial"}
    try:
        load_layer()
        name = numba.threading_layer()  # type: ignore[attr-defined]
    except ValueError as error:
        mend = "unset NUMBA_THREADING_LAYER, or set it to omp, tbb or workqueue; until then, walks are serial"
        return {"name": "none", "why": f"{' '.join(str(error).split()).rstrip('.')}; {mend}"}
    if asked != "default":
        return {"name": name, "why": f"NUMBA_THREADING_LAYER={asked}"}
    order = numba.config.THREADING_LAYER_PRIORITY  # type: ignore[attr-defined]
    return {"name": name, "why": f"the first of {', '.join(order)} that loads"}


def _threads(layer: str) -> dict[str, Any]:
    if layer == "none" and not threads.serial():
        threads.without_layer()
    limits = threads.limits()
    least = min(limits, key=lambda name: limits[name])
    return {"count": limits[least], "from": least, "limits": limits}


def _huge_pages() -> str:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "not offered by this system"
    mode = (re.search(r"\[(\w+)\]", text) or ["", "unknown"])[1]
    return mode + ("; switched off" if mode == "never" else "; used for arrays of 4 MiB and more")


def _cache(ready: bool) -> dict[str, Any]:
    if not ready:
        return {"directory": None, "state": "not used: numba is not ready", "entries": 0, "bytes": 0}
    from fastadam.kernels.cpu import cache

    root = cache.directory()
    if root is None:
        return {"directory": None, "state": "off: FASTADAM_CACHE=0, or no home", "entries": 0, "bytes": 0}
    state, sizes = cache.state(root), []
    try:
        sizes = [file.stat().st_size for file in root.glob("*.bin")]
    except OSError as error:  # another process clears it, or it may not be searched
        state = f"not readable ({error.strerror})"
    return {"directory": str(root), "state": state, "entries": len(sizes), "bytes": sum(sizes)}


def flushes_subnormals() -> bool:
    """Return whether some library has told this thread's processor to treat subnormal numbers as zero."""
    tiny = np.full(1, np.finfo(np.float32).smallest_subnormal, np.float32)
    return bool((tiny * np.float32(1) == 0).any() or (np.full(1, 2e-38, np.float32) * np.float32(0.5) == 0).any())


def info() -> dict[str, Any]:
    """Return everything that decides what fastadam does on this machine, as plain data. Loads Numba.

    >>> fa.info()["backends"]["numpy"]
    'ready'
    """
    report: dict[str, Any] = {"versions": _versions(), "backends": backends()}
    status = report["backends"]["numba"]
    ready = status == "ready"
    report |= {"cpu": _cpu(ready), "threading_layer": _layer(status), "cache": _cache(ready)}
    report |= {"threads": _threads(report["threading_layer"]["name"]), "huge_pages": _huge_pages()}
    report["tested"] = EXECUTED
    report["subnormals"] = "flushed to zero, so results differ" if flushes_subnormals() else "kept"
    return report


def lines(report: dict[str, Any]) -> list[str]:
    """Return the same as text that fits one screen of 80 columns: a line for each backend and test, the rest in
    rows."""
    out = []
    for title, value in report.items():
        head = f"{title.replace('_', ' ')}: "
        if not isinstance(value, dict):
            out.append(f"{head}{value}")
            continue
        if title == "cache":
            value = value | {"bytes": f"{value['bytes']:,}", "entries": f"{value['entries']:,}"}
        apart = ": " if title in ("backends", "tested") else " "
        words = [f"{name}{apart}{_words(one)}" for name, one in value.items()]
        if apart == ": ":
            out += [head.rstrip(), *(f"  {line}" for line in words)]
        else:
            out += textwrap.wrap(
                head + ", ".join(words), 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
    return out


def _words(value: Any) -> str:
    """Return a value of info in words: lists and dicts in brackets."""
    if isinstance(value, dict):
        return f"({', '.join(f'{name} {one}' for name, one in value.items())})"
    return f"({' '.join(map(str, value))})" if isinstance(value, list) else str(value)
