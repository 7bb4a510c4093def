"""Prodigy against the authors' package: steps while d grows, and state that goes both ways."""

import numpy as np
import pytest

package = pytest.importorskip("prodigyopt", reason="needs the authors' package: pip install prodigyopt")

import torch  # noqa: E402

import fastadam as fa  # noqa: E402
import fastadam.torch as fat  # noqa: E402
from fastadam import kernels  # noqa: E402
from fastadam.tools import bounds  # noqa: E402

STEPS = 200
SHAPES = [(3, 7), (19,)]
CHOICES = [
    {}, {"weight_decay": 0.1, "use_bias_correction": True, "d_coef": 2.0},
    {"weight_decay": 0.1, "decouple": False, "safeguard_warmup": True, "growth_rate": 1.1}, {"beta3": 0.9, "d0": 1e-4},
]  # fmt: skip
SLOTS = {"m": "exp_avg", "v": "exp_avg_sq", "s": "s", "p0": "p0"}


def parameters(dtype):
    rng = np.random.default_rng(6)
    return [torch.nn.Parameter(torch.from_numpy(rng.standard_normal(shape)).to(dtype)) for shape in SHAPES]


def pulled(params, t):
    """Gradients of a bowl, and some noise."""
    rng = np.random.default_rng(t)
    for p in params:
        slope = torch.linspace(1, 3, p.numel(), dtype=p.dtype).reshape(p.shape)
        p.grad = slope * p.detach() + 0.01 * torch.from_numpy(rng.standard_normal(p.shape)).to(p.dtype)


def flat(xs):
    return np.concatenate([np.asarray(x.detach() if isinstance(x, torch.Tensor) else x).reshape(-1) for x in xs])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("chosen", CHOICES, ids=str)
def test_each_step_is_the_packages(chosen, dtype):
    """From its state before each step, both are within their roundings of the exact step, d included.

    Of d: its sums, of n terms each, lose n + 3 roundings of the terms' sizes in the package's order (Higham 2002, 3.1);
    ours, in float64, lose no more. The package's step rounds no more often than ours, so twice ours is the most.
    """
    params = parameters(dtype)
    theirs = package.Prodigy(params, **chosen)
    group = theirs.param_groups[0]
    arrays = [p.detach().numpy().copy() for p in params]
    ours = fa.Prodigy(arrays, backend="numpy", **chosen)
    u = float(torch.finfo(dtype).eps) / 2
    n = sum(p.numel() for p in params)
    kernel, rule = kernels.ALL["prodigy"], ours.groups[0].rule
    for t in range(1, STEPS + 1):
        pulled(params, t)
        grads = [p.grad.numpy().copy() for p in params]
        state = ours.state_dict()
        before = {name: [np.zeros_like(x) for x in arrays] for name in ("m", "v", "s")} | {"p0": [*arrays]}
        if t > 1:
            before = {name: [theirs.state[p][key].numpy().copy() for p in params] for name, key in SLOTS.items()}
        state["t"] = t - 1
        carried = {"d": group["d"], "d_max": group["d_max"], "d_numerator": float(group["d_numerator"])}
        for k, leaf in enumerate(state["leaves"].values()):
            arrays[k][...] = params[k].detach().numpy()
            leaf |= {"count": t - 1, **carried}
            leaf |= {name: xs[k].reshape(arrays[k].shape).copy() for name, xs in before.items()}
        ours.load_state_dict(state)
        start = [x.copy() for x in arrays]
        ours.step(grads)
        theirs.step()
        d, new_d = carried["d"], group["d"]
        decayed = grads if chosen.get("decouple", True) else [g + 0.1 * x for g, x in zip(grads, start, strict=True)]
        terms = flat(decayed) * (flat(before["p0"]) - flat(start))
        row = ours.groups[0].coefficients_at(t, 1.0, 1.0, *carried.values())[: len(kernel.Coefficients._fields)]
        weight = d / rule.d0 * d * kernel.Coefficients(*row).rate
        lost = (n + 4) * u * (weight * np.abs(terms).sum() / max(float(group["d_denom"]), 1e-300) + abs(group["d_hat"]))
        lost_of_d = rule.d_coef * lost * (2 if rule.growth_rate is None else 2 * rule.growth_rate)
        assert abs(ours.carried["d"] - new_d) <= lost_of_d + 8 * u * new_d
        off = lost_of_d / new_d + 8 * u
        streams = [flat(start), flat(grads), *(flat(before[slot.name]) for slot in kernel.slots)]
        limits = bounds.one_step(
            kernel, start[0].dtype, streams, row, 2.0**-48, off, (list(carried.values()), rule.judging)
        )  # fmt: skip
        leaves = ours.state_dict()["leaves"].values()
        assert np.all(np.abs(flat(arrays) - flat(params)) <= 2 * limits[0])
        for slot, limit in zip(kernel.slots, limits[1:], strict=True):
            both = flat([leaf[slot.name] for leaf in leaves]), flat([theirs.state[p][SLOTS[slot.name]] for p in params])
            assert np.all(np.abs(both[0] - both[1]) <= 2 * limit), slot.name
    assert group["d"] > 100 * rule.d0


@pytest.mark.parametrize("chosen", CHOICES, ids=str)
def test_state_goes_both_ways(chosen):
    """Each takes over from the other while d grows, and both arrive."""
    mine, other = parameters(torch.float64), parameters(torch.float64)
    other[1].data.zero_(), mine[1].data.zero_()  # of which the package keeps one number for p0
    ours = fat.Prodigy([{"params": mine[:1]}, {"params": mine[1:]}], **chosen)
    theirs = package.Prodigy([{"params": other[:1]}, {"params": other[1:]}], **chosen)
    for t in range(1, 91):
        pulled(mine, t), pulled(other, t)
        ours.step(), theirs.step()
        if t in (2, 40):
            state, back = fat.to_torch_state(ours), theirs.state_dict()
            ours = fat.Prodigy([{"params": mine[:1]}, {"params": mine[1:]}])
            fat.load_state_from(ours, back)
            theirs = package.Prodigy([{"params": other[:1]}, {"params": other[1:]}])
            theirs.load_state_dict(state)
    alone = package.Prodigy(other, **chosen)
    with pytest.raises(ValueError, match=r"has no 'maximize', expected the state of .*Prodigy"):
        fat.Prodigy(mine, **chosen).load_state_dict(alone.state_dict())
    through = package.Prodigy([{"params": mine[:1]}, {"params": mine[1:]}])
    through.load_state_dict(fat.to_torch_state(ours))
    with pytest.raises(ValueError, match=r"has 'k', expected the state of .*Prodigy: load_state_from"):
        fat.Prodigy([{"params": mine[:1]}, {"params": mine[1:]}]).load_state_dict(through.state_dict())
    first, second = ours.param_groups[1]["d"], theirs.param_groups[1]["d"]
    assert first > 100 * ours.param_groups[0]["d0"]
    assert abs(first / second - 1) < 1e-9
    for p, q in zip(mine, other, strict=True):
        assert (p - q).abs().max() < 1e-9


def test_what_the_package_can_and_a_step_here_cannot_is_refused():
    p = [torch.nn.Parameter(torch.ones(3))]
    assert fat.Prodigy(p, slice_p=1, fsdp_in_use=False).param_groups[0]["d"] == 1e-6
    with pytest.raises(ValueError, match="slice_p is 11, expected 1"):
        fat.Prodigy(p, slice_p=11)
    with pytest.raises(ValueError, match="fsdp_in_use is True, expected False"):
        fat.Prodigy(p, fsdp_in_use=True)
    groups = [{"params": p}, {"params": [torch.nn.Parameter(torch.ones(2))], "growth_rate": 1.5}]
    opt = fat.Prodigy(groups)
    for group in groups:
        group["params"][0].grad = torch.ones_like(group["params"][0])
    with pytest.raises(ValueError, match=r"param_groups\[1\]: growth_rate is 1\.5, .*: expected one for all groups"):
        opt.step()
