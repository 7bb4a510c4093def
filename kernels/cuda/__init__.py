"""Holds the CUDA C++ of every kernel, format and chore, and which instantiation of traversal.cu serves which of them.

May import the texts beside it in kernels/, and loads no CuPy. Launches and device memory belong to fastadam/cuda.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from .. import ALL
from ..chores import BLOCK, LANES
from ..codes import BYTES, DRAWN, GROUP, LARGE, LAST, PART, REACH, SHIFT, TINY, TO, TWO
from ..codes import LANES as IN_ROW
from ..contract import Euclidean, Kernel, Slot
from ..formats import BFLOAT16, CODES, FLOAT16, FLOAT32, FLOAT64, MIX, Format, format_of, is_drawn, is_signed

THREADS = 128  # a block; 512 float32 elements a chunk, so that 100,000 fill the 132 multiprocessors of an H100
WIDTH = 16  # bytes of one access; a thread makes at most two of the arithmetic's type
WORDS = 480  # what travels by value: with the other parameters within the 4 KB that any driver takes

OPTIONS = ("-std=c++17",)

# The types of formats.cuh. One that draws random bits has two more, with _p and _slot behind its name, for streams that
# do; one of blocks is a template of whether the slot has a sign, whether it draws, and its number.
FORMATS = {FLOAT64: "f64", FLOAT32: "f32", BFLOAT16: "bf16", FLOAT16: "f16", CODES: "Codes"}


def text_of(format: Format | None, slot: Slot | None = None, number: int = 0) -> str:
    """Return the CUDA type of a stream in a format, that of a kernel's slot of this number; None for an absent one."""
    if format is None:
        return "None"
    if slot is not None and format.block > 1:
        return f"{FORMATS[format]}<{int(is_signed(slot))}, {int(is_drawn(slot))}, {number}>"
    drawn = format.draws and slot is not None and is_drawn(slot)
    return f"{FORMATS[format]}_slot" if drawn else FORMATS[format]


FLAGS = "limit", "clear", "scaled", "noted", "more", "drawn", "summed", "summing", "followed"


class Riding(NamedTuple):
    """Says what rides along with a step: flags as kernels/chores.py has them, the formats of the average and the
    copy."""

    limit: bool = False
    clear: bool = False
    scaled: bool = False  # the gradient is multiplied by what norm.cu finds, or the step skipped
    noted: bool = False  # for statistics
    ema: Format | None = None
    copy: Format | None = None
    more: bool = False  # rows and tables are as where other leaves have chores
    drawn: bool = False  # rows and tables say what random bits depend on
    summed: bool = False  # the kernel's sums are there, and what was made of them is its factor
    summing: bool = False  # they are added up, and nothing is stored
    followed: bool = False  # the copy is what p, a master, is rounded to: see formats.followed

    @property
    def rides(self) -> bool:
        """Return whether any chore is done."""
        flags = self.limit, self.clear, self.scaled, self.noted, self.summed
        return any(flags) or self.ema is not None or self.copy is not None

    @property
    def types(self) -> str:
        """Return the type of chores.cuh."""
        flags = [name.upper() for name in FLAGS if getattr(self, name)]
        return f"Chores<{' | '.join(flags) or 0}, {text_of(self.ema)}, {text_of(self.copy)}>"


NO_RIDING = Riding()


class Instantiation(NamedTuple):
    """Names one instantiation: a kernel's name, what it is told, each stream's format (None: it is absent)."""

    kernel: str
    table: str  # ByValue or Uploaded: where a step's table lies; Rows: rows of one leaf are stepped, nothing else
    streams: tuple[Format | None, ...]
    chores: Riding = NO_RIDING
    split: bool = False  # whether p is bfloat16 whose other bits rest beside it
    on: frozenset[str] = frozenset()  # the kernel's switches that are on
    several: bool = False  # whether a gradient comes as several arrays, which are added

    @property
    def real(self) -> Any:
        """Return the dtype of the arithmetic: float64 for float64 parameters, else float32."""
        p, *_ = self.streams
        assert p is not None
        return p.compute

    @property
    def width(self) -> int:
        """Return the elements that a thread steps; as width_of of traversal.cu."""
        sizes = {format.bytes for format in self.streams if format is not None and format.block == 1}
        return min(WIDTH // min(sizes), 2 * WIDTH // int(self.real.itemsize))

    @property
    def blocked(self) -> bool:
        """Return whether it notes something or has slots of 8 bits: then each block of BLOCK is stepped in phases."""
        blocks = any(format is not None and format.block > 1 for format in self.streams)
        return self.chores.noted or self.chores.summing or blocks

    @property
    def chunk(self) -> int:
        """Return the most elements a block steps."""
        return self.threads * self.width

    @property
    def threads(self) -> int:
        """Return the threads of a block."""
        return BLOCK // self.width if self.blocked else THREADS

    @property
    def sums(self) -> "Instantiation":
        """Return what adds up the sums that this one needs."""
        copy = self.chores.copy if self.chores.followed else None  # which is read
        return self._replace(chores=self.chores._replace(summing=True, clear=False, noted=False, ema=None, copy=copy))

    @property
    def name(self) -> str:
        riding = re.findall(r"\w+", self.chores.types) if self.chores.types != NO_RIDING.types else []
        codes = [re.sub(r"\W+", "_", each).strip("_") for each in self._types]
        return "_".join([self.kernel, *sorted(self.on), self.table, *codes, *riding])

    @property
    def _types(self) -> list[str]:
        p, _, *slots = self.streams
        of_p = "split" if self.split else text_of(p) + "_p" * (p is not None and p.draws)
        kinds = ALL[self.kernel].slots if slots else ()
        of_slots = [text_of(format, slot, k) for k, (format, slot) in enumerate(zip(slots, kinds, strict=True))]
        return [text_of(format_of(self.real)), of_p, self.gradient, *of_slots]

    @property
    def gradient(self) -> str:
        """Return the CUDA type of the gradient's stream."""
        _, g, *_ = self.streams
        return f"several<{text_of(g)}>" if self.several else text_of(g)

    @property
    def text(self) -> str:
        """Return the line that instantiates it."""
        macro = "STEP_ROWS" if self.table == "Rows" else "STEP_IN_PHASES" if self.blocked else "STEP"
        table = [] if self.table == "Rows" else [self.table]
        return f"{macro}({', '.join([self.name, *table, self.chores.types, self.type, *self._types])})\n"

    @property
    def type(self) -> str:
        """Return the kernel's CUDA type, a template of its switches where it has any."""
        switches = ALL[self.kernel].switches if self.kernel in ALL else ()
        return self.kernel + f"<{', '.join(str(name in self.on).lower() for name in switches)}>" * bool(switches)


class Pass(NamedTuple):
    """Names CARRY, WEIGH with its table, kernel and type, or a kernel of norm.cu: ADD_UP, JUDGE, TOTALS,
    ADVANCE_UNLESS, WEIGH_TOGETHER with its kernel, or MEASURE with its table and types."""

    macro: str
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "_".join([self.macro.lower(), *(re.sub(r"\W+", "_", each).strip("_") for each in self.arguments)])

    @property
    def kernels(self) -> list[str]:
        """Return the names of the kernels among its arguments."""
        return [name for each in self.arguments if (name := each.partition("<")[0]) in ALL]

    @property
    def text(self) -> str:
        return f"{self.macro}({', '.join([self.name, *self.arguments])})\n"


PASSES = [
    *(Pass("MEASURE", (table, real, real)) for table in ("ByValue", "Uploaded") for real in ("f32", "f64")),
    *(Pass(macro) for macro in ("CARRY", "ADD_UP", "JUDGE", "TOTALS", "ADVANCE_UNLESS")),
]


def _coding() -> str:
    """Return what formats.py says of 8 bits, in a struct, since nvcc warns of other constants that a program does
    without."""
    sizes = f"int GROUP = {GROUP}, BYTES = {BYTES}, IN_ROW = {IN_ROW}, SHIFT = {SHIFT}"
    integers = sizes, f"unsigned TWO = {TWO}u, MIX3 = {MIX[3]}u"
    floats = f"float TINY = {_exact(TINY)}, LARGE = {_exact(LARGE)}, OF_DRAWN = {_exact(DRAWN)}"
    by_sign = [f"unsigned LAST = has_sign ? {LAST[True]} : {LAST[False]}"]
    for name, values in {"TO": TO, "PART": PART, "REACH": REACH}.items():
        by_sign.append(f"float {name} = has_sign ? {_exact(values[True])} : {_exact(values[False])}")
    lines = [*integers, floats, *(f"template <bool has_sign> static constexpr {each}" for each in by_sign)]
    return (
        "struct Coding {\n" + "".join(f"{x};\n" if x[0] == "t" else f"static constexpr {x};\n" for x in lines) + "};\n"
    )


def _sums(kernel: Kernel) -> str:
    """Return what contract.py says of a kernel's sums."""
    if not kernel.sums:
        return ""
    norms = sum(isinstance(each, Euclidean) << k for k, each in enumerate(kernel.sums))
    of = f"{kernel.name}<{', '.join(kernel.switches)}>" if kernel.switches else kernel.name
    numbers = f"static constexpr int count = {len(kernel.sums)}, norms = {norms};\n"
    numbers += f"static constexpr bool carried = {str(kernel.Judging is not None).lower()};"
    return f"template <{', '.join(f'bool {name}' for name in kernel.switches)}>\nstruct Sums<{of}> {{\n{numbers}\n}};\n"


def _exact(number: Any) -> str:
    """Return a float32 as CUDA reads it."""
    return f"{float(number).hex()}f"


@cache
def _read(file: Path) -> str:
    return file.read_text()


def source(steps: Sequence[Instantiation | Pass]) -> str:
    """Return the program that holds these steps and `advance`. One text without #include: CuPy's cache looks at no
    other."""
    folder = Path(__file__).parent
    kernels = sorted(
        {step.kernel for step in steps if isinstance(step, Instantiation)}
        | {name for step in steps if isinstance(step, Pass) for name in step.kernels}
    )
    first = ["ieee.cuh", "formats.cuh", "chores.cuh", "norm.cuh", "codes.cuh"]
    of_kernels = [(folder if name == "accumulate" else folder.parent / name) / f"{name}.cuh" for name in kernels]
    last = ["traversal.cu", "rows.cu", "carry.cu", "norm.cu"]
    texts = [*map(_read, [*(folder / name for name in first), *of_kernels])]
    texts += [_sums(ALL[name]) for name in kernels if name in ALL]
    texts += [_read(folder / name) for name in last]
    head = f"constexpr int WORDS = {WORDS}, BLOCK = {BLOCK}, LANES = {LANES};\n"
    head += f"constexpr unsigned MIX0 = {MIX[0]}u, MIX1 = {MIX[1]}u, MIX2 = {MIX[2]}u;\n" + _coding()
    return head + "".join(texts) + "ADVANCE\n" + "".join(step.text for step in steps)
