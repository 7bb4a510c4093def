"""Native code gets addresses: what lies there lives until the code returns."""

import weakref

import numpy as np
import pytest

import fastadam as fa
from fastadam.host import compiled
from fastadam.host.threads import PARALLEL_FROM

N = PARALLEL_FROM + 1_000  # a matrix of as many rows of one element
F32 = np.float32
ROWS = np.array([3, 5, 99]), np.ones((3, 1), F32)


def accumulated(opt, g):
    opt.accumulate(g)
    opt.accumulate(g)
    opt.measure()
    opt.step()


def of_rows(opt, g):
    opt.step_rows(ROWS)
    opt.step_rows(ROWS, semantics="exact")
    opt.catch_up()


ACTS = {
    "step": (fa.AdamW, {}, lambda opt, g: opt.step(g)),
    "chores": (fa.AdamW, {"max_norm": 1.0, "stats": "tensor", "ema_decay": 0.9}, lambda opt, g: opt.step(g)),
    "streams": (fa.AdamW, {}, lambda opt, g: opt.step(streams=[g, g])),
    "sums of leaves": (fa.LAMB, {}, lambda opt, g: opt.step(g)),
    "sums of all": (fa.Prodigy, {}, lambda opt, g: opt.step(g)),
    "measure": (fa.SGD, {"max_norm": 1.0}, lambda opt, g: opt.measure(g)),
    "measure a part": (fa.SGD, {"max_norm": 1.0}, lambda opt, g: opt.measure(g, starts={"": 1024})),
    "accumulated": (fa.AdamW, {"max_norm": 1.0}, accumulated),
    "rows": (fa.SGD, {"momentum": 0.9, "max_norm": 1.0}, of_rows),
}


@pytest.mark.parametrize("n", [100, N])
@pytest.mark.parametrize("name", ACTS)
def test_arrays_live_until_native_code_returns(name, n, monkeypatch):
    """opt.measure once let go of a walk's spans before the walk. What memory held stayed there, but where garbage was
    collected in between: then the walk did nothing, or the process ended."""
    calls, taken, address = [], [], compiled._at

    def taking(x):
        taken.append(weakref.ref(x))
        return address(x)

    def keeping(name):
        """Let a method, which keeps what it takes in the plan until it takes others, be left out."""
        method = getattr(compiled.NumbaPlan, name)

        def act(*args, **how):
            method(*args, **how)
            taken.clear()

        monkeypatch.setattr(compiled.NumbaPlan, name, act)

    class Watched(compiled.Calls):
        """Notes at each call how many of the arrays whose addresses were taken for it have gone."""

        def __new__(cls, functions, arrays):
            references = taken.copy()
            taken.clear()
            assert references

            def watched(function):
                def act(*args):
                    calls.append(sum(reference() is None for reference in references))
                    return function(*args)

                return act

            return super().__new__(cls, [(watched(function), *args) for function, *args in functions], arrays)

    monkeypatch.setattr(compiled, "Calls", Watched)
    monkeypatch.setattr(compiled, "_at", taking)
    keeping("_look_at_grads")
    keeping("_place")
    method, chosen, act = ACTS[name]
    g = np.ones((n, 1), F32)
    opt = method(np.ones_like(g), backend="numba", **chosen)
    for _ in range(2):
        act(opt, g)
        assert calls
        assert not any(calls), f"{len(calls)} calls found so many arrays gone: {calls}"
        calls.clear()
