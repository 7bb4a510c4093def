"""Says which kernel a tag names, what its streams rest in, and one element's step under it, as code."""

from collections import namedtuple
from typing import Any, NamedTuple

from numba import types

from .. import ALL
from ..chores import Flags, average, clip
from ..contract import Kernel
from ..formats import Format, is_drawn
from ..streams import Columns
from .formats import numbers
from .tracing import Number

FLAGS = Flags._fields  # there or None


def _tag(kernel: Kernel) -> Any:
    """Return a named tuple with a field per stream, whose format it holds, and one per flag and switch, there or None.

    Its class names the kernel in compiled code.
    """
    fields = (*kernel.streams.row, *FLAGS, *kernel.switches)
    return namedtuple(kernel.name, fields, module=__name__)  # type: ignore[misc]


TAGS = {name: _tag(kernel) for name, kernel in ALL.items()}
KERNEL_OF = {tag: ALL[name] for name, tag in TAGS.items()}


class Measure(NamedTuple):
    """Tags a walk that only reads g: its sum of squares, its largest magnitude."""

    p: Any
    g: Any
    squares: Any  # there or None
    largest: Any
    several: Any = None


class Accumulate(NamedTuple):
    """Tags a walk that adds g to p where the leaf's row is 1, and stores it there where the row is 0."""

    p: Any
    g: Any
    clear: Any


def element(tag: Any, values: Any, c: Any, x: Any) -> tuple[Any, ...]:
    """Return one element's step by the kernel that `tag` names, and its chores: the new values, in the order of
    streams.

    values: in that order, None for an absent stream, for the copy, which is not read, and for what is read with p.
    c, x: the kernel's numbers and the chores'. All of them as tracing.Number.
    """
    p, slots, _ = stepped(tag, values, c, x)
    ema = Columns.of(values).ema
    ema = None if ema is None else average(ema, p, x)
    return Columns(p, p.like(0), tuple(slots), ema, copy=p, rounded=p).row


def stepped(tag: Any, values: Any, c: Any, x: Any) -> tuple[Any, Any, Any]:
    """Return p, the slots and what is added up before, of one element's step by the kernel alone."""
    old = Columns.of(values)
    g = old.g
    if asked(tag, "limit"):
        g, c = clip(c.grad_scale * g, x.max_value), c._replace(grad_scale=g.like(1))
    kernel = KERNEL_OF[tag.instance_class]
    kernel = kernel.switched(name for name in kernel.switches if asked(tag, name))
    return kernel.stepped(asked(tag, "summed"), g.like(0), old.p, g, old.slots, c)


def added(values: Any, fresh: Any) -> tuple[Any, ...]:
    """Return what a total becomes with one more gradient: their sum, or where `fresh` that gradient; and 0."""
    total, g = values
    return Number(g.builder, g.builder.select(fresh, g.value, (total + g).value)), g.like(0)


def columns(tag: Any) -> Columns:
    """Return the place of each stream among the fields of a tag, and in a row of the table."""
    kernel = KERNEL_OF.get(tag.instance_class)
    return Columns(0, 1) if kernel is None else Columns.of(range(len(kernel.streams.row)))


def streams_of(tag: Any) -> int:
    """Return how many fields of a tag are columns of the table."""
    return len(KERNEL_OF[tag.instance_class].streams.row) if tag.instance_class in KERNEL_OF else 2


def loaded(tag: Any) -> dict[int, Format]:
    """Return {column: format} of every stream that is read as one: all but the copy, and what is read with p."""
    at = columns(tag)
    return {k: format for k, format in storage(tag) if k not in (at.copy, at.low, at.rounded)}


def remainder(tag: Any) -> int | None:
    """Return the column of the bits that p lacks, if it has one."""
    return next((k for k, _ in storage(tag) if k == columns(tag).low), None)


def rounded(tag: Any) -> tuple[int, Format] | None:
    """Return the column and the format of what p, a master, is rounded to, if it is one."""
    return next(((k, format) for k, format in storage(tag) if k == columns(tag).rounded), None)


def coded(tag: Any) -> list[int]:
    """Return the columns of slots whose elements rest in blocks."""
    return [k for k, format in storage(tag) if format.block > 1] if tag.instance_class in KERNEL_OF else []


def stochastic(tag: Any) -> set[int]:
    """Return the columns that are rounded stochastically: p, and slots that never fall below zero, if their format
    draws."""
    if tag.instance_class not in KERNEL_OF:
        return set()
    at = columns(tag)
    drawn = {k for k, slot in zip(at.slots, KERNEL_OF[tag.instance_class].slots, strict=True) if is_drawn(slot)}
    drawn |= {at.p} if remainder(tag) is None else set()
    return {k for k, format in storage(tag) if k in drawn and format.draws}


def stochastic_elements(tag: Any) -> set[int]:
    """Return those of them whose elements are rounded one by one."""
    return stochastic(tag) - set(coded(tag))


def asked(tag: Any, flag: str) -> bool:
    """Return whether a flag of a tag is there."""
    return flag in tag.fields and not isinstance(tag.types[tag.fields.index(flag)], types.NoneType)


def storage(tag: Any) -> list[tuple[int, Format]]:
    """Return (column, format) of every stream that is there, from the Numba type of a tag."""
    fields = tag.types[: streams_of(tag)]
    return [(k, field.format) for k, field in enumerate(fields) if not isinstance(field, types.NoneType)]


def compute_type(tag: Any) -> Any:
    """Return float64 for float64 parameters, else float32."""
    return numbers(storage(tag)[0][1])
