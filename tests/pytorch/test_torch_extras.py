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


def masked(update, g):
    """Liang et al. 2024, Algorithm 1, over one tensor."""
    agree = (update * g > 0).to(update.dtype)
    return update * agree / torch.clamp(agree.mean(), min=1e-3)


def cautious_adam(p, grads, lr=1e-2, b1=0.8, b2=0.95, eps=1e-3, decay=0.0, decoupled=True):
    m = v = torch.zeros_like(p)
    for t, g in enumerate(grads, start=1):
        p, g = (p * (1 - lr * decay), g) if decoupled else (p, g + decay * p)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        p = p - lr * masked(m, g) / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + eps)
    return p


def cautious_nadam(p, grads, lr=1e-2, b1=0.8, b2=0.95, eps=1e-3, decay=0.3):
    m, v, product = torch.zeros_like(p), torch.zeros_like(p), 1.0
    for t, g in enumerate(grads, start=1):
        g = g + decay * p
        now, after = (b1 * (1 - 0.5 * 0.96 ** (k * 4e-3)) for k in (t, t + 1))
        product *= now
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        update = (1 - now) / (1 - product) * g + after / (1 - product * after) * m
        p = p - lr * masked(update, g) / ((v / (1 - b2**t)).sqrt() + eps)
    return p


def cautious_lion(p, grads, lr=1e-2, b1=0.8, b2=0.95, decay=0.3):
    m = torch.zeros_like(p)
    for g in grads:
        p = p - lr * (masked((b1 * m + (1 - b1) * g).sign(), g) + decay * p)
        m = b2 * m + (1 - b2) * g
    return p


MASKED = {
    "Adam": lambda p, grads: cautious_adam(p, grads, decay=0.3, decoupled=False),
    "AdamW": lambda p, grads: cautious_adam(p, grads, decay=0.3), "NAdam": cautious_nadam, "Lion": cautious_lion,
}  # fmt: skip


@pytest.mark.parametrize("name", MASKED)
def test_cautious_steps_are_the_papers(name):
    """Over two parameters, whose shares differ: one number for each tensor, not for all."""
    chosen = BITING | ({} if name == "Lion" else {"eps": 1e-3})
    generator = torch.Generator().manual_seed(2)
    draws = [torch.randn(STEPS + 1, n, generator=generator, dtype=torch.float64) for n in (200, 31)]
    params = [torch.nn.Parameter(draw[0].clone()) for draw in draws]
    opt = getattr(fat, name)(params, cautious=True, **chosen)
    for k in range(1, STEPS + 1):
        for p, draw in zip(params, draws, strict=True):
            p.grad = draw[k].clone()
        opt.step()
    # 40 roundings a step as above, of a step that is at most 31 times as long: where one element alone agrees.
    for p, draw in zip(params, draws, strict=True):
        np.testing.assert_allclose(
            p.detach(), MASKED[name](draw[0], draw[1:]), rtol=0, atol=40 * STEPS * 2.0**-53 * 5 * 31
        )
    assert opt.param_groups[0]["cautious"] is True


@pytest.mark.parametrize("choice", ["cautious_decay", "cautious"])
def test_state_goes_both_ways_and_copies_keep_the_choice(choice):
    weights = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    theirs, opt = torch.optim.AdamW(weights[:1]), fat.AdamW(weights[1:], **{choice: True})
    for optimizer, p in zip((theirs, opt), weights, strict=True):
        p.grad = torch.full((4,), -1.0)
        optimizer.step()
    opt.load_state_dict(theirs.state_dict())
    assert opt.param_groups[0][choice] is True
    theirs.load_state_dict(fat.to_torch_state(opt))
    assert choice not in theirs.param_groups[0]
    assert copy.deepcopy(opt).param_groups[0][choice] is True
    opt.param_groups[0][choice] = False
    opt.step()
    assert fat.convert(theirs).param_groups[0][choice] is False


def test_groups_that_differ_are_refused():
    groups = [{"params": [torch.nn.Parameter(torch.ones(4))], "cautious_decay": x} for x in (True, False)]
    opt = fat.Lion(groups)
    for group in groups:
        group["params"][0].grad = torch.ones(4)
    with pytest.raises(ValueError, match=r"param_groups\[1\]: cautious_decay is False, param_groups\[0\]: cautious_d"):
        opt.step()
