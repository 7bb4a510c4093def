"""Moments of fewer bits and masters on PyTorch's tensors: the bits that the same method has on arrays."""

import copy
import io

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install ".[torch]"')
ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes")

from torch.nn import Parameter  # noqa: E402
from torch.testing import assert_close  # noqa: E402

import fastadam as fa  # noqa: E402
import fastadam.torch as fat  # noqa: E402

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
METHODS = {
    "AdamW": {"amsgrad": True}, "NAdam": {}, "Adamax": {}, "Lion": {"weight_decay": 0.1}, "SGD": {"momentum": 0.9},
    "RMSprop": {"centered": True, "momentum": 0.5}, "Adagrad": {},
}  # fmt: skip
FORMATS = {
    "8bit": (F32, {"moments": "8bit"}), "bfloat16": (F32, {"moments": "bfloat16"}),
    "8bit, remainder": (BF16, {"moments": "8bit", "master": "remainder"}),
    "bfloat16, master": (BF16, {"moments": "bfloat16", "master": "float32"}),
    "8bit, bfloat16": (BF16, {"moments": "8bit"}),
    "float16, master": (F16, {"moments": "float32", "master": "float32"}),
    "remainder, averages": (BF16, {"master": "remainder", "ema_decay": 0.9}),
}  # fmt: skip
each_format = pytest.mark.parametrize("form", FORMATS)


def array(x):
    """A tensor's values as NumPy's array, without a copy."""
    x = x.detach()
    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype is BF16 else x.numpy()


def parameters(dtype):
    torch.manual_seed(3)
    return [Parameter(torch.randn(90, 100).to(dtype)), Parameter(torch.randn(9).to(dtype))]


def give_gradients(opt, t):
    torch.manual_seed(100 + t)
    for p in opt.param_groups[0]["params"]:
        p.grad = torch.randn(p.shape).to(p.dtype)


def state_bytes(opt):
    """All bits of the parameters and of what a step keeps."""
    params = opt.param_groups[0]["params"]
    tensors = [*params, *(x for p in params for _, x in sorted(opt.state[p].items()))]
    return [torch.as_tensor(x).detach().flatten().view(torch.uint8).numpy().tobytes() for x in tensors]


@pytest.mark.parametrize(
    ("name", "form"), [*(("AdamW", form) for form in FORMATS), *zip([*METHODS][1:], FORMATS, strict=False)]
)  # each pair costs seconds of compiling
def test_the_bits_of_the_same_method_on_arrays(name, form):
    """Parameters and state: the same seed, the same index, the same random bits."""
    dtype, own = FORMATS[form]
    own = {**own, "seed": 7, "index_offset": 2**33 + 3}
    params = parameters(dtype)
    arrays = [array(p).copy() for p in params]
    opt = getattr(fat, name)(params, **METHODS[name], **own)
    plain = getattr(fa, name)(arrays, **METHODS[name], **own)
    for t in range(4):
        give_gradients(opt, t)
        opt.step()
        plain.step([array(p.grad) for p in params])
    for p, x, leaf in zip(params, arrays, plain.state_dict()["leaves"].values(), strict=True):
        assert array(p).tobytes() == x.tobytes()
        state = opt.state[p]
        for slot, key in {**opt.slots, "ema": "ema", "remainder": "remainder", "master": "master"}.items():
            assert (slot in leaf) == (key in state)
            if slot in leaf and f"{slot}_scales" in leaf:
                blocks = state[key].numpy().reshape(-1, 1088)
                assert blocks[:, :1024].tobytes() == leaf[slot].tobytes()
                assert blocks[:, 1024:].tobytes() == leaf[f"{slot}_scales"].tobytes()
            elif slot in leaf:
                assert array(state[key]).tobytes() == leaf[slot].tobytes()
                assert state[key].shape == p.shape


@each_format
def test_saved_and_copied(form):
    """A dict that was saved, and a copy, go on to the same bits; torch.load needs no trust."""
    dtype, own = FORMATS[form]
    opt = fat.AdamW(parameters(dtype), seed=5, **own)
    for t in range(2):
        give_gradients(opt, t)
        opt.step()
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    loaded = fat.AdamW([Parameter(p.detach().clone()) for p in opt.param_groups[0]["params"]], seed=5, **own)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for key, x in opt.state_dict()["state"][0].items():
        y = loaded.state_dict()["state"][0][key]
        assert x.dtype is y.dtype
        assert key != "strides" or torch.equal(x, y)
    copied = copy.deepcopy(opt)
    for each in (opt, loaded, copied):
        give_gradients(each, 2)
        each.step()
    assert state_bytes(opt) == state_bytes(loaded) == state_bytes(copied)


@pytest.mark.parametrize("moments", ["8bit", "bfloat16"])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_plain_state(moments, form):
    """As fastadam decodes it, in the parameter's order of axes; torch's optimizer and ours go on from it."""
    torch.manual_seed(0)
    p = Parameter(torch.randn(8, 7, 6, 5).to(memory_format=form))
    x = p.detach().numpy().copy(order="K")
    opt, plain = fat.Adam([p], moments=moments), fa.Adam([x], moments=moments)
    p.grad = torch.randn_like(p)
    opt.step()
    plain.step([p.grad.numpy()])
    state = fat.to_torch_state(opt)
    for slot, key in (("m", "exp_avg"), ("v", "exp_avg_sq")):
        found = state["state"][0][key]
        assert found.dtype is F32
        assert found.stride() == p.stride()
        np.testing.assert_array_equal(found.numpy(), plain.moments()["params[0]"][slot])
    theirs = torch.optim.Adam([p])
    theirs.load_state_dict(state)
    again = fat.Adam([p], moments=moments)
    again.load_state_dict(theirs.state_dict())  # float32, which the first step encodes
    before = fat.to_torch_state(again)["state"][0]
    assert torch.equal(before["exp_avg"], state["state"][0]["exp_avg"])
    p.grad = None
    again.step()
    p.grad = torch.zeros_like(p)
    again.step()
    assert again.state[p]["exp_avg"].dtype is (torch.uint8 if moments == "8bit" else BF16)
    step = {"8bit": 2.0**-4, "bfloat16": 2.0**-7}[moments]
    scale = found.abs().max().item() * step
    after = fat.to_torch_state(again)["state"][0]
    assert_close(after["exp_avg"], 0.9 * state["state"][0]["exp_avg"], rtol=step, atol=scale)
    assert after["step"].item() == 2


@pytest.mark.parametrize("master", ["float32", "remainder"])
def test_steps_of_float32_parameters(master):
    """With a master, bfloat16 parameters are the float32 ones rounded; a master begins as its parameter."""
    p = parameters(BF16)
    q = [Parameter(x.detach().float()) for x in p]
    opt, wide = fat.AdamW(p, master=master), fat.AdamW(q)
    for t in range(3):
        give_gradients(opt, t)
        for x, y in zip(p, q, strict=True):
            y.grad = x.grad.float()
        opt.step()
        wide.step()
    for x, y in zip(p, q, strict=True):
        if master == "float32":
            assert torch.equal(opt.state[x]["master"], y)
            assert torch.equal(x, y.detach().bfloat16())
        else:
            bits = (x.detach().view(torch.int16).int() << 16) + opt.state[x]["remainder"].int()
            assert torch.equal(bits.view(F32), y)
    with torch.no_grad():
        p[1].fill_(1.0)
    opt.refresh_master()
    p[1].grad = torch.zeros_like(p[1])
    p[0].grad = None
    opt.param_groups[0]["lr"] = 0.0
    opt.step()
    assert torch.equal(p[1].detach(), torch.ones(9, dtype=BF16))


@pytest.mark.parametrize("name", ["AdamW", "NAdam", "SGD"])
def test_converted_with_a_master(name):
    """torch's state lacks the master, and how far it has come is taken from it all the same."""
    named = {"momentum": 0.9, "dampening": 0.5} if name == "SGD" else {}
    p, q = parameters(F32), parameters(F32)
    old, other = getattr(torch.optim, name)(p, lr=0.1, **named), getattr(torch.optim, name)(q, lr=0.1, **named)
    for t in range(2):
        give_gradients(old, t)
        give_gradients(other, t)
        old.step()
        other.step()
    new = fat.convert(old, ema_decay=0.9)
    for each in (new, other):
        give_gradients(each, 2)
        each.step()
    assert_close([x.detach() for x in p], [x.detach() for x in q])


def test_gaps():
    """A parameter with gaps steps through its copy."""
    wide = torch.randn(40, 60).bfloat16()
    p, q = Parameter(wide[:, ::2]), Parameter(wide[:, ::2].clone())
    kept = wide[:, 1::2].clone()
    opts = [fat.AdamW([x], lr=0.1, moments="8bit", master="float32") for x in (p, q)]
    for x, opt in zip((p, q), opts, strict=True):
        give_gradients(opt, 1)
        opt.step()
        assert opt.state[x]["master"].shape == x.shape
    assert torch.equal(p, q)
    assert torch.equal(wide[:, 1::2], kept)


def test_refused():
    p = Parameter(torch.ones(4))
    for named, message in (
        ({"moments": "4bit"}, "moments is '4bit', expected one of float64, float32, bfloat16, 8bit, or None"),
        ({"master": "bfloat16"}, "master is 'bfloat16', expected one of remainder, float32, or None"),
        ({"moments": "float64"}, r"moments is 'float64', params\[0\]\[0\] is float32\(4,\) on cpu: expected None or"),
        ({"seed": 0.5}, "seed is 0.5"), ({"index_offset": -1}, "index_offset is -1"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=message):
            fat.Adam([p], **named)
    with pytest.raises(ValueError, match=r"is complex64.* expected real parameters"):
        fat.Adam([Parameter(torch.ones(4, dtype=torch.complex64))], moments="8bit")
    with pytest.raises(ValueError, match=r"moments is 'float32'.* is float64.*: expected None or 'float64'"):
        fat.Adam([Parameter(torch.ones(4, dtype=torch.float64))], moments="float32")
    short = Parameter(torch.ones(4, dtype=BF16))
    with pytest.raises(ValueError, match=r"copy_to has .*: expected None with master='float32'"):
        fat.Adam([short], master="float32", copy_to=[torch.ones(4, dtype=BF16)])
    opt = fat.Adagrad([p], moments="8bit")
    p.grad = torch.sparse_coo_tensor([[0]], [1.0], (4,), check_invariants=True)
    with pytest.raises(ValueError, match="sparse gradient and moments of 8 bits: 64 share a scale"):
        opt.step()
    a = fat.Adam([p], moments="8bit")
    p.grad = torch.ones(4)
    a.step()
    b = fat.Adam([p])
    b.load_state_dict(a.state_dict())
    with pytest.raises(ValueError, match=r"state\['exp_avg'\] of params\[0\]\[0\] is uint8\(1088,\)"):
        b.step()  # codes are no numbers: to_torch_state gives these


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_a_clamp_after_every_step_stays_beside_a_master(dtype):
    """WGAN's clamp_: the master takes over what was clamped, and keeps what lies below the rest."""
    p = parameters(dtype)
    q = [Parameter(x.detach().float()) for x in p]
    opt, wide = fat.AdamW(p, lr=0.1, master="float32"), fat.AdamW(q, lr=0.1)
    for t in range(4):
        give_gradients(opt, t)
        outside = 0
        for x, y in zip(p, q, strict=True):
            before = x.detach().clone()
            with torch.no_grad():
                x.clamp_(-0.5, 0.5)
                y[x != before] = x[x != before].float()
            outside += (x != before).sum().item()
            y.grad = x.grad.float()
        opt.step()
        wide.step()
        assert opt.info.taken_over == (outside if t else 0)  # a master begins as its parameter
        for x, y in zip(p, q, strict=True):
            assert torch.equal(opt.state[x]["master"], y)
            assert torch.equal(x, y.detach().to(dtype))


def test_weights_loaded_after_the_first_step_stay_beside_a_master():
    model, other = (torch.nn.Linear(40, 30).bfloat16() for _ in range(2))
    opt = fat.SGD(model.parameters(), lr=0.0, master="float32")
    model(torch.ones(1, 40, dtype=BF16)).sum().backward()
    opt.step()
    model.load_state_dict(other.state_dict())
    opt.step()
    assert opt.info.taken_over > 1_000
    for x, y in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(x, y)
        assert torch.equal(opt.state[x]["master"], y.detach().float())
