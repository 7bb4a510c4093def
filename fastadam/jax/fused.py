"""Fused: a rule's steps over JAX's arrays, with the state that they need, as functions that jit compiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastadam import kernels
from fastadam.checks import SEEDS, integer, number, positive
from fastadam.group import check_representable
from fastadam.jax.call import Call, Outputs
from fastadam.jax.layout import POOLED, StateLayout, avals
from fastadam.jax.programs import Program, Value, traceable
from fastadam.kernels.chores import Flags
from fastadam.kernels.contract import Weights
from fastadam.kernels.formats import FLOATS, compute
from fastadam.plans.storage import Storage
from fastadam.rule import Rule
from fastadam.state.given import Asked

Inputs = Mapping[str, Any]  # arrays of no dimension, or functions of the count, by the name of what they stand for


class FusedState(NamedTuple):
    """Holds what steps need beside the parameters; all of it is donated with them.

    count: the steps taken, int32. carried: by name, what the rule carries, a float64's bits as two uint32. streams: by
    the names of an Optimizer's state_dict, arrays of the slots, averages, masters and remainders: one for each large
    parameter, in the order of the tree and like it, then one for all small ones. grad_norm: the last step's, before
    gradients were clipped by max_norm, float32; None without that.
    """

    count: Any
    carried: dict[str, Any]
    streams: dict[str, list[Any]]
    grad_norm: Any = None


@dataclass(frozen=True, kw_only=True)
class FusedOptions:
    """Holds what transformations take beside hyperparameters; see fastadam.jax.transform. Checked when made."""

    moments: str | Mapping[str, str] | None = None
    master: str | None = None
    ema_decay: Any = None
    max_norm: float | None = None
    max_value: float | None = None
    seed: int = 0
    index_offset: int = 0
    pool_below: int = POOLED
    true_updates: bool = False

    def __post_init__(self) -> None:
        for name in ("max_norm", "max_value"):
            object.__setattr__(self, name, positive(name, getattr(self, name)))
        if self.ema_decay is not None and not callable(self.ema_decay):
            object.__setattr__(self, "ema_decay", number("ema_decay", self.ema_decay, low=0, most=1))
        object.__setattr__(self, "seed", integer("seed", self.seed, **SEEDS))
        for name in ("index_offset", "pool_below"):
            object.__setattr__(self, name, integer(name, getattr(self, name), low=0, most=2**62))
        if self.true_updates is not True and self.true_updates is not False:
            raise TypeError(f"true_updates is {self.true_updates!r}, expected True or False")


class Fused:
    """Steps trees of JAX's arrays by one rule.

    inputs: hyperparameters that are arrays or functions of the count, by name, in place of the rule's; betas are "b1"
    and "b2". mask: a tree of booleans like the parameters, or a function from these to it: which of them decay.
    """

    def __init__(self, rule: Rule, options: FusedOptions, inputs: Inputs | None = None, mask: Any = None) -> None:
        if not isinstance(rule, Rule):
            raise TypeError(f"rule is {rule!r}, expected one of fastadam.rules with its hyperparameters")
        self.rule, self.options, self._inputs, self._mask = rule, options, dict(inputs or {}), mask
        self._kernel = kernels.ALL[rule.kernel].switched(rule.options)
        if self._kernel.summed(rule.options):
            raise NotImplementedError(
                f"rule is {rule!r}, which needs sums over whole leaves: expected one that does not"
            )
        if callable(rule.lr):  # type: ignore[attr-defined]
            self._inputs["lr"] = rule.lr  # type: ignore[attr-defined]
        if callable(options.ema_decay):
            self._inputs["ema_decay"] = options.ema_decay
        alike, by_slot = (None, options.moments) if isinstance(options.moments, Mapping) else (options.moments, {})
        slots = [slot.name for slot in self._kernel.slots if rule.uses(slot)]
        storage = Storage(moments=alike, master=options.master, index_offset=options.index_offset)
        weights = [slot.name for slot in self._kernel.slots if isinstance(slot, Weights)]
        self._asked = Asked(storage, slots, by_slot, options.ema_decay is not None, None, weights)
        self._layouts: dict[Any, StateLayout] = {}
        self._calls: dict[Any, Call] = {}

    def init(self, params: Any) -> FusedState:
        """Return the state before the first step of a tree of parameters."""
        leaves, names, _ = self._flattened(params)
        layout = self._layout(leaves, names)
        carried = {name: jnp.asarray(np.array([x]).view(np.uint32)) for name, x in self.rule.carried.items()}
        norm = None if self.options.max_norm is None else jnp.zeros((), jnp.float32)
        return FusedState(jnp.zeros((), jnp.int32), carried, layout.begin(leaves, self.rule.initial()), norm)

    def step(
        self, params: Any, state: FusedState, grads: Any, *, lr: Any = None, grad_scale: Any = None
    ) -> tuple[Any, FusedState]:
        """Return the parameters and the state after one step; in place, under jit, where both are donated.

        grads: a tree like params, floats of any width. lr: this step's, a number or an array, instead of the rule's.
        grad_scale: a number or an array that multiplies the gradients first.
        Raises TypeError, ValueError naming the leaf, or what of the state init has not made for such params;
        NotImplementedError where max_norm would be of parts of gradients, under shard_map. Coefficients that are not
        finite raise XLA's error as it runs.
        """
        leaves, names, tree = self._flattened(params)
        gradients = self._gradients(leaves, names, tree, grads)
        if self.options.max_norm is not None:
            _check_whole(names, gradients)
        layout = self._layout(leaves, names)
        self._check_state(state, layout)
        decays = self._decays(params, tree, len(leaves))
        at_call = {"lr": lr, "grad_scale": grad_scale}
        given = {**self._inputs, **{name: x for name, x in at_call.items() if x is not None}}
        key = avals(leaves), avals(gradients), tuple(decays), tuple(given)
        if key not in self._calls:
            self._calls[key] = self._call(layout, gradients, decays, list(given))
        inputs = [
            _scalar(f"{name}(count)", x(state.count)) if callable(x) else _scalar(name, x) for name, x in given.items()
        ]
        numbers = [state.carried[name] for name in self.rule.carried]  # JAX sorts the keys of dicts
        streams = [x for name in layout.arrays for x in state.streams[name]]
        count, *results = self._calls[key](*inputs, state.count, *numbers, *leaves, *streams, *gradients)
        parts = iter(results)
        carried = {name: next(parts) for name in self.rule.carried}
        stepped = tree.unflatten([next(parts) for _ in leaves])
        after = {name: [next(parts) for _ in lies] for name, lies in layout.arrays.items()}
        return stepped, FusedState(count, carried, after, next(parts, None))

    def stream(self, name: str, params: Any, state: FusedState) -> Any:
        """Return a stream of the state as a tree like params: "m", "v", "ema", ...; of 8 bits, flat blocks."""
        leaves, names, tree = self._flattened(params)
        layout = self._layout(leaves, names)
        if name not in layout.arrays:
            raise ValueError(f"name is {name!r}, expected {' or '.join(map(repr, layout.arrays)) or 'none: no state'}")
        return tree.unflatten(layout.taken_apart(name, state.streams[name]))

    def _flattened(self, params: Any) -> tuple[list[Any], list[str], Any]:
        """Return the leaves of a tree of parameters, their paths, and its structure."""
        paths, tree = jax.tree_util.tree_flatten_with_path(params)
        names = [jax.tree_util.keystr(path) for path, _ in paths]
        leaves = []
        for name, (_, x) in zip(names, paths, strict=True):
            leaves.append(_floats(x, f"params{name} is {_described(x)}"))
            _check_platform(name, x)
        check_representable(self.rule, compute(leaves[0].dtype) if leaves else np.float32)
        return leaves, names, tree

    def _gradients(self, leaves: Sequence[Any], names: Sequence[str], tree: Any, grads: Any) -> list[Any]:
        gradients = []
        for name, p, g in zip(names, leaves, _matched("grads", tree, grads), strict=True):
            difference = f"grads{name} is {_described(g)}, params{name} is {_described(p)}"
            gradients.append(_floats(g, difference))
            if tuple(g.shape) != tuple(p.shape):
                raise ValueError(f"{difference}: expected one shape")
        return gradients

    def _check_state(self, state: Any, layout: StateLayout) -> None:
        """Refuse a state that does not lie as init lays it out: native code walks by that layout alone."""
        if not isinstance(state, FusedState):
            raise TypeError(f"state is {type(state).__name__}, expected a FusedState, which init returns")
        for field, given, names in (
            ("carried", state.carried, self.rule.carried), ("streams", state.streams, layout.arrays)
        ):  # fmt: skip
            if set(given) != set(names):
                raise ValueError(
                    f"state.{field} has {sorted(given)}, expected {sorted(names)}, as init gives for params"
                )
        arrays = [("count", state.count, "int32()")]
        arrays += [(f"carried[{name!r}]", x, "uint32(2,)") for name, x in state.carried.items()]
        for name, lies in layout.arrays.items():
            if len(state.streams[name]) != len(lies):
                raise ValueError(
                    f"state.streams[{name!r}] has {len(state.streams[name])} arrays, expected {len(lies)}, as init "
                    "gives for params"
                )
            for k, (x, lie) in enumerate(zip(state.streams[name], lies, strict=True)):
                arrays.append((f"streams[{name!r}][{k}]", x, _described(lie)))
        for name, x, expected in arrays:
            if _described(x) != expected:
                raise ValueError(f"state.{name} is {_described(x)}, expected {expected}, as init gives for params")

    def _layout(self, leaves: Sequence[Any], names: Sequence[str]) -> StateLayout:
        key = avals(leaves)
        if key not in self._layouts:
            like = [np.broadcast_to(np.zeros((), x.dtype), x.shape) for x in leaves]
            self._layouts[key] = StateLayout(self._kernel, self._asked, like, names, self.options.pool_below)
        return self._layouts[key]

    def _decays(self, params: Any, tree: Any, n: int) -> list[bool]:
        """Return per leaf whether its weight decays."""
        mask = self._mask(params) if callable(self._mask) else self._mask
        return [True] * n if mask is None else [bool(x) for x in _matched("mask", tree, mask)]

    def _call(
        self, layout: StateLayout, gradients: Sequence[Any], decays: Sequence[bool], given: Sequence[str]
    ) -> Call:
        """Return the call of such steps, which is told these numbers when it runs."""
        program = Program()
        inputs: dict[str, Any] = {name: program.input(name) for name in given}
        scale = inputs.pop("grad_scale", None)
        carried = [program.input(name) for name in self.rule.carried]
        rows, after = [], carried
        for decayed in sorted(set(decays), reverse=True) or [True]:
            changed = dict(inputs) if decayed else {**inputs, "weight_decay": 0.0}
            numbers, after = self._row(program, changed, carried, scale)
            rows.append(numbers)
        limit = None if self.options.max_norm is None else program.value(self.options.max_norm)
        order = sorted(set(decays), reverse=True)
        outputs = Outputs(program, rows, after, program.value(1.0 if scale is None else scale), limit)
        return Call(
            layout, outputs, [order.index(x) for x in decays], [g.dtype for g in gradients],
            Flags(limit=self.options.max_value is not None), self.options.seed, self.options.index_offset,
        )  # fmt: skip

    def _row(
        self, program: Program, changed: dict[str, Any], carried: Sequence[Value], scale: Value | None
    ) -> tuple[list[Any], list[Any]]:
        """Return a row's numbers, and what is carried on, under these hyperparameters."""
        betas = getattr(self.rule, "betas", None)
        if betas is not None and {"b1", "b2"} & changed.keys():
            changed = {**changed, "betas": (changed.pop("b1", betas[0]), changed.pop("b2", betas[1]))}
        lr = changed.pop("lr", self.rule.lr)  # type: ignore[attr-defined]
        decay = changed.pop("ema_decay", self.options.ema_decay)
        rule, t = traceable(self.rule, changed), program.input("t")
        width = len(self._kernel.Coefficients._fields)  # type: ignore[attr-defined]
        numbers = program.every(lambda: rule.coefficients(t, lr, *carried))
        if scale is not None:
            numbers[0] = numbers[0] * scale
        chores = [self.options.max_value or 0.0, 0.0 if decay is None else 1 - decay, None]
        return [*numbers[:width], *numbers[width:], *chores], numbers[width:]


def _described(x: Any) -> str:
    return f"{x.dtype}{tuple(x.shape)}" if hasattr(x, "dtype") else type(x).__name__


def _floats(x: Any, described: str) -> Any:
    """Return an array of floats as XLA will have it: where JAX has no float64, NumPy's are float32."""
    if not hasattr(x, "dtype") or str(x.dtype) not in FLOATS:
        raise TypeError(f"{described}, expected an array of {', '.join(FLOATS)}")
    return jnp.asarray(x) if isinstance(x, (np.ndarray, np.generic)) else x


def _matched(name: str, tree: Any, x: Any) -> list[Any]:
    """Return what a tree like the parameters has at their leaves."""
    try:
        return tree.flatten_up_to(x)  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} is not a tree like params: {error}") from None


def _scalar(name: str, x: Any) -> Any:
    """Return a number as an array of float64 where JAX has that, else of float32."""
    try:
        array = jnp.asarray(x)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {x!r}, expected a number") from None
    if array.size != 1 or jnp.iscomplexobj(array):
        raise TypeError(f"{name} is {_described(array)}, expected a real number")
    return jnp.asarray(array, jnp.float64 if array.dtype == jnp.float64 else jnp.float32).reshape(())


def _check_whole(names: Sequence[str], gradients: Sequence[Any]) -> None:
    """Refuse gradients of which each device may hold another part: under shard_map or pmap their norm is a part's."""

    def varying(x: Any) -> set[str]:
        return set(jax.typeof(x).manual_axis_type.varying)

    axes = set(jax.sharding.get_abstract_mesh().manual_axes)
    tracked = set().union(*(varying(jax.lax.axis_index(axis)) for axis in axes))  # none with check_vma=False
    for name, g in zip(names, gradients, strict=True):
        if over := sorted(varying(g) | (axes - tracked)):
            raise NotImplementedError(
                f"max_norm is set and grads{name} may differ over {', '.join(over)}: expected gradients that shard_map "
                "knows to be alike, or no max_norm and the factor that clips them as grad_scale"
            )


def _check_platform(name: str, x: Any) -> None:
    """Refuse arrays that do not lie on the CPU."""
    if isinstance(x, jax.core.Tracer):
        platform = "cpu" if jax.config.jax_default_device is not None else jax.default_backend()  # type: ignore[attr-defined]
    else:
        platform = next(iter(x.devices())).platform if hasattr(x, "devices") else "cpu"
    if platform != "cpu":
        raise NotImplementedError(
            f"params{name} lies on {platform}, expected the CPU: XLA's streams there are not served yet, optax's are"
        )
