"""Steps of optax's transformations, the public reference of methods over arrays, in float32 and float64."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason='needs JAX: pip install ".[jax]"')
optax = pytest.importorskip("optax", reason="needs optax: pip install optax")

import fastadam as fa  # noqa: E402

SHAPES = {"w": (30, 7), "b": (5,)}
STEPS = 12
BETAS = {"b1": 0.8, "b2": 0.95}
PEERS = {
    "LAMB": (
        lambda p: fa.LAMB(p, lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
        lambda: optax.lamb(0.01, **BETAS, eps=1e-3, weight_decay=0.1)),
    "ADOPT": (
        lambda p: fa.ADOPT(p, lr=0.01, betas=(0.8, 0.95), eps=1e-3),
        lambda: optax.contrib.adopt(0.01, **BETAS, eps=1e-3)),
    "AdEMAMix": (
        lambda p: fa.AdEMAMix(p, lr=0.01, betas=(0.8, 0.95, 0.99), alpha=4.0, eps=1e-3, weight_decay=0.1),
        lambda: optax.contrib.ademamix(0.01, **BETAS, b3=0.99, alpha=4.0, eps=1e-3, weight_decay=0.1)),
    "Lion": (
        lambda p: fa.Lion(p, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1),
        lambda: optax.lion(0.01, **BETAS, weight_decay=0.1)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", PEERS)
def test_steps_are_optaxs(name, dtype):
    make, transformation = PEERS[name]
    rng = np.random.default_rng(1)
    params = {key: rng.standard_normal(shape).astype(dtype) for key, shape in SHAPES.items()}
    opt = make(params)
    with jax.enable_x64(dtype is np.float64):
        others, transform = jax.tree.map(jax.numpy.array, params), transformation()
        state = transform.init(others)
        for _ in range(STEPS):
            grads = {key: rng.standard_normal(shape).astype(dtype) for key, shape in SHAPES.items()}
            opt.step(grads)
            updates, state = transform.update(jax.tree.map(jax.numpy.array, grads), state, others)
            others = optax.apply_updates(others, updates)
        others = jax.tree.map(np.asarray, others)
    # 40 roundings a step of operands of size 5 at most, in two orders, and sums of 210 squares; optax's 1 - β^t and
    # 1 - β are of its dtype, each off by 1 / (1 - 0.95) roundings more, 1 / (1 - 0.99) of AdEMAMix.
    limit = 2 * (40 + 105 + 3 * 100) * STEPS * np.finfo(dtype).eps / 2 * 5
    for key, x in others.items():
        assert x.dtype == dtype
        assert np.abs(params[key] - x).max() <= limit
