"""Models in NumPy of how a moment may rest in few bytes, which benchmarks/fidelity.py compares.

A coding maps a flat float32 array to what is read back after it was stored. Groups of equal size share one scale;
the array's length is a multiple of every group's size. Written for fidelity, not for speed, the rivals' from their
papers and manuals; the library has its own.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np

f32, u32 = np.float32, np.uint32
ONE = u32(0x3F800000)  # the bits of 1.0


def exact(x, rng):
    """Return float32 itself."""
    return x


def _draws(rng, size, bits):
    """Draw uniform integers below 2^bits."""
    return rng.integers(0, 1 << 32, size, dtype=u32) >> u32(32 - bits)


@dataclass(frozen=True)
class BFloat16:
    """Keeps the upper half of a float32, rounded to nearest even or stochastically."""

    stochastic: bool = False
    bytes = 2

    def __call__(self, x, rng):
        bits = x.view(u32)
        add = _draws(rng, x.shape, 16) if self.stochastic else u32(0x7FFF) + ((bits >> u32(16)) & u32(1))
        return ((bits + add) & u32(0xFFFF0000)).view(f32)


@dataclass(frozen=True)
class ShiftedFloat:
    """Keeps the upper bits of the float w + 1, less those of 1: a small float with gradual underflow, by shifts only.

    w = root(|x|/scale). Codes are E, M and stand for w = 2^E·(1 + M/2^mantissa) - 1; the scale puts the group's largest
    on the last code. halvings: 0, 1, 2 for w the value itself, nearly its square root, nearly its fourth root: a
    float's bits, halved about those of 1, are linear in the value between powers of two, so stochastic rounding stays
    unbiased there and the inverse is exact. signed: a sign bit beside the code, and code 0 is zero. Otherwise code 0 is
    half of the smallest step in w, never zero.
    """

    exponent: int
    mantissa: int
    signed: bool = False
    stochastic: bool = False
    group: int = 64
    halvings: int = 0

    @property
    def bytes(self):
        return 1 + 4 / self.group

    @property
    def last(self):
        """Return the largest code, but for the sign."""
        return (1 << (self.exponent + self.mantissa)) - 1

    @property
    def middle(self):
        return ONE - (ONE >> u32(self.halvings))

    def root(self, z):
        return ((z.view(u32) >> u32(self.halvings)) + self.middle).view(f32)

    def power(self, w):
        """Invert root, but for the bits that root drops; 0 of 0."""
        return np.where(w == 0, u32(0), (w.view(u32) - self.middle) << u32(self.halvings)).view(f32)

    def values(self, codes):
        """Return what codes (without the sign) stand for, in units of the scale."""
        w = ((codes.astype(u32) << u32(23 - self.mantissa)) + ONE).view(f32) - f32(1)
        return self.power(w if self.signed else np.where(codes == 0, f32(2.0 ** -(self.mantissa + 1)), w))

    def encode(self, x, rng):
        """Return codes without the sign, in rows of a group each, and the groups' scales."""
        shift = 23 - self.mantissa
        magnitudes = np.abs(x).reshape(-1, self.group)
        scale = magnitudes.max(axis=1, keepdims=True) / self.values(np.array([self.last]))
        z = magnitudes / np.maximum(scale, np.finfo(f32).smallest_subnormal)
        bits = (self.root(z) + f32(1)).view(u32) - ONE
        bits += _draws(rng, bits.shape, shift) if self.stochastic else u32(1 << (shift - 1))
        return np.minimum(bits >> u32(shift), u32(self.last)), scale

    def __call__(self, x, rng):
        codes, scale = self.encode(x, rng)
        decoded = (_table(self)[codes] * scale).reshape(x.shape)
        return np.copysign(decoded, x) if self.signed else decoded


@cache
def _table(coding):
    return coding.values(np.arange(coding.last + 1))


@dataclass(frozen=True)
class FlashOptim:
    """Compands, then keeps 8 bits to nearest, with a float16 scale per 32.

    Ortiz et al. 2026 (arXiv 2602.23349), Algorithms 2 and 3. signed: 2z/(1 + |z|) of z = x/scale in 127 steps to either
    side; otherwise √x/scale in 255 steps. Codes are of the float32 scale, which is at least 1e-12.
    never_zero: not as published; code 0 is read as half a step.
    """

    signed: bool
    never_zero: bool = False
    group = 32
    bytes = 1 + 2 / 32

    def __call__(self, x, rng):
        y = (x if self.signed else np.sqrt(x)).reshape(-1, self.group)
        scale = np.maximum(np.abs(y).max(axis=1, keepdims=True), f32(1e-12))
        stored = scale.astype(np.float16).astype(f32)
        z = y / scale
        if self.signed:
            z = np.rint(f32(127) * (2 * z / (1 + np.abs(z)))) / f32(127)
            return (z / (2 - np.abs(z)) * stored).reshape(x.shape)
        root = np.maximum(np.rint(f32(255) * z), f32(0.5 * self.never_zero)) / f32(255) * stored
        return (root * root).reshape(x.shape)


@cache
def dynamic_map(signed):
    """Return the 256 values of dynamic tree quantization, ascending (Dettmers 2016, 2; Dettmers et al. 2022).

    Seven decades below 1; the k-th from below, k = 0 to 6, holds the centres of 2^k (unsigned: 2^(k+1)) equal parts of
    0.1 to 1; zero and 1 beside them. Negative values mirror the centres, not the 1.
    """
    centres = []
    for k in range(7):
        edges = np.linspace(0.1, 1, 2 ** (k if signed else k + 1) + 1)
        centres.append(10.0 ** (k - 6) * (edges[:-1] + edges[1:]) / 2)
    positive = np.concatenate(centres)
    negative = -positive if signed else []
    return np.sort(np.concatenate([negative, [0.0], positive, [1.0]])).astype(f32)


@dataclass(frozen=True)
class DynamicTree:
    """Keeps the nearest of dynamic_map's values, as bitsandbytes, and a scale per 256: the group's largest magnitude.

    As on CUDA: m keeps its sign, so where the nearest value has another, zero counting as positive, the next is taken.
    Left out: tensors of fewer than 4,096 elements, which bitsandbytes keeps in float32 unless told otherwise; and that
    its search on CPUs never reads less than 1.56e-5 of an unsigned group's largest (0.50.2).
    never_zero: not as published; the unsigned code 0 is read as half of the smallest value.
    """

    signed: bool
    never_zero: bool = False
    group = 256
    bytes = 1 + 4 / 256

    def __call__(self, x, rng):
        table = dynamic_map(self.signed)
        y = x.reshape(-1, self.group)
        scale = np.abs(y).max(axis=1, keepdims=True)
        z = y / np.maximum(scale, np.finfo(f32).smallest_subnormal)
        middles, code = (table[1:] + table[:-1]) / 2, np.zeros(z.shape, np.intp)
        for step in (128, 64, 32, 16, 8, 4, 2, 1):  # np.searchsorted, 8 times as fast: no branch to be guessed
            code += step * (z > middles[code + (step - 1)])
        if self.signed:
            wrong = np.signbit(table[code]) != np.signbit(y)
            code = np.where(wrong, code + np.where(y > 0, 1, -1), code)
        read = np.where(table == 0, table[1] / 2, table) if self.never_zero else table
        return (read[code] * scale).reshape(x.shape)


class Pair(NamedTuple):
    """Says how m and v are stored; library: what the library calls it, if it has it."""

    m: object
    v: object
    library: str = ""

    @property
    def bytes(self):
        """Return the bytes of both, per parameter."""
        return getattr(self.m, "bytes", 4) + getattr(self.v, "bytes", 4)


M8, V8 = ShiftedFloat(4, 3, signed=True), ShiftedFloat(5, 3, stochastic=True)
EIGHT_BITS = "8-bit"
FORMATS = {
    "float32": Pair(exact, exact, "float32"),
    "bfloat16 to nearest": Pair(BFloat16(), BFloat16()),
    "bfloat16, v stochastic": Pair(BFloat16(), BFloat16(stochastic=True), "bfloat16"),
    EIGHT_BITS: Pair(M8, V8, "8bit"),
    "FlashOptim": Pair(FlashOptim(signed=True), FlashOptim(signed=False)),
    "bitsandbytes": Pair(DynamicTree(signed=True), DynamicTree(signed=False)),
}
# What else 8 bits could be: one thing changed at a time. Quartered, halved: ShiftedFloat's `halvings`.
VARIANTS = {
    "groups of 32": Pair(replace(M8, group=32), replace(V8, group=32)),
    "groups of 128": Pair(replace(M8, group=128), replace(V8, group=128)),
    "groups of 256": Pair(replace(M8, group=256), replace(V8, group=256)),
    "m 3 + 4 bits": Pair(ShiftedFloat(3, 4, signed=True), V8),
    "m stochastic": Pair(replace(M8, stochastic=True), V8),
    "v to nearest": Pair(M8, replace(V8, stochastic=False)),
    "v 4 + 4 bits": Pair(M8, ShiftedFloat(4, 4, stochastic=True)),
    "v 4 + 4 bits, to nearest": Pair(M8, ShiftedFloat(4, 4)),
    "v 3 + 5 bits of halved bits": Pair(M8, ShiftedFloat(3, 5, stochastic=True, halvings=1)),
    "v 2 + 6 bits of quartered bits": Pair(M8, ShiftedFloat(2, 6, stochastic=True, halvings=2)),
    "FlashOptim, v never 0": Pair(FlashOptim(signed=True), FlashOptim(signed=False, never_zero=True)),
    "bitsandbytes, v never 0": Pair(DynamicTree(signed=True), DynamicTree(signed=False, never_zero=True)),
}
EVERY = FORMATS | VARIANTS
