"""Sums over all leaves on a device, which alone knows what they make: NumPy's bits, and what the host reads of it."""

import cuda_host
import numpy as np
import pytest
from test_cuda import Pair, captured, moved

import fastadam as fa

pytestmark = pytest.mark.skipif(cuda_host.COMPILER is None, reason="no g++: the .cu text cannot run on the host")

CHOSEN = {"weight_decay": 0.1, "d0": 1e-4, "growth_rate": 1.5, "use_bias_correction": True}


def tree():
    """Leaves of two dtypes, hence two launches; one of no element."""
    rng = np.random.default_rng(4)
    return [rng.standard_normal(n).astype((np.float32, np.float64)[k % 2]) for k, n in enumerate((5, 3000, 0, 1025))]


def pulled(pair):
    """Gradients towards 0."""
    return [2 * p for p in pair.here]


def same(pair):
    return pair.differing() == [] and pair.opt.carried == pair.reference.carried


def test_the_device_carries_numpys_estimate(cupy):
    """Over steps without some gradients, others' dtypes, states that are loaded or reset."""
    pair = Pair(cupy, fa.Prodigy, tree(), **CHOSEN)
    for t in range(9):
        grads = [None if (t, k) == (4, 1) else g.astype(np.float32) if t > 6 else g for k, g in enumerate(pulled(pair))]
        pair.step(grads)
        if t % 3 == 2:
            assert same(pair)
    assert pair.opt.carried["d"] > 3e-4
    state = pair.reference.state_dict()
    pair.step(pulled(pair))
    for opt in (pair.opt, pair.reference):
        opt.load_state_dict(state)
    pair.step(pulled(pair))
    assert same(pair)
    for opt in (pair.opt, pair.reference):
        opt.reset("[1]")
        opt.groups[0].d_coef = 2.0
    pair.step(pulled(pair))
    assert same(pair)


@pytest.mark.parametrize("options", [{"capturable": True}, {"skip_nonfinite": True, "max_norm": 0.5}], ids=str)
def test_steps_that_a_device_counts(cupy, options):
    pair = Pair(cupy, fa.Prodigy, tree()[:2], **CHOSEN, **options)
    for t in range(6):
        grads = pulled(pair)
        if t == 3 and "skip_nonfinite" in options:
            grads[1][7] = np.nan
        pair.step(grads)
    assert same(pair)
    pair.opt.load_state_dict(pair.reference.state_dict())
    pair.step(pulled(pair))
    assert same(pair)


def test_a_captured_step_goes_on_with_the_devices_estimate(cupy):
    g = np.random.default_rng(5).standard_normal(700).astype(np.float32)
    pair = Pair(cupy, fa.Prodigy, [g], capturable=True, **CHOSEN)
    pair.step([g])
    graph = captured(cupy, pair.opt, [on_device := moved(cupy, g)])
    for _ in range(7):
        pair.reference.step([g])
        graph.launch()
    assert on_device.shape == g.shape
    assert same(pair)
    assert pair.opt.carried["d"] > 3e-4
