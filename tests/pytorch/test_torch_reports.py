"""What users of optimizers for torch report elsewhere: right values are those of torch's own loop."""

import copy
import io
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install ".[torch]"')

import fastadam.torch as fat  # noqa: E402

COUNTING = ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad"]
WITH_BETAS = ["Adam", "AdamW", "NAdam", "RAdam", "Adamax"]


def optimizer(cls, n=8, **given):
    p = torch.nn.Parameter(torch.linspace(-1, 1, n))
    return cls([p], lr=1e-2, **given), p


def steps(opt, p, n, seed):
    generator = torch.Generator("cpu").manual_seed(seed)
    for _ in range(n):
        p.grad = torch.randn(p.shape, generator=generator, device="cpu")
        opt.step()


def set_back(opt, p):
    steps(opt, p, 3, 0)
    steps(opt, p, 4, 1)
    for name, x in opt.state[p].items():
        x.fill_(float(name == "mu_product"))
    steps(opt, p, 3, 2)


def set_to_a_snapshot(opt, p):
    steps(opt, p, 3, 0)
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    kept = {name: x.clone() for name, x in opt.state[p].items()}
    steps(opt, p, 4, 1)
    for name, x in opt.state[p].items():
        x.copy_(kept[name])
    steps(opt, p, 3, 2)


def step_set_to_zero(opt, p):
    steps(opt, p, 1, 0)
    opt.state[p]["step"].zero_()
    if "mu_product" in opt.state[p]:
        opt.state[p]["mu_product"].fill_(1)
    steps(opt, p, 1, 1)


@pytest.mark.parametrize("change", [set_back, set_to_a_snapshot, step_set_to_zero])
@pytest.mark.parametrize("name", COUNTING)
def test_numbers_set_back_in_place(name, change):
    """To torch's parameters within ten steps' roundings of numbers up to 1, and to its count."""
    found = []
    for module in torch.optim, fat:
        opt, p = optimizer(getattr(module, name))
        change(opt, p)
        found.append((p.detach(), opt.state[p]["step"].item()))
    assert found[0][1] == found[1][1]
    assert (found[0][0] - found[1][0]).abs().max() <= 10 * 2**-23


@pytest.mark.parametrize("name", WITH_BETAS)
def test_tensor_betas_changed_in_place(name):
    """As they are read at every step: equal to numbers set by hand."""
    betas = torch.tensor(0.9, dtype=torch.float64), torch.tensor(0.999, dtype=torch.float64)
    opt, p = optimizer(getattr(fat, name))
    other, q = optimizer(getattr(fat, name))
    opt.param_groups[0]["betas"] = betas
    steps(opt, p, 2, 0)
    steps(other, q, 2, 0)
    betas[0].fill_(0.5)
    betas[1].fill_(0.75)
    other.param_groups[0]["betas"] = (0.5, 0.75)
    steps(opt, p, 2, 1)
    steps(other, q, 2, 1)
    assert torch.equal(p, q)


@pytest.mark.parametrize("kind", [np.array, torch.tensor, list, lambda x: tuple(map(np.float64, x))])
def test_betas_in_other_containers(kind):
    opt, p = optimizer(fat.Adam)
    other, q = optimizer(fat.Adam)
    for t, betas in enumerate([(0.5, 0.75), (0.25, 0.5)]):  # exact in float32, as torch.tensor has them
        opt.param_groups[0]["betas"], other.param_groups[0]["betas"] = kind(betas), betas
        steps(opt, p, 2, t)
        steps(other, q, 2, t)
        assert torch.equal(p, q)
    changed = kind((0.5, 0.75))
    opt.param_groups[0]["betas"], other.param_groups[0]["betas"] = changed, (0.5, 0.75)
    steps(opt, p, 1, 5)
    steps(other, q, 1, 5)
    if not isinstance(changed, tuple):
        changed[1], other.param_groups[0]["betas"] = 0.875, (0.5, 0.875)
    steps(opt, p, 1, 6)
    steps(other, q, 1, 6)
    assert torch.equal(p, q)


@pytest.mark.parametrize("moments", [None, "8bit"])
@pytest.mark.parametrize("way", ["set_default_device", "with"])
def test_a_default_device_without_memory(way, moments):
    opt, p = optimizer(fat.NAdam, moments=moments)
    other, q = optimizer(fat.NAdam, moments=moments)
    try:
        if way == "with":
            with torch.device("meta"):
                steps(opt, p, 3, 0)
        else:
            torch.set_default_device("meta")
            steps(opt, p, 3, 0)
    finally:
        torch.set_default_device(None)
    steps(other, q, 3, 0)
    assert torch.equal(p, q)
    assert {x.device.type for x in opt.state[p].values()} == {"cpu"}


def test_blocks_of_8_bits_in_flattened_checkpoints():
    """State holds tensors alone, which torch.distributed.checkpoint can flatten, and takes them back."""
    from torch.distributed.checkpoint import state_dict as dcp

    torch.manual_seed(0)
    options = dcp.StateDictOptions(flatten_optimizer_state_dict=True)
    model, other = (torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 2)) for _ in range(2))
    other.load_state_dict(model.state_dict())
    opts = [fat.AdamW(m.parameters(), lr=0.1, moments="8bit") for m in (model, other)]

    def step(m, opt, seed):
        torch.manual_seed(seed)
        m(torch.randn(4, 40)).square().sum().backward()
        opt.step()
        opt.zero_grad()

    step(model, opts[0], 0)
    state = dcp.get_optimizer_state_dict(model, opts[0], options=options)
    assert {type(x) for name, x in state.items() if name.startswith("state.")} == {torch.Tensor}
    other.load_state_dict(model.state_dict())
    dcp.set_optimizer_state_dict(other, opts[1], copy.deepcopy(state), options=options)
    for m, opt in zip((model, other), opts, strict=True):
        step(m, opt, 1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def saved(opt):
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    return torch.load(file)


WAYS = {
    "load_state_dict": lambda opt: opt.state_dict(),
    "torch.save": saved,
    "deepcopy": lambda opt: copy.deepcopy(opt.state_dict()),
    "pickle": lambda opt: pickle.loads(pickle.dumps(opt.state_dict())),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_nadam_is_an_uninterrupted_one(way):
    opt, p = optimizer(fat.NAdam)
    steps(opt, p, 20, 0)
    assert opt.state[p]["mu_product"].dtype is torch.float64
    resumed, q = optimizer(fat.NAdam)
    with torch.no_grad():
        q.copy_(p)
    resumed.load_state_dict(copy.deepcopy(WAYS[way](opt)))
    steps(opt, p, 20, 1)
    steps(resumed, q, 20, 1)
    assert torch.equal(p, q)
    assert opt.state[p]["mu_product"] == resumed.state[q]["mu_product"]


def test_torchs_own_nadam_goes_on_here_and_there():
    theirs, p = optimizer(torch.optim.NAdam)
    steps(theirs, p, 5, 0)
    opt, q = optimizer(fat.NAdam)
    with torch.no_grad():
        q.copy_(p)
    opt.load_state_dict(copy.deepcopy(theirs.state_dict()))
    steps(opt, q, 5, 1)
    state = fat.to_torch_state(opt)
    assert state["state"][0]["mu_product"].dtype is torch.float32
    theirs.load_state_dict(state)
    assert abs(theirs.state[p]["mu_product"].item() - opt.state[q]["mu_product"].item()) <= 2**-24


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad", "Lion"])
def test_who_unscales_is_as_in_torch(name):
    """Without fused=True a GradScaler does, so that gradients can be clipped in between."""
    for fused in (None, False, True):
        opt, p = optimizer(getattr(fat, name), fused=fused)
        assert getattr(opt, "_step_supports_amp_scaling", False) is bool(fused)
        assert getattr(pickle.loads(pickle.dumps(opt)), "_step_supports_amp_scaling", False) is bool(fused)
        other, q = optimizer(getattr(fat, name))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        scaler.scale(torch.zeros(()))
        p.grad, q.grad = torch.full((8,), 2.0**10), torch.ones(8)
        scaler.step(opt)
        other.step()
        assert torch.equal(p, q)
        assert p.grad[0] == (2.0**10 if fused else 1)


@pytest.mark.parametrize("name", ["NAdam", "RAdam", "Adamax", "RMSprop"])
def test_methods_that_torch_has_no_fused_form_of_leave_unscaling_to_the_scaler(name):
    assert not hasattr(optimizer(getattr(fat, name))[0], "_step_supports_amp_scaling")


@pytest.mark.parametrize("own", [{}, {"ema_decay": 0.9}, {"moments": "8bit"}], ids=str)
@pytest.mark.parametrize("name", [*COUNTING, "Lion", "SGD"])
def test_a_reset_optimizer_is_a_new_one(name, own):
    """For all parameters, and for one beside another that goes on as it would have."""
    found = []
    for reset in False, True:
        opt, p = optimizer(getattr(fat, name), **own)
        q = torch.nn.Parameter(torch.ones(4))
        opt.add_param_group({"params": [q]})
        q.grad = torch.ones(4)
        steps(opt, p, 3, 0)
        if reset:
            opt.reset([p])
            assert p not in opt.state
            new, r = optimizer(getattr(fat, name), **own)
            r.data.copy_(p)
            steps(new, r, 2, 1)
        steps(opt, p, 2, 1)
        found.append(q.detach())
    assert torch.equal(*found)
    assert torch.equal(p, r)
    opt.reset()
    assert not opt.state
    with pytest.raises(ValueError, match=r"params\[1\] is no parameter of this optimizer"):
        opt.reset([p, torch.ones(3)])
    with pytest.raises(TypeError, match="params is Parameter, expected an iterable of tensors"):
        opt.reset(p)
