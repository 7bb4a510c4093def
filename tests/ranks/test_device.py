"""One rank whose arrays lie on a device, over the stand-in for CuPy: what a step asks of arrays, it asks of all kinds.

No GPU has run it.
"""

import math
from itertools import pairwise

import cuda_host
import numpy as np
import pytest
from cases import same_bits

import fastadam as fa
from fastadam.distributed.cuts import cuts

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


def test_pieces_on_a_device_are_cut_as_on_the_host(cupy):
    """At multiples of 1,024 elements: 1,270 blocks are 635 for each rank, of which the last is not full."""
    for array in (np.zeros(1_300_000, np.float32), cupy.zeros(1_300_000, np.float32)):
        opts = [fa.distributed.Sharded(fa.SGD, array, OneOfTwo(rank), momentum=0.9) for rank in range(2)]
        assert [opt.state_bytes // 4 for opt in opts] == [635 * 1024, 1_300_000 - 635 * 1024]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("n", [5, 300_000, (1 << 20) + 5000])
def test_pieces_on_a_device_add_up_to_the_norm_of_the_whole(n, ranks, cupy):
    """Cut in the middle of what one block of ADD_UP adds up, whose sums are not those of the whole array then."""
    g = np.random.default_rng(2).standard_normal(n).astype(np.float32)
    (cut,) = cuts(n, ranks, 1 << 24)
    named = {"lr": 0.1, "max_norm": 0.5}
    parts = [
        fa.SGD(cupy.zeros(stop - first, np.float32), **named).measure(cupy.asarray(g[first:stop]), starts={"": first})
        for first, stop in pairwise(cut)
    ]
    (whole,) = fa.SGD(np.zeros(n, np.float32), backend="numpy", **named).measure(g).values()
    joined = parts[0][""].joined(part[""] for part in parts[1:])
    assert (joined.squares, joined.largest) == (whole.squares, whole.largest)
    blocks = [math.fsum(x * x for x in g[k : k + 1024].tolist()) for k in range(0, n, 1024)]
    # squares of float32 are exact; a block's are added up in 15 + 6 roundings, up to 1,029 blocks in 11
    assert abs(joined.squares - math.fsum(blocks)) <= 32 * 2**-53 * math.fsum(blocks)


def test_a_norm_over_several_spans_has_the_hosts_bits(cupy):
    n = (1 << 19) + 5000
    rng = np.random.default_rng(2)
    p, g = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
    there = cupy.asarray(p)
    named = {"lr": 0.1, "max_norm": 0.5, "bucket": 1024}
    device = fa.distributed.Sharded(fa.SGD, there, **named)
    assert fa.distributed.Sharded(fa.SGD, p, **named).step(g) == device.step(cupy.asarray(g))
    assert same_bits(p, there.get())
