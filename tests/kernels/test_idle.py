"""Slots whose decay rate is 0 are not kept: no memory, no traffic, and the bits of steps that keep them."""

import copy
import pickle

import numpy as np
import pytest
from cases import METHODS, same_bits
from ml_dtypes import bfloat16

import fastadam as fa

F32 = np.float32
NEAR = [
    (method, "betas", (*rates, 0)[: len(method.rule().betas)])
    for method in METHODS if method.rule.averages and hasattr(method.rule(), "betas")
    for rates in ((0, 0.9), (0, 0))
]  # fmt: skip
OTHERS = [(fa.RMSprop, "alpha", 0.0), (fa.LARS, "momentum", 0.0), (fa.Adam, "betas", (0.9, 0.0))]
CASES = [*NEAR, *OTHERS, (fa.AdEMAMix, "betas", (0, 0.9, 0.99))]
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__}-{case[2]}")
N = 40_001
IN_SUMS = {"LAMB": "mv", "StableAdamW": "v"}  # the slots that sums are made of


def made(case, p, **more):
    method, name, rates = case
    chosen = {"lr": 0.01, "weight_decay": 0.1} | ({"amsgrad": True} if method is fa.Adam else {})
    return method(p, **chosen, **{name: rates}, **more)


def keeping(case, p, **more):
    """The same optimizer, constructed with decay rates above 0, which are set to those of the case afterwards."""
    method, name, rates = case
    opt = made((method, name, (0.5,) * len(rates) if name == "betas" else 0.5), p, **more)
    setattr(opt.groups[0], name, rates)
    return opt


def gradients(seed, dtype=F32):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(N) * 10.0 ** rng.integers(-6, 6, N)).astype(dtype)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@EACH
def test_steps_have_the_bits_of_those_that_keep_it(case, backend):
    start = np.random.default_rng(0).standard_normal(N).astype(F32)
    p, q = start.copy(), start.copy()
    without, with_all = made(case, p, backend=backend), keeping(case, q, backend="numpy")
    idle = case[0].rule(**{case[1]: case[2]}).idle
    assert idle
    assert not idle & without.moments()["params"].keys()
    assert idle <= with_all.moments()["params"].keys()
    assert with_all.state_bytes - without.state_bytes == len(idle) * p.nbytes
    touched = sum(2 + (name in IN_SUMS.get(case[0].__name__, "")) for name in idle)  # times a step
    assert with_all.bytes_per_step - without.bytes_per_step == touched * p.nbytes
    for t in range(4):
        without.step(gradients(t))
        with_all.step(gradients(t))
    assert same_bits(p, q)
    for name, x in without.moments()["params"].items():
        assert same_bits(x, with_all.moments()["params"][name])


@pytest.mark.parametrize("more", [{"moments": "8bit"}, {"moments": "bfloat16", "master": "float32"}])
def test_in_short_formats_too(more):
    case = fa.AdamW, "betas", (0.0, 0.9)
    start = np.random.default_rng(0).standard_normal(N).astype(bfloat16)
    p, q = start.copy(), start.copy()
    without, with_all = made(case, p, **more), keeping(case, q, backend="numpy", **more)
    assert "m" not in without.moments()["params"]
    for t in range(4):
        without.step(gradients(t, bfloat16))
        with_all.step(gradients(t, bfloat16))
    assert same_bits(p, q)
    without.convert("float32")
    with_all.convert("float32")
    assert same_bits(without.moments()["params"]["v"], with_all.moments()["params"]["v"])
    without.step(gradients(9, bfloat16))
    with_all.step(gradients(9, bfloat16))
    assert same_bits(p, q)


@pytest.mark.parametrize("case", [(fa.Adam, "betas", (0.0, 0.9)), (fa.RMSprop, "alpha", 0.0)], ids=["betas", "alpha"])
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))], ids=["deepcopy", "pickle"]
)
def test_copies_keep_what_the_original_keeps(case, duplicate):
    opt = keeping(case, {"w": np.ones(40, F32)}, backend="numpy")
    other = duplicate(opt)
    assert other.moments()["params['w']"].keys() == opt.moments()["params['w']"].keys()
    assert other.state_bytes == opt.state_bytes
    for each in (opt, other):
        setattr(each.groups[0], case[1], (0.5, 0.9) if case[1] == "betas" else 0.5)
        each.step({"w": gradients(1)[:40]})
    assert same_bits(opt.params["w"], other.params["w"])


def test_copies_of_groups_keep_what_each_group_keeps():
    opt = fa.Adam([{"params": np.ones(40, F32), "betas": (0.0, 0.9)}, {"params": np.ones(40, F32)}], backend="numpy")
    opt.groups[1].betas = (0.0, 0.9)
    other = copy.deepcopy(opt)
    other.groups[1].betas = (0.5, 0.9)
    with pytest.raises(ValueError, match="would need m"):
        other.groups[0].betas = (0.5, 0.9)


def test_a_rate_that_needs_it_later_is_refused_and_there_is_a_way_out():
    p = np.ones(5, F32)
    opt = fa.Adam(p, betas=(0, 0.9))
    opt.step(np.ones(5, F32))
    with pytest.raises(
        ValueError, match=r"groups\[0\]\.betas would need m, which is not kept because its decay rate was"
    ):
        opt.groups[0].betas = (0.5, 0.9)
    assert opt.groups[0].betas == (0, 0.9)
    opt.groups[0].betas = (0, 0.99)  # needs nothing
    out = fa.Adam(p, betas=(0.5, 0.9))
    out.load_state_dict(opt.state_dict())
    assert out.groups[0].betas == (0, 0.99)
    out.groups[0].betas = (0.5, 0.99)
    assert (out.t, out.moments()["params"]["m"].tolist()) == (1, [0] * 5)
    out.step(np.ones(5, F32))
    assert out.moments()["params"]["m"].tolist() == [0.5] * 5
    with pytest.raises(ValueError, match="has no 'm', this optimizer has"):
        out.load_state_dict(opt.state_dict() | {"groups": out.state_dict()["groups"]})


def test_one_that_was_set_to_0_later_keeps_it():
    p = np.ones(5, F32)
    opt = fa.Adam(p, betas=(0.5, 0.9))
    opt.groups[0].betas = (0, 0.9)
    opt.step(np.ones(5, F32))
    opt.groups[0].betas = (0.5, 0.9)
    opt.step(np.zeros(5, F32))
    assert opt.moments()["params"]["m"].tolist() == [0.5] * 5
    other = fa.Adam(np.ones(5, F32), betas=(0, 0.9))
    opt.groups[0].betas = (0, 0.9)
    other.load_state_dict(opt.state_dict())  # whose m nothing depends on
    assert "m" not in other.moments()["params"]


def test_state_comes_and_goes_without_it(tmp_path):
    p = np.random.default_rng(0).standard_normal((30, 40)).astype(F32)
    opt = fa.AdamW([p], betas=(0, 0.9), moments="8bit")
    opt.step([p.copy()])
    q, copied = copy.deepcopy(([p], opt))
    pickled = pickle.loads(pickle.dumps(opt))
    fresh = [p.copy()]
    loaded = fa.AdamW(fresh, betas=(0, 0.9), moments="8bit")
    loaded.load_state_dict(opt.state_dict())
    g = np.ones((30, 40), F32)
    for each in (opt, copied, pickled, loaded):
        each.step([g])
    assert all(same_bits(p, x) for x in (q[0], pickled.params[0], fresh[0]))
    grown = np.concatenate([p, p])
    opt.replace("[0]", grown)
    opt.step([np.concatenate([g, g])])
    opt.reset()
    assert set(opt.moments()["params[0]"]) == {"v"}
