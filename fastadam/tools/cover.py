"""Lists what to check: every method with every choice of options, and a small set of cases that covers all pairs.

verify, the tests and whatever compiles without running take their lists from here, so a new rule, kernel, format or
backend is covered without an edit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np

from fastadam import kernels, methods
from fastadam.arrays.device import HOST, home_of
from fastadam.arrays.host import Array
from fastadam.backend import BACKENDS
from fastadam.kernels.formats import DTYPES, FORMATS, RESTING
from fastadam.optimizer import Optimizer

METHODS: list[type[Optimizer]] = [m for m in vars(methods).values() if isinstance(m, type) and "rule" in vars(m)]

# Values at which a misplaced term cannot hide: with wd = 0 and eps = 1e-8 most wrong equations look right.
BITING = {
    "lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1, "alpha": 0.8, "dampening": 0.3,
    "lr_decay": 0.1, "initial_accumulator_value": 0.2, "momentum_decay": 0.04, "t_alpha": 4.0, "t_beta3": 5.0,
    "warmup_steps": 4.0, "r": 0.5, "weight_lr_power": 1.5, "trust_coefficient": 0.03,
    "beta3": 0.9, "d0": 0.05, "d_coef": 1e5, "growth_rate": 2.0,
}  # fmt: skip

# What each chore can be asked for. Limits that bite on gradients around 1e-2 and scale 0.5.
CHORES: dict[str, Sequence[Any]] = {
    "max_norm": (None, 0.37), "max_value": (None, 0.02), "ema_decay": (None, 0.9, lambda t: 1 - 1 / (t + 1)),
    "copy_to": (None, "float16", "bfloat16"), "zero_grads": (False, True), "skip_nonfinite": (False, True),
    "stats": (None, "group", "tensor"),
}  # fmt: skip


class Stored(NamedTuple):
    """Says what parameters and gradients rest in, by name, and the optimizer's `moments` and `master`."""

    p: str
    g: str
    moments: str | None = None
    master: str | None = None

    def __str__(self) -> str:
        return " ".join(x for x in (self.p, f"g {self.g}", self.moments and f"m {self.moments}", self.master) if x)

    def dtypes(self) -> tuple[Any, Any]:
        """Return the dtypes of p and of g."""
        return FORMATS[self.p].dtype, FORMATS[self.g].dtype

    def chosen(self) -> dict[str, Any]:
        """Return the arguments of an optimizer."""
        return {"moments": self.moments, "master": self.master}


# Formats in which every two streams meet in most of their formats, and each way to round.
STORED = [
    Stored("bfloat16", "bfloat16"), Stored("bfloat16", "bfloat16", "bfloat16"), Stored("float32", "bfloat16"),
    Stored("float32", "float32", "bfloat16"), Stored("float16", "float16"), Stored("float16", "float32", "bfloat16"),
    Stored("bfloat16", "float32", "bfloat16"), Stored("float64", "float32"), Stored("float32", "float64", "bfloat16"),
    Stored("float64", "bfloat16"), Stored("bfloat16", "float16"), Stored("float32", "float32", "8bit"),
    Stored("bfloat16", "bfloat16", "8bit"), Stored("float16", "float32", "8bit"),
    Stored("bfloat16", "bfloat16", "bfloat16", "remainder"), Stored("bfloat16", "float32", None, "remainder"),
    Stored("bfloat16", "bfloat16", "8bit", "remainder"), Stored("bfloat16", "bfloat16", None, "float32"),
    Stored("float16", "float16", "8bit", "float32"),
]  # fmt: skip

# Formats that are not named there, as moments beside p of each length.
STORED += [
    Stored(p, "float32", name, master)
    for name, format in FORMATS.items()
    if format.moments and not format.is_compute and name not in {one.moments for one in STORED}
    for p, master in (("float32", None), ("bfloat16", None), ("bfloat16", "remainder"), ("float16", "float32"))
]

ON_HOST = tuple(name for name, backend in BACKENDS.items() if backend.home is HOST)

Variant = tuple[type[Optimizer], dict[str, Any]]


@cache
def variants(**fixed: Any) -> list[Variant]:
    """Return (method, hyperparameters) for every method, with every pair of what can be switched on and off."""
    pairs = []
    for method in METHODS:
        fields_of_rule = [each for each in fields(method.rule) if each.init]
        base = {each.name: BITING[each.name] for each in fields_of_rule if each.name in BITING}
        if len(getattr(method.rule, "betas", ())) == 3:
            base["betas"] = (*BITING["betas"], 0.99)  # type: ignore[misc]
        switches: dict[str, Sequence[Any]] = {
            each.name: (False, True) for each in fields_of_rule if each.type is bool and each.name not in fixed
        }
        if "momentum" in {each.name for each in fields_of_rule}:
            switches["momentum"] = (0.0, 0.7)  # where a rule takes 0: else the other alone
        valid = []
        for values in product(*switches.values()):
            chosen = {**base, **fixed, **dict(zip(switches, values, strict=True))}
            if chosen.get("nesterov"):
                chosen["dampening"] = 0.0
            try:
                method.rule(**chosen)
            except ValueError:  # Nesterov without momentum
                continue
            valid.append(chosen)
        pairs += [(method, valid[k]) for k in in_pairs([[one[name] for name in switches] for one in valid])]
    return pairs


def _signature(variant: Variant) -> Any:
    """Return what has to be compiled for it: a kernel and its optional slots."""
    method, chosen = variant
    rule = method.rule(**chosen)
    return rule.kernel, rule.options, rule.idle


@cache
def kernels_in_use() -> list[Variant]:
    """Return one (method, hyperparameters) for every kernel and every set of optional slots: what can be compiled."""
    variant_of: dict[Any, Variant] = {}
    for method, chosen in [*variants(maximize=False), *variants()]:  # each has the pairs of its own switches
        variant = method, chosen | ({"maximize": False} if "maximize" in chosen else {})
        variant_of.setdefault(_signature(variant), variant)
    return list(variant_of.values())


def sums_first(variant: Variant) -> bool:
    """Return whether its steps need sums over whole leaves first: another cut of the parameters gives other steps."""
    return kernels.ALL[variant[0].rule.kernel].summed(variant[0].rule(**variant[1]).options)


def together(variant: Variant) -> bool:
    """Return whether its sums go over all leaves."""
    return kernels.ALL[variant[0].rule.kernel].Judging is not None


def elementwise() -> list[Variant]:
    """Return those of kernels_in_use whose steps need no sums: each element steps by itself."""
    return [variant for variant in kernels_in_use() if not sums_first(variant)]


def label(variant: Variant) -> str:
    """Return a short name, such as AdamW-amsgrad."""
    method, chosen = variant
    on = [name for name, value in chosen.items() if value is True or (name == "momentum" and value)]
    return "-".join([method.__name__, *on])


def pairwise(*factors: Sequence[Any]) -> list[tuple[int, ...]]:
    """Return few index tuples, one index a factor, in which every pair of values of any two factors occurs."""
    return list(_pairwise(*map(len, factors)))


@cache
def _pairwise(*sizes: int) -> tuple[tuple[int, ...], ...]:
    choices = list(product(*map(range, sizes)))
    return tuple(choices[k] for k in in_pairs(choices))


def in_pairs(choices: Sequence[Sequence[Any]]) -> list[int]:
    """Return the indices of few choices, the first first, in which every pair of values occurs that occurs in any."""
    pairs = [set(combinations(enumerate(choice), min(2, len(choice)))) for choice in choices]
    missing: set[Any] = set().union(*pairs)
    rows: list[int] = []
    while missing:
        rows.append(max(range(len(pairs)), key=lambda k: len(pairs[k] & missing)))
        missing -= pairs[rows[-1]]
    return rows


def _installed(*names: str | None) -> bool:
    """Return whether there are arrays of these formats; None and what names no format count as there."""
    try:
        return all(FORMATS[name].dtype for name in names if name in FORMATS)
    except ImportError:
        return False


def chores() -> list[dict[str, Any]]:
    """Return sets of chores in which every pair of their values occurs; formats of ml_dtypes only where that is
    installed."""
    installed = {name: [x for x in all_ if _installed(x)] for name, all_ in CHORES.items()}
    sets = pairwise(*installed.values())
    return [{name: all_[i] for (name, all_), i in zip(installed.items(), which, strict=True)} for which in sets]


def stored() -> list[Stored]:
    """Return STORED, formats of ml_dtypes only where that is installed."""
    return [one for one in STORED if _installed(*one)]


def chores_for(asked: dict[str, Any], params: Sequence[Array], master: str | None = None) -> dict[str, Any]:
    """Return the arguments of an optimizer over a list of arrays that ask for these chores; no copies of params that
    are."""
    arguments = {name: value for name, value in asked.items() if value is not None}
    if (kind := arguments.pop("copy_to", None)) and master != "float32":
        arguments["copy_to"] = [home_of(params).put(np.zeros(p.shape, FORMATS[kind].dtype)) for p in params]
    return arguments


@dataclass(frozen=True)
class Case:
    """Names one thing to run: a method with options and chores, over one dtype or format, on one backend and thread
    count."""

    variant: Variant
    dtype: Any
    backend: str
    threads: int
    chores: dict[str, Any] = field(default_factory=dict)
    stored: Stored | None = None

    def __str__(self) -> str:
        walk = (
            f"{self.backend}, {'parallel' if self.threads > 1 else 'serial'}"
            if self.backend == "numba"
            else self.backend
        )
        asked = [name for name, value in self.chores.items() if value not in (None, False)]
        return f"{' + '.join([label(self.variant), *asked])}  {self.stored or np.dtype(self.dtype).name}  {walk}"


def cases(everything: bool = False, backends: Sequence[str] = ON_HOST) -> list[Case]:
    """Return the cases that cover every pair of kernel, dtype and backend, of two chores, and every rule; or the full
    product.

    A kernel is taken with each set of its optional slots; each walk (serial, parallel) counts as a backend. Chores and
    formats are held against NumPy's bits; by default each set of them on one kernel, which changes from set to set.
    """
    walks = [(name, threads) for name in backends for threads in ((1, 2) if name == "numba" else (1,))]
    if everything:
        plain = [Case(v, dtype, *walk) for v in variants() for dtype in DTYPES for walk in walks]
        others = [walk for walk in walks if walk[0] != "numpy"]  # whose bits the others are held against
        return [
            *plain,
            *(Case(v, d, name, n, a) for v, d, (name, n), a in product(kernels_in_use(), DTYPES, others, chores())),
            *(
                Case(v, x.dtypes()[0], name, n, {}, x)
                for v, (name, n), x in product(kernels_in_use(), others, stored())
            ),
        ]
    kernels = kernels_in_use()
    collected = [Case(kernels[k], DTYPES[d], *walks[w]) for k, d, w in pairwise(kernels, DTYPES, walks)]
    # In float32 where that is compiled: oracles in more than float64, which has no vectors, take five times as long.
    fastest_last = sorted(collected, key=lambda case: (case.backend != "numpy", -DTYPES.index(case.dtype)))
    compiled = {_signature(case.variant): case for case in fastest_last}
    covered = {label(case.variant) for case in collected}
    for variant in variants():  # the other rules run on what is compiled already
        if label(variant) not in covered:
            home = compiled[_signature(variant)]
            collected.append(Case(variant, home.dtype, home.backend, home.threads))
    for name in dict.fromkeys(name for name, _ in walks if name != "numpy"):
        walks_of_backend = [walk for walk in walks if walk[0] == name]
        for k, asked in enumerate(chores()):
            walk = walks_of_backend[-1 - k % len(walks_of_backend)]
            collected.append(Case(kernels[k % len(kernels)], DTYPES[k % len(DTYPES)], *walk, asked))
        for k, one in enumerate(stored()):
            asked = chores()[k % len(chores())] if k % 3 == 0 else {}
            walk = walks_of_backend[-1 - k % len(walks_of_backend)]
            collected.append(Case(kernels[k % len(kernels)], one.dtypes()[0], *walk, asked, one))
    return collected


def hostile(rng: np.random.Generator, n: int, dtype: Any, bad: bool = True) -> Array:
    """Return gradients from 1e-30 to 1e6 of both signs, both zeros, subnormals; with `bad`, infinities and NaN too."""
    dtype = np.dtype(dtype)
    x = (rng.standard_normal(n) * 10.0 ** rng.uniform(-30, 6, n)).astype(dtype)
    tiny = np.finfo(dtype).smallest_subnormal
    special = [0.0, -0.0, tiny, -3 * tiny, *([np.inf, -np.inf, np.nan] if bad else [])]
    where = rng.random(n) < 0.05
    x[where] = rng.choice(np.array(special, dtype), where.sum())
    return x


def same_bits(a: Array, b: Array) -> bool:
    """Return whether arrays are equal to the bit, the sign of zero included; all NaNs count as equal."""
    integer = np.dtype(f"u{a.dtype.itemsize}")
    equal = np.ascontiguousarray(a).view(integer) == np.ascontiguousarray(b).view(integer)
    return a.dtype == b.dtype and a.shape == b.shape and bool(equal.all() or np.all(equal | (_is_nan(a) & _is_nan(b))))


def _is_nan(x: Array) -> Array:
    """Return where the numbers of an array are NaN, of one in a format for moments those which rest there."""
    format = RESTING.get(x.dtype.name)
    if format is not None and format.moments and format.block == 1:
        x = format.decode(x.reshape(-1), None, x.size).reshape(x.shape)
    return np.isnan(x)


def state_arrays(opt: Optimizer) -> dict[str, Array]:
    """Return every array of state by leaf and slot."""
    return {
        f"{leaf}.{slot}": x
        for leaf, state in opt.state_dict()["leaves"].items()
        for slot, x in state.items()
        if isinstance(x, np.ndarray)
    }
