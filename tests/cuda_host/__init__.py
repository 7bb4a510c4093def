"""The CUDA backend without a GPU: its .cu text compiled by g++, and a stand-in for CuPy that runs it."""

import ctypes
import shutil
import subprocess
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from kept import kept

from fastadam import kernels
from fastadam.kernels.cuda import PASSES, Instantiation, Pass, Riding, source, text_of
from fastadam.kernels.formats import DTYPES, FORMATS, format_of, is_drawn
from fastadam.plans.storage import Storage
from fastadam.tools.cover import (
    CHORES,
    Stored,
    chores,
    in_pairs,
    kernels_in_use,
    label,
    stored,
    sums_first,
    variants,
)  # fmt: skip

SHIM = Path(__file__).parent / "shim.h"
COMPILER = shutil.which("g++")
# -fno-strict-aliasing: a step's table holds addresses, integers and reals, as memory that CUDA copies may.
FLAGS = "-x c++ -std=c++17 -O1 -ffp-contract=off -fno-strict-aliasing -shared -fPIC"
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
    scaled, clear = asked["max_norm"] is not None or bool(asked["skip_nonfinite"]) or grouped, bool(asked["zero_grads"])
    return Riding(asked["max_value"] is not None, clear, scaled, asked["stats"] is not None, ema, copy)


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
def covering(everything=False):
    """(variant, dtype, asked, grouped, flat): each pair of kernel, value of a chore, dtype, groups or none, tree or
    FlatBuffers in some; everything: each kernel with each set of chores, the methods of a kernel in turns."""
    same = {}
    for variant in variants():
        same.setdefault((streams_of(variant, DTYPES[0]), on(variant)), []).append(variant)
    rows, pairs = [], []
    for (k, kind), (c, asked) in product(enumerate(same.values()), enumerate(chores())):
        dtype, grouped, flat = DTYPES[(k + c) % 2], (k // 2 + c) % 2 == 1, (k // 4 + c) % 2 == 1
        rows.append((kind[c % len(kind)], dtype, asked, grouped, flat))
        pairs.append((k, *(CHORES[name].index(value) for name, value in asked.items()), dtype, grouped, flat))
    return tuple(rows if everything else [rows[k] for k in sorted(in_pairs(pairs))])


@cache
def covering_steps(everything=False):
    """What is launched for them."""
    found = []
    for variant, dtype, asked, grouped, _ in covering(everything):
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
def plain_steps():
    """What is launched for each kernel with all in float32, and with all in bfloat16, without chores."""
    nothing, formats = dict.fromkeys(chores()[0]), [Stored("float32", "float32"), Stored(*["bfloat16"] * 3)]
    cases = product(kernels_in_use(), formats)
    found = [step for variant, one in cases for step in launched(variant, stored_step(variant, one, nothing))]
    return tuple(step for step in dict.fromkeys(found) if isinstance(step, Instantiation))


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


@cache
def version():
    """Which g++ compiles."""
    return subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True).stdout


@cache
def compiled(program, folder):
    """A program as host code: the functions by name, each (blocks, threads, void** arguments). folder: see kept.py."""

    def compile_to(out):
        text = out.with_suffix(".cpp")
        text.write_text(program)
        command = [COMPILER, *FLAGS.split(), *WARNINGS.split(), "-include", str(SHIM), str(text), "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        text.unlink()
        assert done.returncode == 0, done.stderr

    return ctypes.CDLL(str(kept(folder, [version(), FLAGS, WARNINGS, SHIM.read_text(), program], compile_to)))


def run(function, blocks, threads, arguments):
    """Call one as a CUDA driver calls a kernel: with the addresses of its arguments. arguments: NumPy arrays."""
    addresses = np.array([x.ctypes.data for x in arguments], np.uint64)
    function.restype = None
    function(ctypes.c_longlong(blocks), ctypes.c_int(threads), ctypes.c_void_p(addresses.ctypes.data))


@cache
def programs():
    """What is compiled together: the instantiations of one kernel, those apart that --all alone needs."""
    usual, together = dict.fromkeys([*steps(), *covering_steps(), *stored_steps()]), {}
    for step in {**usual, **dict.fromkeys(covering_steps(everything=True))}:
        together.setdefault((step in usual, getattr(step, "kernel", "passes")), []).append(step)
    return together


@cache
def homes():
    """By its name each instantiation that is compiled with others, and which of programs() that is."""
    return {step.name: (step, which) for which, some in programs().items() for step in some}


@cache
def text_with_others(which):
    """The text of what is compiled together."""
    return source(programs()[which])


def on_host(folder):
    """What runs kernels for the stand-in, compiled when first asked for. folder: where host code is kept."""

    def launcher(program, _, name):
        step, which = homes().get(name, (None, None))
        assert step is None or program == source([step]), "not the text that was compiled for the host"
        if name == "advance":
            which = True, "passes"  # each program holds it
        function = getattr(compiled(text_with_others(which) if which else program, folder), name)
        return lambda blocks, threads, arguments, memory: run(function, blocks, threads, arguments)

    return launcher


def label_of(case):
    """A test's name for one of `chored`."""
    _, variant, dtype, asked = case
    return "-".join([label(variant), dtype.name, *(name for name, value in asked.items() if value)])
