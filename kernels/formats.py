"""Storage formats: from what rests in memory to the compute type and back. Here for NumPy arrays.

To nearest, ties to even; bfloat16 also stochastically: up with the probability that makes the mean exact. A value that
is not finite bypasses both. The random bits are a hash of (seed, count, element), so all backends draw the same ones:
slots take its upper half, p the two halves combined.

8 bits: GROUP elements share a float32 scale; 2 + |x| / scale is a float whose exponent and first three bits of mantissa
are the code, so decoding is a shift and a subtraction, and no case is special. With a sign 4 bits of exponent are left,
to nearest, and zero is exact; else there are 5, the rounding is stochastic, and zero is worth half of the smallest
step: a v of 0 beside an m that is not would make the step explode. One value that is not finite makes the scale NaN.
benchmarks/fidelity.py is the evidence for the bits and for the group.

BLOCK elements are BYTES bytes: their codes, then their scales. Of a group, byte 4·l + j is element 16·j + l, so that
vectors of 16 are packed by shifts alone; there the four elements share one hash, whose last multiplication is done
with two factors: the upper and the lower 20 bits of each product.
"""

from typing import Any

import numpy as np

from .chores import BLOCK
from .contract import NonNegative, Signed, Slot

MIX = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F  # odd; 2^32 over the golden ratio, and xxHash's primes 2 to 4
WHOLE = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio
LOW = 0xFFFFFFFF

GROUP, LANES = 64, 16
BYTES = BLOCK + BLOCK // GROUP * 4
SHIFT, TWO = 20, 0x40000000  # of a float32's bits: below the code; 2.0, whose bits there are 0
LAST = {True: 127, False: 255}  # the largest code with and without a sign
TO = {True: np.float32(2), False: np.float32(2.125)}  # what is decoded to 0, and to nearest encoded
DRAWN = np.float32(2.25)  # what 0 is encoded as stochastically: code 1, which is worth 1/8
TOP = {signed: np.uint32(TWO + (last << SHIFT)).view(np.float32) - TO[signed] for signed, last in LAST.items()}
REACH = {signed: top * np.float32(1 - 2.0**-21) for signed, top in TOP.items()}  # however rounded, not beyond LAST
PART = {signed: np.float32(1) / top for signed, top in TOP.items()}
TINY, LARGE = np.float32(2.0**-126), np.float32(2.0**126)  # the smallest scale of what is not all 0, and its inverse


def compute(dtype: Any) -> Any:
    """What parameters of a dtype are computed in: float64 for float64, else float32."""
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)


def key(seed: int, count: int) -> int:
    """52 bits that depend on all of seed and count: SplitMix64's finish (Steele et al. 2014). Exact as a float64."""
    x = (seed + WHOLE * (count + 1)) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (x ^ (x >> 31)) >> 12


def _started(key: int, index: Any) -> Any:
    """What is mixed for elements of these indices."""
    low, high = (index & np.uint64(LOW)).astype(np.uint32), (index >> np.uint64(32)).astype(np.uint32)
    return low * np.uint32(MIX[0]) + np.uint32((key ^ (key >> 32)) & LOW) + high * np.uint32(MIX[1])


def _mixed(x: Any, last: int = MIX[2]) -> Any:
    # With one multiplication less pairs of elements are dependent at a third of all distances; now at a few, whose
    # correlation is below 0.01.
    x = (x ^ (x >> np.uint32(16))) * np.uint32(MIX[1])
    return (x ^ (x >> np.uint32(15))) * np.uint32(last)


def random_bits(key: int, first: int, n: int) -> Any:
    """(n,) uint32 for elements first, first + 1, ...; two draws: see for_slots and for_p."""
    return _mixed(_started(key, np.uint64(first) + np.arange(n, dtype=np.uint64)))


def random_codes(key: int, first: int, groups: int) -> Any:
    """(groups, GROUP) uint32 below 2^SHIFT, for the codes of groups, which begin with elements first, first + GROUP...

    All of a group belong to the same multiple of 2^32 as its first.
    """
    start = _started(key, np.uint64(first) + np.arange(0, groups * GROUP, GROUP, dtype=np.uint64))
    x = start[:, None] + np.arange(LANES, dtype=np.uint32) * np.uint32(MIX[0])
    words = _mixed(x), _mixed(x, MIX[3])
    parts = [part for word in words for part in (word >> np.uint32(32 - SHIFT), word & np.uint32((1 << SHIFT) - 1))]
    return np.concatenate(parts, axis=1)


def for_p(random: Any) -> Any:
    """16 bits."""
    return (random ^ (random >> np.uint32(16))) & np.uint32(0xFFFF)


def for_slots(random: Any) -> Any:
    """16 bits."""
    return random >> np.uint32(16)


def is_signed(slot: Slot) -> bool:
    """Whether a slot's codes have a sign."""
    return isinstance(slot, Signed)


def is_drawn(slot: Slot) -> bool:
    """Whether short formats round a slot stochastically."""
    return isinstance(slot, NonNegative)


def stochastic(x: Any, draw: Any, dtype: Any) -> Any:
    """x in bfloat16, rounded up in size with the probability of what lies below its last bit; draw: 16 random bits."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    kept = np.where(np.isnan(x), bits | np.uint32(0x400000), bits + (draw & np.uint32(0xFFFF)))
    return (kept >> np.uint32(16)).astype(np.uint16).view(dtype)


def split(x: Any, dtype: Any) -> tuple[Any, Any]:
    """float32 x as bfloat16, to nearest, ties up in size, and the signed 16 bits that it lacks; of a NaN none.

    Ties to even could not be undone.
    """
    bits = np.where(np.isnan(x), (x.view(np.uint32) | np.uint32(0x400000)) & np.uint32(0xFFFF0000), x.view(np.uint32))
    high = ((bits + np.uint32(0x8000)) >> np.uint32(16)).astype(np.uint16)
    return high.view(dtype), bits.astype(np.uint16).view(np.int16)


def join(high: Any, low: Any) -> Any:
    """The float32 that `split` took apart."""
    return ((high.view(np.uint16).astype(np.uint32) << np.uint32(16)) + low.astype(np.uint32)).view(np.float32)


def blocks(n: int) -> int:
    """How many blocks n elements of 8 bits take."""
    return -(-n // BLOCK)


def codes_and_scales(coded: Any) -> tuple[Any, Any]:
    """Views of whole blocks: (blocks, BLOCK) uint8 and (blocks, BLOCK / GROUP) float32."""
    whole = coded.reshape(-1, BYTES)
    return whole[:, :BLOCK], whole[:, BLOCK:].view(np.float32)


def _in_order(codes: Any) -> Any:
    """Codes as they rest to codes in the order of elements."""
    return codes.reshape(-1, LANES, GROUP // LANES).transpose(0, 2, 1).reshape(-1)


@np.errstate(all="ignore")
def decode_8bit(coded: Any, signed: bool, n: int) -> Any:
    """(n,) float32 from their blocks."""
    rested, scales = codes_and_scales(coded)
    codes = _in_order(rested).astype(np.uint32)
    bits = np.uint32(TWO) + ((codes & np.uint32(LAST[signed])) << np.uint32(SHIFT))
    x = (bits.view(np.float32) - TO[signed]).reshape(-1, GROUP) * scales.reshape(-1, 1) + np.float32(0)  # no -0
    if signed:
        x = (x.view(np.uint32) | (codes.reshape(x.shape) >> np.uint32(7)) << np.uint32(31)).view(np.float32)
    return x.reshape(-1)[:n]


@np.errstate(all="ignore")
def encode_8bit(x: Any, signed: bool, drawn: tuple[int, int] | None = None) -> Any:
    """The blocks of flat float32 x, filled up with zeros. drawn: the key and x's first index; None: to nearest."""
    count = blocks(x.size)
    padded = np.zeros(count * BLOCK, np.float32)
    padded[: x.size] = x
    bits = padded.view(np.uint32).reshape(-1, GROUP)
    size = bits & np.uint32(0x7FFFFFFF)
    largest = size.max(axis=1).view(np.float32)
    scale = np.maximum(largest * PART[signed], TINY)
    scale = np.where(size.max(axis=1) == 0, np.float32(0), scale)
    finite = size.max(axis=1) < np.uint32(0x7F800000)
    inverse = np.minimum(REACH[signed] / largest, LARGE)
    y = (size.view(np.float32) * inverse[:, None] + (TO[signed] if drawn is None else DRAWN)).view(np.uint32)
    y += np.uint32(1 << SHIFT - 1) if drawn is None else random_codes(*drawn, len(bits))
    codes = (y >> np.uint32(SHIFT)) & np.uint32(LAST[signed])
    codes |= bits >> np.uint32(31) << np.uint32(7) if signed else np.uint32(0)
    codes = np.where((finite & (scale > 0))[:, None], codes, np.uint32(0))
    codes = codes.reshape(-1, GROUP // LANES, LANES).transpose(0, 2, 1)
    coded = np.empty(count * BYTES, np.uint8)
    for home, values in zip(codes_and_scales(coded), (codes, np.where(finite, scale, np.float32(np.nan))), strict=True):
        home[...] = values.reshape(home.shape)
    return coded


def decoded(x: Any, slot: Slot, n: int, wide: Any) -> Any:
    """n elements of a slot in the compute type; None where there is none."""
    if x is None or x.dtype != np.uint8:
        return None if x is None else x.astype(wide, copy=False)
    return decode_8bit(x, is_signed(slot), n)


def encoded(values: Any, like: Any, slot: Any = None, drawn: Any = None) -> Any:
    """values in the storage format of `like`: to nearest, or by the random bits of a key and a first index. slot: None
    for p."""
    if values is None or like is None or values.dtype == like.dtype:
        return values
    if like.dtype == np.uint8:
        return encode_8bit(values, is_signed(slot), drawn)
    if like.dtype.itemsize > 2:
        return values.astype(like.dtype)
    short = values.astype(np.float32)
    if like.dtype.name == "bfloat16" and drawn is not None:
        random = random_bits(drawn[0], drawn[1], len(short))
        return stochastic(short, for_p(random) if slot is None else for_slots(random), like.dtype)
    return short.astype(like.dtype)
