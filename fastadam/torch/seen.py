"""Remembers the leaves of a walk as its last step left them: their memory, and the numbers in their state."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import is_
from typing import Any

import torch

from fastadam.plans.table import Table
from fastadam.torch.formats import form, local
from fastadam.torch.leaf import Leaf
from fastadam.torch.method import Method
from fastadam.torch.native import Forms, forms

DATA_PTR = torch.Tensor.data_ptr
EXACT = 1 << 24  # counts below it are float32 numbers


def _same(now: list[Any], before: list[Any]) -> bool:
    """Return whether both hold the same objects."""
    return len(now) == len(before) and all(map(is_, now, before))


def _contents(opt: Method) -> list[Any]:
    """Return all that is in an optimizer's states."""
    return list(chain.from_iterable(map(dict.values, opt.state.values())))


class Seen:
    """Holds what the next step is compared with, in lists that Python goes through quickly.

    missing: per leaf, whether it had no gradient; None once something is known to differ.
    leaves:  (index, leaf) of those that had one.
    stepped: the tensors that a step changes and autograd may know.
    gaps:    the leaves that a dense copy stands in for.
    numbers: where the leaves' numbers are in their state: (array or dict, index). values: these, leaf by leaf.
    grads:   how the gradients lie, where each may lie as its parameter does and can be asked natively.
    """

    def __init__(
        self, opt: Method, leaves: Sequence[Leaf], missing: list[bool], table: Table, usual: bool, homes: Any
    ) -> None:
        """Note how everything lies. usual: whether gradients may lie as their parameters do. homes: where their
        addresses go."""
        self.missing: list[bool] | None = missing
        self.leaves = [(k, leaf) for k, leaf in enumerate(leaves) if not missing[k]]
        live = [leaf for _, leaf in self.leaves]
        self._states, self._held = list(opt.state.values()), _contents(opt)
        self.stepped = [x for leaf in live for x in (leaf.p, *leaf.copied) if not x.is_inference()]
        self.gaps = [leaf for leaf in live if leaf.gaps]
        self._kept = [*(x for leaf in live for x in leaf.memory), *(leaf.p for leaf in self.gaps)]
        self._forms, self._addresses = list(map(form, self._kept)), list(map(DATA_PTR, self._kept))
        self.numbers = [place for leaf in live for place in leaf.places]
        self.values = [value for leaf in live for value in leaf.values]
        self._shared: list[tuple[int, Leaf]] = []  # the shards among what is kept
        at = 0
        for leaf in live:
            if leaf.shared and not leaf.gaps:
                self._shared.append((at, leaf))
            at += len(leaf.memory)
        self._cohorts: list[tuple[int, list[list[Any]]]] = []  # a leaf of each, and where each of its numbers goes
        leads = table.leads.tolist()
        for first in table.cohorts:
            places = [leaf.places for k, leaf in self.leaves if leads[k] == first]
            self._cohorts.append((first, list(map(list, zip(*places, strict=True)))))
        self._memory: Forms | None = None if self._shared else forms(self._kept)
        self._usual = usual
        self._grad_forms = [(leaf.dtype, leaf.shape, leaf.strides) for leaf in live]
        self.grads: Forms | None = forms([leaf.p for leaf in live], self._grad_forms, homes) if usual else None

    def unchanged(self, opt: Method) -> bool:
        """Return whether the memory of these leaves, and the numbers in their state, are as they were left."""
        return (
            (not opt.plain_numbers or _same(list(opt.state.values()), self._states))
            and _same(_contents(opt), self._held)
            and (self._memory.unchanged() if self._memory else self._lies_unchanged())
            and [array[at] for array, at in self.numbers] == self.values
        )

    def _lies_unchanged(self) -> bool:
        """Return whether all memory lies where and as it did, as Python says."""
        for k, leaf in self._shared:
            self._kept[k] = local(leaf.p)
        return list(map(form, self._kept)) == self._forms and list(map(DATA_PTR, self._kept)) == self._addresses

    def forget(self) -> None:
        """Let nothing be as it was: the walk looks at all leaves anew."""
        self.missing = self.grads = None

    def usual_gradients(self, grads: list[Any]) -> list[int] | None:
        """Return the address of each leaf's gradient if all leaves have one, and each lies as its parameter does."""
        if self.grads or self.missing is None or not self._usual:
            return None
        try:
            places = list(map(DATA_PTR, grads)) if list(map(form, grads)) == self._grad_forms else [0]
        except RuntimeError:  # a layout that has no strides
            return None
        return places if all(places) else None

    def ahead(self, table: Table) -> list[tuple[Any, ...]]:
        """Return the numbers of each cohort's state after the step that has been filled in."""
        return [table.after(leaf) for leaf, _ in self._cohorts]

    def writes(self, numbers: list[tuple[Any, ...]]) -> list[tuple[Any, Any, Any]]:
        """Return what a launch has to write into the state: (array or dict, where, number)."""
        if len(numbers) == 1 and len(numbers[0]) == 1 and self.numbers:  # one cohort, that counts and carries nothing
            ((count,),) = numbers
            return [(*place, count) for place in self.numbers]
        return [
            (array, at, x)
            for (_, homes), new in zip(self._cohorts, numbers, strict=True)
            for places, x in zip(homes, new, strict=False)
            for array, at in places
        ]

    def note(self, opt: Method, numbers: list[tuple[Any, ...]]) -> None:
        """Take up what a launch has written."""
        if len(numbers) == len(numbers[0]) == 1 and numbers[0][0] < EXACT:
            self.values[:] = numbers[0] * len(self.numbers)
        else:
            self.values[:] = [array[at] for array, at in self.numbers]
        if opt.plain_numbers:
            self._held = _contents(opt)
