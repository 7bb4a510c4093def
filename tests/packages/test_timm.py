"""Steps of timm's optimizers, the public reference of what torch.optim has not: the same numbers, the same state."""

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install ".[torch]"')
if importlib.util.find_spec("timm") is None:
    pytest.skip("needs timm: pip install --no-deps timm", allow_module_level=True)

from torch.nn import Parameter  # noqa: E402

import fastadam.torch as fat  # noqa: E402

SHAPES = [(30, 7), (5,), (3, 4, 5, 6)]
STEPS = 12
USUAL = {"lr": 0.01, "eps": 1e-3, "weight_decay": 0.1}
LAMB = {**USUAL, "betas": (0.8, 0.95)}
OF_TIMM = {"max_grad_norm": None, "always_adapt": True}
PEERS = {  # ours, timm's module and class, arguments of both, of ours alone, of timm's alone
    "LAMB": ("LAMB", "lamb", "Lamb", LAMB | {"bias_correction": True}, {}, OF_TIMM),
    "LAMB-uncorrected": (
        "LAMB", "lamb", "Lamb", LAMB | {"bias_correction": False}, {}, OF_TIMM),
    "LARS": (
        "LARS", "lars", "Lars", {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.1},
        {"trust_coefficient": 0.02}, {"trust_coeff": 0.02, "eps": 0.0, "always_adapt": True}),
    "ADOPT": ("ADOPT", "adopt", "Adopt", LAMB, {"decoupled_weight_decay": True},
        {"decoupled": True, "clip_exp": 0.25}),
    "ADOPT-unclipped": (
        "ADOPT", "adopt", "Adopt", LAMB, {"decoupled_weight_decay": True, "clip": False},
        {"decoupled": True, "clip_exp": None}),
    "AdamW-cautious": ("AdamW", "adamw", "AdamWLegacy", LAMB, {"cautious": True}, {"caution": True}),
    "Lion-cautious": (
        "Lion", "lion", "Lion", {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1},
        {"cautious": True}, {"caution": True}),
}  # fmt: skip


def timms(module):
    """A module of timm's optimizers, without timm's models, which need torchvision."""
    if "timms_optimizers" not in sys.modules:
        package = ModuleType("timms_optimizers")
        (folder,) = importlib.util.find_spec("timm").submodule_search_locations
        package.__path__ = [f"{folder}/optim"]
        sys.modules["timms_optimizers"] = package
    return importlib.import_module(f"timms_optimizers.{module}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", PEERS)
def test_steps_are_timms(name, dtype):
    ours, module, theirs, both, of_ours, of_theirs = PEERS[name]
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
    params, others = ([Parameter(x.clone()) for x in start] for _ in range(2))
    opt = getattr(fat, ours)(params, **both, **of_ours)
    peer = getattr(timms(module), theirs)(others, **both, **of_theirs)
    for _ in range(STEPS):
        for p, q in zip(params, others, strict=True):
            q.grad = torch.randn(q.shape, generator=generator, dtype=torch.float64).to(dtype)
            p.grad = q.grad.clone()
        peer.step()
        opt.step()
    # 40 roundings a step of operands of size 5 at most, in two orders; a step divides by no less than eps = 1e-3 or by
    # norms of many, and sums of 360 squares lose half as many roundings more.
    limit = 2 * (40 + 180) * STEPS * torch.finfo(dtype).eps / 2 * 5
    assert max((p - x).abs().max() for p, x in zip(params, start, strict=True)) > 1e3 * limit * (dtype is torch.float64)
    for p, q in zip(params, others, strict=True):
        assert (p - q).abs().max() <= limit


def test_lamb_takes_over_timms_state():
    params, others = ([Parameter(torch.ones(3, 2, dtype=torch.float64))] for _ in range(2))
    peer = timms("lamb").Lamb(others, **OF_TIMM, **USUAL)
    opt = fat.LAMB(params, **USUAL)
    for t in range(6):
        others[0].grad = torch.full_like(others[0], t + 1.0)
        params[0].grad = others[0].grad.clone()
        peer.step()
        opt.step()
        if t == 2:
            opt = fat.LAMB(params, **USUAL)
            fat.load_state_from(opt, peer.state_dict())
    torch.testing.assert_close(*params, *others, rtol=1e-13, atol=1e-13)
