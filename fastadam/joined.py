"""Joins two optimizers over the leaves of one tree into one, of one state and checkpoint; muon.py takes the steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, ClassVar

from fastadam.arrays.host import Array, Host, describe, shaped_like
from fastadam.arrays.tree import ByPath, Structure, Tree, named, rebuild, replaced
from fastadam.group import Group
from fastadam.kernels.contract import Signed, Slot
from fastadam.kernels.formats import compute
from fastadam.methods import SGD, AdamW
from fastadam.rule import Rule
from fastadam.state import saved
from fastadam.state.resized import accept_rows, take_rows

KEYS = "version", "method", "t", "seed", "skipped", "groups", "leaves"  # of a state_dict


class Joined:
    """Is the part of Muon that takes no step: what it keeps of matrices, and what AdamW keeps of all other leaves.

    groups: of the matrices, and AdamW's.
    """

    rule: ClassVar[type[Rule]]
    groups: tuple[Group, ...]
    index_offset = 0

    _params: Tree
    _copy_to: Tree
    _structure: Structure
    _home: Host
    _moving: SGD  # moves the matrices
    _gathering: SGD  # moves their momenta
    _momenta: ByPath
    _aux: AdamW

    def _zeros_like(self, p: Array) -> Array:
        """Return zeros as wide as the arithmetic, which lie as a parameter does."""
        (zeros,) = self._home.allocate_beside([p], 0, compute(p.dtype), [p.size])
        return shaped_like(zeros, p)

    def _follow(self) -> None:
        """Let the walks know of hyperparameters that have been set."""
        self._gathering.groups[0].lr = 1 - self.groups[0].momentum
        self._moving.groups[0].weight_decay = self.groups[0].weight_decay

    def __setstate__(self, pickled: dict[str, Any]) -> None:
        vars(self).update(pickled)
        # Walks have copied what arrived read-only, as from joblib's workers: theirs are the arrays that are stepped.
        arrays, paths = {**self._moving.params, **self._aux.params}, iter(self.paths)
        self._params = rebuild(self._params, lambda _: arrays[next(paths)])
        self._structure, self._momenta = Structure(self._params), ByPath(self._gathering.params)
        if self._copy_to is not None:
            copies, paths = {**self._moving.copy_to, **self._aux.copy_to}, iter(self.paths)
            self._copy_to = rebuild(self._copy_to, lambda _: copies[next(paths)])

    @property
    def params(self) -> Tree:
        """Return the parameters, the tree that was given."""
        return self._params

    @property
    def copy_to(self) -> Tree:
        """Return the copies in 16 bits that steps write, the tree that was given; None without copy_to."""
        return self._copy_to

    @property
    def ema(self) -> Tree:
        """Return the averaged parameters: a tree like params of arrays that steps change; None without ema_decay."""
        if self._moving.ema is None:
            return None
        averages, paths = {**self._moving.ema, **self._aux.ema}, iter(self.paths)
        return rebuild(self._params, lambda _: averages[next(paths)])

    @property
    def paths(self) -> list[str]:
        """Return each leaf's path in params as errors print it."""
        return list(self._structure.names)

    @property
    def matrices(self) -> list[str]:
        """Return the paths of the leaves that take orthogonalised momentum."""
        return self._moving.paths

    @property
    def slots(self) -> dict[str, Slot]:
        """Return by name what is kept of each parameter beside averages and masters."""
        return {"m": Signed("m"), **self._aux.slots}

    @property
    def backend(self) -> str:
        """Return the name of the backend that steps these parameters."""
        return self._aux.backend

    @property
    def t(self) -> int:
        """Return the steps taken so far."""
        return self._aux.t

    @property
    def skipped(self) -> int:
        """Return the steps left out by skip_nonfinite."""
        return self._aux.skipped

    @property
    def averaging(self) -> bool:
        """Return whether params hold the averaged weights: within `averaged`."""
        return self._aux.averaging

    def _split(self, leaves: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what is given for each leaf by path: for matrices, and for all others."""
        by_path = dict(zip(self.paths, leaves, strict=True))
        matrices, others = ({path: by_path[path] for path in each.paths} for each in (self._moving, self._aux))
        return matrices, others

    def accumulate(self, grads: Tree, micro_batches: int = 1) -> None:
        """Add gradients to those that the next `step()` uses; see Optimizer.accumulate."""
        matrices, others = self._split(self._structure.flatten(grads, "grads"))
        self._aux.check_grads(others)
        self._moving.accumulate(matrices, micro_batches)
        self._aux.accumulate(others, micro_batches)

    @property
    def accumulated(self) -> tuple[int, dict[str, Array]]:
        """Return how many micro-batches have been accumulated, and by path the sums of their gradients."""
        (batches, matrices), (_, others) = self._moving.accumulated, self._aux.accumulated
        return batches, matrices | others

    def forget(self) -> None:
        """Drop what has been accumulated."""
        self._moving.forget()
        self._aux.forget()

    @property
    def state_bytes(self) -> int:
        """Return the bytes of the state: momenta, averages, masters, and AdamW's moments."""
        momenta: int = sum(m.nbytes for m in self._momenta.values())
        return momenta + self._moving.state_bytes + self._aux.state_bytes

    @property
    def bytes_per_step(self) -> int:
        """Return the bytes that the walks of one step read and write; what the products move depends on BLAS."""
        return sum(each.bytes_per_step for each in (self._gathering, self._moving, self._aux))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Swap the averages in; see Optimizer.averaged."""
        with self._moving.averaged(), self._aux.averaged():
            yield

    def refresh_master(self) -> None:
        """Take over parameters of 16 bits that were overwritten from outside; see Optimizer.refresh_master."""
        self._moving.refresh_master()
        self._aux.refresh_master()

    def state_dict(self, copy: bool = True) -> dict[str, Any]:
        """Return everything but the parameters, as Optimizer.state_dict does: "groups" are the matrices' and AdamW's,
        the slot of a matrix is "m"."""
        matrices, others = self._moving.state_dict(copy), self._aux.state_dict(copy)
        momenta = {path: self._home.get(m) if copy else m for path, m in self._momenta.items()}
        leaves = {f"params{path}": {**matrices["leaves"][f"params{path}"], "m": m} for path, m in momenta.items()}
        leaves |= others["leaves"]
        group = {each.name: getattr(self.groups[0], each.name) for each in fields(self.rule)}
        group |= {"lr": None if callable(group["lr"]) else group["lr"], "ns_coefficients": [*group["ns_coefficients"]]}
        ordered = {name: leaves[name] for name in (f"params{path}" for path in self.paths)}
        return {**others, "method": type(self).__name__, "groups": [group, *others["groups"]], "leaves": ordered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state_dict of a Muon over leaves of the same paths and shapes. Values are copied.

        Raises TypeError, ValueError naming what differs; then nothing has changed.
        """
        state, now = state_dict, self.state_dict(copy=False)
        if not isinstance(state, dict) or set(state) != set(KEYS) or state["method"] != type(self).__name__:
            expected = f"expected the state_dict of a {type(self).__name__}: {', '.join(KEYS)}"
            raise ValueError(f"state is {describe(state)}, {expected}")
        for name in ("groups", "leaves"):
            if len(state[name]) != len(now[name]):
                raise ValueError(f"state has {len(state[name])} {name}, this optimizer {len(now[name])}")
        leaves = dict(state["leaves"])
        rule = saved.rule_of_group("state['groups'][0]", self.groups[0], self.rule, state["groups"][0])
        of_matrices = {}
        for path, m in self._momenta.items():
            of_matrices[f"params{path}"] = leaf = dict(leaves.pop(f"params{path}", {}))
            if describe(came := leaf.pop("m", None)) != describe(m):
                raise ValueError(f"state['leaves']['params{path}']['m'] is {describe(came)}, expected {describe(m)}")
        moving = self._moving.state_dict(copy=False) | {"t": state["t"], "seed": state["seed"], "leaves": of_matrices}
        before = self._aux.state_dict()
        self._aux.load_state_dict(
            {**state, "method": self._aux.rule.__name__, "groups": state["groups"][1:], "leaves": leaves}
        )
        try:
            self._moving.load_state_dict(moving)
        except BaseException:
            self._aux.load_state_dict(before)
            raise
        self.groups[0].adopt(rule)
        self._follow()
        for path, m in self._momenta.items():
            self._home.write(m, state["leaves"][f"params{path}"]["m"])

    def reset(self, leaves: Iterable[str] | str | None = None) -> None:
        """Let the state be as new beside the parameters as they are now; leaves: see Optimizer.reset."""
        chosen = None if leaves is None else {self.paths[k] for k in named(self.paths, leaves)}
        for each in (self._moving, self._aux):
            each.reset(chosen if chosen is None else [path for path in each.paths if path in chosen])
        for path, m in self._momenta.items():
            if chosen is None or path in chosen:
                m[...] = 0

    def replace(self, path: str, array: Any, rows: Any = None, copy_to: Any = None) -> None:
        """Step another array from now on in the place of one leaf, whose state follows its rows; see
        Optimizer.replace."""
        m = None
        if path in self._momenta:
            new = self._home.owned("array", array)
            index = accept_rows(f"params{path}", self._moving.params[path], new, rows)
            m = self._zeros_like(new)
            values = self._home.get(m)
            take_rows(values, self._home.get(self._momenta[path]), index)
            self._home.write(m, values)
        (self._aux if m is None else self._moving).replace(path, array, rows, copy_to)
        if m is not None:
            self._gathering.replace(path, m)
            self._momenta[path] = m
        at = self.paths.index(path)
        self._params = replaced(self._params, at, array)
        self._structure = Structure(self._params)
        if copy_to is not None:
            self._copy_to = replaced(self._copy_to, at, copy_to)
