"""Methods that torch.optim has not, whose steps need sums first: the bits of arrays, the numbers of their peers."""

import copy
from dataclasses import fields

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
CAUTIOUS = [(method, {"cautious": True}) for method in METHODS
            if any(each.name == "cautious" for each in fields(method.rule))]  # fmt: skip
SHAPES = [(300, 70), (5,), (1024,), (3, 4, 5, 6)]


def twins(dtype=torch.float32):
    """The same values as parameters, one of them channels last, and as arrays."""
    torch.manual_seed(1)
    tensors = [torch.randn(shape, dtype=dtype) for shape in SHAPES]
    tensors[-1] = tensors[-1].to(memory_format=torch.channels_last)
    return [Parameter(x.clone()) for x in tensors], [x.numpy().copy(order="K") for x in tensors]


@pytest.mark.parametrize(
    ("method", "chosen"), [*((method, {}) for method in SUMMED), *CAUTIOUS], ids=lambda x: getattr(x, "__name__", None)
)
@pytest.mark.parametrize("options", [{}, {"max_norm": 0.5, "moments": "8bit"}, {"moments": "bfloat16"}], ids=str)
def test_tensors_have_the_bits_of_arrays(method, chosen, options):
    """Without some gradients, over two groups, in short formats, across a state that is saved and loaded."""
    params, arrays = twins()
    options = {**options, **chosen}
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
