"""Methods that torch.optim has not, whose steps need sums first: the bits of arrays, the numbers of their peers."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install ".[torch]"')

from torch.nn import Parameter  # noqa: E402

import fastadam as fa  # noqa: E402
import fastadam.torch as fat  # noqa: E402
from fastadam import kernels  # noqa: E402
from fastadam.torch.optimizer import Fast  # noqa: E402

METHODS = [x for x in vars(fat).values() if isinstance(x, type) and issubclass(x, Fast) and hasattr(fa, x.__name__)]
SUMMED = [method for method in METHODS if kernels.ALL[method.rule.kernel].summed(method.rule().options)]
SHAPES = [(300, 70), (5,), (1024,), (3, 4, 5, 6)]


def twins(dtype=torch.float32):
    """The same values as parameters, one of them channels last, and as arrays."""
    torch.manual_seed(1)
    tensors = [torch.randn(shape, dtype=dtype) for shape in SHAPES]
    tensors[-1] = tensors[-1].to(memory_format=torch.channels_last)
    return [Parameter(x.clone()) for x in tensors], [x.numpy().copy(order="K") for x in tensors]


@pytest.mark.parametrize("method", SUMMED, ids=lambda method: method.__name__)
@pytest.mark.parametrize("options", [{}, {"max_norm": 0.5, "moments": "8bit"}, {"moments": "bfloat16"}], ids=str)
def test_tensors_have_the_bits_of_arrays(method, options):
    """Without some gradients, over two groups, in short formats, across a state that is saved and loaded."""
    params, arrays = twins()
    opt = method([{"params": params[:2], "lr": 0.02}, {"params": params[2:]}], lr=0.05, **options)
    other = getattr(fa, method.__name__)(
        [{"params": arrays[:2], "lr": 0.02}, {"params": arrays[2:]}], lr=0.05, **options
    )
    rng = np.random.default_rng(2)
    for t in range(6):
        grads = [rng.standard_normal(x.shape).astype(np.float32) for x in arrays]
        for k, (p, g) in enumerate(zip(params, grads, strict=True)):
            p.grad = None if t == 2 and k == 1 else torch.from_numpy(g).to(memory_format=torch.preserve_format)
        opt.step()
        grads = [None if p.grad is None else g for p, g in zip(params, grads, strict=True)]
        other.step([grads[:2], grads[2:]])
        if t == 3:
            state = copy.deepcopy(opt.state_dict())
            opt = method([{"params": params[:2]}, {"params": params[2:]}], **options)
            opt.load_state_dict(state)
    assert [k for k, (p, x) in enumerate(zip(params, arrays, strict=True)) if (p.detach().numpy() != x).any()] == []


@pytest.mark.parametrize("method", SUMMED, ids=lambda method: method.__name__)
def test_sparse_gradients_are_refused(method):
    p = Parameter(torch.ones(4, 3))
    opt = method([p])
    p.grad = torch.ones(4, 3).to_sparse()
    with pytest.raises(RuntimeError, match=f"{method.__name__} does not support sparse gradients"):
        opt.step()


@pytest.mark.parametrize("method", SUMMED, ids=lambda method: method.__name__)
def test_bad_numbers_are_refused_when_constructed(method):
    for wrong in ({"lr": -1.0}, {"weight_decay": float("nan")}, {"learning_rate": 0.1}):
        with pytest.raises((TypeError, ValueError), match=min(wrong)):
            method([Parameter(torch.ones(3))], **wrong)


@pytest.mark.parametrize("bias_correction", [True, False])
def test_lamb_is_timms(bias_correction):
    """In float64, to what two orders of the same operations differ by, its state taken over on the way."""
    timm = pytest.importorskip("timm.optim", reason="needs timm: pip install timm")
    params, _ = twins(torch.float64)
    theirs = [Parameter(p.detach().clone()) for p in params]
    named = {"lr": 0.05, "eps": 1e-3, "weight_decay": 0.1, "bias_correction": bias_correction}
    peer = timm.Lamb(theirs, max_grad_norm=None, always_adapt=True, **named)
    opt = fat.LAMB(params, **named)
    torch.manual_seed(3)
    for t in range(12):
        for p, q in zip(params, theirs, strict=True):
            q.grad = torch.randn_like(q)
            p.grad = q.grad.clone()
        peer.step()
        opt.step()
        if t == 5:
            opt = fat.LAMB(params, **named)
            fat.load_state_from(opt, peer.state_dict())
    for p, q in zip(params, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-13)
