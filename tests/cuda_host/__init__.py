"""The CUDA backend without a GPU: its .cu text compiled by g++, and a stand-in for CuPy that runs it."""

import ctypes
import shutil
import subprocess
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fastadam import kernels
from fastadam.kernels.cuda import PASSES, Instantiation, Pass, Riding, source, text_of
from fastadam.kernels.formats import DTYPES, FORMATS, format_of, is_drawn
from fastadam.plans.storage import Storage
from fastadam.tools.cover import Stored, chores, kernels_in_use, label, stored, sums_first, variants

SHIM = Path(__file__).parent / "shim.h"
COMPILER = shutil.which("g++")
# -fno-strict-aliasing: a step's table holds addresses, integers and reals, as memory that CUDA copies may.
FLAGS = "-x c++ -std=c++17 -O2 -ffp-contract=off -fno-strict-aliasing -shared -fPIC"
WARNINGS = "-Wall -Wextra -Wno-unknown-pragmas -Werror"


@cache
def chored():
    """(number, variant, dtype, asked): each kernel with a set of chores; every pair of these in some set."""
    found = []
    for k, variant in enumerate(kernels_in_use()):
        asked = chores()[(k + 1) % len(chores())]
        found.append((k, variant, DTYPES[k % 2], asked))
    return tuple(found)


def streams_of(variant, dtype):
    """The kernel's name and its streams' formats."""
    (method, chosen), format = variant, format_of(np.dtype(dtype))
    kernel, rule = kernels.ALL[method.rule.kernel], method.rule(**chosen)
    slots = (format if rule.keeps(slot) else None for slot in kernel.slots)
    return kernel.name, (format, format, *slots)


def riding(asked, dtype, grouped=False):
    """What an instantiation must know of a set of chores."""
    ema = None if asked["ema_decay"] is None else format_of(np.dtype(dtype))
    copy = asked["copy_to"] and FORMATS[asked["copy_to"]]
    scaled = asked["max_norm"] is not None or asked["skip_nonfinite"] or grouped
    return Riding(asked["max_value"] is not None, asked["zero_grads"], scaled, asked["stats"] is not None, ema, copy)


def on(variant):
    """The switches of its kernel that a variant turns on."""
    method, chosen = variant
    return kernels.ALL[method.rule.kernel].switched(method.rule(**chosen).options).on


def launched(variant, step):
    """What is launched for a step of a method: what adds up its sums before, where it has any; no rows then."""
    step = step._replace(on=on(variant))
    if not sums_first(variant):
        return [step]
    step = step._replace(chores=step.chores._replace(summed=True))
    weigh = Pass("WEIGH", (step.table, step.type, text_of(format_of(step.real))))
    if kernels.ALL[step.kernel].Judging:
        weigh = Pass("WEIGH_TOGETHER", (step.type,))
    return [] if step.table == "Rows" else [step, step.sums, weigh]


@cache
def steps():
    """Every instantiation that the methods need, and those of `chored`."""
    found = []
    for variant, dtype in product(kernels_in_use(), DTYPES):
        name, streams = streams_of(variant, dtype)
        for table in ("ByValue", "Uploaded", "Rows"):
            found += launched(variant, Instantiation(name, table, streams))
    for k, variant, dtype, asked in chored():
        name, streams = streams_of(variant, dtype)
        own = riding(asked, dtype, k % 3 == 0)
        found += launched(variant, Instantiation(name, "ByValue", streams, own))
        found += launched(variant, Instantiation(name, "Rows", streams, own._replace(scaled=False, noted=False)))
    return tuple(dict.fromkeys([*found, *PASSES]))


@cache
def covering():
    """(variant, dtype, asked, grouped, flat): every kernel with every set of chores, the methods of a kernel in turns;

    every pair of dtypes, of groups or none, and of trees or FlatBuffers, with these and with one another.
    """
    same = {}
    for variant in variants():
        same.setdefault((streams_of(variant, DTYPES[0]), on(variant)), []).append(variant)
    return tuple(
        (kind[c % len(kind)], DTYPES[(k + c) % 2], asked, (k // 2 + c) % 2 == 1, (k // 4 + c) % 2 == 1)
        for (k, kind), (c, asked) in product(enumerate(same.values()), enumerate(chores()))
    )


@cache
def covering_steps():
    """What is launched for them."""
    found = []
    for variant, dtype, asked, grouped, _ in covering():
        name, streams = streams_of(variant, dtype)
        found += launched(variant, Instantiation(name, "ByValue", streams, riding(asked, dtype, grouped)))
    return tuple(dict.fromkeys(found))


@cache
def stored_cases():
    """(variant, Stored, asked) for each set of formats: with which kernel and chores changes from set to set."""
    kinds, sets = kernels_in_use(), chores()
    return tuple(
        (kinds[k % len(kinds)], one, sets[k % len(sets)] if k % 3 == 0 else dict.fromkeys(sets[0]))
        for k, one in enumerate(stored())
    )


def stored_step(variant, one, asked, **changed):
    """What is launched for it."""
    (name, (_, _, *slots)), storage = streams_of(variant, np.float32), Storage(**one.chosen())
    p, g = FORMATS[one.p], FORMATS[one.g]
    own = kernels.ALL[name].slots
    kinds = [None if x is None else storage.slot_format(p, slot) for x, slot in zip(slots, own, strict=True)]
    split, master = storage.has_remainder(p), storage.has_master(p)
    drawn = (p.draws and not master and not split) or any(
        x is not None and x.draws and is_drawn(slot) for x, slot in zip(kinds, own, strict=True)
    )
    riding_along = riding(asked, p.compute)._replace(drawn=drawn)
    streams = format_of(p.compute) if master else p, g, *kinds
    copied = riding_along._replace(copy=p, followed=True) if master else riding_along
    return Instantiation(name, "ByValue", streams, copied, split, on(variant))._replace(**changed)


@cache
def stored_steps():
    """Every instantiation that tests of formats need."""
    found = [step for case in stored_cases() for step in launched(case[0], stored_step(*case))]
    adam = next(variant for variant in kernels_in_use() if label(variant) == "Adam")
    for g in ("float64", "float16"):
        found.append(stored_step(adam, Stored("float32", g), dict.fromkeys(chores()[0])))
    for g, table in product(("bfloat16", "float32"), ("ByValue", "Rows")):
        found.append(stored_step(adam, Stored("bfloat16", g, "bfloat16"), dict.fromkeys(chores()[0]), table=table))
    for moments in (None, "8bit"):
        one = Stored("float32", "bfloat16", moments)
        found.append(stored_step(adam, one, dict.fromkeys(chores()[0]), several=True))
    found.append(Pass("MEASURE", ("ByValue", "f32", "several<bf16>")))
    for table, g in product(("ByValue", "Uploaded"), ("f16", "bf16", "f32", "f64")):
        found += [Pass("MEASURE", (table, real, g)) for real in ("f32", "f64") if real != g]
    return tuple(dict.fromkeys(found))


def library(folder):
    """All of `steps` as host code: the functions by name, each (blocks, threads, void** arguments)."""
    return compiled(source(steps()), folder)


@cache
def library_of(text):
    """Another program as host code."""
    with TemporaryDirectory() as folder:
        return compiled(text, Path(folder))


def compiled(program, folder):
    """A program as host code."""
    text, out = folder / "all.cpp", folder / "all.so"
    if out.exists() and text.read_text() == program:  # by another of pytest's workers
        return ctypes.CDLL(str(out))
    text.write_text(program)
    command = [COMPILER, *FLAGS.split(), *WARNINGS.split(), "-include", str(SHIM), str(text), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(out))


def run(function, blocks, threads, arguments):
    """Call one as a CUDA driver calls a kernel: with the addresses of its arguments. arguments: NumPy arrays."""
    addresses = np.array([x.ctypes.data for x in arguments], np.uint64)
    function.restype = None
    function(ctypes.c_longlong(blocks), ctypes.c_int(threads), ctypes.c_void_p(addresses.ctypes.data))


def on_host(library):
    """What runs kernels for the stand-in: from this library, which holds `steps`, or compiled when first asked."""

    def launcher(program, _, name):
        programs = (steps(), covering_steps(), stored_steps())
        home = next((some for some in programs if name in {step.name for step in some}), ())
        step = next((step for step in home if step.name == name), None)  # by name: to NumPy float64 equals None
        assert step is None or program == source([step]), "not the text that was compiled for the host"
        known = library if name == "advance" or home is steps() else library_of(source(home) if home else program)
        function = getattr(known, name)
        return lambda blocks, threads, arguments, memory: run(function, blocks, threads, arguments)

    return launcher


def label_of(case):
    """A test's name for one of `chored`."""
    _, variant, dtype, asked = case
    return "-".join([label(variant), dtype.name, *(name for name, value in asked.items() if value)])
