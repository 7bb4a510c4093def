"""Methods for scipy.optimize.minimize, each over an optimizer of arrays; README.md shows their use.

May import everything up to Optimizer, and SciPy. Where a step's arithmetic is concerned nothing belongs here.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from scipy.optimize import Bounds, OptimizeResult

from fastadam import methods
from fastadam.arrays.host import Array
from fastadam.checks import SEEDS, at_count, integer, number
from fastadam.kernels.formats import FLOATS
from fastadam.optimizer import Optimizer

__all__ = ["Minimizer", "adabelief", "adagrad", "adam", "adamax", "adamw", "lion", "nadam", "radam", "rmsprop", "sgd"]

TAKEN, SMALL = "All steps that were asked for were taken.", "No element of the gradient is larger than gtol."
MESSAGES = {
    1: "Some element of the gradient is still larger than gtol after the most steps.",
    2: "The value of fun, or an element of x, is not finite.",
    99: "`callback` raised `StopIteration`.",
}


@dataclass(frozen=True)
class Minimizer:
    """Is one of fastadam's optimizers as scipy.optimize.minimize calls a method.

    Such methods are for objectives whose value and gradient are those of a sample, such as a batch of rows, and for
    more numbers than a matrix over them could hold. Where f always gives the same value for the same x, and x is not
    that long, L-BFGS-B needs far fewer evaluations and wins.

    A call returns the OptimizeResult of `maxiter` steps from x0: in x0's dtype where that is float32, else in float64.

    fun, x0, args: as minimize hands them over. jac: its jac=True (fun returns value and gradient), or a function of x
        and args that returns the gradient, (n,).
    bounds: a scipy.optimize.Bounds, or (low, high) for each element, with None for none; x0 and the result of each step
        are clipped to them.
    callback: f(intermediate_result) with the x and fun after a step, or f(xk); StopIteration ends the search.

    Options, beside every argument of the optimizer (lr, betas, max_norm, skip_nonfinite, seed, ...):
    maxiter: the most steps, 1000 unless given.
    gtol, or minimize's tol: stop when no element of the gradient is larger; without it all steps are taken.
    schedule: a function of the step's count, from 1, by which lr is multiplied.
    batch: how many rows of each array in args an evaluation gets; all arrays have equally many. Every permutation of
        the rows, drawn from `seed`, is used up before the next, and the result's fun and jac are those of all rows.

    The result's status is 0 where all went as asked, 1 where gtol was not reached, 2 where fun or x ended as NaN
    or infinite, 99 where the callback stopped.
    Raises TypeError, ValueError that name the argument, before fun is called where that can be.

    >>> from scipy.optimize import minimize
    >>> from fastadam.scipy import adam
    >>> def f(x):
    ...     return (x**2).sum(), 2 * x
    >>> result = minimize(f, np.ones(3), jac=True, method=adam, tol=1e-6, options={"lr": 0.1})
    >>> bool(abs(result.jac).max() < 1e-6), result.success
    (True, True)
    """

    optimizer: type[Optimizer]

    def __call__(
        self, fun: Callable[..., Any], x0: Any, args: tuple[Any, ...] = (), jac: Any = None, bounds: Any = None,
        callback: Callable[..., Any] | None = None, **options: Any,
    ) -> OptimizeResult:  # fmt: skip
        for name in ("hess", "hessp", "constraints"):
            if (given := options.pop(name, None)) is not None and given != ():
                raise ValueError(f"{name} is {given!r}, expected none: only gradients and bounds are used")
        if not callable(jac):
            raise ValueError(f"jac is {jac!r}, expected a function, or True where fun returns its gradient, too")
        steps = integer("maxiter", options.pop("maxiter", 1000), low=0)
        tol, batch, schedule = (options.pop(name, None) for name in ("tol", "batch", "schedule"))
        gtol = options.pop("gtol", None)
        gtol = number("tol", tol, low=0) if gtol is None and tol is not None else gtol
        limit = -math.inf if gtol is None else number("gtol", gtol, low=0)
        if callback is not None and not callable(callback):
            raise TypeError(f"callback is {callback!r}, expected a function")
        samples: Iterator[Any] = repeat(args)
        if batch is not None:
            samples = batches(args, integer("batch", batch, low=1), options.get("seed", 0))
        if schedule is not None:
            default = inspect.signature(self.optimizer).parameters["lr"].default
            options["lr"] = scaled(options.get("lr", default), schedule)
        x = real("x0", x0)
        format = FLOATS.get(x.dtype.name)
        x = x if format is not None and format.is_compute else x.astype(np.float64)
        low, high = limits(bounds, x)
        np.clip(x, low, high, out=x)
        opt, evaluate, report = self.optimizer(x, **options), evaluation(fun, jac, x), reporting(callback)

        (value, gradient), status = evaluate(next(samples)), 1
        while (taken := opt.t + opt.skipped) < steps:
            if np.abs(gradient).max(initial=0) <= limit:
                break
            opt.step(gradient)
            np.clip(x, low, high, out=x)
            value, gradient = evaluate(next(samples))
            try:
                report(OptimizeResult(x=x.copy(), fun=value))
            except StopIteration:
                status, taken = 99, taken + 1
                break
        if batch is not None:
            value, gradient = evaluate(args)
        small = np.abs(gradient).max(initial=0) <= limit
        if status == 1 and (gtol is None or small):
            status = 0
        if not np.isfinite(value) or not np.isfinite(x).all():
            status = 2
        calls = taken + 1 + (batch is not None)
        return OptimizeResult(
            x=x, fun=value, jac=gradient, nit=taken, nfev=calls, njev=calls, status=status, success=status == 0,
            message=MESSAGES[status] if status else SMALL if small else TAKEN,
        )  # fmt: skip


def batches(args: tuple[Any, ...], size: int, seed: int) -> Iterator[tuple[Any, ...]]:
    """Return args again and again, each time with the next `size` rows of their arrays in a random order.

    What is no array is handed over as it is.
    """
    cut = [k for k, arg in enumerate(args) if getattr(arg, "shape", ())]
    rows = {args[k].shape[0] for k in cut}
    if len(rows) != 1 or not (count := rows.pop()):
        shapes = [args[k].shape for k in cut]
        raise ValueError(f"batch is {size} and args has arrays of shapes {shapes}, expected one number of rows above 0")
    return _batches(args, cut, size, count, np.random.default_rng(integer("seed", seed, **SEEDS)))


def _batches(
    args: tuple[Any, ...], cut: list[int], size: int, rows: int, generator: np.random.Generator
) -> Iterator[tuple[Any, ...]]:
    while True:
        order = generator.permutation(rows)
        for first in range(0, rows, size):
            chosen = order[first : first + size]
            yield tuple(arg[chosen] if k in cut else arg for k, arg in enumerate(args))


def scaled(lr: Any, schedule: Callable[[int], float]) -> Callable[[int], float]:
    """Return the learning rate as a function of the step's count: lr, a number or a function, times a schedule."""
    if not callable(schedule):
        raise TypeError(f"schedule is {schedule!r}, expected a function of the step's count")
    at = lr if callable(lr) else lambda t: lr
    return lambda t: at(t) * at_count("schedule", schedule, t, low=0)


def real(name: str, x: Any) -> Array:
    """Return a copy as an array of numbers. Raises TypeError for one of anything else, such as complex ones."""
    array = np.array(x)
    if array.dtype == object:  # Python's own numbers, such as fractions
        with suppress(TypeError, ValueError):
            array = array.astype(np.float64)
    if array.dtype.kind not in "biuf" and array.dtype.name not in FLOATS:
        raise TypeError(f"{name} is {array.dtype}{array.shape}, expected real numbers")
    return array


def limits(bounds: Any, x: Array) -> tuple[Any, Any]:
    """Return (low, high) of bounds as minimize takes them: numbers, or arrays in x's dtype, rounded inwards."""
    n = x.size
    if bounds is None:
        return -np.inf, np.inf
    if isinstance(bounds, Bounds):
        low, high, _ = np.broadcast_arrays(bounds.lb, bounds.ub, np.empty(n))
    else:
        try:
            pairs = [(-np.inf if low is None else low, np.inf if high is None else high) for low, high in bounds]
        except (TypeError, ValueError):
            raise TypeError(f"bounds is {bounds!r}, expected scipy.optimize.Bounds or pairs of numbers") from None
        low, high = np.array(pairs, float).reshape(-1, 2).T
    if low.shape != (n,):
        raise ValueError(f"bounds has {len(low)} pairs, expected one for each of the {n} elements of x0")
    if (crossed := np.flatnonzero(~(low <= high))).size:
        k = crossed[0]
        raise ValueError(f"bounds[{k}] is ({low[k]}, {high[k]}), expected a low end that is not above the high one")
    inner = []
    with np.errstate(all="ignore"):  # a bound beyond this dtype's numbers becomes infinite, then the last of them
        nearest = low.astype(x.dtype)
        for exact, inwards in ((low, np.inf), (high, -np.inf)):
            rounded = exact.astype(x.dtype)
            outside = rounded < exact if inwards > 0 else rounded > exact
            inner.append(np.where(outside, np.nextafter(rounded, x.dtype.type(inwards)), rounded))
    narrow = inner[0] > inner[1]  # no number of this dtype lies between the two: the nearest to the low one stands
    if (beyond := np.flatnonzero(narrow & ~np.isfinite(nearest))).size:
        k = beyond[0]
        raise ValueError(f"bounds[{k}] is ({low[k]}, {high[k]}), expected some {x.dtype} between the two, as x0 is")
    return np.where(narrow, nearest, inner[0]), np.where(narrow, nearest, inner[1])


def evaluation(fun: Callable[..., Any], jac: Callable[..., Any], x: Array) -> Callable[[tuple[Any, ...]], Any]:
    """Return a function of args that gives (value, gradient) at what x then holds; fun and jac get copies of x."""
    # For jac=True minimize wraps fun in one that remembers the last x, whatever the args: it would go on giving the
    # value of an old sample where a step leaves x as it is.
    value_and_gradient = getattr(fun, "fun", None) if getattr(jac, "__self__", None) is fun else None

    def evaluate(args: tuple[Any, ...]) -> tuple[Any, Array]:
        value, gradient = (
            value_and_gradient(x.copy(), *args) if value_and_gradient else (fun(x.copy(), *args), jac(x.copy(), *args))
        )
        gradient = real("what jac returned", gradient).astype(x.dtype, copy=False)
        if gradient.shape != x.shape:
            raise ValueError(f"jac returned an array of shape {gradient.shape}, expected that of x, {x.shape}")
        if np.size(value) != 1:
            raise ValueError(f"fun returned an array of shape {np.shape(value)}, expected a number")
        return np.asarray(value).item(), gradient

    return evaluate


def reporting(callback: Callable[..., Any] | None) -> Callable[[OptimizeResult], Any]:
    """Return what calls the callback with an intermediate result, as minimize's methods call theirs."""
    if callback is None:
        return lambda result: None
    if set(inspect.signature(callback).parameters) == {"intermediate_result"}:
        return lambda result: callback(intermediate_result=result)
    return lambda result: callback(result.x)


adam, adamw, nadam = Minimizer(methods.Adam), Minimizer(methods.AdamW), Minimizer(methods.NAdam)
radam, adamax, adabelief = Minimizer(methods.RAdam), Minimizer(methods.Adamax), Minimizer(methods.AdaBelief)
lion, sgd, rmsprop, adagrad = (
    Minimizer(methods.Lion),
    Minimizer(methods.SGD),
    Minimizer(methods.RMSprop),
    Minimizer(methods.Adagrad),
)
