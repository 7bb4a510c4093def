"""Has what a user reads, saves, converts and accumulates of an optimizer; optimizer.py takes the steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any, ClassVar, NamedTuple, Self

from fastadam.arrays.flat import move
from fastadam.arrays.host import Array, writable
from fastadam.arrays.tree import Structure, Tree, named, rebuild
from fastadam.checks import integer
from fastadam.group import Group, is_grouped
from fastadam.kernels.contract import Slot
from fastadam.plans.chores import Chores
from fastadam.plans.plan import Plan
from fastadam.plans.storage import Storage
from fastadam.plans.streams import Streams
from fastadam.plans.table import Table
from fastadam.rule import Rule
from fastadam.state import saved
from fastadam.state.averages import Averaging
from fastadam.state.slots import State
from fastadam.state.sparse import Behind
from fastadam.state.totals import Totals


class Settings(NamedTuple):
    """Holds what construction and copies are given beside parameters and hyperparameters; see Optimizer's arguments."""

    backend: str
    seed: int
    chores: Chores
    copy_to: Tree | None
    storage: Storage
    capturable: bool
    lacking: Sequence[frozenset[str]] | None = None  # of each group that is copied: the slots it does without


class Stateful(Averaging):
    """Is the part of an Optimizer that takes no step: it asks the State, Table and Totals that construction made."""

    rule: ClassVar[type[Rule]]

    groups: tuple[Group, ...]
    _tree: Tree
    _structure: Structure
    _chores: Chores
    _state: State
    _totals: Totals
    _behind: Behind
    _table: Table
    _plan: Plan
    _window: Any
    _asked: str  # the backend
    _capturable: bool
    _copy_to: Tree
    _copies: Sequence[Array] = ()  # per leaf, the user's array of copy_to
    _built: frozenset[str]  # the attributes that are not a subclass's

    def _build(self, params: Tree, default: Rule, settings: Settings) -> None:
        raise NotImplementedError

    def _introduce(self, state: State, copies: Sequence[Array]) -> None:
        raise NotImplementedError

    @property
    def params(self) -> Tree:
        """Return the parameters that steps change: a tree like the one given, or the list of param groups' trees."""
        return self._tree

    @property
    def paths(self) -> list[str]:
        """Return each leaf's path in params as errors print it, such as ['w'][0]; the empty text for a single array."""
        return list(self._structure.names)

    @property
    def index_offset(self) -> int | dict[str, int]:
        """Return what the constructor was given: added to the elements' index for stochastic rounding."""
        return self._state.storage.index_offset

    @property
    def copy_to(self) -> Tree:
        """Return the copies in 16 bits that steps write: the tree given, or after `to` one like it; None without
        copy_to."""
        return self._copy_to

    @property
    def ema(self) -> Tree:
        """Return the averaged parameters: a tree like params of arrays that the steps change; None without
        ema_decay."""
        if self._chores.ema_decay is None:
            return None
        views = iter([self._state.views(leaf)["ema"] for leaf in range(len(self._state.paths))])
        return rebuild(self._tree_of_arrays(), lambda _: next(views))

    def _tree_of_arrays(self) -> Tree:
        return [item["params"] for item in self._tree] if is_grouped(self._tree) else self._tree

    def _kept(self) -> Sequence[Streams]:
        self._plan.check_none_moved()
        self.catch_up()
        return self._state.streams

    def _averaged_slots(self) -> Iterator[tuple[Streams, Array, float]]:
        streams_of_leaves, names = self._kept(), [slot.name for slot in self._state.kernel.slots]
        for group in self.groups:
            for streams in streams_of_leaves[group.leaves.start : group.leaves.stop]:
                yield streams, streams.slots[names.index(self.rule.averaged_slot)], group.rule.extrapolation  # type: ignore[arg-type]

    def _on_stream(self) -> AbstractContextManager[Any]:
        return self._state.on_stream()

    def accumulate(self, grads: Tree, micro_batches: int = 1) -> None:
        """Add one micro-batch's gradients, a tree as `step` takes it, to those that the next `step()` uses.

        micro_batches: how many they are the sum of.
        That step, skipped, refused for a gradient that is not finite, or taken, uses them up; so does load_state_dict.
        Pickle and deepcopy keep them, state_dict does not.
        """
        count = integer("micro_batches", micro_batches, low=1, most=2**62)
        self.check_idle("gradients inside averaged() are those of the averages")
        leaves = self._structure.flatten(grads, "grads")
        self._plan.accept(leaves)
        self._totals.add(self._plan, self._state, leaves, count)

    @property
    def accumulated(self) -> tuple[int, dict[str, Array]]:
        """Return how many micro-batches have been accumulated, and by path the sums of their gradients, as they lie."""
        sums = zip(self.paths, self._totals.sums(self._state), strict=True)
        return self._totals.batches, {path: x for path, x in sums if self._totals.batches and x is not None}

    def forget(self) -> None:
        """Drop what has been accumulated."""
        self._totals.forget()

    def catch_up(self, rows: Tree = None) -> None:
        """Bring to date the rows that exact steps have left behind: all of them, or some, before they are read.

        rows: like params, with the (k,) integer indices of rows as leaves; a dict may lack keys.
        `step`, state_dict and load_state_dict bring all rows to date first; pickle and deepcopy keep them behind.
        """
        leaves = None if rows is None else self._structure.flatten(rows, "rows", partial=True)
        self._behind = self._behind.catch_up(self._plan, self._table, self._state.params, leaves)

    @property
    def slots(self) -> dict[str, Slot]:
        """Return by name what is kept of each parameter beside averages and masters."""
        return {slot.name: slot for slot in self._state.kernel.slots}

    def moments(self) -> dict[str, dict[str, Array]]:
        """Return the slots by leaf and name, in the parameter's shape: as they lie where they rest in the compute type,
        else decoded copies."""
        self.catch_up()
        return self._state.moments()

    def convert(self, moments: str | None) -> None:
        """Let the state rest in another format from now on, rounded to nearest; see Optimizer's `moments`."""
        self.check_idle("a conversion inside averaged() would keep no parameters of its own")
        self._plan.check_none_moved()
        self.catch_up()
        if self._window is not None:
            self._window.refill()
        self._plan.settle()
        self._introduce(self._state.converted(moments), self._copies)

    def reset(self, leaves: Iterable[str] | str | None = None) -> None:
        """Let the state be as new beside the parameters as they are now: slots, averages, masters, counts.

        leaves: paths of `paths`, or beginnings of them, such as "['encoder']"; None for all, and then the optimizer's
            own count and `skipped` are 0 again, and what was accumulated is dropped.
        Raises TypeError, ValueError naming a path that there is not, or some leaves only of a group that a captured
        graph steps; then nothing has changed.
        """
        self.check_idle()
        chosen = named(self.paths, leaves)
        if self._window is not None and self._window.captured:
            for group in self.groups:
                if len(split := set(group.leaves) & set(chosen)) not in (0, len(group.leaves)):
                    raise ValueError(
                        f"leaves has {self.paths[min(split)]!r}, expected whole groups: a captured graph has one count "
                        "for each"
                    )
        self.catch_up()
        if self._window is not None:
            self._window.pause()
        self._plan.settle()
        table, first = self._table, list(self.rule.carried.values())
        for leaf in chosen:
            self._state.renew(leaf)
            table.counts[leaf] = 0
            if not table.shared:
                table.carried[leaf] = first
        if leaves is None:
            table.counts[-1] = table.skipped = 0
            table.carried[:] = first
            self.forget()
        table.notice()
        self._plan.carry()
        if self._window is not None:
            self._window.restart()

    @property
    def state_bytes(self) -> int:
        """Return the bytes of the state: slots, averages, masters."""
        return self._state.nbytes

    @property
    def bytes_per_step(self) -> int:
        """Return the bytes that one step reads and writes, where gradients are of their parameters' dtype."""
        limits = [self._chores.max_norm, *(group.max_norm for group in self.groups)]
        first = bool(self._chores.skip_nonfinite or any(limits))
        return self._state.bytes_per_step(1 + first + self._chores.zero_grads)

    def state_dict(self, copy: bool = True) -> dict[str, Any]:
        """Return everything but the parameters, as plain numbers and copied arrays; what load_state_dict takes.

        copy: False gives the state's arrays as they lie, on their device, to be read before the next step.
        "version", "method", "t" (the optimizer's count), "seed"; "groups": a list of dicts of hyperparameters, with
        lr None where it is a callable; "leaves": per leaf, "count", "format" (its storage dtype), what the rule
        carries (NAdam: "mu_product"), and each slot in the parameter's shape; so "ema", "master" and "remainder" where
        there are any. A slot of 8 bits is (blocks, 1024) uint8 and, as "m_scales", (blocks, 16) float32, of elements in
        the "order" of axes in memory; see fastadam.kernels.formats. index_offset is not in it.
        """
        self.check_idle("a state_dict inside averaged() would stand beside averages")
        self.catch_up()
        if self._window is not None:
            self._window.refill()  # the host's counts are the device's then
        self._plan.settle()
        return saved.state_dict(self._state, self._table, self.rule, copy)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state_dict of the same method over parameters of the same names, shapes and dtypes.

        Values are copied; those of 8 bits from another order of axes are rounded anew. Raises TypeError, ValueError
        naming what differs, or where a captured graph's leaves have not taken the same; then nothing has changed.
        """
        self.check_idle("a state loaded inside averaged() would lose its parameters at the end")
        rules = saved.check(self._state, self._table, self.rule, state_dict)
        if self._window is not None and self._window.captured:
            saved.check_even(self._state, self._table, self.rule, state_dict)
        self.catch_up()
        if self._window is not None:
            self._window.pause()
        saved.load(self._state, self._table, self.rule, state_dict, rules)
        self._plan.carry()
        self.forget()
        if self._window is not None:
            self._window.restart()

    def to(self, where: str) -> Self:
        """Return an optimizer of copies on "cuda" (the current device) or on the "cpu", state included; itself if it is
        there.

        `params` of the result are the copies, and so are its `copy_to` and what has been accumulated. Tensors of other
        libraries become CuPy's or NumPy's arrays.
        Raises RuntimeError where CUDA cannot run: fastadam.backends() says why.
        """
        moved = rebuild(self._tree, lambda leaf: move(leaf, where))
        if all(a is b for a, b in zip(Structure(moved).leaves, Structure(self._tree).leaves, strict=True)):
            return self
        other, kept = type(self).__new__(type(self)), self.__getstate__()
        kept |= {"params": moved, "backend": "cuda" if where == "cuda" else "auto"}
        kept["totals"] = kept["totals"].map(lambda x: move(x, where))
        if self._copy_to is not None:
            kept["copy_to"] = rebuild(self._copy_to, lambda leaf: move(leaf, where))
        other.__setstate__(kept)
        return other

    def __getstate__(self) -> dict[str, Any]:
        self.check_idle("a copy or a conversion inside averaged() would keep no parameters of its own")
        with self._plan.on_stream():  # and before the state, which waits for that stream
            totals = self._totals.map(deepcopy)
        # Rows that are behind stay so: of a tree that is copied together with its optimizer, they are copied behind.
        if self._window is not None:
            self._window.refill()
        self._plan.settle()
        state = saved.state_dict(self._state, self._table, self.rule)
        return {
            "params": self._tree, "copy_to": self._copy_to, "backend": self._asked, "capturable": self._capturable,
            "rules": [group.rule for group in self.groups],  # with callables, which a state_dict cannot hold
            "limits": [group.max_norm for group in self.groups], "chores": self._chores,
            "free": [group.free for group in self.groups], "lacking": [group.lacking for group in self.groups],
            "storage": self._state.storage, "state": state, "behind": deepcopy(self._behind), "totals": totals,
            "of_subclass": {name: value for name, value in vars(self).items() if name not in self._built},
        }  # fmt: skip

    def __setstate__(self, pickled: dict[str, Any]) -> None:
        # Whatever arrived read-only, as from joblib's workers, is copied: it is this optimizer's now.
        tree, copy_to = (rebuild(pickled[name], writable) for name in ("params", "copy_to"))
        tree = saved.regrouped(tree, pickled["rules"], pickled["limits"], pickled["free"])
        settings = Settings(
            pickled["backend"], pickled["state"]["seed"], pickled["chores"], copy_to, pickled["storage"],
            pickled["capturable"], pickled["lacking"],
        )  # fmt: skip
        self._build(tree, pickled["rules"][0], settings)
        self.load_state_dict(pickled["state"])
        self._behind, self._totals = pickled["behind"], pickled["totals"].map(writable)
        vars(self).update(pickled["of_subclass"])
