"""reset: the state of all or some leaves as new."""

import numpy as np
import pytest
from cases import METHODS, label, same_bits, state_arrays, together, variants

import fastadam as fa

OPTIONS = [{}, {"moments": "8bit"}, {"moments": "bfloat16", "ema_decay": 0.9}, {"master": "float32"}]


def params(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {"a": [rng.standard_normal((3, 4)).astype(dtype), np.ones(5, dtype)], "ab": np.ones(2, dtype)}


def gradients(seed):
    rng = np.random.default_rng(seed)
    return {"a": [rng.standard_normal((3, 4)), rng.standard_normal(5)], "ab": rng.standard_normal(2)}


def leaves_of(tree):
    return [*tree["a"], tree["ab"]]


def state_of(opt):
    return list(state_arrays(opt).values())


@pytest.mark.parametrize("case", variants(), ids=label)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_reset_optimizer_is_a_new_one(case, backend):
    method, chosen = case
    opt = method(params(), **chosen, backend=backend)
    for t in range(3):
        opt.step(gradients(t))
    opt.accumulate(gradients(3))
    opt.reset()
    new = method({"a": [x.copy() for x in opt.params["a"]], "ab": opt.params["ab"].copy()}, **chosen, backend=backend)
    assert opt.t == 0
    for t in range(4, 7):
        opt.step(gradients(t))
        new.step(gradients(t))
    assert all(map(same_bits, leaves_of(opt.params), leaves_of(new.params)))
    assert all(map(same_bits, state_of(opt), state_of(new)))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_other_formats_are_reset_too(options, backend):
    dtype = np.float16 if "master" in options else np.float32
    opt = fa.AdamW(params(dtype), **options, backend=backend)
    for t in range(3):
        opt.step(gradients(t))
    opt.params["ab"][:] = 7  # from outside
    opt.reset()
    new = fa.AdamW(
        {"a": [x.copy() for x in opt.params["a"]], "ab": opt.params["ab"].copy()}, **options, backend=backend
    )
    assert all(map(same_bits, state_of(opt), state_of(new)))
    opt.step(gradients(4))
    new.step(gradients(4))
    assert all(map(same_bits, leaves_of(opt.params), leaves_of(new.params)))


@pytest.mark.parametrize("method", [method for method in METHODS if not together((method, {}))])
def test_some_leaves_begin_anew(method):
    opt, apart = method(params()), [method([x.copy()]) for x in leaves_of(params())]
    for t in range(3):
        opt.step(gradients(t))
        for one, g in zip(apart, leaves_of(gradients(t)), strict=True):
            one.step([g])
    opt.reset("['a']")  # which "['ab']" does not lie below
    for one in apart[:2]:
        one.reset()
    opt.reset(["['a'][1]"])
    for t in range(3, 6):
        opt.step(gradients(t))
        for one, g in zip(apart, leaves_of(gradients(t)), strict=True):
            one.step([g])
    assert opt.t == 6
    assert all(same_bits(x, one.params[0]) for x, one in zip(leaves_of(opt.params), apart, strict=True))


def test_leaves_that_there_are_not():
    opt = fa.Adam(params())
    opt.step(gradients(0))
    for wanted, error, words in [
        ("['b']", ValueError, r"leaves has \"\['b'\]\", expected a path of opt.paths"),
        (["['a']", "['a'][2]"], ValueError, r"leaves has \"\['a'\]\[2\]\""),
        ([3], TypeError, "leaves has 3, expected paths such as"),
        (3, TypeError, "leaves is 3, expected a path"),
    ]:
        with pytest.raises(error, match=words):
            opt.reset(wanted)
    assert opt._table.counts.tolist() == [1, 1, 1, 1]
