"""Says whether this machine computes what the papers say: every kernel, rule, dtype and backend against the oracles.

Each case is stepped from hostile values. After every step all streams are held against the paper's algorithm in
higher precision, from the state before that step, in units of the bound that its roundings allow (bounds.py); and the
whole run is held against the NumPy backend's, bit for bit.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

import fastadam as fa
from fastadam import kernels
from fastadam.backend import BACKENDS
from fastadam.host import threads
from fastadam.kernels.formats import FORMATS
from fastadam.optimizer import Optimizer
from fastadam.plans.plan import CHUNK
from fastadam.tools import bounds, composed, cover, papers
from fastadam.tools.cover import METHODS, Case, Stored, chores_for, hostile, same_bits, state_arrays
from fastadam.tools.diagnosis import flushes_subnormals
from fastadam.tools.second import Second

N = threads.PARALLEL_FROM + 1_001  # elements: enough for the parallel walk
SERIAL = 2 * CHUNK + 1_001  # on one thread of the host: several chunks, of which the last is no whole one
STEPS = 6
SLACK = 1.001  # the bound is first order in each rounding, and the oracle rounds too, at 2^-29 or 2^-11 of a unit


def oracle_of(method: type[Optimizer], chosen: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the paper's function for a method with these options, and the options that it takes."""
    taken, name = dict(chosen), method.__name__.lower()
    if name == "adam" and taken.pop("decoupled_weight_decay"):
        name = "adamw"
    elif name == "adam":
        del taken["cautious_decay"]  # which coupled decay has not
    return papers.ORACLES[name], taken


def host_error(rule: Any, t: int) -> float:
    """Return how far a rule's float64 numbers can be off, relatively.

    β^t is good to 2 u, then 1 - β^t cancels, then come up to six operations of a rounding each; RAdam's ratio of
    lengths cancels once more, in ρ_t - 4 and 1 - β2.
    """
    u = float(np.finfo(np.float64).eps) / 2
    betas = getattr(rule, "betas", ())
    cancelled = max((1 / (1 - beta**t) for beta in betas), default=1.0)
    steep = max((1 / (1 - beta) for beta in betas), default=1.0)
    return u * (8 + 4 * cancelled) * (1 + steep * bool(rule.cancels))


@np.errstate(all="ignore")
def worst_error(
    method: type[Optimizer], chosen: dict[str, Any], dtype: Any, backend: str, n: int = N, taken_before: int = 0
) -> tuple[float, float]:
    """Step one array; returns the largest error of any stream at any step: in units of its bound, and in ulp.

    taken_before: the count that the array starts with, as if its state had been loaded.
    """
    wide = bounds.WIDER[np.dtype(dtype)]
    oracle, taken = oracle_of(method, chosen)
    kernel = kernels.ALL[method.rule.kernel].switched(method.rule(**chosen).options)
    rng = np.random.default_rng(11)
    p = (rng.standard_normal(n) * 10.0 ** rng.integers(-3, 3, n)).astype(dtype)
    home = BACKENDS[backend].home
    params = home.put(p)
    opt = method(params, backend=backend, **chosen)
    if taken_before:
        state = opt.state_dict()
        state["t"] = state["leaves"]["params"]["count"] = taken_before
        opt.load_state_dict(state)
    carried = dict(method.rule.carried)
    units = ulps = 0.0
    for t in range(taken_before + 1, taken_before + STEPS + 1):
        g = hostile(rng, n, dtype, bad=False)
        before = {key.rpartition(".")[2]: x for key, x in state_arrays(opt).items()}
        state = {slot: x.astype(wide) for slot, x in before.items()} | carried
        p = home.get(params)
        start = before | {"p": p}
        streams = [start["p"], g, *(before.get(slot.name) for slot in kernel.slots)]
        row = opt.groups[0].coefficients_at(t, chosen["lr"], 1.0, *carried.values())[: len(kernel.Coefficients._fields)]  # type: ignore[attr-defined]
        rule = method.rule(**chosen)
        limits = bounds.one_step(
            kernel, dtype, streams, row, host_error(rule, t), 0.0 if kernel.summed(rule.options) else None,
            (list(carried.values()), rule.judging),
        )  # fmt: skip
        exact, new = oracle(t, p.astype(wide), g.astype(wide), state, **taken)
        opt.step(home.put(g))
        after = {key.rpartition(".")[2]: x for key, x in state_arrays(opt).items()} | {"p": home.get(params)}
        carried = {key: opt.state_dict(copy=False)["leaves"]["params"][key] for key in carried}
        for slot, limit in zip(("p", *(slot.name for slot in kernel.slots)), limits, strict=True):
            if limit is not None:
                want = exact if slot == "p" else new[slot]
                off = np.abs(after[slot].astype(wide) - want)
                ratio = np.where(off == 0, 0, off / np.where(limit > 0, limit, 1e-300))
                if not (np.isfinite(after[slot]).all() and np.isfinite(ratio).all()):
                    return np.inf, np.inf
                units = max(units, float(ratio.max()))
                size = np.maximum(np.abs(want), np.abs(start[slot])).astype(dtype)  # cancellation is the algorithm's
                ulps = max(ulps, float((off / np.spacing(size)).max()))
    return units, ulps


def same_as_numpy(
    method: type[Optimizer], chosen: dict[str, Any], dtype: Any, backend: str, asked: dict[str, Any], n: int = N,
    stored: Stored | None = None,
) -> bool:  # fmt: skip
    """Return whether a few steps over infinities, NaN and subnormals too give the NumPy backend's bits, and its
    findings."""
    outcomes = []
    p_dtype, g_dtype = stored.dtypes() if stored else (dtype, dtype)
    formats = stored.chosen() if stored else {}
    # One NaN takes its block along: only in the end, lest all be NaN then.
    spreading = (name := formats.get("moments")) is not None and FORMATS[name].block > 1
    for name in ("numpy", backend):
        rng = np.random.default_rng(12)
        home = BACKENDS[name].home
        p = [home.put(stored_as(hostile(rng, n, np.float32 if stored else dtype, bad=False), p_dtype))]
        more = chores_for(asked, p, formats.get("master"))
        opt = method(p, backend=name, **chosen, **more, **formats)
        findings = []
        for t in range(STEPS):
            bad = t == STEPS - 1 if spreading else t != 1
            g = [home.put(stored_as(hostile(rng, n, np.float32 if stored else dtype, bad), g_dtype))]
            findings.append(repr(opt.step(g)))
            findings.append(repr(home.get(g[0])[:9]))
        copies = {f"copy {k}": home.get(x).astype(np.float32) for k, x in enumerate(more.get("copy_to", ()))}
        outcomes.append(({"p": home.get(p[0]), **state_arrays(opt), **copies}, findings))
    (expected, findings), (stepped, others) = outcomes
    return findings == others and all(same_bits(x, stepped[key]) for key, x in expected.items())


def stored_as(x: Any, dtype: Any) -> Any:
    """Return x in a format that may not hold all of it."""
    with np.errstate(all="ignore"):
        return x.astype(dtype)


def cases(everything: bool = False, backends: Sequence[str] = cover.ON_HOST) -> list[Case]:
    """Return what there is to check of methods over a kernel, and of those that are made of several optimizers."""
    return [*cover.cases(everything, backends), *composed.cases(everything, backends)]


def check(case: Case) -> tuple[float, float, bool]:
    """Check one case: return the worst error in units of its bound and in ulp, and whether the bits are the same.

    The errors are NaN where there is no wider type, with chores, whose own order of operations tests hold, and where
    formats round more than the arithmetic.
    """
    (method, chosen), dtype = case.variant, case.dtype
    with threads.exactly(case.threads):
        if method in composed.COMPOSED:
            return composed.check(case)
        n = SERIAL if case.threads == 1 and case.backend in cover.ON_HOST else N
        units = ulps = float("nan")
        plain = not case.chores and not case.stored
        if plain and np.finfo(bounds.WIDER[np.dtype(dtype)]).eps < np.finfo(dtype).eps:
            units, ulps = worst_error(method, chosen, dtype, case.backend, n)
        return units, ulps, same_as_numpy(method, chosen, dtype, case.backend, case.chores, n, case.stored)


def _start_two_threads() -> None:
    """Let Numba, which this process has not loaded yet, start two threads: on one processor too."""
    asked = os.environ.get("NUMBA_NUM_THREADS") or str(threads.limits()["affinity"])
    if "numba" not in sys.modules and asked.strip() == "1":
        os.environ["NUMBA_NUM_THREADS"] = "2"


def _why_not_parallel() -> str:
    """Return why no walk can be parallel in this process; empty if it can."""
    import numba

    if threads.serial():
        return "this process is a fork of one that may have used OpenMP"
    try:
        numba.get_num_threads()  # starts the threading layer
    except ValueError as error:
        return f"Numba has no threading layer: {' '.join(str(error).split())}"
    if numba.config.NUMBA_NUM_THREADS < 2:  # type: ignore[attr-defined]
        return "Numba has started one thread only"
    return "other threads of Python run beside the workqueue layer" if threads.crowded() else ""


def _outcome(case: Case) -> tuple[float, float, bool, str]:
    """Return what `check` says of a case, and why it failed if it could not be run."""
    try:
        return *check(case), ""
    except Exception as error:  # a kernel that does not compile, or has no oracle: the others are checked too
        return float("inf"), float("inf"), False, f": {type(error).__name__}: {error}"[:200]


def _to_check(everything: bool, only: str, serial: bool) -> list[Case]:
    """Return the cases of this machine, those in whose line a text occurs; serial: on one thread each."""
    ready = [name for name, status in fa.backends().items() if status == "ready"]
    todo = _matching(cases(everything, ready), only)
    return [replace(case, threads=1) for case in todo] if serial else todo


def check_backwards(everything: bool, only: str, serial: bool) -> None:
    """Check the cases from the last to the first; print [its number] before each, and [number, *outcome] after it."""
    _start_two_threads()
    todo = _to_check(everything, only, serial)
    for k in reversed(range(len(todo))):
        print(json.dumps([k]), flush=True)
        print(json.dumps([k, *_outcome(todo[k])]), flush=True)


@contextmanager
def _second(todo: list[Case], *which: Any) -> Iterator[Second | None]:
    """Run the second process, where it is worth while."""
    if len(todo) < 20 or threads.get_num_threads() < 2:
        yield None
        return
    program = f"from fastadam.tools.verify import check_backwards; check_backwards(*{which!r})"
    second = Second(program)
    try:
        yield second
    finally:
        second.end()


def _number(x: float, form: str) -> str:
    return "-" if np.isnan(x) else format(x, form)


def _matching(todo: list[Case], only: str) -> list[Case]:
    """Return the cases in whose line of the table a text occurs."""
    return [case for case in todo if only.lower() in str(case).lower()]


def run(everything: bool = False, only: str = "") -> int:
    """Check all cases, or those whose line has a text, print a table, and return the exit status: 1 if any failed."""
    from fastadam.tools.console import TextTable, track

    _start_two_threads()
    statuses = fa.backends()
    todo = _to_check(everything, only, False)
    if only and not todo:
        print(f"no case has {only!r} in its line, such as: {cases()[0]}")
        return 1
    serial = _why_not_parallel() if statuses["numba"] == "ready" else ""
    if serial:  # their rules and chores are verified all the same
        todo = _to_check(everything, only, True)
    table = TextTable("method", "dtype", "backend", "error / bound", "error in ulp", "NumPy's bits", "")
    failed, most = 0, 0.0
    with _second(todo, everything, only, bool(serial)) as second:
        for k, case in enumerate(track(todo, "verifying")):
            units, ulps, same, note = (second and second.outcome(k)) or _outcome(case)
            good = not units > SLACK and same
            failed += not good
            most = np.fmax(most, ulps)
            table.add(
                *str(case).split("  "),
                _number(units, ".3f"),
                _number(ulps, ".3g"),
                "yes" if same else "NO",
                "ok" if good else "FAILED" + " ".join(note.split()),
            )
    table.show()
    if most > 1000 and not failed:
        print("many ulp within the bound: rounding decides the sign of Lion's sum, or what is left of g and its decay")
    for name in kernels.ALL.keys() - {method.rule.kernel for method in METHODS}:
        failed += 1
        print(f"FAILED: kernel {name}: no method uses it, so nothing here steps with it")
    for name, status in statuses.items():
        if status != "ready":
            print(f"not verified: {name}: {status}")
    if serial:
        print(f"not verified: numba, parallel: {serial}")
    for format in FORMATS.values():
        try:
            _ = format.dtype
        except ImportError as error:
            print(f"not verified: {format.name}: {error}")
    if flushes_subnormals():
        failed += 1
        print(
            "FAILED: this process flushes subnormal numbers to zero; a library has set the processor's FTZ or DAZ flag"
        )
    print(f"{len(todo)} cases, {failed} failed")
    return int(failed > 0)
