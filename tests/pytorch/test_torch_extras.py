"""Hyperparameters that torch's classes of the same name have not: they step as the paper says, and its state fits."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install ".[torch]"')

import fastadam.torch as fat  # noqa: E402

STEPS = 30


def cautious(p, update, lr, decay):
    """L. Chen et al. 2025, Algorithm 1."""
    return p - lr * (update + decay * torch.where(update * p >= 0, p, 0.0))


def adamw(p, grads, lr=1e-2, b1=0.8, b2=0.95, eps=1e-3, decay=0.3):
    m = v = torch.zeros_like(p)
    for t, g in enumerate(grads, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        p = cautious(p, m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + eps), lr, decay)
    return p


def lion(p, grads, lr=1e-2, b1=0.8, b2=0.95, decay=0.3):
    m = torch.zeros_like(p)
    for g in grads:
        p, m = cautious(p, (b1 * m + (1 - b1) * g).sign(), lr, decay), b2 * m + (1 - b2) * g
    return p


BITING = {"lr": 1e-2, "betas": (0.8, 0.95), "weight_decay": 0.3}
METHODS = {"AdamW": (adamw, BITING | {"eps": 1e-3}), "Lion": (lion, BITING)}


@pytest.mark.parametrize("name", METHODS)
def test_cautious_decay_is_the_papers(name):
    oracle, chosen = METHODS[name]
    generator = torch.Generator().manual_seed(1)
    start, *grads = torch.randn(STEPS + 1, 200, generator=generator, dtype=torch.float64)
    p, plain = (torch.nn.Parameter(start.clone()) for _ in range(2))
    opt, other = getattr(fat, name)([p], cautious_decay=True, **chosen), getattr(fat, name)([plain], **chosen)
    for g in grads:
        p.grad, plain.grad = g.clone(), g.clone()
        opt.step()
        other.step()
    # 40 roundings a step of operands of size 5 at most, carried on by steps that move p by less than lr a unit of m.
    np.testing.assert_allclose(p.detach(), oracle(start, grads), rtol=0, atol=40 * STEPS * 2.0**-53 * 5)
    assert (p - plain).abs().max() > 1e-2
    assert opt.param_groups[0]["cautious_decay"] is True


def test_state_goes_both_ways_and_copies_keep_the_choice():
    weights = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    theirs, opt = torch.optim.AdamW(weights[:1]), fat.AdamW(weights[1:], cautious_decay=True)
    for optimizer, p in zip((theirs, opt), weights, strict=True):
        p.grad = torch.full((4,), -1.0)
        optimizer.step()
    opt.load_state_dict(theirs.state_dict())
    assert opt.param_groups[0]["cautious_decay"] is True
    theirs.load_state_dict(fat.to_torch_state(opt))
    assert "cautious_decay" not in theirs.param_groups[0]
    assert copy.deepcopy(opt).param_groups[0]["cautious_decay"] is True
    opt.param_groups[0]["cautious_decay"] = False
    opt.step()
    assert fat.convert(theirs).param_groups[0]["cautious_decay"] is False


def test_groups_that_differ_are_refused():
    groups = [{"params": [torch.nn.Parameter(torch.ones(4))], "cautious_decay": x} for x in (True, False)]
    opt = fat.Lion(groups)
    for group in groups:
        group["params"][0].grad = torch.ones(4)
    with pytest.raises(ValueError, match=r"param_groups\[1\]: cautious_decay is False, param_groups\[0\]: cautious_d"):
        opt.step()
