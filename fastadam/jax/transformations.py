"""Transformations: fused steps in optax's form, which costs no second pass over the parameters."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import jax
import numpy as np
import optax

from fastadam import rules
from fastadam.jax.fused import Fused, FusedOptions, FusedState
from fastadam.rule import Rule

READ = (
    "an update of fastadam.jax can only be added to the parameters it was worked out for, in the same trace: what "
    "reads or changes updates needs true_updates=True, or stands before fastadam.jax in a chain"
)


class Stepped:
    """Stands where optax has an update: p + it is the parameter after the step, which has been worked out already."""

    __slots__ = "new", "old"
    __array_ufunc__ = None  # a NumPy array, too, leaves the sum to __radd__

    def __init__(self, new: Any, old: Any) -> None:
        self.new, self.old = new, old

    def __radd__(self, p: Any) -> Any:
        if p is not self.old:
            raise TypeError(f"the parameter is another: {READ}")
        return self.new

    __add__ = __radd__

    def _refuse(self, *_: Any) -> Any:
        raise TypeError(READ)

    __neg__ = __mul__ = __rmul__ = __sub__ = __rsub__ = __truediv__ = __abs__ = __array__ = astype = _refuse
    __pow__ = __matmul__ = __rmatmul__ = __lt__ = __le__ = __gt__ = __ge__ = __getitem__ = reshape = ravel = _refuse
    shape = property(lambda self: self.new.shape)
    dtype = property(lambda self: self.new.dtype)
    ndim = property(lambda self: self.new.ndim)
    size = property(lambda self: self.new.size)

    def __repr__(self) -> str:
        return f"Stepped({READ})"


class Transformation(optax.GradientTransformation):  # type: ignore[misc]
    """Steps JAX's arrays, as optax's GradientTransformation, or fused: `params, state = tx.step(params, state, grads)`.

    Both forms run compiled, under jit, in place where the parameters and the state are donated: without donation XLA
    copies them. update needs params.

    >>> tx = fastadam.jax.adam(0.25)
    >>> params = {"w": jnp.ones(3)}
    >>> state = tx.init(params)
    >>> step = jax.jit(tx.step, donate_argnums=(0, 1))
    >>> params, state = step(params, state, {"w": jnp.ones(3)})
    >>> params["w"].round(6).tolist(), int(state.count)
    ([0.75, 0.75, 0.75], 1)
    """

    @property
    def fused(self) -> Fused:
        """Return what works the steps out."""
        return self.init.__self__  # type: ignore[no-any-return]

    def step(
        self, params: Any, state: FusedState, grads: Any, *, lr: Any = None, grad_scale: Any = None
    ) -> tuple[Any, FusedState]:
        """Return the parameters and the state after a step; see fastadam.jax.fused.Fused.step."""
        return self.fused.step(params, state, grads, lr=lr, grad_scale=grad_scale)

    def stream(self, name: str, params: Any, state: FusedState) -> Any:
        """Return a stream of the state as a tree like params: "m", "v", "ema"; of 8 bits, flat blocks."""
        return self.fused.stream(name, params, state)


def _of(fused: Fused) -> Transformation:
    def update(updates: Any, state: FusedState, params: Any = None) -> tuple[Any, FusedState]:
        if params is None:
            raise ValueError("params is None, expected the parameters: update(grads, state, params)")
        new, after = fused.step(params, state, updates)
        if fused.options.true_updates:
            return jax.tree.map(lambda x, p: x - p, new, params), after
        return jax.tree.map(Stepped, new, params), after

    return Transformation(fused.init, update)


def transform(rule: Rule, *, mask: Any = None, **options: Any) -> Transformation:
    """Return a transformation by any of fastadam.rules, whose equations and defaults are PyTorch's.

    mask: which parameters decay: a tree of booleans like them, or a function from them to it.
    moments, master, max_norm, max_value, seed, index_offset: as in fastadam.Optimizer. The state's `grad_norm` is what
        max_norm was held against. ema_decay: a number, or a function of the count that JAX can trace; the averages:
        tx.stream("ema", params, state).
    true_updates: whether `update` returns arrays that transformations after it may read, at the cost of another pass.
    pool_below: parameters of fewer elements share arrays of the state; 0 gives each its own, as sharded ones need.

    >>> params = jnp.ones(3)
    >>> tx = fastadam.jax.transform(fa.rules.NAdam(lr=0.25), ema_decay=0.5)
    >>> params, state = tx.step(params, tx.init(params), jnp.ones(3))
    >>> bool((params < tx.stream("ema", params, state)).all())
    True
    """
    return _of(Fused(rule, _options(options), mask=mask))


def _options(given: dict[str, Any]) -> FusedOptions:
    # optax.inject_hyperparams hands the keywords of **options on as one argument of that name.
    options = given["options"] if given.keys() == {"options"} else given
    names = [field.name for field in fields(FusedOptions)]
    if unknown := [name for name in options if name not in names]:
        raise TypeError(
            f"{unknown[0]} is {options[unknown[0]]!r}, expected no such option, but any of {', '.join(names)}"
        )
    return FusedOptions(**options)


def _by(kind: type[Rule], hyperparameters: dict[str, Any], options: dict[str, Any], mask: Any = None) -> Transformation:
    """Return a transformation whose hyperparameters are numbers, arrays, or functions of the count."""
    inputs = {name: x for name, x in hyperparameters.items() if callable(x) or isinstance(x, (jax.Array, np.ndarray))}
    plain = {name: x for name, x in hyperparameters.items() if name not in inputs}
    if "b1" in hyperparameters:
        betas = hyperparameters["b1"], hyperparameters["b2"]
        plain = {name: x for name, x in plain.items() if name not in ("b1", "b2")}
        plain["betas"] = tuple(0.5 if name in inputs else x for name, x in zip(("b1", "b2"), betas, strict=True))
    for name in inputs.keys() - {"b1", "b2"}:
        plain[name] = 0.5  # whatever the rule takes; it is not used
    return _of(Fused(kind(**plain), _options(options), inputs, mask))


def _with_dtype(slot: str, dtype: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return options with optax's dtype of the first moment among them."""
    if dtype is None:
        return options
    if "moments" in options:
        raise TypeError(f"moments is {options['moments']!r} and the dtype of {slot} is {dtype!r}, expected one of both")
    return {**options, "moments": {slot: np.dtype(dtype).name}}


def _check_absent(**given: Any) -> None:
    """Refuse what optax's Adam has and the kernel has not, unless it is 0; an injected number may be any."""
    for name, x in given.items():
        if x is not None and (isinstance(x, jax.core.Tracer) or x != 0):
            raise NotImplementedError(f"{name} is {x}, expected 0: only optax's own optimizers have it")


def adam(
    learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, eps_root: Any = None, mu_dtype: Any = None,
    *, nesterov: bool = False, **options: Any,
) -> Transformation:  # fmt: skip
    """Return what optax.adam stands for, in its equation and with its defaults.

    learning_rate: a number, an array, or a function of the count of steps taken. eps_root, nesterov: none but 0 and
        False are taken. options: see transform.

    >>> import optax
    >>> params = jnp.ones(3)
    >>> tx = optax.chain(optax.clip_by_global_norm(1.0), fastadam.jax.adam(0.25))
    >>> updates, state = tx.update(jnp.ones(3), tx.init(params), params)
    >>> optax.apply_updates(params, updates).round(6).tolist()
    [0.75, 0.75, 0.75]
    """
    _check_absent(eps_root=eps_root, nesterov=nesterov)
    numbers = {"lr": learning_rate, "b1": b1, "b2": b2, "eps": eps}
    return _by(rules.Adam, numbers, _with_dtype("m", mu_dtype, options))


def adamw(
    learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, eps_root: Any = None, mu_dtype: Any = None,
    weight_decay: Any = 1e-4, mask: Any = None, *, nesterov: bool = False, **options: Any,
) -> Transformation:  # fmt: skip
    """Return what optax.adamw stands for, in its equation and with its defaults. See adam; mask: see transform.

    >>> params = {"w": jnp.ones(3)}
    >>> tx = fastadam.jax.adamw(3e-4, weight_decay=0.1)
    >>> params, state = jax.jit(tx.step)(params, tx.init(params), {"w": jnp.ones(3)})
    """
    _check_absent(eps_root=eps_root, nesterov=nesterov)
    numbers = {"lr": learning_rate, "b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay}
    return _by(rules.AdamW, numbers, _with_dtype("m", mu_dtype, options), mask)


def lion(
    learning_rate: Any, b1: Any = 0.9, b2: Any = 0.99, mu_dtype: Any = None, weight_decay: Any = 1e-3,
    mask: Any = None, **options: Any,
) -> Transformation:  # fmt: skip
    """Return what optax.lion stands for, in its equation and with its defaults. See adam; mask: see transform.

    >>> params = jnp.ones(3)
    >>> tx = fastadam.jax.lion(0.25, weight_decay=0.0)
    >>> tx.step(params, tx.init(params), jnp.ones(3))[0].tolist()
    [0.75, 0.75, 0.75]
    """
    numbers = {"lr": learning_rate, "b1": b1, "b2": b2, "weight_decay": weight_decay}
    return _by(rules.Lion, numbers, _with_dtype("m", mu_dtype, options), mask)


def sgd(
    learning_rate: Any, momentum: Any = None, nesterov: bool = False, accumulator_dtype: Any = None, **options: Any
) -> Transformation:
    """Return what optax.sgd stands for, in its equation and with its defaults. See adam.

    >>> params = jnp.ones(3)
    >>> tx = fastadam.jax.sgd(0.25)
    >>> tx.step(params, tx.init(params), jnp.ones(3))[0].tolist()
    [0.75, 0.75, 0.75]
    """
    numbers = {"lr": learning_rate, "momentum": 0.0 if momentum is None else momentum, "nesterov": nesterov}
    return _by(rules.SGD, numbers, _with_dtype("m", accumulator_dtype, options))
