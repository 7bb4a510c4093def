"""Defines storage formats: how numbers rest in memory, the registry of them, and what each means on NumPy's arrays.

To nearest, ties to even; some formats also stochastically: up with the probability that makes the mean exact. A value
that is not finite bypasses both. The random bits are a hash of (seed, count, element), so all backends draw the same
ones: slots take its upper half, p the two halves combined. 8 bits: see codes.py.

Compiled code and CUDA's have a table each from a Format to its text: kernels/cpu/formats.py, kernels/cuda/__init__.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from . import codes
from .chores import BLOCK
from .codes import GROUP, LANES, SHIFT
from .contract import NonNegative, Signed, Slot

MIX = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F  # odd; 2^32 over the golden ratio, and xxHash's primes 2 to 4
WHOLE = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio
LOW = 0xFFFFFFFF


def key(seed: int, count: int) -> int:
    """Return 52 bits that depend on all of seed and count, by SplitMix64's finish (Steele et al. 2014).

    They are exact as a float64.
    """
    x = (seed + WHOLE * (count + 1)) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (x ^ (x >> 31)) >> 12


def _started(key: int, index: Any) -> Any:
    """Return what is mixed for elements of these indices."""
    low, high = (index & np.uint64(LOW)).astype(np.uint32), (index >> np.uint64(32)).astype(np.uint32)
    return low * np.uint32(MIX[0]) + np.uint32((key ^ (key >> 32)) & LOW) + high * np.uint32(MIX[1])


def _mixed(x: Any, last: int = MIX[2]) -> Any:
    # With one multiplication less pairs of elements are dependent at a third of all distances; now at a few, whose
    # correlation is below 0.01.
    x = (x ^ (x >> np.uint32(16))) * np.uint32(MIX[1])
    return (x ^ (x >> np.uint32(15))) * np.uint32(last)


def random_bits(key: int, first: int, n: int) -> Any:
    """Return the random bits of elements first, first + 1, ...: (n,) uint32; for draws see for_slots and for_p."""
    return _mixed(_started(key, np.uint64(first) + np.arange(n, dtype=np.uint64)))


def random_codes(key: int, first: int, groups: int) -> Any:
    """Return the draws for the codes of groups: (groups, GROUP) uint32 below 2^SHIFT.

    first: the index of the first group's first element; the next begins GROUP elements later. All elements of a group
    belong to the same multiple of 2^32 as its first.
    """
    start = _started(key, np.uint64(first) + np.arange(0, groups * GROUP, GROUP, dtype=np.uint64))
    x = start[:, None] + np.arange(LANES, dtype=np.uint32) * np.uint32(MIX[0])
    words = _mixed(x), _mixed(x, MIX[3])
    parts = [part for word in words for part in (word >> np.uint32(32 - SHIFT), word & np.uint32((1 << SHIFT) - 1))]
    return np.concatenate(parts, axis=1)


def for_p(random: Any) -> Any:
    """Return the 16 bits by which p is rounded."""
    return (random ^ (random >> np.uint32(16))) & np.uint32(0xFFFF)


def for_slots(random: Any) -> Any:
    """Return the 16 bits by which slots are rounded."""
    return random >> np.uint32(16)


def is_signed(slot: Slot | None) -> bool:
    """Tell whether a slot's codes have a sign."""
    return isinstance(slot, Signed)


def is_drawn(slot: Slot) -> bool:
    """Tell whether formats that draw random bits do so for a slot."""
    return isinstance(slot, NonNegative)


def stochastic(x: Any, draw: Any, dtype: Any) -> Any:
    """Return x in bfloat16, rounded up in size with the probability of what lies below its last bit.

    draw: 16 random bits for each number. dtype: bfloat16's.
    """
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    kept = np.where(np.isnan(x), bits | np.uint32(0x400000), bits + (draw & np.uint32(0xFFFF)))
    return (kept >> np.uint32(16)).astype(np.uint16).view(dtype)


def split(x: Any, dtype: Any) -> tuple[Any, Any]:
    """Return float32 x as bfloat16, to nearest, ties up in size, and the signed 16 bits that it lacks; of a NaN none.

    Ties to even could not be undone. dtype: bfloat16's.
    """
    bits = np.where(np.isnan(x), (x.view(np.uint32) | np.uint32(0x400000)) & np.uint32(0xFFFF0000), x.view(np.uint32))
    high = ((bits + np.uint32(0x8000)) >> np.uint32(16)).astype(np.uint16)
    return high.view(dtype), bits.astype(np.uint16).view(np.int16)


def join(high: Any, low: Any) -> Any:
    """Return the float32 that `split` took apart.

    Of halves that make a NaN, the high one alone: `split` gives none such but of a NaN, which has no low half. So 0 set
    from outside beside a negative low half is 0, and infinity beside a positive one is infinity.
    """
    alone = high.view(np.uint16).astype(np.uint32) << np.uint32(16)
    value = (alone + low.astype(np.uint32)).view(np.float32)
    return np.where(np.isnan(value), alone.view(np.float32), value)


def followed(p: Any, rounded: Any) -> tuple[Any, Any]:
    """Return float32 p, but what `rounded` holds where that is not p rounded to nearest; and where it is not.

    Bits decide, so 0 is not -0; but all NaNs are one. What a step has rounded from p is always that.
    """
    format, bits = format_of(rounded.dtype), f"u{rounded.itemsize}"
    copied = format.decode(rounded, None, len(p))
    outside = format.encode(p, None, None).view(bits) != rounded.view(bits)
    outside &= ~(np.isnan(p) & np.isnan(copied))
    return np.where(outside, copied, p), outside


Draw = tuple[int, int] | None  # the key and the first element's index of random bits; None: to nearest


def _floats(rested: Any, slot: Slot | None, n: int) -> Any:
    return rested.astype(np.promote_types(rested.dtype, np.float32), copy=False)


NARROW, WIDE = np.dtype(np.float32), np.dtype(np.float64)


@dataclass(frozen=True, eq=False)
class Format:
    """Says how numbers rest in an array: their size, their rounding, and both ways between an array at rest and floats.

    name:    what arguments, errors and the tables of each processor call it.
    rests:   the name of its arrays' dtype, NumPy's or one of ml_dtypes; of single bytes for blocks; no other format's.
    bytes:   of a block.
    encode:  (flat floats, slot or None for p, Draw) -> the array at rest.
    decode:  (the array at rest, slot or None for p, n) -> (n,) floats: float64 of a float64, else float32.
    block:   how many elements are encoded together; an array holds whole blocks.
    draws:   whether p, and slots that never fall below zero, are rounded by random bits.
    moments: whether Optimizer's `moments` may name it.
    compute: the dtype of steps over parameters in this format; slots in it go with parameters of that dtype.
    """

    name: str
    rests: str
    bytes: int
    encode: Callable[[Any, Slot | None, Draw], Any]
    decode: Callable[[Any, Slot | None, int], Any] = _floats
    block: int = 1
    draws: bool = False
    moments: bool = False
    compute: Any = NARROW

    @property
    def dtype(self) -> Any:
        """Return the dtype of an array of it. Raises ImportError where ml_dtypes has it and is not installed."""
        if hasattr(np, self.rests):
            return np.dtype(self.rests)
        try:
            import ml_dtypes
        except ImportError as error:
            raise ImportError(f"{self.name} needs ml_dtypes ({error}): pip install ml_dtypes") from None
        return np.dtype(getattr(ml_dtypes, self.rests))

    @property
    def is_float(self) -> bool:
        """Return whether arrays at rest are arrays of floats, as parameters, gradients and copies must be."""
        return self.name == self.rests

    @property
    def is_compute(self) -> bool:
        """Return whether what rests in it is what steps compute with, as it is."""
        return bool(self.name == self.compute.name)

    @property
    def is_short(self) -> bool:
        """Return whether arrays at rest are arrays of floats below 32 bits, which may be copies of wider parameters."""
        return self.is_float and self.bytes < 4

    def bytes_of(self, n: int) -> int:
        """Return how many bytes n elements take."""
        return -(-n // self.block) * self.bytes

    def length(self, n: int) -> int:
        """Return how many numbers of its dtype an array of n elements has."""
        return self.bytes_of(n) // (1 if self.block > 1 else self.bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        return named, (self.name,)  # copies are the same object


def named(name: str) -> Format:
    """Return the format of this name."""
    return FORMATS[name]


def _cast(dtype: Any, x: Any, slot: Slot | None, drawn: Draw) -> Any:
    return x.astype(dtype, copy=False)


def _to_bfloat16(x: Any, slot: Slot | None, drawn: Draw) -> Any:
    short = x.astype(np.float32, copy=False)
    if drawn is None:
        return short.astype(BFLOAT16.dtype)
    random = random_bits(*drawn, len(short))
    return stochastic(short, for_p(random) if slot is None else for_slots(random), BFLOAT16.dtype)


def _to_codes(x: Any, slot: Slot | None, drawn: Draw) -> Any:
    return codes.encode(x, is_signed(slot), None if drawn is None else partial(random_codes, *drawn))


def _of_codes(rested: Any, slot: Slot | None, n: int) -> Any:
    return codes.decode(rested, is_signed(slot), n)


def _half(*_: Any) -> Any:
    raise TypeError("a remainder is half of a number: see split and join")


FLOAT64 = Format("float64", "float64", 8, partial(_cast, WIDE), moments=True, compute=WIDE)
FLOAT32 = Format("float32", "float32", 4, partial(_cast, NARROW), moments=True)
BFLOAT16 = Format("bfloat16", "bfloat16", 2, _to_bfloat16, draws=True, moments=True)
FLOAT16 = Format("float16", "float16", 2, lambda x, slot, drawn: x.astype(np.float32).astype(np.float16))
CODES = Format("8bit", "uint8", codes.BYTES, _to_codes, _of_codes, block=BLOCK, draws=True, moments=True)
REMAINDER = Format("remainder", "int16", 2, _half, _half)  # the other 16 bits of a float32 whose p is bfloat16

FORMATS = {format.name: format for format in (FLOAT64, FLOAT32, BFLOAT16, FLOAT16, CODES, REMAINDER)}
RESTING = {format.rests: format for format in FORMATS.values()}
FLOATS = {name: format for name, format in FORMATS.items() if format.is_float}  # what users' arrays may be
SHORT = {name: format for name, format in FLOATS.items() if format.is_short}
DTYPES = FLOAT32.compute, FLOAT64.compute  # of the arithmetic


@cache
def format_of(dtype: Any) -> Format:
    """Return the format of what rests in arrays of a dtype."""
    return RESTING[dtype.name]


def compute(dtype: Any) -> Any:
    """Return the dtype that parameters of a dtype are computed in: float64 for float64, else float32."""
    return format_of(np.dtype(dtype)).compute


def decoded(x: Any, slot: Slot, n: int, wide: Any) -> Any:
    """Return n elements of a slot's array in the compute type; None where there is none."""
    return None if x is None else format_of(x.dtype).decode(x, slot, n).astype(wide, copy=False)


def encoded(values: Any, like: Any, slot: Slot | None = None, drawn: Draw = None) -> Any:
    """Return values in the format of the array `like`: to nearest, or by random bits. slot: None for p."""
    return values if values is None or like is None else format_of(like.dtype).encode(values, slot, drawn)
