"""Slots whose decay rate is 0 on PyTorch's tensors: not kept, exported as zeros, the same steps as torch's."""

import copy
import io

import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install ".[torch]"')

from torch.nn import Parameter  # noqa: E402
from torch.testing import assert_close  # noqa: E402

import fastadam.torch as fat  # noqa: E402

NAMES = {"Adam": "exp_avg", "AdamW": "exp_avg", "NAdam": "exp_avg", "RAdam": "exp_avg", "Adamax": "exp_avg"}


def parameters():
    torch.manual_seed(0)
    return [Parameter(torch.randn(30, 40)), Parameter(torch.randn(7))]


def step(opt, seed):
    torch.manual_seed(seed)
    for p in opt.param_groups[0]["params"]:
        p.grad = torch.randn(p.shape)
    opt.step()


@pytest.mark.parametrize("name", NAMES)
def test_states_hold_none_and_go_both_ways(name):
    p, q = parameters(), parameters()
    ours, theirs = getattr(fat, name)(p, betas=(0.0, 0.9)), getattr(torch.optim, name)(q, betas=(0.0, 0.9))
    for t in range(3):
        step(ours, t)
        step(theirs, t)
    assert_close([x.detach() for x in p], [x.detach() for x in q])
    assert all(NAMES[name] not in state for state in ours.state.values())
    for state in (ours.state_dict(), fat.to_torch_state(ours)):
        assert all(torch.equal(state["state"][k][NAMES[name]], torch.zeros_like(x)) for k, x in enumerate(p))
    theirs.load_state_dict(fat.to_torch_state(ours))
    back = getattr(fat, name)(p, betas=(0.0, 0.9))
    back.load_state_dict(copy.deepcopy(theirs.state_dict()))  # torch shares its tensors
    for x, y in zip(p, q, strict=True):
        y.data.copy_(x)
    step(back, 9)
    step(theirs, 9)
    assert_close([x.detach() for x in p], [x.detach() for x in q])
    assert all(NAMES[name] not in state for state in back.state.values())


@pytest.mark.parametrize(
    ("name", "rates", "key"),
    [
        ("LARS", {"momentum": 0.0}, "momentum_buffer"),
        ("AdEMAMix", {"betas": (0.0, 0.9, 0.99)}, "exp_avg"),
        ("LAMB", {"betas": (0.0, 0.9)}, "exp_avg"),
    ],
)
def test_methods_that_torch_has_not_export_zeros_too(name, rates, key):
    p, q = parameters(), parameters()
    opt, other = getattr(fat, name)(p, **rates), getattr(fat, name)(q, **rates)
    step(opt, 0)
    state = opt.state_dict()
    assert all(key not in of_p for of_p in opt.state.values())
    assert len(state["state"]) == (0 if name == "LARS" else len(p))  # which keeps nothing else
    assert all(torch.equal(of_p[key], torch.zeros_like(p[k])) for k, of_p in state["state"].items())
    other.load_state_dict(copy.deepcopy(state))
    for x, y in zip(p, q, strict=True):
        y.data.copy_(x)
    step(opt, 1)
    step(other, 1)
    assert all(torch.equal(x, y) for x, y in zip(p, q, strict=True))


def test_short_formats_copies_and_files():
    p = parameters()
    opt = fat.AdamW(p, betas=(0.0, 0.9), moments="8bit")
    step(opt, 0)
    assert "exp_avg" not in opt.state[p[0]]
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    q = copy.deepcopy(p)
    other = fat.AdamW(q, betas=(0.0, 0.9), moments="8bit")
    other.load_state_dict(torch.load(file))
    step(opt, 1)
    step(other, 1)
    assert all(torch.equal(x, y) for x, y in zip(p, q, strict=True))
    assert "exp_avg" not in other.state[q[0]]


@pytest.mark.parametrize("name", ["AdamW", "Lion"])
def test_a_rate_that_needs_it_later_is_refused_and_there_is_a_way_out(name):
    p = parameters()
    opt = getattr(fat, name)(p, betas=(0.0, 0.9))
    opt.param_groups[0]["betas"] = (0.5, 0.9)  # before the first step nothing is decided
    opt.param_groups[0]["betas"] = (0.0, 0.9)
    step(opt, 0)
    opt.param_groups[0]["betas"] = (0.5, 0.9)
    before = [x.detach().clone() for x in p]
    with pytest.raises(
        ValueError, match="has taken steps without 'exp_avg', which is not kept while its decay rate is 0"
    ):
        step(opt, 1)
    assert all(torch.equal(x, y) for x, y in zip(p, before, strict=True))
    opt.param_groups[0]["betas"] = (0.0, 0.9)
    opt.load_state_dict(opt.state_dict())
    opt.param_groups[0]["betas"] = (0.5, 0.9)
    step(opt, 1)
    share = 0.5 if name == "AdamW" else 0.1  # Lion's momentum decays by β2
    assert_close(opt.state[p[1]]["exp_avg"], share * p[1].grad)


def test_one_that_was_set_to_0_later_keeps_it():
    p, q = parameters(), parameters()
    ours, theirs = fat.Adam(p, betas=(0.5, 0.9)), torch.optim.Adam(q, betas=(0.5, 0.9))
    for t, beta1 in enumerate((0.5, 0.0, 0.5)):
        for opt in (ours, theirs):
            opt.param_groups[0]["betas"] = (beta1, 0.9)
            step(opt, t)
    assert_close([x.detach() for x in p], [x.detach() for x in q])
    assert_close([ours.state[x]["exp_avg"] for x in p], [theirs.state[x]["exp_avg"] for x in q])
