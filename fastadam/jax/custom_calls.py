"""Custom calls: what XLA calls by name, registered until the process ends, and the native pieces it finds there."""

from __future__ import annotations

import ctypes
from functools import cache
from hashlib import sha256
from typing import Any

import jax
import numpy as np

from fastadam.host.threads import PARALLEL_FROM
from fastadam.kernels import ALL
from fastadam.kernels.chores import Flags
from fastadam.kernels.contract import Kernel
from fastadam.kernels.cpu import call_memory, elements, traversal, xla
from fastadam.kernels.formats import FORMATS
from fastadam.kernels.streams import Columns

STEP = "fastadam_step"  # as programs name it that were exported or kept
ROOM = 4_096  # pieces that a process may have

_desk = np.zeros(call_memory.PIECES + 2 * ROOM, np.int64)
_kept: list[Any] = []  # whatever native code knows by address
MESSAGES = {
    "unaliased": "a result of fastadam.jax does not lie in its operand's place",
    "coefficients": "the learning rate, or another number of a step of fastadam.jax, gives coefficients that are not "
    "finite, or that the parameters' dtype cannot hold: expected others",
    "piece": "this process cannot compile what a step of fastadam.jax needs; its log says why",
}


def text_of(kernel: Kernel, formats: Columns, flags: Flags) -> str:
    """Return the name of a signature: its kernel, the format of each stream, the chores and switches in it."""
    asked = [name for name, flag in zip(Flags._fields, flags, strict=True) if flag]
    return " ".join([kernel.name, *("-" if x is None else x.name for x in formats.row), *asked, *sorted(kernel.on)])


def tag_of(text: str, measures: bool) -> Any:
    """Return the tag by which the pieces of a signature are compiled: that which steps, or that which sums squares."""
    kernel, *words = text.split()
    streams = len(ALL[kernel].streams.row)
    formats = [None if word == "-" else FORMATS[word] for word in words[:streams]]
    if measures:
        return elements.Measure(formats[0], formats[1], np.uint8(1), None)
    tag = elements.TAGS[kernel]
    return tag(*formats, *(np.uint8(1) if name in words[streams:] else None for name in tag._fields[streams:]))


def key_of(text: str, measures: bool) -> int:
    """Return by what native code finds the piece: 64 bits that depend on all of a signature's name."""
    return int.from_bytes(sha256(f"{text} {measures}".encode()).digest()[:8], "little", signed=True)


@cache
def piece(text: str, measures: bool) -> int:
    """Return the address of a compiled piece, which native code finds from now on."""
    register()  # which lays the desk out
    address = traversal.piece(tag_of(text, measures))
    if measures:
        decides()
    count = int(_desk[call_memory.COUNT_OF_PIECES])
    if count == ROOM:
        raise RuntimeError(f"{text} is one of more than {ROOM:,} signatures, expected fewer in one process")
    _desk[call_memory.PIECES + 2 * count : call_memory.PIECES + 2 * count + 2] = key_of(text, measures), address
    _desk[call_memory.COUNT_OF_PIECES] = count + 1  # last: others may read meanwhile
    return address


def decides() -> None:
    """Let native code find what decides about clipping."""
    register()
    _desk[call_memory.DECIDE] = xla.decide().address


def _make(text: int, length: int, which: int) -> int:
    """Return the address of a piece that a program asks for which another process has traced; 0 where that fails."""
    try:
        signatures = ctypes.string_at(text, length).decode().split(";")
        return piece(signatures[which // 2], bool(which % 2))
    except Exception:
        import logging

        logging.getLogger("fastadam").exception("no piece for a step of fastadam.jax")
        return 0


@cache
def register() -> str:
    """Return the name under which XLA knows the step, once it does. Tracing calls this; a program from a file needs it.

    >>> fastadam.jax.register()
    'fastadam_step'
    """
    texts = [ctypes.create_string_buffer(text.encode()) for text in MESSAGES.values()]
    make = ctypes.CFUNCTYPE(*[ctypes.c_int64] * 4)(_make)
    desk = call_memory.Desk(
        ctypes.cast(make, ctypes.c_void_p).value or 0, xla.work().address, 0, PARALLEL_FROM, 0,
        *(ctypes.addressof(text) for text in texts),
    )  # fmt: skip
    _desk[: len(desk)] = desk
    address = xla.step().address
    ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)(_desk.ctypes.data + 1)
    capsule = jax.ffi.pycapsule(address)
    _kept.extend([texts, make, capsule])
    jax.ffi.register_ffi_target(STEP, capsule, platform="cpu")
    return STEP
