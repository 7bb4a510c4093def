"""Steps over NumPy arrays that Keras's backends own, of any mixture of dtypes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastadam.arrays.host import Array
from fastadam.rule import Rule
from fastadam.stepper import Stepper


class KerasStep(NamedTuple):
    """Holds what a step is made of, in a backend's own tensors or in Keras's variables.

    params: per variable. grads: per variable, or None where there is none. slots: by the kernel's names.
    t: the count, from 1. lr: the learning rate. carried: the numbers that the rule carries.
    by_rows: whether what has no gradient stays as it is.
    """

    rule: Rule
    params: Sequence[Any]
    grads: Sequence[Any]
    slots: Mapping[str, Sequence[Any]]
    t: Any
    lr: Any
    carried: Mapping[str, Any]
    by_rows: bool


class Stepping:
    """Takes one optimizer's steps over arrays, each slot in its parameter's dtype; plans anew where these change."""

    def __init__(self) -> None:
        self._planned: Any = None  # what the steppers were made for
        self._steppers: list[tuple[list[int], Stepper]] = []  # for each dtype the indices of its leaves

    def __call__(self, asked: KerasStep) -> None:
        """Take a step in place, of arrays and numbers."""
        likeness = asked.rule, [(p.dtype, p.shape) for p in asked.params]
        if likeness != self._planned:
            self._plan(asked)
            self._planned = likeness
        carried: dict[str, Any] = {name: np.array(float(x)) for name, x in asked.carried.items()}
        for leaves, stepper in self._steppers:
            params, grads = ([xs[k] for k in leaves] for xs in (asked.params, asked.grads))
            slots = {name: [xs[k] for k in leaves] for name, xs in asked.slots.items()}
            stepper(params, grads, slots=slots, t=asked.t, lr=asked.lr, **{n: x.copy() for n, x in carried.items()})

    def _plan(self, asked: KerasStep) -> None:
        kinds: dict[Any, list[int]] = {}
        for k, p in enumerate(asked.params):
            kinds.setdefault(p.dtype, []).append(k)
        self._steppers, first = [], 0
        for dtype, leaves in kinds.items():
            like: list[Array] = [asked.params[k] for k in leaves]
            moments = dict.fromkeys(asked.slots, dtype.name)
            self._steppers.append((leaves, Stepper(asked.rule, like, moments=moments, index_offset=first)))
            first += sum(p.size for p in like)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()  # a copy plans anew
