"""Keeps workers off the core of the thread that walks with them.

In a virtual machine Linux takes a halted core for one that is not there, so after a rest it wakes a worker where the
walking thread runs, and leaves both there: one spins while the other could work. On two Intel Xeon cores steps over
2^17 parameters took 160 µs for long after a rest of 8 ms; 40 since a worker that finds itself there leaves for good.
"""

import os
import sys
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from .words import I32, I64, INT, place

BINDING = {"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"}  # say where OpenMP's threads run
SET = 1_024  # bits of a set of cores, as the C library has it: where there are more, it gives none


@cache
def spreading() -> bool:
    """Return, once for all, whether workers choose their core: under Linux, where a thread can say which is its, unless
    the environment binds threads."""
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
def allowed(typing, cores):
    """Store at an address on which cores this thread may run, a bit each; return whether that is known: 0 if so."""

    def generate(context, builder, signature, args):
        return builder.sext(_affinity(builder, "get", args[0]), I64)

    return INT(INT), generate


@intrinsic
def leave(typing, core, cores):
    """Keep this thread off a core from here on: it may run on the others that are stored at an address, if there are
    any."""

    def generate(context, builder, signature, args):
        core, cores = args
        with builder.goto_entry_block():
            others = builder.alloca(I64, SET // 64)
        with builder.if_then(builder.icmp_unsigned("<", core, I64(SET))):
            for k in range(SET // 64):
                builder.store(builder.load(place(builder, cores, I64, I64(k))), builder.gep(others, [I64(k)]))
            home = builder.gep(others, [builder.udiv(core, I64(64))])
            bit = builder.shl(I64(1), builder.urem(core, I64(64)))
            builder.store(builder.and_(builder.load(home), builder.not_(bit)), home)
            _affinity(builder, "set", builder.ptrtoint(others, I64))  # refused where none is left
        return context.get_dummy_value()

    return types.void(INT, INT), generate


def _affinity(builder: Any, what: str, cores: Any) -> Any:
    """Get or set where this thread may run."""
    kind = ir.FunctionType(I32, [I32, I64, I64])
    function = get_or_insert_function(builder.module, kind, f"sched_{what}affinity")
    return builder.call(function, [I32(0), I64(SET // 8), cores])
