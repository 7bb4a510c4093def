"""The element functions as compiled code: what contract.py's two functions mean there, and which kernel a tag names."""

from collections import namedtuple
from typing import Any, NamedTuple

from numba import types
from numba.extending import intrinsic, overload, register_jitable

from fastadam import kernels
from fastadam.kernels.chores import Flags, average, clip
from fastadam.kernels.contract import Kernel, maximum, sign

EXTRA = "ema", "copy"  # streams behind the slots: the averaged parameters, a copy of them in a short format
FLAGS = Flags._fields  # there or None


def _tag(kernel: Kernel) -> Any:
    """A named tuple with a field per stream: its class names the kernel in compiled code, its fields the formats."""
    return namedtuple(kernel.name, ("p", "g", *(slot.name for slot in kernel.slots), *EXTRA, *FLAGS), module=__name__)  # type: ignore[misc]


TAGS = {name: _tag(kernel) for name, kernel in kernels.ALL.items()}
KERNEL_OF = {tag: kernels.ALL[name] for name, tag in TAGS.items()}
globals().update(TAGS)  # the disk cache pickles a tag by module and name


class Measure(NamedTuple):
    """The tag of a walk that only reads g: its sum of squares, its largest magnitude."""

    p: None
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


def element(tag, values, c, x):
    """One element's step by the kernel that `tag` names, and its chores: the new values, in the order of streams.

    values: p, g, the slots, the average, the copy (not read); None where there is none.
    c, x: the kernel's numbers and the chores'.
    """


@overload(element)
def _element(tag, values, c, x):
    function = register_jitable(KERNEL_OF[tag.instance_class].element)

    def compiled(tag, values, c, x):
        g, c = _gradient(tag, values[1], c, x)
        new = function(values[0], g, *values[2:-2], c)
        return (new[0], zero(tag, g), *new[1:], _averaged(values[-2], new[0], x), new[0])

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


def streams_of(tag: Any) -> int:
    """How many fields of a tag are columns of the table."""
    return len(tag.types) - len(FLAGS) if tag.instance_class in KERNEL_OF else 2


def loaded(tag: Any) -> dict[int, Any]:
    """{column: dtype} of every stream that is read: all but a kernel's copy."""
    copy = streams_of(tag) - 1 if tag.instance_class in KERNEL_OF else None
    return {k: dtype for k, dtype in storage(tag) if k != copy}


def asked(tag: Any, flag: str) -> bool:
    """Whether a flag of a tag is there."""
    return flag in tag.fields and not isinstance(tag.types[tag.fields.index(flag)], types.NoneType)


def storage(tag: Any) -> list[tuple[int, Any]]:
    """(column, dtype) of every stream that is there, from the Numba type of a tag."""
    fields = tag.types[: streams_of(tag)]
    return [(k, field.dtype) for k, field in enumerate(fields) if not isinstance(field, types.NoneType)]


def compute_type(tag: Any) -> Any:
    """float64 for float64 parameters, else float32."""
    return types.float64 if storage(tag)[0][1] == types.float64 else types.float32
