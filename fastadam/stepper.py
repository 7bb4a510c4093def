"""Stepper: one rule's steps over memory that others keep, planned once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from itertools import accumulate, chain
from math import prod
from operator import is_
from typing import Any

import numpy as np

from fastadam import kernels
from fastadam.arrays.device import HOST
from fastadam.arrays.flat import FlatBuffer
from fastadam.arrays.host import Array, Memory, describe, flat
from fastadam.arrays.tree import Structure, Tree
from fastadam.backend import choose
from fastadam.checks import SEEDS, integer, number
from fastadam.group import Group, sums_first
from fastadam.kernels.contract import Exact
from fastadam.kernels.formats import FLOATS, Format, compute, format_of
from fastadam.plans.chores import Chores, StepInfo
from fastadam.plans.storage import Storage
from fastadam.plans.streams import Streams, labels
from fastadam.plans.table import EVERY, Table
from fastadam.rule import Rule
from fastadam.state.given import SCALES, Apart, Asked, Lender


class Called(Group):
    """Holds all leaves, under the lr that a call gives, else the rule's."""

    given: float | None

    def lr_at(self, t: int) -> float:
        return super().lr_at(t) if self.given is None else self.given

    def call_with(self, lr: float | None) -> None:
        """Let a call's lr stand instead of the rule's; None: none was given."""
        self.__dict__["given"] = lr


class Stepper:
    """Steps arrays that the caller keeps by one rule: an Optimizer without a state, planned once for many calls.

    rule: one of fastadam.rules, with its hyperparameters.
    like: a tree of arrays, or of FlatBuffers, of the shapes and dtypes that parameters will have. It is not kept.
    moments: as in fastadam.Optimizer; or a dict from the names of slots to those of formats.
    copy_to: "bfloat16" or "float16", if calls are to round the parameters into copies.
    backend, master, seed, index_offset, max_norm, max_value, ema_decay, zero_grads, skip_nonfinite, stats: as in
        fastadam.Optimizer, to whose bits a Stepper's are equal. On CUDA skip_nonfinite=True is refused, since a device
        that skips must count; and a call is planned anew unless its arrays are the last call's.

    The arrays of a call are referred to until the next one, which looks less closely at the very same arrays.
    Raises TypeError, ValueError that name the argument, what came and what was expected.

    >>> stepper = fa.Stepper(fa.rules.AdamW(weight_decay=0.0), like={"w": np.ones(3)})
    >>> p, m, v = ({"w": x} for x in (np.ones(3), np.zeros(3), np.zeros(3)))
    >>> stepper(p, {"w": np.ones(3)}, slots={"m": m, "v": v}, t=1, lr=0.25)
    StepInfo(grad_norm=None, clip_factor=None, skipped=False, stats=None, taken_over=None)
    >>> p["w"].round(6).tolist()
    [0.75, 0.75, 0.75]
    """

    def __init__(
        self, rule: Rule, like: Tree, *, backend: str = "auto", moments: str | Mapping[str, str] | None = None,
        master: str | None = None, copy_to: str | None = None, seed: int = 0, index_offset: int = 0, **chores: Any,
    ) -> None:  # fmt: skip
        if not isinstance(rule, Rule):
            raise TypeError(f"rule is {rule!r}, expected one of fastadam.rules with its hyperparameters")
        self.rule, self._kernel, self._structure = rule, kernels.ALL[rule.kernel], Structure(like)
        leaves = [x.array if isinstance(x, FlatBuffer) else x for x in self._structure.leaves]
        names_of_chores = [field.name for field in fields(Chores)]
        if unknown := [name for name in chores if name not in names_of_chores]:
            raise TypeError(f"Stepper takes no {unknown[0]!r}, expected any of {', '.join(names_of_chores)}")
        self._chores, self._backend = Chores(**chores), choose(backend, leaves)
        if self._chores.skip_nonfinite is True and self._backend.home is not HOST:
            raise ValueError("skip_nonfinite is True, expected 'raise' or False on CUDA, where nothing would count")
        alike, by_slot = (None, moments) if isinstance(moments, Mapping) else (moments, {})
        storage = Storage(moments=alike, master=master, index_offset=index_offset)
        self._slots = [slot.name for slot in self._kernel.slots if rule.uses(slot)]
        weights = [slot.name for slot in self._kernel.slots if isinstance(slot, Exact)]
        asked = Asked(storage, self._slots, by_slot, self._chores.ema_decay is not None, copy_to, weights)
        self._like: list[tuple[Any, Any]] = []  # per leaf, the dtype and the shape of its parameter
        self._formats: list[dict[str, Format]] = []  # per leaf, what streams rest in, by their names in a call
        for path, x in zip(self._structure.names, leaves, strict=True):
            if not self._backend.home.is_array(x) or (x := self._backend.home.read(x)).dtype.name not in FLOATS:
                raise TypeError(f"like{path} is {describe(x)}, expected an array of {', '.join(FLOATS)}")
            self._like.append((x.dtype, x.shape))
            self._formats.append(asked.formats(f"like{path}", x))
        names = dict.fromkeys([*self._slots, *chain.from_iterable(self._formats)])
        coded = {f"{name}{SCALES}" for of in self._formats for name, kind in of.items() if kind.block > 1}
        self._names = [*names, *sorted(coded)]  # of the trees that a call gives beside p and g
        self._labels = [labels(self._kernel, path, "p", "g") for path in self._structure.names]
        self._firsts = list(accumulate((prod(shape) for _, shape in self._like), initial=storage.index_offset))[:-1]
        self._group = Called(rule, "", range(len(leaves)), {compute(dtype) for dtype, _ in self._like})
        drawing = any(kind.draws for of in self._formats for kind in of.values())
        drawing |= any(format_of(dtype).draws for dtype, _ in self._like)
        apart = self._backend.judge.apart and sums_first(self._group)
        self._table = Table(type(rule), [self._group], self._chores, integer("seed", seed, **SEEDS), drawing, apart)
        self._arrays: list[list[Any]] = []  # the last call's: p's, then each named tree's
        self._apart: list[Apart] = []  # codes and scales of theirs that do not lie in blocks
        self._plan: Any = None
        self._judge: Any = None

    def __call__(
        self, p: Tree, g: Tree, *, slots: Mapping[str, Tree], t: int, lr: float | None = None,
        grad_scale: float = 1.0, **beside: Any,
    ) -> StepInfo:  # fmt: skip
        """Take the step of count t, in place; returns what the chores have found out.

        p: a tree like `like`, of arrays that can be updated in place. g: as Optimizer.step takes it; not counted here,
            a leaf whose gradient is None is left alone.
        slots: by the kernel's names ("m", "v", ...), trees of arrays that lie like p; of slots that only some rules
            use, None stands for none. Slots of 8 bits are two trees, as state_dict shows them: the codes, (blocks,
            1024) uint8, under "m", and "m_scales", (blocks, 16) float32; views of one array of blocks, as in an
            Optimizer's own state, are stepped where they lie, others are copied in and out.
        t: 1, 2, ... lr: this step's, instead of the rule's. grad_scale: multiplies g first.
        beside: under the names of state_dict, what was asked for at construction: the trees `ema`, `copy_to`, `master`
            and `remainder` (None for leaves that have none); and what the rule carries from step to step, each a
            float64 array of no dimension, as `mu_product` for NAdam, which starts at 1.
        Raises TypeError, ValueError before anything has changed.
        """
        t, scale = integer("t", t, low=1, most=2**63 - 1), number("grad_scale", grad_scale)
        if not isinstance(slots, Mapping):
            expected = f"a dict of trees by {' and '.join(self._slots)}" if self._slots else "{}, as this rule has none"
            raise TypeError(f"slots is {describe(slots)}, expected {expected}")
        if twice := sorted(slots.keys() & beside.keys()):
            raise TypeError(f"{twice[0]} is given in slots and by name, expected one of both")
        self._group.call_with(None if lr is None else number("lr", lr, low=0))
        carried = [self._carried(name, beside.pop(name, None)) for name in self.rule.carried]
        arrays = self._flattened(p, {**slots, **beside})
        grads = self._structure.flatten(g, "g")
        if not self._unchanged(arrays):
            self._take(arrays)
        missing = self._plan.accept(grads)
        table = self._table
        table.counts[:] = t - 1
        if carried:
            table.carried[:] = [x.item() for x in carried]
        table.fill(scale, [x is not None for x in grads] if missing else EVERY)
        for _, x, part in self._apart:
            part[...] = x
        after = [(x, ..., part) for _, x, part in self._apart]
        if carried and table.cohorts:
            after += [(x, ..., new) for x, new in zip(carried, table.carries_on(table.cohorts[0]), strict=True)]
        info: StepInfo = self._judge.step(scale, grads, after)
        return info

    def _carried(self, name: str, x: Any) -> Array:
        """Return what the rule carries under this name, checked."""
        if not isinstance(x, np.ndarray) or describe(x) != "float64()" or not x.flags.writeable:
            raise TypeError(f"{name} is {describe(x)}, expected a float64 array of no dimension that can be written")
        number(name, x.item(), low=self.rule.carried_least, most=self.rule.carried_most)
        return x

    def _flattened(self, p: Tree, trees: Mapping[str, Tree]) -> list[list[Any]]:
        """Return the leaves of p, then of each named tree. Raises TypeError, ValueError for one too few or too many."""
        for name, tree in trees.items():
            if name not in self._names and tree is not None:
                raise ValueError(f"{name} is {describe(tree)}, expected None: {self.rule} does not use it")
        arrays = [self._structure.flatten(p, "p")]
        for name in self._names:
            if trees.get(name) is None and self._like:
                what = "an array" if self._structure.names == [""] else "a tree of arrays"
                raise TypeError(f"{name} is None, expected {what} like p, {describe(p)}")
            arrays.append(self._structure.flatten(trees.get(name), name))
        return arrays

    def _unchanged(self, arrays: list[list[Any]]) -> bool:
        """Tell whether these are the very arrays of the last call, and can still be written."""
        if self._plan is None or not all(map(is_, chain(*arrays), chain(*self._arrays))):
            return False
        return self._backend.home is not HOST or all(x is None or _writable(x) for x in chain(*arrays))

    def _take(self, arrays: list[list[Any]]) -> None:
        """Check a call's arrays, and let the plan walk over them."""
        owners, streams, home = arrays[0], [], self._backend.home
        apart: list[Apart] = []
        for k, (path, (dtype, shape), formats) in enumerate(
            zip(self._structure.names, self._like, self._formats, strict=True)
        ):
            p = home.owned(f"p{path}", owners[k].array if isinstance(owners[k], FlatBuffer) else owners[k])
            if (p.dtype, p.shape) != (dtype, shape):
                raise ValueError(f"p{path} is {describe(p)}, expected {dtype}{shape}, as like{path} was")
            lender, given = Lender(home, path, p), dict(zip(self._names, (x[k] for x in arrays[1:]), strict=True))
            flats = {}
            for name, format in formats.items():
                if format.block > 1:
                    flats[name], more = lender.blocks(name, format, given.pop(name), given.pop(name + SCALES))
                    apart += more
                else:
                    flats[name] = lender.straight(name, format, given.pop(name))
            if over := [name for name, x in given.items() if x is not None]:
                raise ValueError(f"{over[0]}{path} is {describe(given[over[0]])}, expected None: p{path} has none")
            slots = [flats.get(slot.name) for slot in self._kernel.slots]
            beside = (flats.get(name) for name in ("ema", "copy_to", "remainder", "master"))
            streams.append(Streams(flat(p), None, slots, *beside))
        if apart:  # the plan looks at the others
            pairs = (pair for of in zip(self._labels, streams, strict=True) for pair in zip(*of, strict=True))
            Memory([*((name, x) for name, x, _ in apart), *((name, x) for name, x in pairs if x is not None)])
        plan, self._plan = self._plan, None  # a signal may come between: then the next call plans anew
        if plan is not None and plan.movable:
            plan.move(owners, streams)
        else:
            plan = self._backend.plan(
                self._kernel, self._labels, owners, streams, self._table, self._chores, self._firsts
            )
            self._judge = self._backend.judge(plan, self._chores, self._structure.names)
        self._arrays, self._apart = arrays, apart
        self._plan = plan


def _writable(x: Any) -> bool:
    return bool((x.array if isinstance(x, FlatBuffer) else x).flags.writeable)
