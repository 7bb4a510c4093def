"""The CUDA backend without a GPU: the text of its kernels and all of its Python, held against NumPy bit for bit.

The .cu text is compiled by g++, and a stand-in for CuPy (tests/cuda_host) runs it and records what it was asked.
"""

import sys

import cuda_host
import numpy as np
import pytest
from cases import kernels_in_use, label, same_bits, state_arrays
from test_bits import gradients_like, tree_of_offsets

pytestmark = pytest.mark.skipif(cuda_host.COMPILER is None, reason="no g++: the .cu text cannot run on the host")


@pytest.fixture(scope="session")
def native(tmp_path_factory):
    return cuda_host.library(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def cupy(native, monkeypatch):
    from cuda_host import fake_cupy

    from fastadam import cuda

    module = fake_cupy.module(native)
    monkeypatch.setitem(sys.modules, "cupy", module)
    cuda.function.cache_clear()
    yield module
    cuda.function.cache_clear()


def moved(cupy, x):
    """x on the device, at the same offset within 64 bytes."""
    lead = x.ctypes.data % 64 // x.itemsize
    home = cupy.empty(lead + x.size, x.dtype)[lead:].reshape(x.shape)
    home.set(x)
    return home


STEPS = 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=label)
@pytest.mark.parametrize("case", kernels_in_use(), ids=label)
def test_cuda_equals_numpy_at_every_size_and_offset(case, dtype, cupy):
    method, chosen = case
    rng = np.random.default_rng(7)
    tree = [p for p in tree_of_offsets(rng, dtype) if p.size < 2**20]
    rounds = [gradients_like(rng, tree) for _ in range(STEPS)]
    there = [moved(cupy, p) for p in tree]
    here = [p.copy() for p in tree]
    reference, opt = method(here, backend="numpy", **chosen), method(there, **chosen)
    assert opt.backend == "cuda"
    for grads in rounds:
        reference.step(grads)
        opt.step([moved(cupy, g) for g in grads])
    wrong = [k for k, (a, b) in enumerate(zip(here, there, strict=True)) if not same_bits(a, b.get())]
    ours, theirs = state_arrays(opt), state_arrays(reference)
    wrong += [key for key in ours if not same_bits(ours[key], theirs[key])]
    assert wrong == []
    assert len(cupy.state.launches) == STEPS
