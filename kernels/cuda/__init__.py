"""The CUDA backend's compute, as text: which instantiation of traversal.cu serves which kernel and dtypes.

Importing this package loads no cupy.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

THREADS = 128  # a block; 512 float32 elements a chunk, so that 100,000 fill the 132 multiprocessors of an H100
WIDTH = 16  # bytes of one access
WORDS = 480  # what travels by value: with the other parameters within the 4 KB that any driver takes

OPTIONS = ("-std=c++17",)

FORMATS = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64", None: "None"}


class Step(NamedTuple):
    """One instantiation: a kernel's name, what it is told, each stream's dtype (None: it is absent)."""

    kernel: str
    table: str  # ByValue or Uploaded: where a step's table lies; Rows: rows of one leaf are stepped, nothing else
    streams: tuple[Any, ...]

    @property
    def real(self) -> Any:
        """The dtype of the arithmetic: float64 for float64 parameters, else float32."""
        return np.dtype(np.float64 if self.streams[0] == np.float64 else np.float32)

    @property
    def chunk(self) -> int:
        """The most elements a block steps: one access a thread of the narrowest stream."""
        return THREADS * WIDTH // min(int(dtype.itemsize) for dtype in self.streams if dtype is not None)

    @property
    def name(self) -> str:
        return "_".join([self.kernel, self.table, *self._types])

    @property
    def _types(self) -> list[str]:
        return [FORMATS[self.real], *(FORMATS[dtype] for dtype in self.streams)]

    @property
    def text(self) -> str:
        """The line that instantiates it."""
        real, *streams = self._types
        if self.table == "Rows":
            return f"STEP_ROWS({self.name}, {self.kernel}, {real}, {', '.join(streams)})\n"
        return f"STEP({self.name}, {self.kernel}, {real}, {self.table}, {', '.join(streams)})\n"


def source(steps: Sequence[Step]) -> str:
    """The program that holds these steps and `advance`. One text without #include: CuPy's cache looks at no other."""
    here = Path(__file__).parent
    kernels = sorted({step.kernel for step in steps})
    files = [
        here / "ieee.cuh", here / "formats.cuh", *(here.parent / name / f"{name}.cuh" for name in kernels),
        here / "traversal.cu",
    ]  # fmt: skip
    head = f"constexpr int WORDS = {WORDS};\n"
    return head + "".join(file.read_text() for file in files) + "ADVANCE\n" + "".join(step.text for step in steps)
