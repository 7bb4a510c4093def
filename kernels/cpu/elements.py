"""The element functions as compiled code: what contract.py's two functions mean there, and which kernel a tag names."""

from collections import namedtuple
from typing import Any

from numba import types
from numba.extending import intrinsic, overload, register_jitable

from fastadam import kernels
from fastadam.kernels.contract import Kernel, maximum, sign


def _tag(kernel: Kernel) -> Any:
    """A named tuple with a field per stream: its class names the kernel in compiled code, its fields the formats."""
    return namedtuple(kernel.name, ("p", "g", *(slot.name for slot in kernel.slots)), module=__name__)  # type: ignore[misc]


TAGS = {name: _tag(kernel) for name, kernel in kernels.ALL.items()}
KERNEL_OF = {tag: kernels.ALL[name] for name, tag in TAGS.items()}
globals().update(TAGS)  # the disk cache pickles a tag by module and name


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


def element(tag, values, c):
    """One element's step by the kernel that `tag` names. values: p, g and the slots, None where a slot is absent."""


@overload(element)
def _element(tag, values, c):
    function = register_jitable(KERNEL_OF[tag.instance_class].element)
    return lambda tag, values, c: function(*values, c)


def storage(tag: Any) -> list[tuple[int, Any]]:
    """(column, dtype) of every stream that is there, from the Numba type of a tag."""
    return [(k, field.dtype) for k, field in enumerate(tag.types) if not isinstance(field, types.NoneType)]


def compute_type(tag: Any) -> Any:
    """float64 for float64 parameters, else float32."""
    return types.float64 if tag.types[0].dtype == types.float64 else types.float32
