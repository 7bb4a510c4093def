"""One rank whose arrays lie on a device, over the stand-in for CuPy: what a step asks of arrays, it asks of all kinds.

No GPU has run it.
"""

import cuda_host
import numpy as np
import pytest
from cases import same_bits

import fastadam as fa

pytestmark = pytest.mark.skipif(cuda_host.COMPILER is None, reason="no g++: the .cu text cannot run on the host")


@pytest.mark.parametrize("chosen", [{}, {"max_norm": 0.5, "skip_nonfinite": True}, {"copies": "bfloat16"}], ids=str)
def test_a_device_has_the_hosts_bits(chosen, cupy):
    rng = np.random.default_rng(1)
    tree = {"w": rng.standard_normal((40, 60)).astype(np.float32), "b": rng.standard_normal(7).astype(np.float32)}
    there = {name: cupy.asarray(x) for name, x in tree.items()}
    named = {"lr": 0.1, "seed": 3, "bucket": 1024, **chosen}
    host = fa.distributed.Sharded(fa.AdamW, tree, **named)
    device = fa.distributed.Sharded(fa.AdamW, there, **named)
    for t in range(3):
        grads = {"w": rng.standard_normal((40, 60)).astype(np.float32), "b": rng.standard_normal(7).astype(np.float32)}
        if t == 1 and "skip_nonfinite" in chosen:
            grads["b"][3] = np.inf
        a, b = host.step(grads), device.step({name: cupy.asarray(x) for name, x in grads.items()})
        assert (a.grad_norm, a.clip_factor, a.skipped) == (b.grad_norm, b.clip_factor, b.skipped)
    for name, x in host.params.items():
        assert same_bits(x, device.params[name].get())
    assert (host.t, host.skipped) == (device.t, device.skipped)
    ours, theirs = host.state_dict()["leaves"]["params[0]"], device.state_dict()["leaves"]["params[0]"]
    for name, x in ours.items():
        assert same_bits(x, theirs[name]) if isinstance(x, np.ndarray) else x == theirs[name]
