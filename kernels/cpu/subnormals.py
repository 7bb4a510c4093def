"""Whether this thread of the processor flushes subnormal numbers to zero: read, turned off, and put back.

XLA turns it on in its threads, and bits would differ below 1e-38.
"""

import platform

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .words import I32, I64

ARM = platform.machine().lower() in ("arm64", "aarch64")
FLUSHING = 1 << 24 | 1 << 19 if ARM else 1 << 15 | 1 << 6  # of FPCR: FZ, FZ16; of MXCSR: FTZ, DAZ


def _read(builder):
    if ARM:
        return builder.call(builder.module.declare_intrinsic("llvm.aarch64.get.fpcr", (), ir.FunctionType(I64, [])), [])
    with builder.goto_entry_block():
        room = builder.alloca(I32)
    builder.call(_x86(builder, "llvm.x86.sse.stmxcsr"), [builder.bitcast(room, ir.PointerType(ir.IntType(8)))])
    return builder.zext(builder.load(room), I64)


def _write(builder, mode):
    if ARM:
        kind = ir.FunctionType(ir.VoidType(), [I64])
        builder.call(builder.module.declare_intrinsic("llvm.aarch64.set.fpcr", (), kind), [mode])
        return
    with builder.goto_entry_block():
        room = builder.alloca(I32)
    builder.store(builder.trunc(mode, I32), room)
    builder.call(_x86(builder, "llvm.x86.sse.ldmxcsr"), [builder.bitcast(room, ir.PointerType(ir.IntType(8)))])


def _x86(builder, name):
    kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(ir.IntType(8))])
    return builder.module.declare_intrinsic(name, (), kind)


@intrinsic
def gradual(typing):
    """Let this thread flush no subnormal number, and return the mode before: what `restore` takes."""

    def generate(context, builder, signature, args):
        before = _read(builder)
        _write(builder, builder.and_(before, I64(~FLUSHING)))
        return before

    return types.int64(), generate


@intrinsic
def restore(typing, mode):
    """Let the thread treat subnormal numbers as it did."""

    def generate(context, builder, signature, args):
        _write(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate
