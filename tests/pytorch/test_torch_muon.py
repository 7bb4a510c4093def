"""Muon of PyTorch: torch.optim.Muon's steps, one by one and together, and AdamW's for what torch refuses."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install ".[torch]"')

from torch.nn import Parameter  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_pre_hook  # noqa: E402

import fastadam as fa  # noqa: E402
import fastadam.torch as fat  # noqa: E402

SHAPES = [(8, 5), (5, 8), (6, 6), (40, 24), (40, 24)]
STEPS = 6


def drawn(shapes, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def give(params, seed):
    for p, g in zip(params, drawn([p.shape for p in params], seed), strict=True):
        p.grad = g.to(p.dtype)


@pytest.mark.parametrize(
    "named", [{}, {"nesterov": False, "momentum": 0.8}, {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.3}]
)
def test_matrices_step_as_torchs(named):
    if not hasattr(torch.optim, "Muon"):
        pytest.skip(f"torch {torch.__version__} has no Muon")
    ours, theirs = ([Parameter(x) for x in drawn(SHAPES, 0)] for _ in range(2))
    opt, other = fat.Muon(ours, lr=0.01, **named), torch.optim.Muon(theirs, lr=0.01, **named)
    for seed in range(1, STEPS + 1):
        for params, optimizer in ((ours, opt), (theirs, other)):
            give(params, seed)
            optimizer.step()
    # Both iterate in bfloat16: where sums are added in another order some of its places differ, 2^-8 of numbers below
    # 2, which later iterations multiply by at most 3.4445 each; lr·ratio moves p by them.
    for p, q in zip(ours, theirs, strict=True):
        assert (p - q).abs().max() <= STEPS * 0.01 * 1.3 * 2.0**-8 * 2 * 3.4445
    converted = fat.convert(other)
    assert isinstance(converted, fat.Muon)
    assert converted.state[theirs[0]]["momentum_buffer"] is other.state[theirs[0]]["momentum_buffer"]
    give(theirs, STEPS + 1)
    converted.step()
    other.load_state_dict(opt.state_dict())
    opt.load_state_dict(copy.deepcopy(other.state_dict()))
    assert list(opt.state_dict()["state"][0]) == ["momentum_buffer"]


def test_the_others_step_as_adamws_in_one_state():
    shapes = [(6, 4), (3,), (5, 2, 2), ()]
    ours, theirs = ([Parameter(x) for x in drawn(shapes, 0)] for _ in range(2))
    opt = fat.Muon(
        [("w", ours[0]), ("b", ours[1]), ("filters", ours[2]), ("s", ours[3])],
        muon=lambda name, p: name != "filters", aux={"lr": 0.01, "moments": "bfloat16"},
    )  # fmt: skip
    other = fat.AdamW(theirs[1:], lr=0.01, moments="bfloat16")
    for seed in range(1, STEPS + 1):
        give(ours, seed)
        give(theirs, seed)
        opt.step()
        other.step()
    assert not torch.equal(ours[0], theirs[0])
    assert all(torch.equal(p, q) for p, q in zip(ours[1:], theirs[1:], strict=True))
    again = [Parameter(p.detach().clone()) for p in ours]
    loaded = fat.Muon(
        [("w", again[0]), ("b", again[1]), ("filters", again[2]), ("s", again[3])],
        muon=lambda name, p: name != "filters", aux={"lr": 0.5, "moments": "bfloat16"},
    )  # fmt: skip
    loaded.load_state_dict(copy.deepcopy(opt.state_dict()))
    third = copy.deepcopy(opt)
    copied = [p for group in third.param_groups for p in group["params"]]
    for params, optimizer in ((ours, opt), (again, loaded), (copied, third)):
        give(params, 99)
        optimizer.step()
    for p, q, r in zip(ours, again, copied, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p, r)


def test_groups_say_what_they_are():
    w, b, head = Parameter(torch.ones(3, 2)), Parameter(torch.ones(3)), Parameter(torch.ones(2, 2))
    opt = fat.Muon([{"params": [w, b], "lr": 0.5}, {"params": [head], "aux": True, "lr": 0.25}])
    assert [(group["params"], group["lr"], group.get("aux")) for group in opt.param_groups] == [
        ([w], 0.5, None), ([b], 1e-3, True), ([head], 0.25, True)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="Learning rate should be >= 0"):
        fat.Muon([w], lr=-1.0)


def test_groups_that_are_added_step_too():
    w, head, b, other = (Parameter(x) for x in drawn([(3, 2), (4, 4), (3,), (5, 2)], 0))
    opt, calls = fat.Muon([w], lr=0.1, aux={"betas": (0.5, 0.6)}), []
    with pytest.raises(
        ValueError, match=r"params has float32\(3,\) on cpu, expected two dimensions, or a group with 'aux'"
    ):
        opt.add_param_group({"params": [b]})
    opt.add_param_group({"params": b, "aux": True, "lr": 0.2})
    opt.add_param_group({"params": [other], "lr": 0.3})
    opt.add_param_group({"params": [head], "aux": True})
    assert [group["lr"] for group in opt.param_groups] == [0.1, 0.2, 0.3, 1e-3]
    assert [group.get("betas") for group in opt.param_groups] == [None, (0.5, 0.6), None, (0.5, 0.6)]
    before = [p.detach().clone() for p in (w, head, b, other)]
    handle = register_optimizer_step_pre_hook(lambda *_: calls.append(1))
    give([w, head, b, other], 1)
    opt.step()
    handle.remove()
    assert not any(torch.equal(p, x) for p, x in zip((w, head, b, other), before, strict=True))
    assert calls == [1]  # of one optimizer, not of those that it is made of
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 0.0)
    before = [p.detach().clone() for p in (w, head, b, other)]
    opt.step()
    schedule.step()
    assert all(torch.equal(p, x) for p, x in zip((w, head, b, other), before, strict=True))


def test_a_folder_of_checkpoints_keeps_all_of_it(tmp_path):
    def made():
        params = [Parameter(x) for x in drawn([(6, 4), (3,)], 0)]
        return params, fat.Muon(params, lr=0.1, aux={"lr": 0.01})

    (ours, opt), (others, loaded) = made(), made()
    give(ours, 1)
    opt.step()
    folder = fa.checkpoint.Folder(tmp_path)
    folder.save(opt)
    folder.load(loaded)
    for params, optimizer in ((ours, opt), (others, loaded)):
        give(params, 2)
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, others, strict=True))


def test_walks_round_as_they_do_elsewhere():
    """Given what the iteration gives, which is the same: weights of 16 bits are their float32 masters, rounded."""
    start = drawn([(6, 4), (3,)], 0, torch.bfloat16)
    ours, wide = [Parameter(x.clone()) for x in start], [Parameter(x.float()) for x in start]
    opt = fat.Muon(ours, lr=0.1, master="float32", ema_decay=0.9)
    other = fat.Muon(wide, lr=0.1, ema_decay=0.9)
    for seed in range(1, 4):
        give(ours, seed)
        for p, q in zip(ours, wide, strict=True):
            q.grad = p.grad.float()
        opt.step()
        other.step()
        if seed == 2:
            loaded = fat.Muon([Parameter(p.detach().clone()) for p in ours], master="float32", ema_decay=0.9)
            loaded.load_state_dict(copy.deepcopy(opt.state_dict()))
    for p, q in zip(ours, wide, strict=True):
        assert torch.equal(p, q.bfloat16())
        assert torch.equal(opt.state[p]["ema"], other.state[q]["ema"])
    assert opt.state[ours[0]]["momentum_buffer"].dtype is torch.float32
    copies = [p for group in loaded.param_groups for p in group["params"]]
    give(copies, 3)
    loaded.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, copies, strict=True))
    with opt.averaged():
        assert torch.equal(ours[0], opt.state[ours[0]]["ema"].bfloat16())
        assert opt.averaging
        with pytest.raises(RuntimeError, match="averaged"):
            opt.step()


@pytest.mark.parametrize("shapes", [[(6, 4), (3,)], [(6, 4)], [(3,)]], ids=str)
def test_nothing_keeps_an_average_for_the_parameters(shapes):
    params = [Parameter(x) for x in drawn(shapes, 0)]
    opt = fat.Muon(params, ema_decay=0.9)
    give(params, 1)
    opt.step()
    state, before = copy.deepcopy(opt.state_dict()), [p.detach().clone() for p in params]
    group = {"params": [Parameter(torch.ones(2, 2))]}
    with opt.averaged():
        for keep in (copy.deepcopy, pickle.dumps, fat.Muon.state_dict, lambda opt: opt.load_state_dict(state),
                     lambda opt: opt.add_param_group(group)):  # fmt: skip
            with pytest.raises(RuntimeError, match=r"inside averaged\(\) would"):
                keep(opt)
    assert all(map(torch.equal, params, before))
    opt.load_state_dict(state)
    copy.deepcopy(opt).step()


def test_bits_do_not_depend_on_threads_around_the_iteration(monkeypatch):
    """The walks' alone: the iteration is replaced by one without products."""
    monkeypatch.setattr("fastadam.torch.muon.orthogonalised", lambda x, group, dtype: x.to(dtype))
    results = []
    for threads in (1, 2):
        with fa.num_threads(threads):
            params = [Parameter(x) for x in drawn([(300, 700), (5, 7)], 0)]
            opt = fat.Muon(params, lr=0.1)
            for seed in (1, 2):
                give(params, seed)
                opt.step()
        results.append(params)
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def test_what_matrices_have_not_is_refused_by_name():
    w = Parameter(torch.ones(3, 2))
    part = "which would see a part of the gradients: expected clipping and looking at all of them before step"
    for named, words in (
        ({"max_norm": 1.0}, rf"max_norm is 1\.0, {part}"), ({"aux": {"max_norm": 1.0}}, f"aux has 'max_norm', {part}"),
        ({"skip_nonfinite": True}, f"skip_nonfinite is True, {part}"),
        ({"stats": "group"}, "stats is 'group', expected another optimizer: Muon reports nothing"),
        ({"aux": {"stats": "group"}}, "aux has 'stats', expected another optimizer"),
        ({"copy_to": []}, r"copy_to is \[\], expected it in aux: matrices have none of it"),
        ({"beta": 1}, "beta is 1, no argument of Muon"),
        ({"aux": {"seed": 1}}, "aux has 'seed', expected it as an argument of Muon"),
        ({"aux": []}, r"aux is \[\], expected a dict of AdamW's arguments, or None"),
        ({"muon": ["w"]}, r"muon is \['w'\], expected a function of \(name or None, parameter\), or None for all"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=words):
            fat.Muon([w], **named)
    groups = [{"params": [Parameter(torch.ones(2, 2))]}, {"params": [w], "max_norm": 1.0}]
    with pytest.raises(TypeError, match=rf"params\[1\]\['max_norm'\] is 1\.0, {part}"):
        fat.Muon(groups)
    with pytest.raises(TypeError, match=rf"param_groups\[1\]\['max_norm'\] is 1\.0, {part}"):
        fat.Muon(groups[:1]).add_param_group(groups[1])
    with pytest.raises(TypeError, match=r"params\[0\]\['moments'\] is '8bit', expected a group of matrices without"):
        fat.Muon([{"params": [w], "moments": "8bit"}])
    with pytest.raises(
        ValueError, match=r"param_groups\[0\]: adjust is 'none', expected 'original' or 'match_rms_adamw'"
    ):
        fat.Muon([{"params": [w], "adjust_lr_fn": "none"}])
    opt, before = fat.Muon([w]), w.detach().clone()
    w.grad = torch.ones(3, 2).to_sparse()
    with pytest.raises(RuntimeError, match="Muon does not support sparse gradients"):
        opt.step()
    assert torch.equal(w, before)
    for function in (lambda: fat.to_torch_state(opt), lambda: fat.load_state_from(opt, opt.state_dict())):
        with pytest.raises(TypeError, match=r"opt is Muon, expected one of fastadam\.torch's methods"):
            function()


def test_a_default_that_is_said_asks_for_nothing():
    defaults = {"max_norm": None, "skip_nonfinite": False, "stats": None}
    params = [Parameter(x) for x in drawn([(3, 2), (3,)], 0)]
    opt = fat.Muon([{"params": params, **defaults, "seed": 0, "index_offset": 0}], aux=defaults, **defaults)
    opt.add_param_group({"params": [Parameter(torch.ones(2, 2))], **defaults})
    give(params, 1)
    opt.step()
    with pytest.raises(TypeError, match=r"params\[0\]\['max_norm'\] is 0\.0, which would see a part"):
        fat.Muon([{"params": params, "max_norm": 0.0}])
    with pytest.raises(TypeError, match="aux has 'max_norm', which would see a part"):
        fat.Muon(params, aux={"max_norm": 0.0})


HALF = torch.ones(2, 2, dtype=torch.float16)


@pytest.mark.parametrize(
    ("group", "error", "words"),
    [
        ({"params": [Parameter(HALF)]}, ValueError, r"master is 'remainder', params\[.\]\[0\] is float16\(2, 2\)"),
        ({"params": [Parameter(HALF)], "aux": True}, ValueError, r"master is 'remainder', params\[.\]\[0\] is float16"),
        ({"params": [HALF.requires_grad_() * 1]}, ValueError, "can't optimize a non-leaf Tensor"),
        ({"params": [HALF.requires_grad_() * 1], "aux": True}, ValueError, "can't optimize a non-leaf Tensor"),
        ({"params": [3]}, TypeError, "one of the params is int"),
        ({"params": [("w", Parameter(HALF.bfloat16()))]}, ValueError, "cannot add param group with names"),
        ({"params": [Parameter(HALF.bfloat16())], "adjust_lr_fn": "none"}, ValueError,
         r"param_groups\[K\]: adjust is 'none', expected 'original' or"),
        ({"params": [Parameter(HALF.bfloat16())], "aux": True, "moments": "8bit"}, ValueError,
         "a param group has 'moments', expected it as an argument of the optimizer"),
        ({"params": [Parameter(HALF.bfloat16())], "aux": True, "copy_to": []}, ValueError,
         "a param group has 'copy_to', expected it in aux, for the parameters given first"),
    ],
    ids=["matrix", "aux", "leaf", "leaf of aux", "int", "names", "adjust_lr_fn", "moments", "copies"],
)  # fmt: skip
@pytest.mark.parametrize("shapes", [[(3, 2)], [(3, 2), (3,)]], ids=["matrices", "others"])
def test_a_group_that_is_refused_leaves_no_trace(shapes, group, error, words):
    """Steps go on as those of an optimizer that was never asked."""
    words = words.replace("K", str(len(shapes)))  # the group's number
    start = drawn(shapes, 0, torch.bfloat16)
    (params, opt), (others, other) = (
        (members, fat.Muon(members, lr=0.1, master="remainder"))
        for members in ([Parameter(x.clone()) for x in start] for _ in range(2))
    )
    give(params, 1), give(others, 1)
    opt.step(), other.step()
    with pytest.raises(error, match=words):
        opt.add_param_group(group)
    assert len(opt.param_groups) == len(shapes)
    for seed in (2, 3):
        give(params, seed), give(others, seed)
        opt.step(), other.step()
    assert all(map(torch.equal, params, others))
    added = [Parameter(HALF.bfloat16()) for _ in range(2)]
    opt.add_param_group({"params": added[:1]})
    opt.add_param_group({"params": added[1:], "aux": True, "lr": 0.1})
    give([*params, *added], 4)
    opt.step()
    assert not any(torch.equal(p, HALF.bfloat16()) for p in added)


def test_groups_that_are_added_may_have_names():
    """As torch's own takes them, of matrices and of others, where the first have names."""
    w, b, more, others = (Parameter(x) for x in drawn([(3, 2), (3,), (4, 2), (4,)], 0))
    opt = fat.Muon([("w", w), ("b", b)], lr=0.1)
    opt.add_param_group({"params": [("more", more)]})
    opt.add_param_group({"params": [("others", others)], "aux": True})
    assert [group["param_names"] for group in opt.param_groups] == [["w"], ["b"], ["more"], ["others"]]
    before = [p.detach().clone() for p in (more, others)]
    give([w, b, more, others], 1)
    opt.step()
    assert not any(map(torch.equal, before, (more, others)))
    with pytest.raises(ValueError, match=r"params has float32\(2,\) on cpu, expected two dimensions"):
        opt.add_param_group({"params": [("flat", Parameter(torch.ones(2)))]})
    with pytest.raises(ValueError, match="cannot add param group without names"):
        opt.add_param_group({"params": [Parameter(torch.ones(2, 2))]})


def test_copies_of_the_others_are_any_iterable():
    w, b, c = (Parameter(x) for x in drawn([(3, 2), (3,), (4,)], 0))
    shorts = [torch.zeros(3, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.bfloat16)]
    opt = fat.Muon([w, b, c], aux={"lr": 0.5, "copy_to": (x for x in shorts)})
    give([w, b, c], 1)
    opt.step()
    assert all(torch.equal(x, p.detach().bfloat16()) for x, p in zip(shorts, (b, c), strict=True))
    late = fat.Muon([w], aux={"copy_to": iter(shorts[:1])})  # for the first group of others
    late.add_param_group({"params": [b], "aux": True})
    assert torch.equal(shorts[0], b.detach().bfloat16())
    for copies, name in ((torch.zeros(3, dtype=torch.bfloat16), "Tensor"), (3, "int")):
        with pytest.raises(TypeError, match=rf"aux\['copy_to'\] is {name}, expected an iterable of tensors"):
            fat.Muon([w, b], aux={"copy_to": copies})


@pytest.mark.parametrize("shared", ["both", "a copy", "a group that is added"])
def test_memory_that_both_parts_would_write_is_refused(shared):
    memory = torch.arange(24, dtype=torch.bfloat16)
    w, b, aux = Parameter(memory[:6].view(3, 2)), Parameter(memory[8:11]), {}
    words = r"params\[0\]\[0\] and params\[1\]\[0\]"
    if shared == "both":
        b = Parameter(memory[5:8])
    elif shared == "a copy":
        aux, words = {"copy_to": [memory[4:7]]}, r"params\[0\]\[0\] and aux\['copy_to'\]\[0\]"
    before = memory.clone()
    with pytest.raises(ValueError, match=f"{words} share memory, expected separate tensors"):
        if shared == "a group that is added":
            opt = fat.Muon([w])
            opt.add_param_group({"params": [Parameter(memory[5:7])], "aux": True})
        else:
            fat.Muon([w, b], aux=aux)
    assert torch.equal(memory, before)
    columns = torch.ones(3, 4)  # those of which interleave without sharing any
    assert len(fat.Muon([Parameter(columns[:, :2]), Parameter(columns[:, 2])]).param_groups) == 2


def test_copies_of_the_others_are_of_those_given_first():
    w, b, short = Parameter(torch.ones(3, 2)), Parameter(torch.ones(3)), torch.zeros(3, dtype=torch.bfloat16)
    opt = fat.Muon([w, b], lr=0.1, aux={"lr": 0.5, "copy_to": [short]})
    give([w, b], 1)
    opt.step()
    assert torch.equal(short, b.detach().bfloat16())
    group = {"params": [Parameter(torch.ones(2))], "aux": True}
    with pytest.raises(ValueError, match="aux has 'copy_to' for the parameters given first"):
        opt.add_param_group(group)
    assert len(opt.param_groups) == 2


def test_a_reset_optimizer_is_a_new_one():
    """For all parameters, and for a matrix alone beside others that go on."""
    shapes = [(4, 3), (5, 4), (4,)]
    params = [Parameter(x) for x in drawn(shapes, 0)]
    opt = fat.Muon(params, lr=0.1, ema_decay=0.9)
    give(params, 1)
    opt.step()
    with opt.averaged(), pytest.raises(RuntimeError, match="reset inside averaged"):
        opt.reset()
    with pytest.raises(ValueError, match=r"params\[1\] is no parameter of this optimizer"):
        opt.reset([params[0], Parameter(torch.ones(3))])
    assert len(opt.state) == 3
    opt.reset([params[0]])
    assert params[0] not in opt.state
    assert len(opt.state) == 2
    opt.reset()
    fresh = [Parameter(x.detach().clone()) for x in params]
    new = fat.Muon(fresh, lr=0.1, ema_decay=0.9)
    for seed in (2, 3):
        for each, members in ((opt, params), (new, fresh)):
            give(members, seed)
            each.step()
    assert all(torch.equal(x, y) for x, y in zip(params, fresh, strict=True))
    assert all(torch.equal(opt.state[x]["ema"], new.state[y]["ema"]) for x, y in zip(params, fresh, strict=True))
