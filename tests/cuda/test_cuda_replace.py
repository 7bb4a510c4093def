"""replace on the CUDA backend, without a GPU: state follows rows on the device as on the host, bit for bit."""

import cuda_host
import numpy as np
import pytest
from ml_dtypes import bfloat16
from test_cuda import captured, moved
from test_cuda_formats import Both

import fastadam as fa

pytestmark = pytest.mark.skipif(cuda_host.COMPILER is None, reason="no g++: the .cu text cannot run on the host")

F16, F32 = np.float16, np.float32
ROWS = [4, 2, -1, 2, 0, 99]  # of 5: some go, one comes twice, two begin anew
KINDS = [
    (F32, {"moments": "8bit", "amsgrad": True}), (bfloat16, {"master": "remainder", "moments": "bfloat16"}),
    (F16, {"master": "float32", "ema_decay": 0.9}), (F32, {"skip_nonfinite": True, "max_norm": 1.0}),
]  # fmt: skip


def replaced(both, k, rows=ROWS, **more):
    """Put a leaf of other rows in place of the k-th on both sides."""
    old = both.here[k]
    new = np.array([old[row] if 0 <= row < len(old) else np.full(old.shape[1:], 7) for row in rows], old.dtype)
    on = moved(both.cupy, new)
    both.a.replace(f"[{k}]", new, rows)
    both.b.replace(f"[{k}]", on, rows, **more)
    both.here[k], both.there[k] = new, on


@pytest.mark.parametrize(("dtype", "options"), KINDS, ids=str)
def test_state_follows_the_rows(dtype, options, cupy):
    rng = np.random.default_rng(17)
    here = [rng.standard_normal((5, 300)).astype(dtype), np.ones(3, dtype)]
    chosen = dict(options)
    asked = {name: chosen.pop(name) for name in ("ema_decay", "skip_nonfinite", "max_norm") if name in chosen}
    both = Both(cupy, fa.Adam, here, {"copy_to": None, **asked}, chosen.pop("master", None), **chosen)

    def step():
        assert both.step([rng.standard_normal(p.shape).astype(dtype) for p in both.here]) == []

    for _ in range(2):
        step()
    replaced(both, 0)
    assert both.differing() == []
    step()
    replaced(both, 1, [0, 0, 2, -1])
    replaced(both, 0, [5, 0])
    for _ in range(2):
        step()
    assert both.differing() == []
    assert both.b.t == 5


def test_what_was_accumulated_follows(cupy):
    both = Both(cupy, fa.SGD, [np.ones((5, 4), F32)], momentum=0.9)
    g = np.arange(20, dtype=F32).reshape(5, 4)
    both.a.accumulate([g])
    both.b.accumulate([moved(cupy, g)])
    replaced(both, 0)
    both.a.step()
    both.b.step()
    assert both.differing() == []


def test_steps_are_captured_anew(cupy):
    """A graph that was captured before knows the old array; one that is captured afterwards steps the new one."""
    rng = np.random.default_rng(18)
    both = Both(cupy, fa.AdamW, [rng.standard_normal((5, 40)).astype(F32)])
    both.b = fa.AdamW(both.there, capturable=True, seed=5)
    g = rng.standard_normal((5, 40)).astype(F32)
    both.step([g])
    replaced(both, 0)
    g = rng.standard_normal((6, 40)).astype(F32)
    on = [moved(cupy, g)]
    graph = captured(cupy, both.b, on)
    for _ in range(3):
        both.a.step([g])
        graph.launch()
    assert both.differing() == []
