"""Codes numbers in 8 bits on NumPy's arrays, and says what every processor's text of them is made of.

GROUP elements share a float32 scale; 2 + |x| / scale is a float whose exponent and first three bits of mantissa are the
code, so decoding is a shift and a subtraction, and no case is special. With a sign 4 bits of exponent are left, to
nearest, and zero is exact; else there are 5, the rounding is stochastic, and zero is worth half of the smallest step: a
v of 0 beside an m that is not would make the step explode. One value that is not finite makes the scale NaN.
benchmarks/fidelity.py is the evidence for the bits and for the group.

BLOCK elements are BYTES bytes: their codes, then their scales. Of a group, byte 4·l + j is element 16·j + l, so that
vectors of 16 are packed by shifts alone; there the four elements share one hash, whose last multiplication is done
with two factors: the upper and the lower 20 bits of each product.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .chores import BLOCK

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


def codes_and_scales(coded: Any) -> tuple[Any, Any]:
    """Return views of whole blocks: (blocks, BLOCK) uint8 and (blocks, BLOCK / GROUP) float32."""
    blocks = coded.reshape(-1, BYTES)
    return blocks[:, :BLOCK], blocks[:, BLOCK:].view(np.float32)


def _in_order(codes: Any) -> Any:
    """Return codes in the order of elements, from codes as they rest."""
    return codes.reshape(-1, LANES, GROUP // LANES).transpose(0, 2, 1).reshape(-1)


@np.errstate(all="ignore")
def decode(coded: Any, signed: bool, n: int) -> Any:
    """Return n elements of whole blocks: (n,) float32."""
    rested, scales = codes_and_scales(coded)
    codes = _in_order(rested).astype(np.uint32)
    bits = np.uint32(TWO) + ((codes & np.uint32(LAST[signed])) << np.uint32(SHIFT))
    x = (bits.view(np.float32) - TO[signed]).reshape(-1, GROUP) * scales.reshape(-1, 1) + np.float32(0)  # no -0
    if signed:
        x = (x.view(np.uint32) | (codes.reshape(x.shape) >> np.uint32(7)) << np.uint32(31)).view(np.float32)
    return x.reshape(-1)[:n]


@np.errstate(all="ignore")
def encode(x: Any, signed: bool, random: Callable[[int], Any] | None = None) -> Any:
    """Return the blocks of flat float32 x, filled up with zeros.

    random: gives so many groups' random bits, see formats.random_codes, to round by; None: to nearest.
    """
    count = -(-x.size // BLOCK)
    padded = np.zeros(count * BLOCK, np.float32)
    padded[: x.size] = x
    bits = padded.view(np.uint32).reshape(-1, GROUP)
    size = bits & np.uint32(0x7FFFFFFF)
    largest = size.max(axis=1).view(np.float32)
    scale = np.maximum(largest * PART[signed], TINY)
    scale = np.where(size.max(axis=1) == 0, np.float32(0), scale)
    finite = size.max(axis=1) < np.uint32(0x7F800000)
    inverse = np.minimum(REACH[signed] / largest, LARGE)
    y = (size.view(np.float32) * inverse[:, None] + (TO[signed] if random is None else DRAWN)).view(np.uint32)
    y += np.uint32(1 << SHIFT - 1) if random is None else random(len(bits))
    codes = (y >> np.uint32(SHIFT)) & np.uint32(LAST[signed])
    codes |= bits >> np.uint32(31) << np.uint32(7) if signed else np.uint32(0)
    codes = np.where((finite & (scale > 0))[:, None], codes, np.uint32(0))
    codes = codes.reshape(-1, GROUP // LANES, LANES).transpose(0, 2, 1)
    coded = np.empty(count * BYTES, np.uint8)
    for home, values in zip(codes_and_scales(coded), (codes, np.where(finite, scale, np.float32(np.nan))), strict=True):
        home[...] = values.reshape(home.shape)
    return coded
