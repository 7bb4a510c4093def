"""The CUDA backend without a GPU: its .cu text compiled by g++, and a stand-in for CuPy that runs it."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np

from fastadam import kernels
from fastadam.arrays import DTYPES
from fastadam.cover import kernels_in_use
from fastadam.kernels.cuda import Step, source

SHIM = Path(__file__).parent / "shim.h"
COMPILER = shutil.which("g++")
# -fno-strict-aliasing: a step's table holds addresses, integers and reals, as memory that CUDA copies may.
FLAGS = "-x c++ -std=c++17 -O2 -ffp-contract=off -fno-strict-aliasing -shared -fPIC"
WARNINGS = "-Wall -Wextra -Wno-unknown-pragmas -Werror"


def steps(tables=("ByValue", "Uploaded", "Rows")):
    """Every instantiation that the methods need."""
    found = []
    for method, chosen in kernels_in_use():
        kernel, options = kernels.ALL[method.rule.kernel], method.rule(**chosen).options
        for dtype in DTYPES:
            slots = (dtype if not slot.optional or slot.name in options else None for slot in kernel.slots)
            streams = (dtype, dtype, *slots)
            found += [Step(kernel.name, table, streams) for table in tables]
    return found


def library(folder):
    """All of them as host code: the functions by name, each (blocks, threads, void** arguments)."""
    text, out = folder / "all.cpp", folder / "all.so"
    text.write_text(source(steps()))
    command = [COMPILER, *FLAGS.split(), *WARNINGS.split(), "-include", str(SHIM), str(text), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(out))


def run(function, blocks, threads, arguments):
    """Call one as a CUDA driver calls a kernel: with the addresses of its arguments. arguments: NumPy arrays."""
    addresses = np.array([x.ctypes.data for x in arguments], np.uint64)
    function.restype = None
    function(ctypes.c_longlong(blocks), ctypes.c_int(threads), ctypes.c_void_p(addresses.ctypes.data))
