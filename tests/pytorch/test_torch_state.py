"""State from elsewhere and to elsewhere, and what a step does beside the method's arithmetic, on PyTorch's tensors."""

import copy

import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install ".[torch]"')

from torch.nn import Parameter  # noqa: E402
from torch.testing import assert_close  # noqa: E402

import fastadam.torch as fat  # noqa: E402

METHODS = {
    "Adam": {"amsgrad": True, "weight_decay": 0.1}, "AdamW": {"betas": (0.8, 0.95)}, "NAdam": {}, "RAdam": {},
    "Adamax": {}, "SGD": {"momentum": 0.9, "dampening": 0.2}, "RMSprop": {"centered": True, "momentum": 0.5},
    "Adagrad": {"lr_decay": 0.1},
}  # fmt: skip
# bitsandbytes warns when it is imported, DeepSpeed when it compiles.
pytestmark = pytest.mark.filterwarnings("ignore")


def parameters(dtype=torch.float64):
    torch.manual_seed(1)
    return [Parameter(torch.randn(4, 3, dtype=dtype)), Parameter(torch.randn(70, 70, dtype=dtype))]


def walk(opts, steps, seed=0):
    """The same gradients to all."""
    for t in range(steps):
        torch.manual_seed(1000 * seed + t)
        grads = [torch.randn_like(p) for p in opts[0].param_groups[0]["params"]]
        for opt in opts:
            for p, g in zip(opt.param_groups[0]["params"], grads, strict=True):
                p.grad = g.clone()
            opt.step()


def values(opt):
    return [p.detach() for p in opt.param_groups[0]["params"]]


@pytest.mark.parametrize("name", METHODS)
def test_convert(name):
    """The state goes on, a schedule of the old optimizer and its hooks go on working."""
    calls = []
    old = getattr(torch.optim, name)(parameters(), lr=0.1, **METHODS[name])
    schedule = torch.optim.lr_scheduler.ExponentialLR(old, 0.5)
    old.register_step_post_hook(lambda *_: calls.append(1))
    other = getattr(torch.optim, name)(parameters(), lr=0.1, foreach=False, **METHODS[name])
    walk([old, other], 3)
    new = fat.convert(old)
    assert type(new) is getattr(fat, name)
    schedule.step()
    other.param_groups[0]["lr"] = 0.05
    assert new.param_groups[0]["lr"] == 0.05
    walk([new, other], 3, seed=1)
    assert len(calls) == 6
    assert_close(values(new), values(other))


def test_convert_refuses():
    p = Parameter(torch.ones(3))
    with pytest.raises(TypeError, match=r"optimizer is .*LBFGS, expected one of torch\.optim that fastadam.torch has"):
        fat.convert(torch.optim.LBFGS([p]))

    class Adam(torch.optim.Adam):
        """Somebody's own, which may do anything."""

    with pytest.raises(TypeError, match=r"optimizer is .*Adam"):
        fat.convert(Adam([p]))
    with pytest.raises(ValueError, match="differentiable is True"):
        fat.convert(torch.optim.Adam([p], differentiable=True))
    with pytest.raises(ValueError, match="max_norm is -1"):
        fat.convert(torch.optim.Adam([p]), max_norm=-1)


def test_to_torch_state():
    """What torch's optimizer knows, in tensors of its own."""
    opt = fat.AdamW(parameters(), ema_decay=0.9)
    walk([opt], 2)
    plain = fat.to_torch_state(opt)
    assert set(plain["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    assert set(opt.state_dict()["state"][0]) == {"step", "exp_avg", "exp_avg_sq", "ema"}
    kept = plain["state"][0]["exp_avg"].clone()
    walk([opt], 1)
    assert_close(plain["state"][0]["exp_avg"], kept, rtol=0, atol=0)


def apex(opt):
    """The state_dict that apex's FusedAdam has where torch's is this: the count lies in the groups."""
    state = copy.deepcopy(opt.state_dict())
    (count,) = {int(own.pop("step").item()) for own in state["state"].values()}
    for group in state["param_groups"]:
        kept = {key: group[key] for key in ("params", "lr", "betas", "eps", "weight_decay")}
        group.clear()
        group.update({**kept, "bias_correction": True, "step": count})
    return state


def test_load_state_from_apex():
    a = torch.optim.AdamW(parameters(), lr=0.1, betas=(0.8, 0.9))
    walk([a], 3)
    b = fat.AdamW([Parameter(p.clone()) for p in values(a)])
    state = apex(a)
    fat.load_state_from(b, state)
    walk([a, b], 3, seed=1)
    assert_close(values(a), values(b))
    state["param_groups"][0]["bias_correction"] = False
    with pytest.raises(ValueError, match=r"bias_correction.* is False, expected True"):
        fat.load_state_from(b, state)
    with pytest.raises(ValueError, match=r"groups of \[2\] parameters, this optimizer of \[1\]"):
        fat.load_state_from(fat.AdamW([Parameter(torch.ones(3))]), apex(a))
    del state["param_groups"][0]["step"], state["param_groups"][0]["bias_correction"]
    with pytest.raises(ValueError, match="has no 'step', nor has its group"):
        fat.load_state_from(b, state)


def test_load_state_from_deepspeed():
    adam = pytest.importorskip("deepspeed.ops.adam", reason="needs deepspeed, and compiles its kernel for a minute")
    try:
        a = adam.DeepSpeedCPUAdam(parameters(torch.float32), lr=0.01, adamw_mode=True, weight_decay=0.1)
    except Exception as error:
        pytest.skip(f"DeepSpeed cannot compile its kernel here: {error}")
    walk([a], 3)
    b = fat.AdamW([Parameter(p.clone()) for p in values(a)])
    fat.load_state_from(b, a.state_dict())
    assert b.param_groups[0]["weight_decay"] == 0.1
    walk([a, b], 3, seed=1)
    assert_close(values(a), values(b))


@pytest.mark.parametrize("bits", [32, 8])
def test_load_state_from_bitsandbytes(bits):
    """float32 state goes on within rounding; codes decode to what bitsandbytes itself decodes."""
    bnb = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    a = getattr(bnb.optim, f"Adam{bits}bit")(parameters(torch.float32), lr=0.01, betas=(0.8, 0.95))
    walk([a], 3)
    b = fat.Adam([Parameter(p.clone()) for p in values(a)])
    fat.load_state_from(b, a.state_dict())
    if bits == 32:
        walk([a, b], 3, seed=1)
        assert_close(values(a), values(b))
        return
    p, q = a.param_groups[0]["params"][1], b.param_groups[0]["params"][1]
    for k, key in ((1, "exp_avg"), (2, "exp_avg_sq")):
        own = a.state[p]
        decoded = bnb.functional.dequantize_blockwise(
            own[f"state{k}"], absmax=own[f"absmax{k}"], code=own[f"qmap{k}"], blocksize=256
        )
        assert_close(b.state[q][key], decoded, rtol=0, atol=0)
    assert b.state[q]["step"].item() == 3


@pytest.mark.parametrize("bits", [32, 8])
def test_load_state_from_takes_means_that_are_one_state(bits):
    """As bitsandbytes' AdEMAMix keeps them, warm-ups it does without being None; blocks begin with each mean."""
    generator, start = torch.Generator().manual_seed(1), torch.ones(300)
    means, squares = torch.randn(2, 300, generator=generator), torch.rand(300, generator=generator)
    state = {"step": 3, "state1": means, "state2": squares}
    if bits == 8:
        table = torch.linspace(-1, 1, 256)
        codes = {k: torch.randint(0, 256, x.shape, generator=generator) for k, x in ((1, means), (2, squares))}
        scales = {1: torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 2: torch.tensor([5.0, 6.0])}
        state = {"step": 3} | {f"state{k}": x.to(torch.uint8) for k, x in codes.items()}
        state |= {f"absmax{k}": x for k, x in scales.items()} | {f"qmap{k}": table for k in scales}
        wide = {k: x.repeat_interleave(256, dim=-1)[..., :300] for k, x in scales.items()}
        means, squares = (table[codes[k]] * wide[k] for k in (1, 2))
    group = {"lr": 0.5, "betas": (0.8, 0.9, 0.99), "alpha": 3.0, "t_alpha": None, "t_beta3": 70, "eps": 1e-6,
             "weight_decay": 0.1, "params": [0]}  # fmt: skip
    opt = fat.AdEMAMix([Parameter(start)], t_alpha=5.0)
    theirs = {"state": {0: state}, "param_groups": [group]}
    with pytest.raises(ValueError, match=r"has no 'maximize', expected the state of .*AdEMAMix: load_state_from"):
        opt.load_state_dict(theirs)
    fat.load_state_from(opt, theirs)
    own = opt.state[opt.param_groups[0]["params"][0]]
    assert all(torch.equal(own[key], x) for key, x in zip(("exp_avg", "exp_avg_slow"), means, strict=True))
    assert torch.equal(own["exp_avg_sq"], squares)
    assert {name: opt.param_groups[0][name] for name in group if name != "params"} == {
        name: 0.0 if x is None else x for name, x in group.items() if name != "params"
    }
    assert len({x.untyped_storage().data_ptr() for x in own.values()}) == 4  # of each its own, as files have them
    with pytest.raises(ValueError, match=r"\['state1'\] has 600 numbers for a parameter of shape \(300,\)$"):
        fat.load_state_from(fat.Adam([Parameter(start)]), theirs)


@pytest.mark.parametrize("bits", ["", "8bit"])
def test_load_state_from_bitsandbytes_ademamix(bits):
    """The next step is bitsandbytes' own: from what it decodes, within the roundings of numbers of size 1 and lr."""
    bnb = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    a = getattr(bnb.optim, f"AdEMAMix{bits}")(parameters(torch.float32), lr=0.01, weight_decay=0.1)
    walk([a], 3)
    b = fat.AdEMAMix([Parameter(p.clone()) for p in values(a)])
    fat.load_state_from(b, a.state_dict())
    assert b.param_groups[0]["t_alpha"] == 0.0
    walk([a, b], 1, seed=1)
    assert_close(values(a), values(b))


def test_no_hyperparameter_of_another_method_is_taken():
    """bitsandbytes' AdamW has AdEMAMix's in its groups, as None."""
    opt = fat.AdamW([Parameter(torch.ones(3))])
    group = {"lr": 0.5, "alpha": 0.0, "t_alpha": None, "t_beta3": None, "params": [0]}
    names = set(opt.param_groups[0])
    state = {"step": 3, "state1": torch.ones(3), "state2": torch.ones(3)}
    fat.load_state_from(opt, {"state": {0: state}, "param_groups": [group]})
    assert opt.param_groups[0]["lr"] == 0.5
    assert set(opt.param_groups[0]) == names


X, TWO, TWELVE = torch.ones(3, 2), torch.ones(2, 3, 2), torch.ones(12)
SIZE = r"numbers for a parameter of shape \(3, 2\)"


@pytest.mark.parametrize(
    ("name", "state", "words"),
    [
        ("AdamW", {"state2": X}, "has 'step', 'state2', expected 'exp_avg' or 'state1'$"),
        ("AdamW", {"state1": X}, "has 'step', 'state1', expected 'exp_avg_sq' or 'state2'$"),
        ("AdamW", {"state1": TWO}, rf"\['state1'\] has 12 {SIZE}$"),
        ("AdamW", {"state1": TWELVE, "state2": TWELVE}, rf"\['state1'\] has 12 {SIZE}$"),
        ("AdamW", {"state1": X, "exp_avg_sq": TWELVE}, rf"\['exp_avg_sq'\] has 12 {SIZE}$"),
        ("AdamW", {"state1": X, "state2": X, "state3": X}, "has 'state3', expected 'state1', 'state2' and no other of"),
        ("AdEMAMix", {"state1": TWO}, "has 'step', 'state1', expected 'exp_avg_sq' or 'state2'$"),
        ("AdEMAMix", {"state2": X}, "has 'step', 'state2', expected 'exp_avg' or 'state1'$"),
        ("AdEMAMix", {"exp_avg": X, "state2": X}, "has 'step', 'exp_avg', 'state2', expected 'exp_avg_slow' or"),
        ("AdEMAMix", {"state1": X, "state2": X}, rf"\['state1'\] has 6 {SIZE}, expected 2 for each of its own$"),
        ("AdEMAMix", {"state1": X, "state2": X, "state3": X}, "has 'state3', expected 'state1', 'state2' and no other"),
        ("RMSprop", {"state2": X}, "has 'state2', expected 'state1' and no other of RMSprop$"),
        ("Lion", {"state1": X, "state2": X}, "has 'state2', expected 'state1' and no other of Lion$"),
        ("ScheduleFreeAdamW", {"z": X}, "has 'step', 'z', expected 'exp_avg_sq' or 'state2'$"),
    ],
    ids=lambda x: "+".join(x) if isinstance(x, dict) else x if x.isalpha() else "",
)  # fmt: skip
def test_load_state_from_takes_no_slot_for_another(name, state, words):
    opt = getattr(fat, name)([Parameter(torch.zeros(3, 2))])
    with pytest.raises(ValueError, match=rf"state\['state'\]\[0\] ?{words}"):
        fat.load_state_from(opt, {"state": {0: {"step": 3, **state}}, "param_groups": [{"params": [0]}]})
    assert not opt.state


def test_load_state_from_names_what_amsgrad_lacks():
    opt = fat.AdamW([Parameter(torch.zeros(3, 2))], amsgrad=True)
    group = {"params": [0], "amsgrad": True}
    with pytest.raises(ValueError, match=r"has 'step', 'state1', 'state2', expected 'max_exp_avg_sq'$"):
        fat.load_state_from(opt, {"state": {0: {"step": 3, "state1": X, "state2": X}}, "param_groups": [group]})


def test_load_state_from_refuses_unknown_layouts():
    opt = fat.Adam(parameters())
    group = opt.state_dict()["param_groups"]
    with pytest.raises(ValueError, match="expected 'exp_avg' or 'state1'"):
        fat.load_state_from(opt, {"state": {0: {"step": 3, "momentum": torch.ones(4, 3)}}, "param_groups": group})
    with pytest.raises(ValueError, match="5 numbers for a parameter of shape"):
        wrong = {"step": 3, "exp_avg": torch.ones(5), "exp_avg_sq": torch.ones(5)}
        fat.load_state_from(opt, {"state": {0: wrong}, "param_groups": group})
    assert not opt.state


@pytest.mark.parametrize("scaled", [False, True])
def test_max_norm(scaled):
    """As clip_grad_norm_ and then the step; after unscaling. torch adds 1e-6 to the norm, which float64 shows."""
    a, b = torch.optim.Adam(parameters(), eps=1e-3), fat.Adam(parameters(), eps=1e-3, max_norm=2.0)
    for t in range(4):
        torch.manual_seed(t)
        grads = [torch.randn_like(p) for p in values(a)]
        for p, q, g in zip(a.param_groups[0]["params"], b.param_groups[0]["params"], grads, strict=True):
            p.grad, q.grad = g.clone(), g * (8.0 if scaled else 1.0)
        norm = torch.nn.utils.clip_grad_norm_(a.param_groups[0]["params"], 2.0)
        a.step()
        if scaled:
            b.grad_scale = torch.tensor(8.0)
        b.step()
        assert b.info.grad_norm == pytest.approx(norm.item(), rel=1e-12)
        assert b.info.clip_factor == pytest.approx(2.0 / norm.item(), rel=1e-12)
    assert_close(values(a), values(b), rtol=1e-6, atol=1e-8)  # the 1e-6 beside a norm of 70


def test_max_norm_of_a_group():
    p, q = Parameter(torch.zeros(4)), Parameter(torch.zeros(4))
    opt = fat.SGD([{"params": [p], "max_norm": 1.0}, {"params": [q]}], lr=1.0)
    p.grad = q.grad = torch.full((4,), 2.0)
    opt.step()
    assert_close(p.detach(), torch.full((4,), -0.5))
    assert_close(q.detach(), torch.full((4,), -2.0))


def test_averages_and_copies():
    """torch's own averaged model gives the average; the copy is p rounded to nearest; averaged() swaps and restores."""
    model = torch.nn.Linear(5, 4)
    short = copy.deepcopy(model).bfloat16()
    mean = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=False
    )
    mean.update_parameters(model)  # the first update takes the parameters as they are
    opt = fat.AdamW(model.parameters(), lr=0.1, ema_decay=0.9, copy_to=short.parameters())
    for t in range(4):
        torch.manual_seed(t)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        opt.step()
        mean.update_parameters(model)
    for p, low in zip(model.parameters(), short.parameters(), strict=True):
        assert torch.equal(low, p.bfloat16())
    before = [p.detach().clone() for p in model.parameters()]
    with opt.averaged():
        assert_close(list(model.parameters()), list(mean.module.parameters()))
        with pytest.raises(RuntimeError, match="would be lost"):
            opt.step()
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    again = copy.deepcopy(opt)
    assert again._chores == opt._chores
    with pytest.raises(ValueError, match="copy_to has 1 tensors for 2 parameters"):
        fat.AdamW(model.parameters(), copy_to=[torch.zeros(4, 5, dtype=torch.bfloat16)])
    with pytest.raises(TypeError, match="expected bfloat16 or float16"):
        fat.AdamW(model.parameters(), copy_to=[torch.zeros(4, 5), torch.zeros(4)])


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_skip_nonfinite(name):
    """A step with an infinite gradient leaves everything, the first one as well; dampening shows a count too far."""
    kwargs = {"momentum": 0.9, "dampening": 0.5} if name == "SGD" else {}
    a = getattr(torch.optim, name)(parameters(), lr=0.1, **kwargs)
    b = getattr(fat, name)(parameters(), lr=0.1, skip_nonfinite=True, **kwargs)
    for t in range(5):
        torch.manual_seed(t)
        for p, q in zip(a.param_groups[0]["params"], b.param_groups[0]["params"], strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        if t in (0, 3):
            b.param_groups[0]["params"][1].grad[3, 3] = torch.nan
        else:
            a.step()
        b.step()
        assert b.info.skipped == (t in (0, 3))
    assert_close(values(a), values(b))
    with pytest.raises(FloatingPointError, match=r"grads\[0\]\[0\] holds NaN or infinity"):
        opt = fat.Adam(parameters(), skip_nonfinite="raise")
        opt.param_groups[0]["params"][0].grad = torch.full((4, 3), torch.inf, dtype=torch.float64)
        opt.step()


def test_stats():
    opt = fat.SGD([("weight", Parameter(torch.zeros(4))), ("bias", Parameter(torch.ones(9)))], lr=1.0, stats="tensor")
    for p in values(opt):
        p.requires_grad_(True)
    for p in opt.param_groups[0]["params"]:
        p.grad = torch.full_like(p, 2.0)
    opt.step()
    name = "params[0]['bias']"
    assert opt.info.stats[name] == {"grad_norm": 6.0, "update_norm": 6.0, "param_norm": 3.0, "largest_update": 2.0}
