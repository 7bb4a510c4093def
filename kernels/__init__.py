"""Has the compute: a folder a kernel, for each processor the walk over memory, and ALL, the kernels by name.

May import NumPy, and Numba in cpu/, all else relatively and nothing of fastadam/, so that a copy works alone.
Step counts, schedules, users' options and who owns an array belong to fastadam/.
"""

import hashlib
from pathlib import Path
from uuid import uuid4


def sources() -> str:
    """Return a hash of every source file under kernels/, as they are on disk now; never the same where they cannot be
    read."""
    digest, root = hashlib.sha256(), Path(__file__).parent
    try:
        files = sorted(path for path in root.rglob("*.py") if path.is_file())  # an editor's lock is a link to nowhere
        for path in files:
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    except OSError:
        files = []
    return digest.hexdigest() if files else uuid4().hex  # from a zip file too, nothing compiled may be kept


LOADED = sources()  # before the first of them is imported: what is compiled later is compiled from these

# ruff: noqa: E402
from . import (
    adabelief,
    adagrad,
    adam,
    adamax,
    ademamix,
    adopt,
    lamb,
    lars,
    lion,
    momentum,
    nadam,
    prodigy,
    rmsprop,
    schedulefree,
    stableadamw,
)  # fmt: skip
from .contract import Kernel

ALL = {
    kernel.name: kernel
    for kernel in map(Kernel.of, (
        adam, nadam, adamax, adabelief, adopt, ademamix, lion, lamb, lars, stableadamw, prodigy, schedulefree,
        momentum, rmsprop, adagrad,
    ))
}  # fmt: skip
