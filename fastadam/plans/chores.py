"""Says what chores are: what a training step does beside the method's arithmetic, in the same pass over memory.

The order, with every operation in the compute type: the gradient is scaled (grad_scale), clipped by norm, clipped by
value; then the method steps; then the average takes up the new parameters, the copy is rounded from them, and the
gradient is zeroed. The norm, and the test for non-finite values, take one read of the gradients before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fastadam.arrays.flat import FlatBuffer
from fastadam.arrays.host import Array, Host, describe, flat_like
from fastadam.checks import at_count, number, positive
from fastadam.kernels.chores import Flags, Numbers
from fastadam.kernels.formats import SHORT

if TYPE_CHECKING:
    pass


class StepInfo(NamedTuple):
    """Reports what one step found out; None where it was not asked for.

    grad_norm:   the L2 norm of all gradients after grad_scale, before clipping.
    clip_factor: what max_norm multiplied the gradients by, at most 1; one number per group where a group has its own.
    skipped:     whether the step was left out because of a gradient that is not finite.
    stats:       {group or leaf: {"grad_norm", "update_norm", "param_norm", "largest_update"}}.
    taken_over:  with master="float32", how many of the parameters stepped had been set from outside.

    >>> fa.SGD(np.ones(2), max_norm=1.0).step(np.array([3.0, 4.0]))
    StepInfo(grad_norm=5.0, clip_factor=0.2, skipped=False, stats=None, taken_over=None)
    """

    grad_norm: float | None = None
    clip_factor: float | tuple[float, ...] | None = None
    skipped: bool = False
    stats: dict[str, dict[str, float]] | None = None
    taken_over: int | None = None


NOTHING = StepInfo()


@dataclass(frozen=True, kw_only=True)
class Chores:
    """Holds the chores that Optimizer takes under these names; see there. Checked when made."""

    max_norm: float | None = None
    max_value: float | None = None
    ema_decay: float | Callable[[int], float] | None = None
    zero_grads: bool = False
    skip_nonfinite: bool | str = False
    stats: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_norm", "max_value"):
            object.__setattr__(self, name, positive(name, getattr(self, name)))
        if self.ema_decay is not None and not callable(self.ema_decay):
            object.__setattr__(self, "ema_decay", number("ema_decay", self.ema_decay, low=0, most=1))
        for name, allowed in (
            ("zero_grads", (False, True)),
            ("skip_nonfinite", (False, True, "raise")),
            ("stats", (None, "group", "tensor")),
        ):
            value = getattr(self, name)
            if not any(value is one or (isinstance(one, str) and value == one) for one in allowed):
                raise ValueError(f"{name} is {value!r}, expected {' or '.join(map(repr, allowed))}")

    @property
    def flags(self) -> Flags:
        """Return what a walk must be compiled with."""
        return Flags(self.max_value is not None, self.zero_grads, self.stats is not None)

    def numbers(self, t: int) -> tuple[float, ...]:
        """Return the chores' end of every row at the optimizer's count t."""
        decay = self.ema_decay
        if callable(decay):
            decay = at_count("ema_decay", decay, t, low=0, most=1)
        return Numbers(self.max_value or 0.0, 0.0 if decay is None else 1 - decay)


PLAIN = Chores()  # no chore at all


def check_copies(
    home: Host, names: Sequence[str], leaves: Sequence[Any], arrays: Sequence[Array], copies: Sequence[Any]
) -> list[Array]:
    """Return copy_to's arrays as flat ones in their parameters' order; raise an error that names the first bad one."""
    checked = []
    for name, leaf, p, copy in zip(names, leaves, arrays, copies, strict=True):
        difference = f"copy_to{name} is {describe(copy)}, params{name} is {describe(leaf)}"
        if isinstance(copy, FlatBuffer):
            if not isinstance(leaf, FlatBuffer) or (copy.names, copy.shapes) != (leaf.names, leaf.shapes):
                raise ValueError(f"{difference}: expected the same names and shapes")
            copy = copy.array
        if not home.is_array(copy) or (copy := home.to_write(f"copy_to{name}", copy)).dtype.name not in SHORT:
            raise TypeError(f"{difference}: expected an array of float16 or bfloat16 (ml_dtypes) on the same processor")
        if copy.shape != p.shape or not copy.dtype.isnative:
            raise ValueError(f"{difference}: expected its shape, in native byte order")
        straight = flat_like(copy, p)
        if straight is None:
            raise ValueError(f"{difference}: expected dense memory in the same order of axes")
        checked.append(straight)
    return checked
