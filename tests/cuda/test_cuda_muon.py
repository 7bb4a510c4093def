"""Muon's walks on the CUDA backend, without a GPU: the host's bits, given the same orthogonalised matrices."""

import cuda_host
import numpy as np
import pytest
from cases import same_bits
from test_cuda import moved

import fastadam as fa
from fastadam.tools.composed import Recorded

pytestmark = pytest.mark.skipif(cuda_host.COMPILER is None, reason="no g++: the .cu text cannot run on the host")


def test_walks_and_chores_have_the_hosts_bits(cupy):
    """Without Nesterov, whose way beyond the momentum is an expression of CuPy's."""
    rng, chosen = np.random.default_rng(1), {"lr": 0.1, "nesterov": False}
    here = {"w": rng.standard_normal((30, 70)).astype(np.float32), "b": np.ones(300, np.float32)}
    there = {name: moved(cupy, x) for name, x in here.items()}
    chores = {"max_norm": 1.0, "skip_nonfinite": "raise"}
    pair = [fa.Muon(params, **chosen, **chores) for params in (here, there)]
    assert [opt.backend for opt in pair] == ["numba", "cuda"]
    Recorded.results.clear()
    for opt in pair:
        opt.groups[0].adopt(Recorded(**chosen))
    for _ in range(3):
        grads = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in here.items()}
        pair[0].step(grads, grad_scale=0.5)
        pair[1].step({name: moved(cupy, g) for name, g in grads.items()}, grad_scale=0.5)
    for name, x in here.items():
        assert same_bits(x, there[name].get())
    states = [opt.state_dict()["leaves"]["params['w']"]["m"] for opt in pair]
    assert same_bits(*states)
    before = {name: x.get() for name, x in there.items()}
    with pytest.raises(FloatingPointError, match=r"grads\['w'\] holds NaN"):
        pair[1].step({"w": moved(cupy, np.full((30, 70), np.nan, np.float32)), "b": moved(cupy, grads["b"])})
    assert all(same_bits(x, there[name].get()) for name, x in before.items())
    with pytest.raises(ValueError, match="skip_nonfinite is True, expected False or 'raise' for arrays on a device"):
        fa.Muon(there, skip_nonfinite=True)
