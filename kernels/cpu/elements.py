"""The element functions as compiled code: what contract.py's two functions mean there, and which kernel a tag names."""

from collections import namedtuple
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic, overload, register_jitable

from .. import ALL
from ..chores import Flags, average, clip
from ..contract import Kernel, maximum, sign
from ..formats import Format, is_drawn
from ..streams import Columns
from .formats import draws, draws_from, next_draws, numbers

TURN = np.uint64(1 << 32)
FLAGS = Flags._fields  # there or None


def _tag(kernel: Kernel) -> Any:
    """A named tuple with a field per stream: its class names the kernel in compiled code, its fields the formats."""
    return namedtuple(kernel.name, (*kernel.streams.row, *FLAGS), module=__name__)  # type: ignore[misc]


TAGS = {name: _tag(kernel) for name, kernel in ALL.items()}
KERNEL_OF = {tag: ALL[name] for name, tag in TAGS.items()}
globals().update(TAGS)  # the disk cache pickles a tag by module and name


class Measure(NamedTuple):
    """The tag of a walk that only reads g: its sum of squares, its largest magnitude."""

    p: Any
    g: Any
    squares: Any  # there or None
    largest: Any


class Accumulate(NamedTuple):
    """The tag of a walk that adds g to p where the leaf's row is 1, and stores it there where the row is 0."""

    p: Any
    g: Any
    clear: Any


@intrinsic
def _as_type_of(typing, like, x):
    """x, an integer literal or already a float, in the type of `like`: a bare 0 must not widen float32 to float64."""
    return like(like, x), lambda cx, b, sig, args: cx.cast(b, args[1], sig.args[1], sig.args[0])


def closure(function: Any, *values: Any) -> Any:
    """A closure that compiled code may call, under a name that tells the values in it.

    Numba tells namesakes apart by a count that every process begins anew; of two in code from the disk one wins.
    """
    function.__qualname__ += "_".join(map(str, ("", *values)))
    return register_jitable(function)


@overload(maximum)
def _maximum(a, b):
    def compiled(a, b):
        other = _as_type_of(a, b)
        return a if (a > other) | (a != a) else other

    return compiled


@overload(sign)
def _sign(x):
    def compiled(x):
        zero = _as_type_of(x, 0)
        nearly = _as_type_of(x, 1) if x > zero else (_as_type_of(x, -1) if x < zero else zero)
        return nearly if x == x else x

    return compiled


def random_start(tag, key, first, at):
    """What `random` needs for element `at`, or None where a tag draws nothing."""


@overload(random_start)
def _random_start(tag, key, first, at):
    if not stochastic(tag):
        return lambda tag, key, first, at: None
    return lambda tag, key, first, at: draws_from(key, first, at)


def random_end(tag, first, at, end):
    """How far what begins at element `at` serves: to the next multiple of 2^32 of the index, if it lies before end."""


@overload(random_end)
def _random_end(tag, first, at, end):
    if not stochastic(tag):
        return lambda tag, first, at, end: end
    return lambda tag, first, at, end: min(end, at + TURN - (first + at) % TURN)


def random(tag, bits):
    """The random bits of an element, or None where its tag needs none."""


@overload(random)
def _random(tag, bits):
    return (lambda tag, bits: draws(bits)) if stochastic_elements(tag) else lambda tag, bits: None


def random_next(tag, bits):
    """What `random` needs for the next element."""


@overload(random_next)
def _random_next(tag, bits):
    return (lambda tag, bits: next_draws(bits)) if stochastic_elements(tag) else lambda tag, bits: bits


def element(tag, values, c, x):
    """One element's step by the kernel that `tag` names, and its chores: the new values, in the order of streams.

    values: in that order, None for an absent stream, for the copy, which is not read, and for `low`, read with p.
    c, x: the kernel's numbers and the chores'.
    """


@overload(element)
def _element(tag, values, c, x):
    function, at = register_jitable(KERNEL_OF[tag.instance_class].element), columns(tag)
    p_at, g_at, ema_at, first = at.p, at.g, at.ema, at.ema - len(at.slots)

    def compiled(tag, values, c, x):
        g, c = _gradient(tag, values[g_at], c, x)
        new = function(values[p_at], g, *values[first:ema_at], c)
        return (new[0], zero(tag, g), *new[1:], _averaged(values[ema_at], new[0], x), new[0], None)

    return compiled


def _gradient(tag, g, c, x):
    """The gradient that the kernel gets, and its numbers: both as they are, or g scaled and clipped and scale 1."""


@overload(_gradient)
def _gradient_as_asked(tag, g, c, x):
    if not asked(tag, "limit"):
        return lambda tag, g, c, x: (g, c)
    return lambda tag, g, c, x: (_clip(c.grad_scale * g, x.max_value), _unscaled(c))


@intrinsic
def _unscaled(typing, c):
    """The kernel's numbers with 1 as the gradient's scale, which is the first."""

    def generate(context, builder, signature, args):
        one = context.get_constant(c.dtype, 1.0)
        return builder.insert_value(args[0], one, 0)

    return c(c), generate


@intrinsic
def zero(typing, tag, g):
    """0 in the type of g."""
    return g(tag, g), lambda cx, b, sig, args: cx.get_constant(sig.return_type, 0.0)


def _averaged(ema, p, x):
    """The average after p, or None."""


@overload(_averaged)
def _averaged_as_asked(ema, p, x):
    if isinstance(ema, types.NoneType):
        return lambda ema, p, x: None
    return lambda ema, p, x: _average(ema, p, x)


_average, _clip = register_jitable(average), register_jitable(clip)


def columns(tag: Any) -> Columns:
    """The place of each stream among the fields of a tag, and in a row of the table."""
    kernel = KERNEL_OF.get(tag.instance_class)
    return Columns(0, 1) if kernel is None else Columns.of(range(len(kernel.streams.row)))


def streams_of(tag: Any) -> int:
    """How many fields of a tag are columns of the table."""
    return len(KERNEL_OF[tag.instance_class].streams.row) if tag.instance_class in KERNEL_OF else 2


def loaded(tag: Any) -> dict[int, Format]:
    """{column: format} of every stream that is read as one: all but the copy, and the bits that p lacks."""
    return {k: format for k, format in storage(tag) if k not in (columns(tag).copy, columns(tag).low)}


def remainder(tag: Any) -> int | None:
    """The column of the bits that p lacks, if it has one."""
    return next((k for k, _ in storage(tag) if k == columns(tag).low), None)


def coded(tag: Any) -> list[int]:
    """The columns of slots whose elements rest in blocks."""
    return [k for k, format in storage(tag) if format.block > 1] if tag.instance_class in KERNEL_OF else []


def stochastic(tag: Any) -> set[int]:
    """The columns that are rounded stochastically: p, and slots that never fall below zero, if their format draws."""
    if tag.instance_class not in KERNEL_OF:
        return set()
    at = columns(tag)
    drawn = {k for k, slot in zip(at.slots, KERNEL_OF[tag.instance_class].slots, strict=True) if is_drawn(slot)}
    drawn |= {at.p} if remainder(tag) is None else set()
    return {k for k, format in storage(tag) if k in drawn and format.draws}


def stochastic_elements(tag: Any) -> set[int]:
    """Those of them whose elements are rounded one by one."""
    return stochastic(tag) - set(coded(tag))


def asked(tag: Any, flag: str) -> bool:
    """Whether a flag of a tag is there."""
    return flag in tag.fields and not isinstance(tag.types[tag.fields.index(flag)], types.NoneType)


def storage(tag: Any) -> list[tuple[int, Format]]:
    """(column, format) of every stream that is there, from the Numba type of a tag."""
    fields = tag.types[: streams_of(tag)]
    return [(k, field.format) for k, field in enumerate(fields) if not isinstance(field, types.NoneType)]


def compute_type(tag: Any) -> Any:
    """float64 for float64 parameters, else float32."""
    return numbers(storage(tag)[0][1])
