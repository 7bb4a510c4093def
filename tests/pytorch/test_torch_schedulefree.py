"""Schedule-free optimizers of PyTorch: the authors' package, step by step, and its two modes and its state."""

import copy
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install ".[torch]"')

from torch.nn import Parameter  # noqa: E402

import fastadam as fa  # noqa: E402
import fastadam.torch as fat  # noqa: E402

STEPS = 30
METHODS = {
    "ScheduleFreeAdamW": ("AdamWScheduleFree", {"betas": (0.8, 0.95), "eps": 1e-3}),
    "ScheduleFreeSGD": ("SGDScheduleFree", {"momentum": 0.8}),
}
HARD = {"lr": 1e-2, "weight_decay": 0.1, "warmup_steps": 7, "r": 0.5}


def gradients(steps=STEPS, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(steps + 1, 40, generator=generator, dtype=dtype)


def made(name, start, **more):
    p = Parameter(start.clone())
    return p, getattr(fat, name)([p], **HARD, **METHODS[name][1], **more)


def step(optimizer, p, g):
    p.grad = g.clone()
    optimizer.step()


@pytest.mark.parametrize("name", METHODS)
def test_steps_and_modes_are_the_packages(name):
    package = pytest.importorskip("schedulefree", reason="needs the authors' package: pip install schedulefree")
    start, *grads = gradients()
    p, opt = made(name, start)
    q = Parameter(start.clone())
    theirs = getattr(package, METHODS[name][0])([q], foreach=False, **HARD, **METHODS[name][1])
    # A dozen roundings a step of numbers within 4, on either side, carried on by the later steps.
    limit = 2 * 12 * STEPS * 2.0**-53 * 4
    for k, g in enumerate(grads):
        theirs.train()
        opt.train()
        step(theirs, q, g)
        step(opt, p, g)
        if k % 10 == 9:
            theirs.eval()
            opt.eval()
        np.testing.assert_allclose(p.detach(), q.detach(), rtol=0, atol=limit)
    # Its state, either way, in either mode.
    p2, other = made(name, p.detach())
    fat.load_state_from(other, copy.deepcopy(theirs.state_dict()))
    assert other.param_groups[0]["train_mode"] is False
    q2 = Parameter(p.detach().clone())
    p3, loaded = made(name, p.detach())
    with pytest.raises(ValueError, match=rf"has no 'maximize', expected the state of .*{name}: load_state_from"):
        loaded.load_state_dict(theirs.state_dict())
    step(loaded, p3, grads[0])  # as it was
    again = getattr(package, METHODS[name][0])([q2], foreach=False)
    again.load_state_dict(fat.to_torch_state(opt))
    for optimizer, x in ((theirs, q), (opt, p), (other, p2), (again, q2)):
        optimizer.train()
        step(optimizer, x, grads[0])
    for x in (q, p2, q2):
        np.testing.assert_allclose(p.detach(), x.detach(), rtol=0, atol=2 * limit)
    # And back again, the package's steps counted.
    p4, back = made(name, q2.detach())
    with pytest.raises(ValueError, match=rf"has 'k', expected the state of .*{name}: load_state_from"):
        back.load_state_dict(again.state_dict())
    fat.load_state_from(back, again.state_dict())
    assert back.state[p4]["step"] == STEPS + 1
    for optimizer, x in ((opt, p), (back, p4)):
        step(optimizer, x, grads[1])
    np.testing.assert_allclose(p.detach(), p4.detach(), rtol=0, atol=2 * limit)


@pytest.mark.parametrize("name", METHODS)
def test_a_new_state_begins_in_the_package(name):
    package = pytest.importorskip("schedulefree", reason="needs the authors' package: pip install schedulefree")
    start, g, _ = gradients(2)
    p, opt = made(name, start)
    q = Parameter(start.clone())
    theirs = getattr(package, METHODS[name][0])([q], foreach=False)
    theirs.load_state_dict(fat.to_torch_state(opt))
    step(opt, p, g)
    step(theirs, q, g)
    np.testing.assert_allclose(p.detach(), q.detach(), rtol=0, atol=2 * 12 * 2.0**-53 * 4)


@pytest.mark.parametrize("name", METHODS)
def test_a_state_as_the_package_has_it_counts_in_its_groups_alone(name):
    """What a package takes over and leaves beside parameters would be the count of old."""
    start, *grads = gradients(3)
    p, opt = made(name, start)
    fresh = fat.to_torch_state(opt)["param_groups"][0]
    assert [fresh[key] for key in ("k", "weight_sum", "lr_max")] == [0, 0.0, 0.0]
    for g in grads[:2]:
        step(opt, p, g)
    state = fat.to_torch_state(opt)
    assert set(state["state"][0]) == set(opt.slots.values())
    assert state["param_groups"][0]["k"] == 2
    q, other = made(name, p.detach())
    with pytest.raises(
        ValueError, match=rf"param_groups'\]\[0\] has 'k', expected the state of .*{name}: load_state_from"
    ):
        other.load_state_dict(state)
    assert not other.state
    fat.load_state_from(other, state)
    for optimizer, x in ((opt, p), (other, q)):
        step(optimizer, x, grads[2])
    assert torch.equal(p, q)


@pytest.mark.parametrize("name", METHODS)
def test_tensors_and_arrays_step_alike(name):
    start, *grads = gradients(5, torch.float32)
    p, opt = made(name, start)
    array = start.numpy().copy()
    plain = getattr(fa, name)(array, **HARD, **METHODS[name][1])
    for g in grads:
        step(opt, p, g)
        plain.step(g.numpy())
    assert np.array_equal(p.detach().numpy(), array)
    with opt.averaged(), plain.averaged():
        torch.testing.assert_close(p.detach(), torch.from_numpy(array), rtol=2.0**-22, atol=0)
    assert np.array_equal(p.detach().numpy(), array)


@pytest.mark.parametrize("master", [None, "float32"])
def test_a_checkpoint_of_either_mode_goes_on(master):
    start, *grads = gradients(4, torch.bfloat16)
    p, opt = made("ScheduleFreeAdamW", start, master=master)
    for g in grads[:2]:
        step(opt, p, g)
    opt.eval()
    with pytest.raises(RuntimeError, match=r"call train\(\) before"):
        step(opt, p, grads[2])
    q, other = made("ScheduleFreeAdamW", p.detach(), master=master)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    third = copy.deepcopy(opt)
    for optimizer, x in ((opt, p), (other, q), (third, third.param_groups[0]["params"][0])):
        optimizer.train()
        step(optimizer, x, grads[2])
        assert torch.equal(x, p)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_copies_follow_the_mode(dtype):
    start, *grads = gradients(2, dtype)
    short = torch.zeros(40, dtype=torch.bfloat16)
    p, opt = made("ScheduleFreeAdamW", start, copy_to=[short])
    for g in grads:
        step(opt, p, g)
    opt.eval()
    assert torch.equal(short, p.detach().float().bfloat16())
    average = short.clone()
    opt.train()
    assert torch.equal(short, p.detach().float().bfloat16())
    assert not torch.equal(short, average)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_modes_leave_out_copies_that_are_none(dtype):
    """Of two parameters one has a copy; with a master in float32 none has."""
    start, *grads = gradients(4, dtype)
    short = dtype is torch.bfloat16
    copies, options = [torch.zeros(40, dtype=torch.bfloat16), None], {"master": "float32"} if short else {}
    copies[0] = None if short else copies[0]
    params, others = ([Parameter(start.clone()), Parameter(-start)] for _ in range(2))
    opt = fat.ScheduleFreeAdamW(params, **HARD, **options, copy_to=copies)
    other = fat.ScheduleFreeAdamW(others, **HARD, **options)
    for g in grads:
        for optimizer, members in ((opt, params), (other, others)):
            members[0].grad, members[1].grad = g.clone(), 2 * g
            optimizer.step()
    for switch in ("eval", "eval", "train"):
        getattr(opt, switch)()
        getattr(other, switch)()
        assert all(map(torch.equal, params, others))
        if not short:
            assert torch.equal(copies[0], params[0].detach().bfloat16())
    assert opt.param_groups[0]["train_mode"] is True


def spoil(opt, params, copies, what):
    """Let the second group be what no mode can change."""
    state, group = opt.state[params[1]], opt.param_groups[1]
    if what == "shape":
        state["z"] = state["z"][:1]
    elif what == "kind":
        state["z"] = state["z"].int()
    elif what == "copy":
        copies[1].resize_(41)
    elif what == "rate":
        group["betas"] = (0.0, 0.9)
    else:
        group["params"] = []


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("shape", r"params\[1\]\[0\] is float32\(40,\) on cpu, state\['z'\] is float32\(1,\) on cpu: expected floats"),
        ("kind", r"params\[1\]\[0\] is float32\(40,\) on cpu, state\['z'\] is int32\(40,\) on cpu: expected floats"),
        ("copy", r"copy_to for params\[1\]\[0\] is bfloat16\(41,\) on cpu, state\['z'\] is float32\(40,\) on cpu"),
        ("rate", r"param_groups\[1\]: betas\[0\] is 0\.0, expected a number above 0"),
        ("count", "copy_to has 2 tensors for 1 parameters"),
    ],
    ids=lambda x: x if x.isalpha() else "",
)  # fmt: skip
def test_a_mode_that_cannot_change_changes_nothing(what, words):
    start, *grads = gradients(3, torch.float32)
    params = [Parameter(start.clone()), Parameter(start.clone())]
    copies = [torch.zeros(40, dtype=torch.bfloat16) for _ in params]
    opt = fat.ScheduleFreeAdamW([{"params": [p]} for p in params], **HARD, copy_to=copies)
    for g in grads:
        for p in params:
            p.grad = g.clone()
        opt.step()
    spoil(opt, params, copies, what)
    before = copy.deepcopy([*params, *copies])
    with pytest.raises(ValueError, match=words):
        opt.eval()
    assert all(map(torch.equal, [*params, *copies], before))
    assert [group["train_mode"] for group in opt.param_groups] == [True, True]


@pytest.mark.parametrize("name", METHODS)
def test_what_would_keep_an_average_for_the_parameters_is_refused(name):
    start, g, _ = gradients(2)
    p, opt = made(name, start)
    step(opt, p, g)
    state, before = copy.deepcopy(opt.state_dict()), p.detach().clone()
    with opt.averaged():
        for keep in (copy.deepcopy, pickle.dumps, lambda opt: opt.state_dict(), lambda opt: opt.load_state_dict(state)):
            with pytest.raises(RuntimeError, match=r"inside averaged\(\) would"):
                keep(opt)
    assert torch.equal(p, before)
    assert torch.equal(copy.deepcopy(opt).param_groups[0]["params"][0], before)


def test_a_remainder_is_refused():
    with pytest.raises(ValueError, match="master is 'remainder', expected None or 'float32'"):
        made("ScheduleFreeSGD", torch.ones(3, dtype=torch.bfloat16), master="remainder")


def test_a_folder_of_checkpoints_keeps_the_mode(tmp_path):
    start, *grads = gradients(3, torch.float32)
    p, opt = made("ScheduleFreeAdamW", start)
    q, loaded = made("ScheduleFreeAdamW", start)
    step(opt, p, grads[0])
    opt.eval()
    folder = fa.checkpoint.Folder(tmp_path)
    folder.save(opt)
    folder.load(loaded)
    assert loaded.param_groups[0]["train_mode"] is False
    for optimizer, x in ((opt, p), (loaded, q)):
        optimizer.train()
        step(optimizer, x, grads[1])
    assert torch.equal(p, q)
