"""Steps the leaves of one device: one step of all of them is one walk over memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import islice
from operator import itemgetter
from typing import Any
from weakref import proxy

import numpy as np
import torch
from torch.autograd.graph import increment_version

from fastadam import kernels
from fastadam.arrays.host import separate
from fastadam.backend import choose
from fastadam.checks import positive
from fastadam.group import sums_first
from fastadam.host.addresses import AddressPlan
from fastadam.host.judge import Judge
from fastadam.plans.chores import NOTHING, StepInfo
from fastadam.plans.judge import Part
from fastadam.plans.rows import row_chunks
from fastadam.plans.streams import Streams, labels
from fastadam.plans.table import EVERY, Table
from fastadam.rule import Rule
from fastadam.torch.group import ParamGroup, differ, holds_memory, plain
from fastadam.torch.idle import check_remembered, forgotten
from fastadam.torch.leaf import Leaf, Moved
from fastadam.torch.method import Method, Options, begin, carried_by, check_whole, count_if_asked
from fastadam.torch.seen import Seen

EMPTY: dict[str, Any] = {}


class Walk:
    """Steps one optimizer's leaves on one device, here the CPU.

    members: per param group, (name, parameter) of those that lie here. copies: by parameter's id, its copy or None.
    options: what the optimizer was asked for.
    """

    backend = "numba"

    def __init__(
        self, opt: Method, members: Sequence[Sequence[tuple[str, Any]]], copies: dict[int, Any], options: Options
    ) -> None:  # fmt: skip
        self._apart = choose(self.backend).judge.apart
        # Between steps a weak reference: in a cycle the state of a deleted optimizer would wait for the collector.
        self._opt: Method = proxy(opt)  # type: ignore[assignment]
        self._weakly = self._opt
        self._members, self._copies = members, copies
        self._chores, self._storage, self._seed = options
        self._kernel = kernels.ALL[opt.rule.kernel]
        self._names = [each.name for each in fields(opt.rule) if each.init and each.name != "lr"]
        self._begun: list[int] = []  # the leaves to whose state this step is the first
        self._by_row: set[int] = set()  # parameters that got a sparse gradient
        self._lay_out()

    def _lay_out(self) -> None:
        """Lay out leaves, groups and plan from what the optimizer's groups say now."""
        opt, averaged = self._opt, self._chores.ema_decay is not None
        count_if_asked(opt, self._chores, self._storage)
        self._read: list[Any] = [None] * len(self._members)
        self._settings: list[Any] = [None] * len(self._members)
        self.leaves: list[Leaf] = []
        self.groups: list[ParamGroup] = []
        formats: list[Streams] = []
        for k, members in enumerate(self._members):
            rule = self.rule_of(k)
            slots = {opt.slots[slot.name]: slot for slot in self._kernel.slots if rule.keeps(slot)}
            keys: dict[str, Any] = {**slots, **({"ema": None} if averaged else {})}
            leaves = [Leaf(name, p, k, keys, opt.numbers, id(p) in self._by_row, self._storage) for name, p in members]
            for leaf in leaves:
                leaf.uncounted, leaf.idle = not opt.__class__.numbers, [opt.slots[name] for name in rule.idle]
                leaf.copy_into(self._copies[id(leaf.p)])
                formats.append(leaf.streams(self._kernel, leaf.resting))
            limit = positive(f"param_groups[{k}]: max_norm", opt.param_groups[k].get("max_norm"))
            measured = limit or self._chores.max_norm or self._chores.skip_nonfinite or self._chores.stats
            for leaf in leaves:
                check_whole(leaf, bool(measured), opt.rule.__name__ if self._kernel.summed(rule.options) else "")
            leaves_of_group = range(len(self.leaves), len(self.leaves) + len(leaves))
            self.groups.append(
                ParamGroup(rule, f"param_groups[{k}]: ", leaves_of_group, {leaf.wide for leaf in leaves}, limit)
            )
            self.leaves += leaves
        self._names_of_leaves = [leaf.name.removeprefix("params") for leaf in self.leaves]
        drawing = any(format.draws for leaf in self.leaves for format in (leaf.format, *leaf.formats.values()))
        apart = self._apart and any(map(sums_first, self.groups))
        self._table = Table(opt.rule, self.groups, self._chores, self._seed, drawing, apart)
        self._table.told = opt.param_groups
        self._plan: Any = self._make_plan(formats)
        self._judge: Any = None if self._plan is None else Judge(self._plan, self._chores, self._names_of_leaves)
        self._params = [leaf.p for leaf in self.leaves]
        self._live: Any = EVERY  # which leaves take the step
        self._seen: Seen | None = None  # the leaves as the last step left them

    def _make_plan(self, formats: list[Streams]) -> Any:
        """Return the plan for leaves whose streams rest in these formats."""
        sizes = [leaf.size for leaf in self.leaves]
        firsts = self._storage.firsts(self._names_of_leaves, sizes)
        return AddressPlan(self._kernel, self._labels(), sizes, formats, self._table, self._chores, firsts)

    def reseed(self, seed: int) -> None:
        """Let random bits depend on another seed from the next step on."""
        self._seed = self._table.seed = seed

    def _labels(self) -> list[Streams]:
        """Return what errors call each leaf's streams."""
        return [labels(self._kernel, path) for path in self._names_of_leaves]

    def rule_of(self, k: int) -> Rule:
        """Return the rule that group k's hyperparameters make."""
        settings = self._opt.param_groups[k]
        if lacking := [name for name in self._names if name in self._opt.defaults and name not in settings]:
            raise KeyError(f"param_groups[{k}] has no {lacking[0]!r}: was its state that of another optimizer?")
        given = {name: settings[name] for name in self._names if name in settings}
        numbers = {name: plain(x) for name, x in given.items()}
        self._read[k] = itemgetter(*given)
        fixed = not any(map(holds_memory, given.values()))  # else each step looks at the numbers
        self._settings[k] = self._read[k](settings) if fixed else None
        return self._opt.rule(**numbers, **self._opt.fixed)

    def _refresh(self) -> None:
        """Take up hyperparameters that have been set since the last step."""
        for k, group in enumerate(self.groups):
            settings = self._opt.param_groups[k]
            if self._settings[k] is None or differ(self._read[k](settings), self._settings[k]):
                rule = self.rule_of(k)
                needed = group.lacking - rule.idle
                if rule.options != group.rule.options or (needed and self._seen is None):
                    raise Moved
                if needed:
                    raise forgotten(f"param_groups[{k}]", self._opt.slots[min(needed)])
                group.check(rule)
                group.adopt(rule)
            lr, limit = settings["lr"], settings.get("max_norm")
            if lr is not group.lr or limit != group.max_norm:
                if (limit is None) != (group.max_norm is None):
                    raise Moved  # other things are measured
                group.take(lr, positive(f"param_groups[{k}]: max_norm", limit))
        if self._table.shared:
            self._table.carried[:] = carried_by(self._opt, self._table)

    def step(self, opt: Method, scale: float) -> StepInfo:
        """Step every leaf of the optimizer that has a gradient; scale multiplies the gradients first.

        Raises TypeError, ValueError, RuntimeError before anything has changed.
        """
        self._opt = opt
        try:
            return self._step(scale)
        except Moved:
            self._lay_out()
            return self._step(scale)
        finally:
            self._opt = self._weakly

    def _step(self, scale: float) -> StepInfo:
        self._refresh()
        grads, seen = [p.grad for p in self._params], self._seen
        addresses = seen.grads.places(grads) if seen and seen.grads else None
        missing = [g is None for g in grads] if addresses is None else [False] * len(grads)
        begun: list[int] = []
        if looking := seen is None or missing != seen.missing or not seen.unchanged(self._opt):
            begun, addresses = self._look(missing), None
            if all(missing):
                return NOTHING
        sparse: dict[int, Any] = {}
        if addresses is None and seen is not None:
            addresses = seen.usual_gradients(grads)
        if addresses is None:
            sparse = self._sparse(grads)
            addresses = self._gradients(grads, sparse)
        self._table.fill(scale, self._live)
        # Nothing is refused from here on.
        if looking:
            for k in begun:
                self._begin(k)
            seen = self._remember(missing)
        assert seen is not None
        self._settle()
        self._plan.put_gradients(addresses)
        numbers = seen.ahead(self._table)
        after = seen.writes(numbers)
        for leaf in seen.gaps:
            leaf.gather()
        self._begun = begun
        try:
            info = self._launch(scale, sparse, after)
        except FloatingPointError:
            self._forget()
            raise
        if self._chores.skip_nonfinite and info.skipped:
            self._forget()
            return info
        increment_version(seen.stepped)  # autograd refuses to go back through what has changed
        seen.note(self._opt, numbers)
        for leaf in seen.gaps:
            leaf.scatter()
        return info

    def _settle(self) -> None:
        """Make ready what a launch needs; a walk on a device builds its plan."""

    def _launch(self, scale: float, sparse: dict[int, Any], after: list[Any]) -> StepInfo:
        part = Part(self._work(sparse), self._table.row, self._table.rows) if sparse else None
        return self._judge.step(scale, (), after, (), part)  # type: ignore[no-any-return]

    def _forget(self) -> None:
        """Forget a step that is not taken: where nothing counts steps, a slot's being there would say that one was."""
        for k in self._begun if not self._opt.numbers else ():
            self._opt.state.pop(self._params[k], None)

    def _look(self, missing: list[bool]) -> list[int]:
        """Take up what has changed; returns the leaves that have no state yet."""
        begun: list[int] = []
        table, new = self._table, 0
        if self._seen is not None:
            self._seen.forget()
            values = iter(self._seen.values)
            for k, leaf in self._seen.leaves:  # as steps have left them
                leaf.values = list(islice(values, len(leaf.places)))
                leaf.history = table.counts.item(k), table.carried[k].tolist()
        for k, leaf in enumerate(self.leaves):
            if missing[k]:
                continue
            state = self._opt.state.get(leaf.p) or EMPTY
            if not leaf.complete(state):
                check_remembered(leaf, state, self._opt.rule.averages)
                begun.append(k)
                table.take_up(k, *leaf.taken(state, {} if table.shared else self._opt.rule.carried))
            elif leaf.changed(state):
                leaf.look(state)
                table.take_up(k, *leaf.history)
                self._place(k)
                new += 1
        table.notice()
        self._live = [not none for none in missing] if any(missing) else EVERY
        table.counts[-1] = table.counts[:-1][~np.array(missing, bool)].max(initial=0)
        if new or begun:
            self._check_separate()
        return begun

    def _begin(self, k: int) -> None:
        """Give a leaf the state that it lacks."""
        leaf = self.leaves[k]
        begin(self._opt, leaf)
        leaf.look(self._opt.state.get(leaf.p) or EMPTY)
        self._place(k)

    def _place(self, k: int) -> None:
        self._plan.put(k, self.leaves[k].streams(self._kernel, self.leaves[k].addresses))

    def _remember(self, missing: list[bool]) -> Seen:
        """Keep what the next steps are compared with."""
        usual = not any(missing) and all(leaf.usual and id(leaf.p) not in self._by_row for leaf in self.leaves)
        homes = self._plan.gradients if usual and isinstance(self._plan, AddressPlan) else None
        self._seen = Seen(self._opt, self.leaves, missing, self._table, usual, homes)
        return self._seen

    def _gradients(self, grads: list[Any], sparse: dict[int, Any]) -> list[int]:
        """Return the address of each leaf's gradient, 0 where there is none; of a sparse one's values."""
        return [
            0 if g is None else sparse[k][2].data_ptr() if k in sparse else leaf.gradient(g)
            for k, (leaf, g) in enumerate(zip(self.leaves, grads, strict=True))
        ]

    def _sparse(self, grads: list[Any]) -> dict[int, tuple[Any, int, Any]]:
        """Return what leaf.rows says of each sparse gradient. Raises RuntimeError for what this method does not
        take."""
        if not self._opt.by_row and not [g for g in grads if g is not None and g.layout is not torch.strided]:
            return EMPTY  # type: ignore[return-value]
        by_rows = {}
        for k, (leaf, g) in enumerate(zip(self.leaves, grads, strict=True)):
            if g is not None:
                self._opt.check_layout(leaf, g)
                if g.layout is not torch.strided:
                    if leaf.blocked:
                        raise ValueError(f"{leaf.name} has a sparse gradient and moments of 8 bits: 64 share a scale")
                    if id(leaf.p) not in self._by_row:
                        self._by_row.add(id(leaf.p))
                        if not leaf.p.is_contiguous():
                            raise Moved
                    by_rows[k] = leaf.rows(g)
        return by_rows

    def _work(self, sparse: dict[int, tuple[Any, int, Any]]) -> Any:
        """Return the walk over some rows of these leaves, and over the whole of the others."""
        chunks = [self._plan.dense_chunks(k) for k in range(len(self.leaves)) if k not in sparse]
        chunks += [row_chunks(k, rows, k, np.arange(len(rows)), 0, width) for k, (rows, width, _) in sparse.items()]
        return self._plan.work(chunks)

    def _check_separate(self) -> None:
        """Refuse leaves that share memory, which two threads would step at once."""
        homes = [(leaf.name, leaf.memory[0]) for leaf in self.leaves if leaf.size]
        homes += [(f"copy_to for {leaf.name}", copy) for leaf in self.leaves if leaf.size for copy in leaf.copied]
        separate(((x.data_ptr(), x.data_ptr() + x.nbytes, name) for name, x in homes), "tensors")
