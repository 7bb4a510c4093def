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


class OneOfTwo(fa.distributed.Engine):
    """Is a rank of two that all say the same: enough to be made."""

    size, carries = 2, ("host", "device")

    def __init__(self, rank):
        self.rank = rank

    def everyone(self, x):
        return [x, x]


def test_pieces_on_a_device_are_cut_where_its_sums_are(cupy):
    """At multiples of 2^19 elements, those of the host at multiples of 1,024."""
    sizes = {}
    for where, array in (("host", np.zeros(1_300_000, np.float32)), ("device", cupy.zeros(1_300_000, np.float32))):
        for rank in range(2):
            opt = fa.distributed.Sharded(fa.SGD, array, OneOfTwo(rank), momentum=0.9, bucket=1 << 24)
            sizes[where, rank] = opt.state_bytes // 4
    assert sizes == {
        ("host", 0): 650_240, ("host", 1): 649_760, ("device", 0): 1 << 20, ("device", 1): 1_300_000 - (1 << 20),
    }  # fmt: skip


def test_a_norm_over_several_spans_has_the_hosts_bits(cupy):
    n = (1 << 19) + 5000
    rng = np.random.default_rng(2)
    p, g = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
    there = cupy.asarray(p)
    named = {"lr": 0.1, "max_norm": 0.5, "bucket": 1024}
    device = fa.distributed.Sharded(fa.SGD, there, **named)
    assert fa.distributed.Sharded(fa.SGD, p, **named).step(g) == device.step(cupy.asarray(g))
    assert same_bits(p, there.get())
