"""Keeps workers off the core of the thread that walks with them.

In a virtual machine Linux takes a halted core for one that is not there, so after a rest it wakes a worker where the
walking thread runs, and leaves both there: one spins while the other could work. On two Intel Xeon cores steps over
2^17 parameters took 160 µs for long after a rest of 8 ms; 40 since a worker that finds itself there leaves for good.
"""

import os
import sys

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from .words import I32, I64, INT

BINDING = {"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"}  # say where OpenMP's threads run
SET = 1_024  # bits of a set of cores, as the C library has it


def spreading() -> bool:
    """Return whether workers choose their core: under Linux, where a thread can say which is its, unless the
    environment binds threads."""
    return sys.platform == "linux" and not BINDING & os.environ.keys()


@intrinsic
def core(typing):
    """Return which core runs this thread."""

    def generate(context, builder, signature, args):
        function = get_or_insert_function(builder.module, ir.FunctionType(I32, []), "sched_getcpu")
        return builder.sext(builder.call(function, []), I64)

    return INT(), generate


@intrinsic
def thread(typing):
    """Return what tells this thread from all others."""

    def generate(context, builder, signature, args):
        return builder.call(get_or_insert_function(builder.module, ir.FunctionType(I64, []), "pthread_self"), [])

    return INT(), generate


@intrinsic
def leave(typing, core):
    """Keep this thread off a core from here on: it may run on all others that the process may run on, if there are
    any."""

    def generate(context, builder, signature, args):
        (core,) = args
        kind = ir.FunctionType(I32, [I32, I64, ir.PointerType(I64)])
        get, put = (get_or_insert_function(builder.module, kind, f"sched_{x}affinity") for x in ("get", "set"))
        process = builder.call(get_or_insert_function(builder.module, ir.FunctionType(I32, []), "getpid"), [])
        with builder.goto_entry_block():
            cores = builder.alloca(I64, SET // 64)
        failed = builder.call(get, [process, I64(SET // 8), cores])
        with builder.if_then(builder.icmp_signed("==", failed, I32(0))):  # which it is not for a larger set
            home = builder.gep(cores, [builder.udiv(core, I64(64))])
            bit = builder.shl(I64(1), builder.urem(core, I64(64)))
            builder.store(builder.and_(builder.load(home), builder.not_(bit)), home)
            builder.call(put, [I32(0), I64(SET // 8), cores])  # refused where no core is left
        return context.get_dummy_value()

    return types.void(INT), generate
