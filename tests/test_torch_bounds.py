"""100 steps against torch.optim's for-loop in float64, within a bound that is derived, not guessed."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install ".[torch]"')

from torch.nn import Parameter  # noqa: E402

import fastadam.torch as fat  # noqa: E402
from fastadam import bounds, kernels  # noqa: E402
from fastadam.verify import host_error  # noqa: E402

STEPS, N = 100, 200
HARD = {"lr": 1e-2, "weight_decay": 0.1}  # at which no misplaced term can hide
MOMENTS = {"betas": (0.8, 0.95), "eps": 1e-3}
METHODS = {
    "Adam": {**HARD, **MOMENTS}, "AdamW": {**HARD, **MOMENTS, "amsgrad": True}, "NAdam": {**HARD, **MOMENTS},
    "RAdam": {**HARD, **MOMENTS}, "Adamax": {**HARD, **MOMENTS},
    "SGD": {**HARD, "momentum": 0.9, "dampening": 0.2}, "RMSprop": {**HARD, "eps": 1e-3, "alpha": 0.9, "momentum": 0.5},
    "Adagrad": {**HARD, "eps": 1e-3, "lr_decay": 0.01},
}  # fmt: skip


@pytest.fixture(autouse=True)
def wide_numbers():
    """torch keeps NAdam's product of momenta in the default dtype: in float32, 1e-8 off."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_hundred_steps(name, dtype):
    """Each step's own roundings, carried through the steps that follow; torch's own errors are as large in float64.

    Gradients of 1e-6 to 1e2, rounded to dtype, so that both sides get the same.
    """
    random = np.random.default_rng(5)
    start = torch.tensor(random.standard_normal(N), dtype=dtype)
    a = getattr(torch.optim, name)([Parameter(start.double())], foreach=False, **METHODS[name])
    b = getattr(fat, name)([Parameter(start.clone())], **METHODS[name])
    (p,), (q,) = a.param_groups[0]["params"], b.param_groups[0]["params"]
    kernel = kernels.ALL[b.rule.kernel]
    storage = np.dtype(str(dtype).removeprefix("torch.")).type
    units = [bounds.Running.arithmetic(storage), bounds.Running.arithmetic(np.float64)]
    errors = [[0.0] * (1 + len(kernel.slots)) for _ in units]  # ours, torch's
    keys = [b.slots[slot.name] for slot in kernel.slots]
    for t in range(1, STEPS + 1):
        size = 10.0 ** random.uniform(-6, 2, N)
        g = torch.tensor(random.choice([-1, 1], N) * size, dtype=dtype)
        state = a.state.get(p, {})
        exact = [p.detach().numpy().copy(), *[None if state.get(k) is None else state[k].numpy().copy() for k in keys]]
        p.grad, q.grad = g.double(), g.clone()
        a.step()
        b.step()
        there = {key for key in keys if key in a.state[p]}
        exact[1:] = [
            (np.zeros(N) if x is None else x) if key in there else None for key, x in zip(keys, exact[1:], strict=True)
        ]
        (walk,) = b._current()
        row = walk._rows[0, : walk._width].copy()
        for k, (unit, kind) in enumerate(zip(units, (storage, np.float64), strict=True)):
            wide = np.longdouble if kind is np.float64 else np.float64
            streams = [
                None if x is None else bounds.Running(x.astype(wide), e, unit)
                for x, e in zip(exact, errors[k], strict=True)
            ]
            streams.insert(1, g.double().numpy())
            host = host_error(walk.groups[0]._rule, t)
            errors[k] = bounds.one_step(kernel, kind, streams, row, host)
    for key, x, y, limits in zip(
        ["p", *keys], [p, *(a.state[p].get(k) for k in keys)], [q, *(b.state[q].get(k) for k in keys)],
        zip(*errors, strict=True), strict=True,
    ):  # fmt: skip
        if x is not None:
            limit = np.asarray(limits[0] + limits[1], np.float64)
            assert np.isfinite(limit).all()
            far = np.abs(x.detach().double().numpy() - y.detach().double().numpy())
            assert (far <= limit).all(), f"{key}: {np.max(far / limit):.3g} of what is allowed"
            size = max(1.0, x.detach().abs().max().item())
            assert limit.max() < (1e-2 if dtype is torch.float32 else 1e-9) * size, "a bound that allows everything"
