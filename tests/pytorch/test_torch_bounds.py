"""100 steps against torch.optim's for-loop in float64, within a bound that is derived, not guessed."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install ".[torch]"')

from torch.nn import Parameter  # noqa: E402

import fastadam.torch as fat  # noqa: E402
from fastadam import kernels  # noqa: E402
from fastadam.tools import bounds  # noqa: E402
from fastadam.tools.verify import host_error  # noqa: E402

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


# What a 16-bit parameter loses in one step, relative to its size and beside that: less than a place where rounding is
# stochastic, half of one to nearest.
LOST = {torch.bfloat16: (2.0**-7, 2.0**-133), torch.float16: (2.0**-11, 2.0**-25)}
CASES = [(name, dtype, None) for name in METHODS for dtype in (torch.float32, torch.float64, *LOST)]
CASES += [("AdamW", torch.bfloat16, "float32"), ("AdamW", torch.bfloat16, "remainder")]
CASES += [("AdamW", torch.float16, "float32")]


@pytest.mark.parametrize(("name", "dtype", "master"), CASES, ids=str)
def test_hundred_steps(name, dtype, master):
    """Each step's own roundings, carried through the steps that follow; torch's own errors are as large in float64.

    Gradients of 1e-6 to 1e2, rounded to dtype, so that both sides get the same.
    """
    random = np.random.default_rng(5)
    start = torch.tensor(random.standard_normal(N), dtype=dtype)
    a = getattr(torch.optim, name)([Parameter(start.double())], foreach=False, **METHODS[name])
    b = getattr(fat, name)([Parameter(start.clone())], master=master, **METHODS[name])
    (p,), (q,) = a.param_groups[0]["params"], b.param_groups[0]["params"]
    kernel = kernels.ALL[b.rule.kernel]
    storage = np.float64 if dtype is torch.float64 else np.float32
    relative, absolute = LOST.get(dtype, (0.0, 0.0))
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
        (walk,) = b.walks()
        row = walk._table.rows[0, : walk._table.width].copy()
        for k, (unit, kind) in enumerate(zip(units, (storage, np.float64), strict=True)):
            wide = np.longdouble if kind is np.float64 else np.float64
            streams = [
                None if x is None else bounds.Running(x.astype(wide), e, unit)
                for x, e in zip(exact, errors[k], strict=True)
            ]
            streams.insert(1, g.double().numpy())
            rule = walk.groups[0].rule
            errors[k] = bounds.one_step(
                kernel, kind, streams, row, host_error(rule, t), 0.0 if kernel.summed(rule.options) else None
            )
        if master is None or t == STEPS:  # else the other bits are kept
            here = np.abs(p.detach().numpy()) + errors[0][0]
            errors[0][0] = errors[0][0] + relative * here + absolute
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
            # Of bfloat16 100 places are 0.8 of p by themselves; beside a master only the last one counts.
            usual = {torch.float64: 1e-9, torch.float32: 1e-2, torch.float16: 0.1, torch.bfloat16: 2.0}
            most = usual[dtype] if master is None else 0.02
            assert limit.max() < most * size, "a bound that allows everything"
