"""Has the compute: a folder a kernel, for each processor the walk over memory, and ALL, the kernels by name.

May import NumPy, and Numba in cpu/, all else relatively and nothing of fastadam/, so that a copy works alone.
Step counts, schedules, users' options and who owns an array belong to fastadam/.
"""

import hashlib
from pathlib import Path
from uuid import uuid4


def sources() -> dict[Path, bytes]:
    """Return every source file under kernels/ as it is on disk now; none where they cannot be read."""
    try:
        files = (path for path in Path(__file__).parent.rglob("*.py") if path.is_file())  # an editor's lock is a link
        return {path: path.read_bytes() for path in sorted(files)}
    except OSError:
        return {}


def hashed(files: dict[Path, bytes]) -> str:
    """Return a hash of source files; of none, as from a zip file, never the same: nothing compiled may be kept then."""
    digest, root = hashlib.sha256(), Path(__file__).parent
    for path, text in files.items():
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + text)
    return digest.hexdigest() if files else uuid4().hex


IMPORTED = sources()  # before the first of them is imported: what is compiled later is compiled from these
LOADED = hashed(IMPORTED)

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
