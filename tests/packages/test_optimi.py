"""Steps of torch-optimi's StableAdamW, a public reference of it: from its own state, within both sides' roundings."""

import numpy as np
import pytest

package = pytest.importorskip("optimi", reason="needs optimi: pip install --no-deps torch-optimi")

import torch  # noqa: E402

import fastadam as fa  # noqa: E402
from fastadam import kernels  # noqa: E402
from fastadam.tools import bounds  # noqa: E402

STEPS = 30
SHAPES = [(3, 7), (190,)]
CHOSEN = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
SLOTS = {"m": "exp_avg", "v": "exp_avg_sq"}


def flat(x):
    return np.asarray(x).reshape(-1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_each_step_is_the_packages(dtype):
    """From its state before each step, both are within their roundings of the exact step.

    The package rounds no more often than ours, but for p·(1 - lr·λ), a factor and a product of p's size, and for the
    mean of n squares, whose terms it adds in an order of its own: n roundings of it (Higham 2002, 3.1), of whose root
    half remain. Its β's, told from powers that cancel at first, are as far off as 1/(1 - β) roundings in float64, and
    so is what a step multiplies by them.
    """
    rng = np.random.default_rng(5)
    params = [torch.nn.Parameter(torch.from_numpy(rng.standard_normal(shape)).to(dtype)) for shape in SHAPES]
    theirs = package.StableAdamW(params, foreach=False, triton=False, **CHOSEN)
    arrays = [p.detach().numpy().copy() for p in params]
    ours = fa.StableAdamW(arrays, backend="numpy", **CHOSEN)
    kernel, u, clipped = kernels.ALL["stableadamw"], float(torch.finfo(dtype).eps) / 2, 0
    for t in range(1, STEPS + 1):
        for p in params:  # now and then of other sizes than before
            p.grad = torch.from_numpy(rng.standard_normal(p.shape) * (10.0 if t % 7 == 0 else 1.0)).to(dtype)
        before = [{name: np.zeros_like(x) for name in SLOTS} for x in arrays]
        if t > 1:
            before = [{name: theirs.state[p][key].numpy().copy() for name, key in SLOTS.items()} for p in params]
        state = ours.state_dict() | {"t": t - 1}
        for array, p, leaf, slots in zip(arrays, params, state["leaves"].values(), before, strict=True):
            array[...] = p.detach().numpy()
            leaf |= {"count": t - 1, **slots}
        ours.load_state_dict(state)
        starts, grads = [x.copy() for x in arrays], [p.grad.numpy().copy() for p in params]
        ours.step(grads)
        theirs.step()
        row = ours.groups[0].coefficients_at(t, CHOSEN["lr"], 1.0)
        leaves = ours.state_dict()["leaves"].values()
        for p, x, start, g, slots, leaf in zip(params, arrays, starts, grads, before, leaves, strict=True):
            streams = [flat(start), flat(g), *(flat(slots[slot.name]) for slot in kernel.slots)]
            off = (x.size + 4) / 2 * u
            limits = bounds.one_step(kernel, x.dtype, streams, row, 2.0**-52 / (1 - 0.95), off)
            assert np.all(np.abs(flat(x) - flat(p.detach())) <= 2 * limits[0] + 2 * u * np.abs(flat(start)))
            for slot, limit in zip(kernel.slots, limits[1:], strict=True):
                apart = np.abs(flat(leaf[slot.name]) - flat(theirs.state[p][SLOTS[slot.name]]))
                assert np.all(apart <= 2 * limit), slot.name
            clipped += np.mean(g**2 / np.maximum(leaf["v"], 1e-6)) > 1
    assert 0 < clipped < 2 * STEPS
