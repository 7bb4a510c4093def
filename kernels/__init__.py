"""The compute, one folder a kernel. ALL holds the kernels by name: tests and benchmarks iterate over it."""

import hashlib
from pathlib import Path
from uuid import uuid4


def sources() -> str:
    """A hash of every source file under kernels/, as they are on disk now; never the same where they cannot be read."""
    digest, root = hashlib.sha256(), Path(__file__).parent
    files = sorted(root.rglob("*.py"))
    if not files:  # in a zip file: nothing compiled may be kept
        return uuid4().hex
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


LOADED = sources()  # before the first of them is imported: what is compiled later is compiled from these

# ruff: noqa: E402
from fastadam.kernels import adabelief, adagrad, adam, adamax, lion, momentum, nadam, rmsprop
from fastadam.kernels.contract import Kernel

ALL = {
    kernel.name: kernel for kernel in map(Kernel.of, (adam, nadam, adamax, adabelief, lion, momentum, rmsprop, adagrad))
}
