"""PyTorch's own expectations of an optimizer: its OptimizerInfo database and the behaviours that its tests ask for.

Both sides step the same parameters with the same gradients; torch's takes its plain for-loop (foreach=False). Values
are compared by torch.testing.assert_close, whose tolerances are those of torch's tests; bounds: test_torch_bounds.py.
"""

import copy
import inspect
import io
import os
import pickle

import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install ".[torch]"')

# What torch does when it is imported or used is not ours to answer for.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Sparse")

import numpy as np  # noqa: E402
from torch.nn import Parameter  # noqa: E402
from torch.optim.lr_scheduler import ReduceLROnPlateau  # noqa: E402
from torch.optim.optimizer import (  # noqa: E402
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.testing import assert_close  # noqa: E402
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db  # noqa: E402

import fastadam as fa  # noqa: E402
import fastadam.torch as fat  # noqa: E402
from fastadam import kernels, rules  # noqa: E402
from fastadam.group import Group  # noqa: E402
from fastadam.host.addresses import AddressPlan  # noqa: E402
from fastadam.kernels.formats import FLOAT32  # noqa: E402
from fastadam.plans.chores import PLAIN  # noqa: E402
from fastadam.plans.streams import Streams, labels  # noqa: E402
from fastadam.plans.table import Table  # noqa: E402

# Muon steps here what torch's refuses, all but matrices: test_torch_muon.py holds it against torch's.
INFOS = [info for info in optim_db if hasattr(fat, info.name) and info.name != "Muon"]
DENSE = [info for info in INFOS if not info.only_supports_sparse_grads]
CASES = [(info, each) for info in DENSE for each in info.optim_inputs_func(device="cpu")]
F32, F64, C64, C128 = torch.float32, torch.float64, torch.complex64, torch.complex128

each_case = pytest.mark.parametrize(("info", "case"), CASES, ids=[f"{i.name}-{c.desc}" for i, c in CASES])
each_info = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
each_dense = pytest.mark.parametrize("info", DENSE, ids=lambda info: info.name)


def ours(info):
    return getattr(fat, info.name)


def pair(info, params, **kwargs):
    """torch's optimizer, as a for-loop, and ours, each over parameters of its own that begin alike."""
    loop = {"foreach": False} if "foreach" in inspect.signature(info.optim_cls).parameters else {}
    twins = [twin(p) for p in params]
    return info.optim_cls(params, **copy.deepcopy(kwargs), **loop), ours(info)(twins, **copy.deepcopy(kwargs))


def twin(p):
    """A parameter of the same values, laid out alike."""
    other = Parameter(torch.empty_strided(p.shape, p.stride(), dtype=p.dtype), requires_grad=p.requires_grad)
    with torch.no_grad():
        other.copy_(p)
    return other


def params_of(opt):
    return [p for group in opt.param_groups for p in group["params"]]


def shapes(dtype=F32):
    """A matrix, a vector, a number and nothing; channels last; with gaps; transposed; of the other width."""
    torch.manual_seed(3)
    other = {F32: F64, F64: F32, C64: C128, C128: C64}[dtype]
    return [
        Parameter(torch.randn(10, 5, dtype=dtype)), Parameter(torch.randn(7, dtype=dtype)),
        Parameter(torch.randn((), dtype=dtype)), Parameter(torch.randn(0, 3, dtype=dtype)),
        Parameter(torch.randn(2, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last)),
        Parameter(torch.randn(10, 5, 2, dtype=dtype)[..., 0]), Parameter(torch.randn(6, 4, dtype=dtype).t()),
        Parameter(torch.randn(11, dtype=other)),
    ]  # fmt: skip


def give_gradients(opts, t, missing=()):
    """The same gradients to both: random ones, None for those in `missing`."""
    torch.manual_seed(100 + t)
    for k, twins in enumerate(zip(*map(params_of, opts), strict=True)):
        g = torch.randn_like(twins[0])
        for p in twins:
            p.grad = None if k in missing else g.clone()


def check_alike(opts):
    a, b = opts
    for p, q in zip(params_of(a), params_of(b), strict=True):
        assert_close(q, p)
        mine, theirs = b.state.get(q, {}), a.state.get(p, {})
        assert list(mine) == list(theirs) or set(mine) == set(theirs)
        for key, x in theirs.items():
            carried = key == "mu_product" and isinstance(x, torch.Tensor)  # in float64 from the first step on
            assert_close(mine[key].to(x.dtype) if carried else mine[key], x, msg=lambda text, key=key: f"{key}: {text}")
            if isinstance(x, torch.Tensor):
                assert mine[key].dtype is x.dtype or (carried and mine[key].dtype is F64)
                assert mine[key].shape == x.shape
                assert mine[key].stride() == x.stride() or x.numel() < 2
                assert mine[key].untyped_storage().nbytes() == mine[key].nbytes  # saving it saves nothing else


@each_info
def test_signature(info):
    """torch's arguments in torch's order with torch's defaults, then ours by keyword only."""
    theirs = list(inspect.signature(info.optim_cls).parameters.values())
    mine = list(inspect.signature(ours(info)).parameters.values())
    assert mine[: len(theirs)] == theirs
    assert all(p.kind is p.KEYWORD_ONLY and p.default in (None, False) for p in mine[len(theirs) :])


@each_info
def test_errors(info):
    for case in info.optim_error_inputs_func(device="cpu", dtype=F32):
        params, kwargs = case.optimizer_error_input.params, case.optimizer_error_input.kwargs
        params = [Parameter(torch.randn(2, 3))] if params is None else params
        assert case.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
        if case.error_type is UserWarning:
            with pytest.warns(UserWarning, match=case.error_regex):
                ours(info)(params, **kwargs)
        else:
            with pytest.raises(case.error_type, match=case.error_regex):
                ours(info)(params, **kwargs)


@each_case
@pytest.mark.parametrize("dtype", [F32, F64, C64, C128], ids=str)
def test_inputs(info, case, dtype):
    """Every layout and mixed dtypes at once; some steps lack some gradients."""
    opts = pair(info, shapes(dtype), **case.kwargs)
    for t in range(8):
        give_gradients(opts, t, missing={t % 5, 6} if t < 5 else ())
        for opt in opts:
            opt.step()
    check_alike(opts)


@each_case
def test_param_groups(info, case):
    params = shapes()
    own = {"lr": 1e-3, "weight_decay": 0.2}
    groups = [{"params": params[:3]}, {"params": params[3:6], **own}, {"params": params[6:]}]
    twins = [{**group, "params": [twin(p) for p in group["params"]]} for group in groups]
    opts = info.optim_cls(groups, **case.kwargs), ours(info)(twins, **case.kwargs)
    for t in range(4):
        give_gradients(opts, t)
        for opt in opts:
            opt.step()
    check_alike(opts)


@each_dense
def test_named_parameters(info):
    model = torch.nn.Linear(3, 2)
    opt = ours(info)(model.named_parameters(), lr=0.1)
    assert opt.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
    other = ours(info)(copy.deepcopy(model).named_parameters(), lr=0.1)
    other.load_state_dict(opt.state_dict())
    assert other.param_groups[0]["param_names"] == ["weight", "bias"]
    model.weight.grad = torch.sparse_coo_tensor([[0], [1]], [1.0], (2, 3))
    if not info.supports_sparse:
        with pytest.raises(RuntimeError, match="does not support sparse gradients"):
            opt.step()


SCHEDULES = [(i, k) for i in DENSE for k in range(len(i.scheduler_inputs))]


@pytest.mark.parametrize(("info", "k"), SCHEDULES, ids=[f"{i.name}-{k}" for i, k in SCHEDULES])
def test_schedulers(info, k):
    opts = pair(info, shapes(F64), lr=0.1)
    schedules = [[make(opt) for make in info.scheduler_inputs[k]] for opt in opts]
    for t in range(25):
        give_gradients(opts, t)
        for opt, own in zip(opts, schedules, strict=True):
            opt.step()
            for schedule in own:
                schedule.step(*[1.0] * isinstance(schedule, ReduceLROnPlateau))
    assert opts[0].param_groups[0]["lr"] == opts[1].param_groups[0]["lr"]
    check_alike(opts)


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
def test_momentum_of_schedules(name):
    """OneCycleLR and CyclicLR write momentum or betas into the groups, too."""
    info = next(info for info in INFOS if info.name == name)
    kwargs = {} if name == "Adam" else {"momentum": 0.8}
    opts = pair(info, shapes(F64), lr=0.1, **kwargs)
    lrs = torch.optim.lr_scheduler
    schedules = [lrs.OneCycleLR(opt, 0.1, total_steps=10) for opt in opts]
    for t in range(10):
        give_gradients(opts, t)
        for opt, schedule in zip(opts, schedules, strict=True):
            opt.step()
            if t < 9:
                schedule.step()
    check_alike(opts)


@each_case
def test_tensor_lr(info, case):
    """A tensor of one element, changed in place between steps."""
    kwargs = {**case.kwargs, "lr": torch.tensor(0.1)}
    opts = pair(info, shapes(F64), **kwargs)
    for t in range(4):
        give_gradients(opts, t)
        for opt in opts:
            opt.param_groups[0]["lr"].mul_(0.5)
            opt.step()
    check_alike(opts)


@each_case
def test_torchs_state_here_and_ours_there(info, case):
    """A checkpoint of either continues in the other, through torch.save with weights_only."""
    kwargs = {key: x for key, x in case.kwargs.items() if not isinstance(x, torch.Tensor)}
    opts = pair(info, shapes(F64), **kwargs)
    for turn in range(4):
        give_gradients(opts, turn)
        for opt in opts:
            opt.step()
        kept = []
        for opt in opts:
            file = io.BytesIO()
            torch.save(opt.state_dict(), file)
            file.seek(0)
            kept.append(torch.load(file, weights_only=True))
        assert kept[0].keys() == kept[1].keys()
        assert kept[0]["state"].keys() == kept[1]["state"].keys()
        loop = {} if "foreach" not in kept[0]["param_groups"][0] else {"foreach": kept[0]["param_groups"][0]["foreach"]}
        groups = [{**group, **loop} for group in kept[1]["param_groups"]]
        more = [{key: group.pop(key) for key in group.keys() - kept[0]["param_groups"][0].keys()} for group in groups]
        assert kept[0]["param_groups"] == groups
        assert all(value is False for ours in more for value in ours.values())  # options that torch's have not, off
        opts[0].load_state_dict(kept[1])
        opts[1].load_state_dict(kept[0])
    check_alike(opts)


@each_dense
def test_old_checkpoints(info):
    """Counts that are Python's numbers, and groups without the keys that torch added later."""
    opts = pair(info, shapes(F64), lr=0.1)
    give_gradients(opts, 0)
    for opt in opts:
        opt.step()
        state = copy.deepcopy(opt.state_dict())
        for own in state["state"].values():
            for key in {"step", "mu_product"} & own.keys():
                own[key] = own[key].item()
        for group in state["param_groups"]:
            for key in ("maximize", "foreach", "capturable", "differentiable"):
                group.pop(key, None)
        opt.load_state_dict(state)
    give_gradients(opts, 1)
    for opt in opts:
        opt.step()
    check_alike(opts)


@each_dense
def test_state_of_another_dtype(info):
    """Loading casts to the parameter's dtype, but for the count."""
    opts = pair(info, [p for p in shapes(F64) if p.dtype is F64], lr=0.1)
    wide = pair(info, [Parameter(p.detach().float()) for p in params_of(opts[0])], lr=0.1)
    give_gradients(wide, 0)
    for opt, other in zip(wide, opts, strict=True):
        opt.step()
        other.load_state_dict(opt.state_dict())
    give_gradients(opts, 1)
    for opt in opts:
        opt.step()
    check_alike(opts)


@each_dense
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies(info, way):
    """A copy goes its own way."""
    opts = pair(info, shapes(F64), lr=0.1)
    give_gradients(opts, 0)
    for opt in opts:
        opt.step()
    copied = copy.deepcopy(opts[1]) if way == "deepcopy" else pickle.loads(pickle.dumps(opts[1]))
    before = [p.detach().clone() for p in params_of(opts[1])]
    give_gradients((opts[0], copied), 1)
    opts[0].step()
    copied.step()
    check_alike((opts[0], copied))
    assert all(torch.equal(p, q) for p, q in zip(before, params_of(opts[1]), strict=True))


@each_info
def test_hooks(info):
    """Around every step in torch's order, closure or not; they may change the arguments; those of the state, too."""
    p, order = Parameter(torch.ones(3, 2)), []
    opt = ours(info)([p], lr=0.1)
    handles = [
        register_optimizer_step_pre_hook(lambda *_: order.append("global before")),
        register_optimizer_step_post_hook(lambda *_: order.append("global after")),
        opt.register_step_pre_hook(lambda *_: order.append("before")),
        opt.register_step_post_hook(lambda *_: order.append("after")),
        opt.register_state_dict_pre_hook(lambda _: order.append("saving")),
        opt.register_state_dict_post_hook(lambda _, state: order.append("saved")),
        opt.register_load_state_dict_pre_hook(lambda *_: order.append("loading")),
        opt.register_load_state_dict_post_hook(lambda _: order.append("loaded")),
    ]
    assert opt.step(lambda: order.append("closure")) is None
    opt.load_state_dict(opt.state_dict())
    around = ["global before", "before", "closure", "after", "global after"]
    assert order == [*around, "saving", "saved", "loading", "loaded"]
    for handle in handles:
        handle.remove()
    opt.step()
    assert len(order) == 9
    before, handle = p.detach().clone(), opt.register_step_pre_hook(lambda opt, args, named: ((opt, lambda: 7), {}))
    assert opt.step() == 7
    assert torch.equal(p, before)


@each_dense
def test_closure(info):
    """It runs once, with gradients enabled, whatever is around it."""
    opts = pair(info, shapes(F64)[:2], lr=0.1)
    for opt in opts:

        def closure(opt=opt):
            opt.zero_grad()
            loss = sum((p**2).sum() for p in params_of(opt))
            loss.backward()
            return loss

        for _ in range(3):
            with torch.no_grad():
                loss = opt.step(closure)
        assert loss.requires_grad
    check_alike(opts)


@each_dense
def test_frozen_and_added_later(info):
    """A layer that is frozen for a while keeps its count; a group that is added later begins at the first."""
    opts = pair(info, shapes(F64)[:2], lr=0.1)
    for t in range(6):
        if t == 3:
            for opt in opts:
                torch.manual_seed(9)
                opt.add_param_group({"params": [Parameter(torch.randn(4, 4, dtype=F64))], "lr": 0.2})
        give_gradients(opts, t, missing={0} if t in (1, 2) else ())
        for opt in opts:
            opt.step()
    check_alike(opts)


@each_dense
def test_parameters_that_move(info):
    """Other memory, another order of axes, another dtype: as load_state_dict, model.to and model.double do it."""
    torch.manual_seed(3)
    opts = pair(info, [Parameter(torch.randn(2, 3, 4, 5)), Parameter(torch.randn(9))], lr=0.1)
    for t, move in enumerate([
        lambda p: p, lambda p: p.clone(), lambda p: p.to(memory_format=torch.channels_last) if p.dim() == 4 else p,
        lambda p: p.clone().share_memory_(),
    ]):  # fmt: skip
        for p in [p for opt in opts for p in params_of(opt)]:
            p.data = move(p.data)
        if t == 3:
            for state in opts[1].state.values():
                for x in state.values():
                    x.share_memory_()  # the same tensors, in other memory
        for _ in range(2):
            give_gradients(opts, t)
            for opt in opts:
                opt.step()
        for p, q in zip(*map(params_of, opts), strict=True):
            assert_close(q, p)


@each_dense
def test_gradients_that_lie_otherwise(info):
    """Other strides, negative and conjugate views, expanded ones."""
    torch.manual_seed(3)
    opts = pair(info, [Parameter(torch.randn(4, 4, dtype=F64)), Parameter(torch.randn(3, dtype=C128)),
                       Parameter(torch.randn((), dtype=F64))], lr=0.1)  # fmt: skip
    z = torch.randn(4, 4, dtype=C128)
    for grads in (
        (z.real.t(), z[0, :3].conj(), z[0, 0].conj().imag), (z.conj().imag, z[:3, 0], z[0, 0].real),
        (z.real[0].expand(4, 4), z[:3, 1].clone(), z[0, 0].real.clone()),
    ):  # fmt: skip
        for opt in opts:
            for p, g in zip(params_of(opt), grads, strict=True):
                p.grad = g.resolve_conj() if opt is opts[0] else g  # torch refuses a conjugate view
            opt.step()
    check_alike(opts)


@each_dense
def test_default_dtype(info):
    """The count is float64 where the default dtype is, as torch has it."""
    torch.set_default_dtype(F64)
    try:
        opts = pair(info, shapes(F32), lr=0.1)
        give_gradients(opts, 0)
        for opt in opts:
            opt.step()
        check_alike(opts)
    finally:
        torch.set_default_dtype(F32)


@each_dense
@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler(info, unscale):
    """The step unscales; where a gradient is infinite, parameters, state and count stay as they are."""
    opts = pair(info, shapes(F32)[:3], lr=0.1)
    loss_scale, bad = 2.0**10, 2
    scalers = [
        torch.amp.GradScaler("cpu", init_scale=loss_scale, growth_interval=10**6, backoff_factor=0.5) for _ in opts
    ]
    for t in range(4):
        give_gradients(opts, t)
        for opt, scaler in zip(opts, scalers, strict=True):
            scaler.scale(torch.zeros(()))  # makes the scale
            for p in params_of(opt):
                p.grad *= loss_scale
                if t == bad:
                    p.grad.view(-1)[0] = torch.inf
            before = [p.detach().clone() for p in params_of(opt)], copy.deepcopy(opt.state_dict()["state"])
            if unscale:
                scaler.unscale_(opt)
            scaler.step(opt)
            scaler.update(loss_scale)
            if t == bad:
                assert all(torch.equal(p, q) for p, q in zip(params_of(opt), before[0], strict=True))
                assert_close(opt.state_dict()["state"], before[1], rtol=0, atol=0)
    check_alike(opts)


@each_dense
def test_profiler_sees_the_step(info):
    p = Parameter(torch.ones(3))
    opt = ours(info)([p], lr=0.1)
    p.grad = torch.ones(3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        opt.step()
    assert f"Optimizer.step#{info.name}.step" in {event.key for event in profile.key_averages()}


@each_dense
def test_zero_grad(info):
    p = Parameter(torch.ones(3))
    opt = ours(info)([p], lr=0.1)
    p.grad = torch.ones(3)
    opt.zero_grad(set_to_none=False)
    assert torch.equal(p.grad, torch.zeros(3))
    opt.zero_grad()
    assert p.grad is None
    opt.step()  # without any gradient
    assert torch.equal(p, torch.ones(3))
    assert not opt.state_dict()["state"] or info.name == "Adagrad"


SPARSE = [
    (i, kwargs)
    for i in INFOS
    if i.supports_sparse or i.only_supports_sparse_grads
    for kwargs in ({}, {"maximize": True})
]


@pytest.mark.parametrize(("info", "kwargs"), SPARSE, ids=[f"{i.name}-{kw}" for i, kw in SPARSE])
@pytest.mark.parametrize("gaps", [False, True])
def test_sparse_gradients(info, kwargs, gaps):
    """Rows named twice, no row, rows of one number, rows by two indices, a parameter with gaps."""
    torch.manual_seed(3)
    whole = torch.randn(20, 7, 2, dtype=F64)
    rows = Parameter(whole[..., 0] if gaps else whole[..., 0].clone())
    others = Parameter(torch.randn(6, dtype=F64)), Parameter(torch.randn(5, 4, 3, dtype=F64))
    opts = pair(info, [rows, *others], lr=0.1, **kwargs)
    for t in range(5):
        torch.manual_seed(t)
        k = 0 if t == 3 else 9
        grads = (
            (torch.randint(0, 20, (1, k)), torch.randn(k, 7, dtype=F64), (20, 7)),
            (torch.randint(0, 6, (1, k)), torch.randn(k, dtype=F64), (6,)),
            (torch.randint(0, 4, (2, k)), torch.randn(k, 3, dtype=F64), (5, 4, 3)),
        )
        for opt in opts:
            for p, (indices, values, shape) in zip(params_of(opt), grads, strict=True):
                p.grad = torch.sparse_coo_tensor(indices, values, shape, check_invariants=False)
            opt.step()
    check_alike(opts)


def test_a_sparse_gradient_beyond_its_parameter_is_refused():
    """torch would write beyond the parameter."""
    p = Parameter(torch.zeros(4, 2))
    opt = fat.SparseAdam([p])
    p.grad = torch.sparse_coo_tensor([[4]], [[1.0, 1.0]], (4, 2), check_invariants=False)
    with pytest.raises(IndexError, match="beyond"):
        opt.step()
    assert torch.equal(p, torch.zeros(4, 2))


def test_tied_weights():
    """One parameter in two places is one parameter."""
    ends = []
    for module in (torch.optim, fat):
        torch.manual_seed(0)
        words, head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9, bias=False)
        head.weight = words.weight
        opt = module.AdamW([*torch.nn.Sequential(words, head).parameters()], lr=0.1)
        for _ in range(3):
            opt.zero_grad()
            head(words(torch.arange(9))).logsumexp(-1).sum().backward()
            opt.step()
        ends.append(words.weight)
    assert_close(*ends)


LRS = torch.optim.lr_scheduler
SCHEDULERS = {
    "LambdaLR": lambda opt: LRS.LambdaLR(opt, lambda t: 0.9**t),
    "MultiplicativeLR": lambda opt: LRS.MultiplicativeLR(opt, lambda t: 0.9),
    "StepLR": lambda opt: LRS.StepLR(opt, 2), "MultiStepLR": lambda opt: LRS.MultiStepLR(opt, [1, 3]),
    "ConstantLR": lambda opt: LRS.ConstantLR(opt), "LinearLR": lambda opt: LRS.LinearLR(opt),
    "ExponentialLR": lambda opt: LRS.ExponentialLR(opt, 0.8), "PolynomialLR": lambda opt: LRS.PolynomialLR(opt, 4),
    "CosineAnnealingLR": lambda opt: LRS.CosineAnnealingLR(opt, 4),
    "CosineAnnealingWarmRestarts": lambda opt: LRS.CosineAnnealingWarmRestarts(opt, 2),
    "SequentialLR": lambda opt: LRS.SequentialLR(opt, [LRS.LinearLR(opt), LRS.StepLR(opt, 1)], [2]),
    "ChainedScheduler": lambda opt: LRS.ChainedScheduler([LRS.ConstantLR(opt), LRS.ExponentialLR(opt, 0.9)]),
    "CyclicLR": lambda opt: LRS.CyclicLR(opt, 0.01, 0.1, 2), "OneCycleLR": lambda opt: LRS.OneCycleLR(opt, 0.1, 9),
    "ReduceLROnPlateau": lambda opt: ReduceLROnPlateau(opt, patience=1),
    "SWALR": lambda opt: torch.optim.swa_utils.SWALR(opt, 0.01, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler(name):
    """Saved and loaded half way, too."""
    opts = pair(next(info for info in INFOS if info.name == "AdamW"), shapes(F64)[:2], lr=0.1)
    schedules = [SCHEDULERS[name](opt) for opt in opts]
    for t in range(6):
        give_gradients(opts, t)
        for opt, schedule in zip(opts, schedules, strict=True):
            opt.step()
            schedule.step(*[1.0] * (name == "ReduceLROnPlateau"))
            if t == 3:
                schedule.load_state_dict(schedule.state_dict())
    assert opts[0].param_groups[0]["lr"] == opts[1].param_groups[0]["lr"]
    check_alike(opts)


# What torch can and we refuse, each with its reason.
def test_refused():
    p = Parameter(torch.ones(4))
    with pytest.raises(ValueError, match="differentiable is True"):  # a step changes memory behind autograd's back
        fat.Adam([p], differentiable=True)
    opt = fat.SGD([p], lr=0.1, momentum=0.9)
    p.grad = torch.sparse_coo_tensor([[0]], [1.0], (4,))
    with pytest.raises(RuntimeError, match="with neither"):  # a sparse momentum would grow dense row by row
        opt.step()
    a = torch.ones(6)
    opt = fat.Adam([Parameter(a[:4]), Parameter(a[2:])])
    for q in params_of(opt):
        q.grad = torch.ones(4)
    with pytest.raises(ValueError, match="share memory"):  # two threads would step them at once
        opt.step()
    assert torch.equal(a, torch.ones(6))
    with pytest.warns(UserWarning, match="duplicate"):
        opt = fat.Adam([p, p])
    p.grad = torch.ones(4)
    with pytest.raises(ValueError, match="share memory"):  # and so would one parameter that is given twice
        opt.step()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int32])
def test_other_dtypes_are_refused_by_name(dtype):
    p = torch.ones(4).to(dtype)
    p = Parameter(p, requires_grad=p.is_floating_point())
    p.grad = torch.ones(4).to(dtype)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(TypeError, match=rf"params\[0\]\[0\] is {name}\(4,\) on cpu, expected float32"):
        fat.SGD([p], lr=0.1).step()


def test_a_device_that_nobody_serves():
    p = Parameter(torch.empty(4, device="meta"))
    p.grad = torch.empty(4, device="meta")
    with pytest.raises(ValueError, match=r"params\[0\]\[0\] lies on meta, expected cpu or cuda"):
        fat.SGD([p], lr=0.1).step()


EVERY = {
    "Adam": {"amsgrad": True}, "AdamW": {}, "NAdam": {}, "RAdam": {}, "Adamax": {}, "Lion": {"weight_decay": 0.1},
    "SGD": {"momentum": 0.9, "nesterov": True}, "RMSprop": {"centered": True}, "Adagrad": {},
}  # fmt: skip


def array(x):
    """A tensor's values as NumPy's array, without a copy."""
    x = x.detach()
    if x.dtype is torch.bfloat16:
        return x.view(torch.int16).numpy().view(pytest.importorskip("ml_dtypes", reason="bfloat16 arrays").bfloat16)
    return x.numpy()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [F32, F64, torch.bfloat16, torch.float16], ids=str)
def test_the_bits_of_the_same_method_on_arrays(name, dtype):
    """fastadam.X over NumPy's arrays and fastadam.torch.X over tensors are one arithmetic, random bits included."""
    torch.manual_seed(3)
    params = [Parameter(torch.randn(70, 500).to(dtype)), Parameter(torch.randn(9).to(dtype))]
    arrays = [array(p).copy() for p in params]
    opt, plain = getattr(fat, name)(params, **EVERY[name]), getattr(fa, name)(arrays, **EVERY[name])
    for _ in range(4):
        for p in params:
            p.grad = torch.randn(p.shape).to(dtype)
        opt.step()
        plain.step([array(p.grad) for p in params])
    for p, x in zip(params, arrays, strict=True):
        assert array(p).tobytes() == x.tobytes()


@each_dense
def test_wide_state_of_short_parameters(info):
    """float32, which torch's load_state_dict would cast; torch's own state in bfloat16 is taken up, too."""
    torch.manual_seed(3)
    opts = pair(info, [Parameter(torch.randn(40, 30).bfloat16()), Parameter(torch.randn(7).bfloat16())], lr=0.01)
    give_gradients(opts, 0)
    for opt in opts:
        opt.step()
    kept = copy.deepcopy(opts[1].state_dict())
    opts[1].load_state_dict(copy.deepcopy(kept))
    for own, theirs in zip(opts[1].state_dict()["state"].values(), kept["state"].values(), strict=True):
        assert all(torch.equal(x, theirs[key]) and x.dtype is theirs[key].dtype for key, x in own.items())
        assert all(x.dtype is F32 for key, x in own.items() if key != "mu_product")
    opts[1].load_state_dict(opts[0].state_dict())
    opts[0].load_state_dict(kept)
    give_gradients(opts, 1)
    for opt in opts:
        opt.step()
    for p, q in zip(*map(params_of, opts), strict=True):  # either rounds each of two steps by at most one place
        torch.testing.assert_close(q.float(), p.float(), rtol=4 * 2.0**-8, atol=1e-3)


def test_lion_constructor():
    """The rule's messages, where torch has none."""
    p = [Parameter(torch.ones(3))]
    for named, message in (
        ({"lr": -1.0}, "lr is -1.0, expected a finite number of at least 0"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] is 1.0, expected a finite number of at least 0 and below 1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1, expected a finite number of at least 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            fat.Lion(p, **named)
    opt = fat.Lion(p)
    p[0].grad = torch.ones(3)
    opt.step()
    other = fat.Lion([Parameter(torch.ones(3))])
    other.load_state_dict(opt.state_dict())
    assert list(other.state_dict()["state"][0]) == ["exp_avg"]


def test_chunks_beyond_32_bits():
    """A tensor of 2^31 + 5 elements is walked to its end, every element once."""
    n = 2**31 + 5
    table = Table(rules.SGD, [Group(rules.SGD(), "", range(1), {np.dtype(np.float32)})])
    plan = AddressPlan(
        kernels.ALL["momentum"],
        [labels(kernels.ALL["momentum"])],
        [n],
        [Streams(FLOAT32, slots=[None])],
        table,
        PLAIN,
        (0,),
    )
    chunks = plan.everything[0].chunks
    assert chunks[0, 1] == 0
    assert (chunks[1:, 1] == chunks[:-1, 1] + chunks[:-1, 2]).all()
    assert chunks[-1, 1] + chunks[-1, 2] == n


def test_a_tensor_beyond_32_bits():
    """The same for real, in float16 and without state: 8.6 GB."""
    n, free = 2**31 + 5, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < 5 * n:
        pytest.skip(f"{free / 1e9:.1f} GB of memory are free, expected {5 * n / 1e9:.1f}")
    p = Parameter(torch.zeros(n, dtype=torch.float16))
    p.grad, at = torch.zeros(n, dtype=torch.float16), torch.tensor([0, 1, 2**31 - 1, 2**31, 2**31 + 3, n - 1])
    p.grad[at] = torch.arange(1.0, 7.0, dtype=torch.float16)
    fat.SGD([p], lr=0.5).step()
    p = p.detach()
    assert (p[at] == -0.5 * torch.arange(1.0, 7.0)).all()
    assert sum(int(part.count_nonzero()) for part in p.split(2**28)) == 6
