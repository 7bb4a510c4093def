"""Checks the methods that are made of several optimizers: Muon's matrices against the paper, its walks against NumPy's.

A matrix that is orthogonalised in another order of operations differs by more than roundings: each iteration carries on
what the one before has lost. In the Frobenius norm it does so by at most the largest derivative of its polynomial over
the singular values (Daleckii & Krein 1965; for an odd polynomial the differences of p(σi) ± p(σj) are bounded by it).
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, ClassVar

import numpy as np

import fastadam as fa
from fastadam import orthogonal
from fastadam.arrays.device import home_of
from fastadam.arrays.host import Array
from fastadam.backend import BACKENDS
from fastadam.host.threads import PARALLEL_FROM
from fastadam.kernels.formats import DTYPES
from fastadam.tools import papers
from fastadam.tools.bounds import WIDER, Running
from fastadam.tools.cover import METHODS, Case, same_bits, state_arrays

# The methods that are no one kernel, but made of several optimizers.
COMPOSED: list[Any] = [m for m in vars(fa).values() if isinstance(m, type) and "rule" in vars(m) and m not in METHODS]
STEPS = 3
CHOSEN = {"lr": 1e-2, "weight_decay": 0.1, "momentum": 0.9, "eps": 1e-3}
OPTIONS: dict[str, Sequence[Any]] = {
    "nesterov": (False, True), "adjust": ("original", "match_rms_adamw"), "maximize": (False, True)
}  # fmt: skip
SHAPES = {"tall": (12, 5), "wide": (7, 30), "filters": (6, 2, 3), "again": (12, 5), "bias": (9,)}
LONG = SHAPES | {"wide": (7, 2 + PARALLEL_FROM // 7)}  # for walks in parallel


def cases(everything: bool, backends: Sequence[str]) -> list[Case]:
    """Return the cases of these methods: each choice of options with each dtype, and each backend with some; or all."""
    walks = [(name, threads) for name in backends for threads in ((1, 2) if name == "numba" else (1,))]
    chosen = [CHOSEN | dict(zip(OPTIONS, values, strict=True)) for values in product(*OPTIONS.values())]
    every = [
        Case((method, c), dtype, *walk) for method in COMPOSED for c in chosen for dtype in DTYPES for walk in walks
    ]
    return every if everything else every[:: 2 * len(walks) + 1] + every[1 : len(walks)]


def _carried(x: Array, error: float, rule: Any, unit: float) -> Iterator[tuple[Array, float]]:
    """Yield x and a bound on how far another order of its operations is from it, in the Frobenius norm, after x is
    divided by its own norm and after each iteration.

    x: (rows, columns), rows <= columns. error: how far x is off to begin with. unit: unit roundoff.
    """
    a, b, c = rule.ns_coefficients
    rows, columns = x.shape
    norm = max(float(np.linalg.norm(x)), rule.eps)
    x, error = x / norm, 2 * error / norm + (x.size / 2 + 3) * unit
    yield x, error
    for _ in range(rule.ns_steps):
        largest = float(np.linalg.norm(x.astype(np.float64), 2)) + error  # on the way from x to what was computed
        slopes = [abs(a + 3 * b * s + 5 * c * s**2) for s in (0, largest**2, min(largest**2, max(0.0, -0.3 * b / c)))]
        gram, norm_of_x = x @ x.T, float(np.linalg.norm(x))
        inner = b * gram + c * gram @ gram
        of_gram = (columns + 1) * unit * norm_of_x**2
        wide, square = float(np.linalg.norm(gram)), float(np.linalg.norm(gram.astype(np.float64), 2))
        of_inner = (abs(b) + 2 * abs(c) * square) * of_gram
        of_inner += unit * (3 * abs(b) * wide + (rows + 3) * abs(c) * wide**2)
        local = of_inner * largest + unit * (
            (rows + 2) * float(np.linalg.norm(inner)) * norm_of_x + 3 * abs(a) * norm_of_x
        )
        x, error = a * x + inner @ x, max(slopes) * error + local
        yield x, error


@np.errstate(all="ignore")
def limits(p: Any, g: Any, m: Any, rule: Any, dtype: Any) -> tuple[Array, Array]:
    """Return how far p and m may be off after a step from these, matrices in more precision than dtype has.

    One that is off already is a Running.
    """
    unit = Running.arithmetic(dtype)

    def number(x: float) -> Running:
        return Running(WIDER[np.dtype(dtype)](x), abs(x) * 2 * unit[0], unit)

    g = -g if rule.maximize else g
    p_, g_, m_ = (x if isinstance(x, Running) else Running(x, 0.0, unit) for x in (p, g, m))
    m_ = m_ - number(1 - rule.momentum) * (m_ - g_)
    x_ = number(1 - rule.momentum) * g_ + number(rule.momentum) * m_ if rule.nesterov else m_
    x, off = x_.value, float(np.linalg.norm(np.broadcast_to(x_.error, x_.value.shape)))
    tall = len(x) > x.shape[1]
    *_, (x, off) = _carried(x.T if tall else x, off, rule, unit[0])
    x_ = Running(x.T if tall else x, off, unit) * number(orthogonal.ADJUSTED[rule.adjust](*p_.value.shape))
    moved = p_ - number(rule.lr) * (x_ + number(rule.weight_decay) * p_)
    return moved.error, m_.error


def _tree(rng: np.random.Generator, dtype: Any, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Array]:
    """Return numbers of many sizes in these shapes."""
    return {
        name: (rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3, shape)).astype(dtype)
        for name, shape in shapes.items()
    }


def worst_error(case: Case) -> float:
    """Step matrices; return the largest error of p or m at any step, in units of its bound."""
    (method, chosen), dtype = case.variant, np.dtype(case.dtype)
    rng, wide, home = np.random.default_rng(13), WIDER[dtype], BACKENDS[case.backend].home
    params = {name: home.put(x) for name, x in _tree(rng, dtype).items()}
    opt: Any = method(params, backend=case.backend, **chosen)
    units = 0.0
    for t in range(1, STEPS + 1):
        grads, rule = _tree(rng, dtype), opt.groups[0].rule
        before = {f"[{name!r}]": home.get(x).copy() for name, x in params.items()}
        momenta = state_arrays(opt)
        opt.step({name: home.put(g) for name, g in grads.items()})
        now, after = {f"[{name!r}]": home.get(x) for name, x in params.items()}, state_arrays(opt)
        gradients = {f"[{name!r}]": g for name, g in grads.items()}
        for path in opt.matrices:
            given = before[path], gradients[path], momenta[f"params{path}.m"]
            p, g, m = (x.reshape(len(x), -1).astype(wide) for x in given)
            exact, new = papers.muon(t, p, g, {"m": m}, **chosen)
            results = now[path].reshape(p.shape), after[f"params{path}.m"].reshape(p.shape)
            for result, want, limit in zip(results, (exact, new["m"]), limits(p, g, m, rule, dtype), strict=True):
                off = np.abs(result.astype(wide) - want)
                units = max(units, float(np.max(off / limit))) if np.isfinite(off).all() else np.inf
    return units


class Recorded(orthogonal.Muon):
    """Orthogonalises once: what the first optimizer is given, the others are given, too."""

    results: ClassVar[list[Any]] = []
    asked = 0

    def orthogonalised(self, matrices: Sequence[Array]) -> list[Array]:
        home = home_of(matrices)
        if self.asked == len(self.results):
            self.results.append([home.get(x) for x in super().orthogonalised(matrices)])
        object.__setattr__(self, "asked", self.asked + 1)
        return [home.put(x) for x in self.results[self.asked - 1]]


def same_as_numpy(case: Case) -> bool:
    """Return whether a few steps give NumPy's bits, given the matrices that were orthogonalised there, and AdamW's."""
    (method, chosen), outcomes = case.variant, list[Any]()
    Recorded.results.clear()
    for backend in ("numpy", case.backend):
        rng, home = np.random.default_rng(14), BACKENDS[backend].home
        params = {name: home.put(x) for name, x in _tree(rng, case.dtype, LONG).items()}
        rest = home.put(home.get(params["bias"]).copy())
        opt = method(params, backend=backend, **chosen)
        other = fa.AdamW(rest, backend=backend, maximize=chosen["maximize"])
        opt.groups[0].adopt(Recorded(**chosen))
        for _ in range(STEPS):
            grads = {name: home.put(g) for name, g in _tree(rng, case.dtype, LONG).items()}
            opt.step(grads)
            other.step(grads["bias"])
        arrays = {name: home.get(x) for name, x in params.items()} | state_arrays(opt)
        outcomes.append((arrays, home.get(rest)))
    (expected, _), (stepped, rest) = outcomes
    return all(same_bits(x, stepped[key]) for key, x in expected.items()) and same_bits(stepped["bias"], rest)


def check(case: Case) -> tuple[float, float, bool]:
    """Check one case: return the worst error in units of its bound, NaN for ulp, which say nothing of a matrix, and
    whether the bits are the same."""
    units = float("nan")
    if np.finfo(WIDER[np.dtype(case.dtype)]).eps < np.finfo(case.dtype).eps:
        units = worst_error(case)
    return units, float("nan"), same_as_numpy(case)
