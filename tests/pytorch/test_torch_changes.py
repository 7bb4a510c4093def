"""What may change between steps, or be given wrongly, on PyTorch's tensors: nothing of it may go on unseen."""

import copy
import gc
import os
import subprocess
import sys
import weakref

import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install ".[torch]"')

from torch.nn import Parameter  # noqa: E402
from torch.testing import assert_close  # noqa: E402

import fastadam.torch as fat  # noqa: E402
from fastadam.torch import native  # noqa: E402


@pytest.fixture(autouse=True, params=["natively", "by Python"])
def asked(request, monkeypatch):
    """Both ways to ask tensors how they lie."""
    if request.param == "by Python":
        monkeypatch.setattr(native, "interface", lambda: None)
    elif native.interface() is None:
        pytest.skip(f"torch {torch.__version__} has no C functions that do as fastadam.torch.native expects")


OTHERS = {
    "dtype": lambda x: x.double(),
    "shape": lambda x: x.view(3, 4),
    "strides": lambda x: x.t().contiguous().t(),
    "dimensions": lambda x: x.view(4, 3, 1),
    "layout": lambda x: x.to_sparse(),
    "class": lambda x: x.as_subclass(Sub),
    "None": lambda x: None,
}


class Sub(torch.Tensor):
    """A class of its own."""


@pytest.mark.parametrize("what", OTHERS)
def test_tensors_that_lie_otherwise(what, capfd):
    x, y = torch.arange(12.0).view(4, 3), torch.ones(5)
    known = native.forms([x, y])
    if native.interface() is None:
        assert known is None
        return
    other = torch.rand(2, 4, 3)[1]
    assert known.places([other, y]).tolist() == [other.data_ptr(), y.data_ptr()]
    assert known.places([OTHERS[what](x), y]) is None
    assert known.places([y, OTHERS[what](x)]) is None
    assert known.places([x, y]) is not None
    assert capfd.readouterr() == ("", ""), "torch complains on standard error where a function is asked in vain"


def test_memory_that_moves():
    x, y = torch.zeros(4, 3), Parameter(torch.zeros((), dtype=torch.bfloat16))
    known = native.forms([x, y])
    if known is None:
        assert native.interface() is None
        return
    assert known.unchanged()
    for tensor, data in ((x, torch.zeros(4, 3)), (y, torch.zeros((), dtype=torch.float16)), (x, torch.zeros(3, 4))):
        before = tensor.data
        tensor.data = data
        assert not known.unchanged()
        tensor.data = before
        assert known.unchanged()
    x.resize_(2, 3)
    assert not known.unchanged()


def stepped(p, **chosen):
    opt = fat.Adam([p], **chosen)
    p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).to(p.dtype)
    opt.step()
    return opt


@pytest.mark.parametrize("method", [fat.Adam, fat.NAdam])
def test_counts_that_are_set_back_in_place(method):
    """To the number at which the walk began, too: the next step is then the first again, as torch takes it."""
    params = [Parameter(torch.linspace(-1, 1, 7)) for _ in range(2)]
    theirs = {fat.Adam: torch.optim.Adam, fat.NAdam: torch.optim.NAdam}[method]
    opts = [method([params[0]], lr=0.1), theirs([params[1]], lr=0.1)]
    for t in range(6):
        for p, opt in zip(params, opts, strict=True):
            p.grad = torch.linspace(1, 2, 7) * (t + 1)
            if t == 3:
                for name in opt.state[p].keys() & {"step", "mu_product"}:
                    opt.state[p][name].fill_(float(name == "mu_product"))
            opt.step()
    assert opts[0].state[params[0]]["step"].item() == 3
    assert_close(*params)


@pytest.mark.parametrize("shape", [(4,), (4, 4), (1,), (2, 3, 4)])
def test_a_parameter_and_a_gradient_of_two_shapes_are_refused(shape):
    p = Parameter(torch.zeros(shape))
    opt = fat.SGD([p], lr=1.0)
    p.grad = torch.ones(shape)
    p.data = torch.zeros(64)
    with pytest.raises(RuntimeError, match=r"the gradient of params\[0\]\[0\] is float32\(.*\(64,\)"):
        opt.step()
    assert not p.any()
    p.data = torch.zeros(shape)
    opt.step()
    assert (p == -1).all()
    p.grad.data = torch.ones(2)
    with pytest.raises(RuntimeError, match="the gradient of"):
        opt.step()
    assert (p == -1).all()


def test_a_parameter_whose_view_has_changed():
    """The same memory, read in another order: p.data.t() begins where p.data did."""
    ours, theirs = (Parameter(torch.arange(9.0).reshape(3, 3)) for _ in range(2))
    for p, opt in ((ours, fat.AdamW([ours])), (theirs, torch.optim.AdamW([theirs]))):
        for turn in (False, True, True, False):
            if turn:
                p.data = p.data.t()
            p.grad = torch.randn(3, 3, generator=torch.Generator().manual_seed(2))
            opt.step()
    assert_close(ours, theirs)


def test_autograd_knows_of_a_step():
    w = Parameter(torch.tensor([2.0, 3.0]))
    opt = fat.SGD([w], lr=0.1)
    loss = (w**3).sum()
    loss.backward(retain_graph=True)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("way", ["channels_last", "loaded"])
def test_blocks_of_8_bits_follow_the_parameter(way):
    """Codes lie in p's order in memory, which may become another."""
    torch.manual_seed(3)
    conv = torch.nn.Conv2d(4, 4, 3)
    opt = fat.Adam(conv.parameters(), lr=0.0, moments="8bit")
    for p in conv.parameters():
        p.grad = torch.randn_like(p)
    opt.step()
    before = fat.to_torch_state(opt)["state"][0]
    if way == "channels_last":
        conv.to(memory_format=torch.channels_last)
    else:
        other = copy.deepcopy(conv).to(memory_format=torch.channels_last)
        new = fat.Adam(other.parameters(), lr=0.0, moments="8bit", betas=(0.9, 0.999))
        new.load_state_dict(opt.state_dict())
        assert_close(fat.to_torch_state(new)["state"][0], before, rtol=0, atol=0)
        conv, opt = other, new
    for p in conv.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    after = fat.to_torch_state(opt)["state"][0]
    scale = before["exp_avg"].abs().max()
    assert_close(after["exp_avg"], 0.9 * before["exp_avg"], rtol=0, atol=float(scale) / 16)


def test_zeros_of_8_bits_travel():
    """Of groups without a gradient yet, through float32 and through another layout."""
    p = Parameter(torch.ones(64, 64))
    opt = fat.Adam([p], lr=0.1, moments="8bit")
    p.grad = torch.zeros(64, 64)
    opt.step()
    p.data = p.data.t().contiguous().t()
    opt.step()
    other = fat.Adam([Parameter(torch.ones(64, 64))], lr=0.1, moments="8bit")
    other.load_state_dict(fat.to_torch_state(opt))
    for each in (opt, other):
        each.param_groups[0]["params"][0].grad = torch.ones(64, 64)
        each.step()
        assert each.param_groups[0]["params"][0].isfinite().all()


def test_parameters_that_change_groups():
    def moved(kind):
        a, b = Parameter(torch.zeros(1)), Parameter(torch.zeros(1))
        opt = kind([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 100.0}])
        a.grad, b.grad = torch.ones(1), torch.ones(1)
        opt.step()
        opt.param_groups[0]["params"] = [a, b]
        opt.param_groups[1]["params"] = []
        opt.step()
        del opt.param_groups[1]
        opt.step()
        opt.param_groups[0]["params"] = [a]
        opt.param_groups.append({**opt.param_groups[0], "params": [b], "lr": 10.0})
        opt.step()
        return [a.item(), b.item()]

    assert moved(fat.SGD) == moved(torch.optim.SGD) == [-4.0, -112.0]


@pytest.mark.parametrize("method", [fat.SGD, fat.Lion])
def test_a_count_where_torch_has_none(method):
    """A function of the count and random bits go on where they were, after add_param_group and from a checkpoint."""
    seen = []

    def decay(t):
        seen.append(t)
        return 0.5

    def run(steps, checkpoint=None):
        p, q = (Parameter(torch.ones(300, dtype=torch.bfloat16)) for _ in range(2))
        opt = method([p], lr=1e-3, ema_decay=decay)
        opt.add_param_group({"params": [q]})
        if checkpoint:
            with torch.no_grad():
                p.copy_(checkpoint[1])
                q.copy_(checkpoint[2])
            opt.load_state_dict(checkpoint[0])
        for t in steps:
            p.grad, q.grad = (torch.full((300,), 0.1 * t + k, dtype=torch.bfloat16) for k in (0, 1))
            opt.step()
        return copy.deepcopy(opt.state_dict()), p, q

    whole = run(range(6))
    assert seen == [1, 2, 3, 4, 5, 6]
    half = run(range(3))
    rest = run(range(3, 6), half)
    assert seen[6:] == [1, 2, 3, 4, 5, 6]
    assert torch.equal(rest[1], whole[1])
    assert torch.equal(rest[2], whole[2])


def test_a_checkpoint_of_another_method_is_refused():
    p = Parameter(torch.ones(2))
    opt = fat.Adam([p], betas=(0.5, 0.6))
    opt.load_state_dict(torch.optim.SGD([Parameter(torch.ones(2))], lr=0.1).state_dict())
    p.grad = torch.ones(2)
    with pytest.raises(KeyError, match=r"param_groups\[0\] has no 'betas'"):
        opt.step()
    assert (p == 1).all()


def test_incomplete_foreign_state_is_refused():
    opt = fat.Adam([Parameter(torch.ones(2))])
    groups = [{"params": [0]}]
    with pytest.raises(ValueError, match="expected 'exp_avg_sq' or 'state2'"):
        fat.load_state_from(opt, {"state": {0: {"step": 9, "exp_avg": torch.ones(2)}}, "param_groups": groups})
    with pytest.raises(ValueError, match="has no 'qmap1'"):
        codes = {"step": 9, "state1": torch.zeros(2, dtype=torch.uint8), "state2": torch.zeros(2)}
        fat.load_state_from(opt, {"state": {0: codes}, "param_groups": groups})
    with pytest.raises(ValueError, match="has no 'param_groups'"):
        fat.load_state_from(opt, {})
    assert not opt.state


def test_copies_of_groups():
    a, b = (Parameter(torch.ones(5)) for _ in range(2))
    c, d = (torch.zeros(5, dtype=torch.bfloat16) for _ in range(2))
    opt = fat.Adam([a], lr=0.1, copy_to=[c])
    with pytest.raises(ValueError, match="'copy_to' has 0 tensors for 1 parameters"):
        opt.add_param_group({"params": [b]})
    assert len(opt.param_groups) == 1
    opt.add_param_group({"params": [b], "copy_to": [d]})
    a.grad, b.grad = torch.ones(5), -torch.ones(5)
    opt.step()
    assert torch.equal(c, a.detach().bfloat16())
    assert torch.equal(d, b.detach().bfloat16())
    assert "copy_to" not in opt.param_groups[1]


@pytest.mark.parametrize(
    ("options", "group", "words"),
    [
        ({"master": "remainder"}, {"params": [torch.ones(3, dtype=torch.float16)]}, r"params\[1\]\[0\] is float16"),
        ({"moments": "float64"}, {"params": [torch.ones(3)]}, r"params\[1\]\[0\] is float32"),
        ({"copies": 1}, {"params": [torch.ones(3)], "copy_to": [torch.zeros(4).bfloat16()]}, "copy_to has bfloat16"),
        ({"copies": 1}, {"params": [torch.ones(3)], "copy_to": 3}, "copy_to is int"),
        ({}, {"params": [torch.ones(3)], "copy_to": []}, "a param group has 'copy_to'"),
        ({}, {"params": [torch.ones(3, requires_grad=True) * 1]}, "can't optimize a non-leaf"),
    ],
    ids=["master", "moments", "copy", "copies", "none", "leaf"],
)
def test_a_group_that_is_refused_leaves_no_trace(options, group, words):
    """As at construction, formats and copies are looked at when it is added: steps go on without it."""
    options = dict(options)
    copies = [torch.zeros(5, dtype=torch.bfloat16) for _ in range(options.pop("copies", 0))]
    dtype = torch.bfloat16 if "master" in options else torch.float64 if "moments" in options else torch.float32
    p, q = (Parameter(torch.ones(5, dtype=dtype)) for _ in range(2))
    opt, other = (fat.AdamW([x], lr=0.1, **options, copy_to=each) for x, each in ((p, copies or None), (q, None)))
    for t in range(3):
        for x, each in ((p, opt), (q, other)):
            x.grad = torch.linspace(-1, t, 5).to(dtype)
            each.step()
        if t == 1:
            with pytest.raises((TypeError, ValueError), match=words):
                opt.add_param_group(group)
            assert len(opt.param_groups) == 1
    assert torch.equal(p, q)
    assert all(torch.equal(x, p.detach().bfloat16()) for x in copies)


def test_a_group_is_not_added_beside_averages():
    a, b = (Parameter(torch.ones(5)) for _ in range(2))
    c, d = (torch.zeros(5, dtype=torch.bfloat16) for _ in range(2))
    opt = fat.Adam([a], lr=0.1, ema_decay=0.5, copy_to=[c])
    a.grad = torch.ones(5)
    opt.step()
    with opt.averaged(), pytest.raises(RuntimeError, match=r"a group added inside averaged\(\) would not hold its ave"):
        opt.add_param_group({"params": [b], "copy_to": [d]})
    assert len(opt.param_groups) == 1
    assert torch.equal(c, a.detach().bfloat16())


def test_copies_of_a_group_are_filled_when_it_is_added():
    a, b = (Parameter(torch.ones(5)) for _ in range(2))
    c, d = (torch.zeros(5, dtype=torch.bfloat16) for _ in range(2))
    opt = fat.Adam([a], copy_to=[c])
    opt.add_param_group({"params": [b], "copy_to": [d]})
    assert torch.equal(d, b.detach().bfloat16())


def test_copies_that_cannot_be_right():
    a, b = (Parameter(torch.ones(5)) for _ in range(2))
    c = torch.zeros(5, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="copy_to has 0 tensors for 2 parameters"):
        fat.Adam([a, b], copy_to=[])
    with pytest.raises(TypeError, match="copy_to is int"):
        fat.Adam([a, b], copy_to=3)
    opt = fat.Adam([a, b], copy_to=[c, c])
    a.grad = b.grad = torch.ones(5)
    with pytest.raises(ValueError, match=r"copy_to for .* and copy_to for .* share memory"):
        opt.step()
    with pytest.raises(ValueError, match="a param group has 'copy_to'"):
        fat.Adam([{"params": [a], "copy_to": [c]}])
    with pytest.raises(ValueError, match="a param group has 'moments'"):
        fat.Adam([{"params": [a], "moments": "8bit"}])


def test_what_a_scaler_skips_is_in_info():
    p = Parameter(torch.ones(3))
    opt = stepped(p, max_norm=1.0)
    assert opt.info.grad_norm
    opt.found_inf, opt.grad_scale = torch.tensor(1.0), torch.tensor(2.0)
    opt.step()
    assert opt.info.skipped
    assert opt.info.grad_norm is None


def test_convert_checks_as_the_constructor_does():
    theirs = torch.optim.Adam([Parameter(torch.ones(3))])
    with pytest.raises(ValueError, match="copy_to has"):
        fat.convert(theirs, copy_to=[torch.zeros(4, dtype=torch.bfloat16)])
    with pytest.raises(ValueError, match="moments is 'float64'"):
        fat.convert(theirs, moments="float64")
    with pytest.raises(TypeError, match="'lr', expected any of max_norm"):
        fat.convert(theirs, lr=1)
    copied = torch.zeros(3, dtype=torch.bfloat16)
    fat.convert(theirs, copy_to=[copied])
    assert (copied == 1).all()


def test_moments_of_8_bits_in_a_plain_optimizer():
    opt = fat.Adam([Parameter(torch.ones(3))])
    opt.load_state_dict(stepped(Parameter(torch.ones(3)), moments="8bit").state_dict())
    opt.param_groups[0]["params"][0].grad = torch.ones(3)
    with pytest.raises(ValueError, match="moments='8bit', or to_torch_state"):
        opt.step()


def test_a_deleted_optimizer_is_gone_at_once():
    p = Parameter(torch.zeros(8))
    opt = stepped(p)
    state, itself = weakref.ref(opt.state[p]["exp_avg"]), weakref.ref(opt)
    gc.disable()
    try:
        del opt
        assert itself() is None
        assert state() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("change", [lambda x: x.t_(), lambda x: x.resize_(2, 8)], ids=["strides", "shape"])
def test_state_that_is_turned_in_place(change):
    p = Parameter(torch.ones(4, 4))
    opt = fat.SGD([p], lr=0.1, momentum=0.9)
    theirs = Parameter(torch.ones(4, 4))
    other = torch.optim.SGD([theirs], lr=0.1, momentum=0.9)
    g = torch.arange(16.0).view(4, 4)
    for x, one in ((p, opt), (theirs, other)):
        for _ in range(2):
            x.grad = g.clone()
            one.step()
        change(one.state[x]["momentum_buffer"])
    if opt.state[p]["momentum_buffer"].shape != p.shape:
        with pytest.raises(ValueError, match="momentum_buffer"):
            opt.step()
        return
    opt.step()
    other.step()
    assert_close(p, theirs)


def test_a_copy_whose_memory_is_another():
    p, copy = Parameter(torch.ones(6)), torch.zeros(6, dtype=torch.bfloat16)
    opt = fat.SGD([p], lr=0.5, copy_to=[copy])
    for data in (copy.data, copy.data.clone(), torch.zeros(6, dtype=torch.float16)):
        copy.data = data
        p.grad = torch.ones(6)
        opt.step()
        assert_close(copy.float(), p.detach())
    copy.data = torch.zeros(2, 3, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"copy_to has bfloat16.*expected its shape"):
        opt.step()


@pytest.mark.parametrize("limit", [-1, 0, float("nan"), "x", True])
def test_a_groups_max_norm_is_checked_at_once(limit):
    with pytest.raises((TypeError, ValueError), match="max_norm of a param group is"):
        fat.SGD([{"params": [Parameter(torch.ones(3))], "max_norm": limit}], lr=1.0)


def test_a_step_of_one_dimension():
    """What torch takes from old checkpoints."""
    p = Parameter(torch.ones(3))
    opt = stepped(p)
    state = opt.state_dict()
    state["state"][0]["step"] = torch.ones(1)
    opt.load_state_dict(state)
    opt.step()
    assert opt.state[p]["step"].tolist() == [2.0]


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_tensors_without_memory():
    p = Parameter(torch.ones(4, 6))
    opt = stepped(p)
    before = p.detach().clone()

    def traced(g):
        p.grad = g * 2
        opt.step()
        return p.grad.sum()

    with pytest.raises(RuntimeError, match="storage"):
        torch.func.grad(traced)(torch.ones(4, 6))
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        p.grad = torch.ones(4, 6)
    with pytest.raises(RuntimeError, match=r"the gradient of .* without memory"):
        opt.step()
    assert_close(p, before, rtol=0, atol=0)


def test_an_import_waits_for_no_compiler():
    """Numba takes half a second, which only whoever steps pays."""
    program = "import sys, fastadam.torch; sys.exit('numba' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 0


def test_a_seed_set_between_steps_draws_the_next():
    """The next step draws by it, as an optimizer does that was made with it and took over the state."""

    def after_two(first, then):
        p = Parameter(torch.linspace(-1, 1, 999).bfloat16())
        p.grad = torch.linspace(1, 2, 999).bfloat16()
        opt = fat.Adam([p], lr=0.01, seed=first)
        opt.step()
        opt.seed = then
        opt.step()
        return p.detach()

    p = Parameter(torch.linspace(-1, 1, 999).bfloat16())
    p.grad = torch.linspace(1, 2, 999).bfloat16()
    first = fat.Adam([p], lr=0.01, seed=1)
    first.step()
    second = fat.Adam([p], lr=0.01, seed=2)
    second.load_state_dict(first.state_dict())
    second.step()
    assert torch.equal(after_two(1, 2), p.detach())
    assert not torch.equal(after_two(1, 1), p.detach())


def test_masters_are_not_taken_from_averages():
    p = Parameter(torch.ones(9, dtype=torch.bfloat16))
    p.grad = torch.ones_like(p)
    opt = fat.Adam([p], ema_decay=0.9, master="float32")
    opt.step()
    with opt.averaged(), pytest.raises(RuntimeError, match="params hold the averaged weights"):
        opt.refresh_master()
