"""The walk over CUDA tensors without a GPU: torch's host tensors in the place of device tensors, the stand-in for CuPy.

Held bit for bit against the walk on the CPU. Not tested so: torch's own streams and allocator.
"""

import cuda_host
import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install ".[torch]"')

from torch.nn import Parameter  # noqa: E402

import fastadam.torch as fat  # noqa: E402
from fastadam.torch import cuda, leaf, optimizer  # noqa: E402

pytestmark = pytest.mark.skipif(cuda_host.COMPILER is None, reason="no g++: the .cu text cannot run on the host")


@pytest.fixture
def device(cupy, monkeypatch):
    """Optimizers that are made meanwhile take the CPU's tensors for a device's; device() waits for it."""
    monkeypatch.setitem(optimizer.WALKS, "cpu", cuda.CudaWalk)
    monkeypatch.setattr(cuda, "current_stream", lambda x: 1)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return cupy.cuda.Stream.null.synchronize


def parameters(dtype):
    torch.manual_seed(2)
    return [
        Parameter(torch.randn(40, 30, dtype=dtype)), Parameter(torch.randn(7, dtype=dtype)),
        Parameter(torch.randn(2, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last)),
        Parameter(torch.randn(0, 3, dtype=dtype)), Parameter(torch.randn((), dtype=torch.complex64)),
    ]  # fmt: skip


def trained(make, wait, steps=6, bad=()):
    """Parameters, state and findings after some steps, some without some gradients."""
    params = parameters(torch.float32)
    opt, infos = make(params), []
    for t in range(steps):
        torch.manual_seed(t)
        grads = [torch.randn_like(p) for p in params]
        if t in bad:
            grads[0][3, 3] = torch.inf
        for k, (p, g) in enumerate(zip(params, grads, strict=True)):
            p.grad = None if k == t % 4 else g.clone(memory_format=torch.contiguous_format)
        opt.step()
        infos.append((opt.info.grad_norm, opt.info.skipped))
        wait()
    return params, [opt.state.get(p, {}) for p in params], infos


CASES = {
    "AdamW": {}, "Adam": {"amsgrad": True, "fused": True}, "NAdam": {}, "SGD": {"momentum": 0.9, "dampening": 0.3},
    "RMSprop": {"centered": True}, "AdamW max_norm": {"max_norm": 1.0}, "AdamW ema": {"ema_decay": 0.9},
    "SGD skip": {"momentum": 0.9, "dampening": 0.3, "skip_nonfinite": True}, "AdamW skip": {"skip_nonfinite": True},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_equals_the_walk_on_the_cpu(device, monkeypatch, case):
    method, bad = getattr(fat, case.split()[0]), (0, 3) if "skip" in case else ()
    there = trained(lambda params: method(params, lr=0.1, **CASES[case]), device, bad=bad)
    monkeypatch.undo()
    here = trained(lambda params: method(params, lr=0.1, **CASES[case]), lambda: None, bad=bad)
    for p, q in zip(here[0], there[0], strict=True):
        assert torch.equal(p, q)
    for mine, other in zip(here[1], there[1], strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)
    assert here[2] == there[2]


def test_numbers_on_the_device():
    """A count that lies there is read once, and again when somebody writes it."""
    x = torch.tensor(3.0)
    there = leaf.OnDevice(x)
    assert there[()] == 3.0
    there[()] = 4
    assert (there[()], x.item()) == (4.0, 4.0)
    x.add_(1)
    assert there[()] == 5.0


def test_refused(device, monkeypatch):
    p = Parameter(torch.ones(4, 2))
    p.grad = torch.ones(4, 2)
    with pytest.raises(NotImplementedError, match="copy_to for"):
        fat.AdamW([p], copy_to=[torch.zeros(4, 2, dtype=torch.bfloat16)])
    opt = fat.Adagrad([p])
    p.grad = torch.sparse_coo_tensor([[0]], [[1.0, 1.0]], (4, 2), check_invariants=True)
    with pytest.raises(NotImplementedError, match="has a sparse gradient"):
        opt.step()
    p.grad = torch.ones(4, 2)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="cannot be captured"):
        opt.step()
