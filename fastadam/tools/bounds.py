"""Derives tolerances: how far rounding can move one step's results, counted operation by operation.

Running error analysis (Higham 2002, 3.3): every number carries a bound on its distance from the exact one. Fed to a
kernel's element function, it yields the bound for exactly the operations that the kernel does.
"""

from functools import cached_property
from types import FunctionType
from typing import Any

import numpy as np

from fastadam.kernels.chores import BLOCK, LANES
from fastadam.kernels.contract import Euclidean, agreement, inverse_share
from fastadam.kernels.formats import FLOAT32, FLOAT64, format_of

WIDER: dict[Any, Any] = {FLOAT32.compute: np.float64, FLOAT64.compute: np.longdouble}  # what stands for exact numbers


def _plain(x):
    """Return numbers as float64, which tell how large an error is: with longdouble `verify` took half as long again to
    check float64."""
    with np.errstate(over="ignore"):
        return x.astype(np.float64, copy=False) if isinstance(x, np.ndarray | np.longdouble) else x


class Running:
    """Is a value, in more precision than the kernel has, and a bound on the kernel's distance from it, in float64."""

    def __init__(self, value, error, unit):
        self.value, self.error, self.unit = value, _plain(error), unit

    @classmethod
    def arithmetic(cls, dtype):
        """Return unit roundoff, and the smallest subnormal: twice what a result can lose to underflow. Twice that in
        float64, for three of the bound's own products, float64 too, may each lose as much."""
        info = np.finfo(dtype)
        losses = 2 if format_of(np.dtype(dtype)) is FLOAT64 else 1
        return float(info.eps) / 2, losses * float(info.smallest_subnormal)

    @cached_property
    def size(self):
        """Return the value's magnitude as float64."""
        return np.abs(_plain(self.value))

    @property
    def is_exact(self):
        """Return whether the error is 0 throughout, and known to be."""
        return isinstance(self.error, float) and self.error == 0.0

    def _rounded(self, value, error, underflows=True):
        relative, absolute = self.unit
        result = Running(value, error, self.unit)
        size = result.size + error
        size *= relative
        size += error
        if underflows:
            size += np.where((value != 0) | (error > 0), absolute, 0)  # what comes of exact zeros is exact
        result.error = size
        return result

    def _other(self, x):
        return x if isinstance(x, Running) else Running(x, 0.0, self.unit)

    def __add__(self, x):
        x = self._other(x)
        return self._rounded(self.value + x.value, self.error + x.error, underflows=False)

    def __sub__(self, x):
        x = self._other(x)
        return self._rounded(self.value - x.value, self.error + x.error, underflows=False)

    def __mul__(self, x):
        x = self._other(x)
        if x.is_exact:
            error = x.size * self.error
        elif self.is_exact:
            error = self.size * x.error
        else:
            error = self.size * x.error
            error += (x.size + x.error) * self.error
        return self._rounded(self.value * x.value, error)

    def __truediv__(self, x):
        x = self._other(x)
        value = self.value / x.value
        room = x.size - x.error  # how near to 0 the divisor can be
        error = (self.error + np.abs(_plain(value)) * x.error) / np.where(room > 0, room, 1)
        return self._rounded(value, np.where(room > 0, error, np.inf))

    def __rtruediv__(self, x):
        return self._other(x) / self

    def sqrt(self):
        value = np.sqrt(self.value)
        root, low, high = _plain(value), np.sqrt(np.maximum(self.size - self.error, 0)), np.sqrt(self.size + self.error)
        with np.errstate(divide="ignore", invalid="ignore"):  # by 0, in what is not chosen
            down = np.where(low > 0, self.error / (root + low), root)
            up = np.where(high > 0, self.error / (high + root), 0)
        return self._rounded(value, np.where(np.isfinite(self.error), np.maximum(down, up), np.inf))

    def __gt__(self, x):
        return self.value > self._other(x).value

    def __ne__(self, x):
        return self.value != self._other(x).value

    __hash__ = None  # type: ignore[assignment]

    def __neg__(self):
        return Running(-self.value, self.error, self.unit)

    def __abs__(self):
        return Running(np.abs(self.value), self.error, self.unit)


def _maximum(a, b):
    b = a._other(b)
    return Running(np.maximum(a.value, b.value), np.maximum(a.error, b.error), a.unit)


def _sign(x):
    return Running(np.sign(x.value), np.where(x.size > x.error, 0.0, 2.0), x.unit)


def _select(x, a, b):
    a, b = a._other(a), a._other(b)
    value, other = np.where(x.value < 0, b.value, a.value), np.where(x.value < 0, a.value, b.value)
    error, of_other = np.where(x.value < 0, b.error, a.error), np.where(x.value < 0, a.error, b.error)
    either = np.maximum(error, np.abs(_plain(other - value)) + of_other)  # rounding may choose the other one
    return Running(value, np.where(x.size > x.error, error, either), a.unit)


def _where(truth, a, b):
    a, b = (x if isinstance(x, Running) else Running(np.float64(x), 0.0, None) for x in (a, b))
    chosen, other = (a, b) if truth else (b, a)
    near = abs(a.value - b.value) <= a.error + b.error  # rounding may choose the other one
    return Running(chosen.value, chosen.error + other.error, chosen.unit) if near else chosen


# What contract.py's names mean over Running numbers: those that NumPy lacks, then those made of them.
MEANINGS: dict[str, Any] = {"maximum": _maximum, "sign": _sign, "select": _select, "where": _where}
MEANINGS |= {each.__name__: FunctionType(each.__code__, MEANINGS) for each in (agreement, inverse_share)}


def _summed(each, x, unit):
    """Return what a sum over x comes to in float64: each of `depth` additions on an element's way adds a rounding."""
    depth, size = BLOCK // LANES + np.log2(LANES) + np.ceil(np.log2(max(x.value.size / BLOCK, 1))), np.abs(x.value)
    errors = np.broadcast_to(x.error, size.shape)
    if isinstance(each, Euclidean):  # the norm of the errors is the most that they can move it; squares are rounded
        value, error = np.sqrt((size * size).sum()), np.sqrt((errors * errors).sum())
        return Running(value, error + (depth + 2) * unit[0] * (value + error), unit)
    return Running(x.value.sum(), errors.sum() + depth * unit[0] * (size + errors).sum(), unit)


def wide_number(x, error=0.0):
    """Return a number of float64 that is off by as much as this, at most; a Running as it is."""
    return x if isinstance(x, Running) else Running(np.float64(x), error, Running.arithmetic(np.float64))


def _factor(kernel, arguments, c, unit, shared):
    """Return the kernel's factor over a leaf of these elements, as `judged` makes it in float64, then rounded.

    Where the kernel has Judging it is over all there are, and what is carried on takes the place of what was."""
    summands, wide = kernel.step(*arguments, c)[1 + len(kernel.slots) :], Running.arithmetic(np.float64)
    sums = [_summed(each, x, wide) for each, x in zip(kernel.sums, summands, strict=True)]
    judged = FunctionType(kernel.judged.__code__, kernel.judged.__globals__ | MEANINGS)
    with np.errstate(all="ignore"):
        if kernel.Judging is None:
            factor = judged(float(summands[0].value.size), *sums, c)
        else:
            carried, judging = ([wide_number(x) for x in numbers] for numbers in shared)
            factor, *_ = shared[0][:] = judged(*sums, *carried, kernel.Judging(*judging))
    return Running(factor.value, factor.error + unit[0] * np.abs(factor.value), unit)


def one_step(kernel, dtype, streams, row, host, off=None, shared=((), ())):
    """Return bounds for (p, *slots) after one step by `kernel` in `dtype` from exact streams (None: absent).

    row: the coefficients; host: their relative error before they are rounded to dtype, one number or one for each.
    off: None, or where the rule needs the kernel's sums, of which these streams are a whole leaf, how far its factor is
        off besides, relatively: 0 unless it is another's.
    shared: where the kernel judges by them, a list of what the rule carries before the step, which afterwards holds
        Running numbers of what it carries on, and the rule's `judging`.
    A stream that is no longer exact may be a Running.
    """
    unit = Running.arithmetic(dtype)
    wide = WIDER[np.dtype(dtype)]
    exact = [Running(x.astype(wide), 0.0, unit) if isinstance(x, np.ndarray) else x for x in streams]
    hosts = np.broadcast_to(host, len(row))
    c = kernel.Coefficients(*(Running(wide(x), abs(x) * (h + unit[0]), unit) for x, h in zip(row, hosts, strict=True)))
    element = kernel.element
    names = element.__globals__ | MEANINGS
    running = FunctionType(element.__code__, names, None, element.__defaults__, element.__closure__)
    kernel, arguments = kernel._replace(element=running), [*exact, *[None if off is None else 0] * len(kernel.sums)]
    if off is not None and kernel.Judging is not None and isinstance(first := shared[0][0], Running):
        given = c[-2]
        c = c._replace(**{c._fields[-2]: Running(given.value, given.error + first.error * (1 + unit[0]), unit)})
    if off is not None:
        factor = _factor(kernel, arguments, c, unit, shared)
        factor.error += off * np.abs(factor.value)
        c = c._replace(factor=factor)
    return [None if x is None else x.error for x in kernel.step(*arguments, c)[: 1 + len(kernel.slots)]]
