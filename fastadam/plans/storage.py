"""Says what each stream of an optimizer rests in.

The arithmetic is float32, or float64 for float64 parameters; kernels/formats.py says how the formats are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from fastadam.checks import integer
from fastadam.kernels.contract import Exact, Slot
from fastadam.kernels.formats import BFLOAT16, FLOAT16, FORMATS, Format, format_of

MOMENTS = [name for name, format in FORMATS.items() if format.moments]
MASTERS = "remainder", "float32"


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Holds the choice of formats that Optimizer takes under these names; see there. Checked when made."""

    moments: str | None = None
    master: str | None = None
    index_offset: int | dict[str, int] = 0

    def __post_init__(self) -> None:
        offset: Any = self.index_offset
        if isinstance(offset, dict):
            offset = {path: integer(f"index_offset[{path!r}]", x, low=0, most=2**62) for path, x in offset.items()}
        else:
            offset = integer("index_offset", offset, low=0, most=2**62)
        object.__setattr__(self, "index_offset", offset)
        for name, allowed in ("moments", MOMENTS), ("master", MASTERS):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value in allowed):
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(allowed)}, or None")

    def firsts(self, paths: Sequence[str], sizes: Sequence[int]) -> list[int]:
        """Return the index, among all elements, of the first element of each leaf."""
        if not isinstance(self.index_offset, dict):
            return list(accumulate(sizes, initial=self.index_offset))[:-1]
        for path in [*self.index_offset, *paths]:
            if path not in paths or path not in self.index_offset:
                differs = "has" if path not in paths else "lacks"
                raise ValueError(f"index_offset {differs} {path!r}, expected a number for each of opt.paths")
        return [self.index_offset[path] for path in paths]

    def check(self, name: str, p: Format, described: str) -> None:
        """Refuse what does not fit a parameter in this format, naming it; described: what errors call it."""
        if self.moments is not None and FORMATS[self.moments].compute is not p.compute:
            fits = ", ".join(repr(each) for each in MOMENTS if FORMATS[each].compute is p.compute)
            raise ValueError(f"moments is {self.moments!r}, {name} is {described}: expected None or {fits}")
        if self.master == "remainder" and p is FLOAT16:
            raise ValueError(f"master is 'remainder', {name} is {described}: expected None or 'float32'")

    def has_master(self, p: Format) -> bool:
        """Return whether a parameter in this format is the copy of a float32 one."""
        return self.master == "float32" and p.is_short

    def has_remainder(self, p: Format) -> bool:
        """Return whether the other 16 bits of a parameter in this format rest beside it."""
        return self.master == "remainder" and p is BFLOAT16

    def slot_format(self, p: Format, slot: Slot | None = None) -> Format:
        """Return what a slot, a moment unless it is given, of a parameter in this format rests in."""
        moves = self.moments is None or isinstance(slot, Exact)
        return format_of(p.compute) if moves else FORMATS[self.moments]  # type: ignore[index]
