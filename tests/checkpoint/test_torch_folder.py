"""PyTorch's optimizers, fastadam.torch's and torch.optim's, have the same folder."""

import io

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import fastadam as fa  # noqa: E402
import fastadam.torch  # noqa: E402

CASES = {
    "AdamW": (fa.torch.AdamW, {}, torch.float32),
    "8 bits": (fa.torch.AdamW, {"moments": "8bit"}, torch.float32),
    "bfloat16 moments": (fa.torch.AdamW, {"moments": "bfloat16", "seed": 4}, torch.float32),
    "bfloat16": (fa.torch.Adam, {"seed": 9}, torch.bfloat16),
    "remainder": (fa.torch.Adam, {"master": "remainder"}, torch.bfloat16),
    "master, averages": (fa.torch.Adam, {"master": "float32", "ema_decay": 0.5}, torch.float16),
    "a product of betas": (fa.torch.NAdam, {}, torch.float32),
    "float64": (fa.torch.RAdam, {}, torch.float64),
    "complex": (fa.torch.Adam, {}, torch.complex64),
    "momentum": (fa.torch.SGD, {"momentum": 0.5}, torch.float32),
    "matrices, averages": (fa.torch.Muon, {"master": "float32", "ema_decay": 0.5}, torch.float16),
    "matrices, 8 bits": (
        fa.torch.Muon,
        {"muon": lambda name, p: p.dim() == 4, "aux": {"moments": "8bit"}},
        torch.float32,
    ),
    "torch's own": (torch.optim.AdamW, {"amsgrad": True}, torch.float32),
    "torch's own with a tensor": (torch.optim.Adam, {"lr": torch.tensor(0.01), "capturable": False}, torch.float32),
}


def make(case, named=True, lr=0.01):
    method, chosen, dtype = CASES[case]
    torch.manual_seed(0)
    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensors = {"w": torch.randn(30, 40), "t": torch.randn(6, 5).T, "s": torch.randn(()), "c": last}
    params = {name: torch.nn.Parameter(x.to(dtype)) for name, x in tensors.items()}
    groups = [list(params.items())[:2], list(params.items())[2:]] if named else [list(params.values())]
    return params, method([{"params": group} for group in groups], **{"lr": lr, **chosen})


def steps(params, opt, first, last):
    for t in range(first, last):
        generator = torch.Generator().manual_seed(t)
        for name, p in params.items():
            g = torch.randn(p.shape, generator=generator).to(p.dtype)
            p.grad = None if name == "t" and t == 1 else torch.empty_like(p).copy_(g)
        opt.step()


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


@pytest.mark.parametrize("named", [True, False], ids=["named", "numbered"])
@pytest.mark.parametrize("case", CASES)
def test_a_torch_program_resumes(case, named, tmp_path):
    (straight, whole), (params, opt) = make(case, named), make(case, named)
    steps(straight, whole, 0, 6)
    steps(params, opt, 0, 3)
    folder = fa.checkpoint.Folder(tmp_path)
    folder.save(opt, {"epoch": 3}, background=True).wait()
    again, other = make(case, named, lr=0.5)
    if case != "torch's own with a tensor":
        assert other.param_groups[0]["lr"] == 0.5
    if hasattr(other, "seed"):
        other.seed = 77
    assert folder.load(other) == {"epoch": 3}
    assert equal(again, params)
    assert other.param_groups[0]["lr"] == 0.01
    steps(again, other, 3, 6)
    assert equal(again, straight)


def test_before_the_first_step(tmp_path):
    (params, opt), (again, other) = make("AdamW"), make("AdamW")
    fa.checkpoint.save(tmp_path / "one", opt)
    steps(again, other, 0, 2)
    fa.checkpoint.load(tmp_path / "one", other)
    assert equal(again, params)
    assert not other.state_dict()["state"]


def test_parts_of_it_are_read(tmp_path):
    params, opt = make("AdamW")
    steps(params, opt, 0, 1)
    fa.checkpoint.save(tmp_path / "one", opt)
    read = fa.checkpoint.read(tmp_path / "one", "exp_avg[0]['w']", rows=slice(3, 5))
    assert torch.equal(torch.from_numpy(read.copy()), opt.state[params["w"]]["exp_avg"][3:5])


def test_what_differs_is_named(tmp_path):
    (params, opt), (_, radam) = make("AdamW"), make("float64")
    steps(params, opt, 0, 1)
    fa.checkpoint.save(tmp_path / "one", opt)
    with pytest.raises(ValueError, match="method is 'AdamW', this optimizer's is 'RAdam'"):
        fa.checkpoint.load(tmp_path / "one", radam)
    with pytest.raises(ValueError, match="kind is 'torch', this optimizer's is 'fastadam'"):
        fa.checkpoint.load(tmp_path / "one", fa.AdamW(params["w"].detach().numpy()))
    less = fa.torch.AdamW([{"params": [("w", params["w"])]}, {"params": [("s", params["s"])]}])
    with pytest.raises(ValueError, match=r"the checkpoint has \[0\]\['t'\], this optimizer has not"):
        fa.checkpoint.load(tmp_path / "one", less)
    shape = torch.nn.Parameter(torch.zeros(3, 3))
    other = fa.torch.AdamW([{"params": [("w", shape)]}, {"params": [("s", params["s"])]}])
    _, rest = fa.checkpoint.load(tmp_path / "one", other, strict=False)
    assert rest[0] == "the checkpoint's params[0]['w'] is float32(30, 40), this optimizer's is float32(3, 3)"
    assert shape.abs().max() == 0
    assert list(other.state) == [params["s"]]


@pytest.mark.parametrize("method", [fa.torch.AdamW, torch.optim.AdamW], ids=["fastadam", "torch"])
def test_steps_between_reading_and_taking(method, tmp_path):
    """What fits is the checkpoint's; a parameter that it has not keeps its state and count as they are when taken."""

    def made(*names):
        params = {name: torch.nn.Parameter(torch.full((5,), float(k))) for k, name in enumerate(names)}
        return params, method([{"params": list(params.items())}], lr=0.1)

    folder = fa.checkpoint.Folder(tmp_path)
    (saved, one), (late, opt), (alone, straight) = made("a", "b"), made("a", "c"), made("a", "c")
    steps(saved, one, 0, 1)
    folder.save(one)
    loading = folder.prepared(opt, strict=False)
    steps(late, opt, 0, 3)
    steps(alone, straight, 0, 3)
    loading.take()
    assert torch.equal(late["a"], saved["a"])
    assert torch.equal(late["c"], alone["c"])
    for p, expected in ((late["a"], one.state[saved["a"]]), (late["c"], straight.state[alone["c"]])):
        assert opt.state[p].keys() == expected.keys()
        assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(expected[k])) for k, x in opt.state[p].items())


def test_what_is_taken_must_fit_as_it_is_then(tmp_path):
    folder = fa.checkpoint.Folder(tmp_path)
    params, opt = make("AdamW")
    steps(params, opt, 0, 1)
    folder.save(opt)
    for change, error, words in (
        (lambda new: new.replace(new.param_groups[0]["params"][0], torch.nn.Parameter(torch.zeros(31, 40))),
         ValueError, r"params\[0\]\['w'\] is float32\(31, 40\), the checkpoint was read for float32\(30, 40\)"),
        (lambda new: new.add_param_group({"params": [("x", torch.nn.Parameter(torch.zeros(3)))]}),
         ValueError, "opt has other parameters than when the checkpoint was read"),
    ):  # fmt: skip
        _, other = make("AdamW", lr=0.5)
        loading = folder.prepared(other)
        change(other)
        with pytest.raises(error, match=words):
            loading.take()
        assert not other.state
        assert other.param_groups[0]["lr"] == 0.5
    params, opt = make("master, averages")
    steps(params, opt, 0, 1)
    folder.save(opt)
    loading = folder.prepared(opt)
    with opt.averaged(), pytest.raises(RuntimeError, match="averaged"):
        loading.take()


def test_nothing_is_saved_inside_averaged(tmp_path):
    params, opt = make("master, averages")
    steps(params, opt, 0, 1)
    with opt.averaged(), pytest.raises(RuntimeError, match="averaged"):
        fa.checkpoint.save(tmp_path / "one", opt)


def test_torch_save_goes_on_working(tmp_path):
    (params, opt), (again, other) = make("8 bits"), make("8 bits")
    steps(params, opt, 0, 2)
    fa.checkpoint.save(tmp_path / "one", opt)
    fa.checkpoint.load(tmp_path / "one", other)
    file = io.BytesIO()
    torch.save(other.state_dict(), file)
    file.seek(0)
    last, third = make("8 bits")
    third.load_state_dict(torch.load(file))
    for x, p in zip(last.values(), again.values(), strict=True):
        x.data.copy_(p)
    steps(params, opt, 2, 4)
    steps(last, third, 2, 4)
    assert equal(last, params)


@pytest.mark.parametrize("moments", [None, "bfloat16", "torch.optim"])
def test_moments_of_8_bits_are_refused_before_anything_changes(moments, tmp_path):
    """Nothing but an optimizer with moments="8bit" can step them."""
    params, opt = make("8 bits")
    steps(params, opt, 0, 2)
    fa.checkpoint.save(tmp_path / "one", opt)
    method, chosen = (torch.optim.AdamW, {}) if moments == "torch.optim" else (fa.torch.AdamW, {"moments": moments})
    p = torch.nn.Parameter(torch.zeros(30, 40))
    rest = [("t", torch.nn.Parameter(torch.zeros(6, 5)))]
    last = [("s", torch.nn.Parameter(torch.zeros(()))), ("c", torch.nn.Parameter(torch.zeros(2, 5, 3, 4)))]
    other = method([{"params": [("w", p), *rest]}, {"params": last}], lr=0.5, **chosen)
    expected = None if moments == "torch.optim" else moments
    with pytest.raises(ValueError, match=rf"exp_avg\[0\]\['w'\] is 8bit, this optimizer's moments are {expected!r}"):
        fa.checkpoint.load(tmp_path / "one", other)
    assert (p.abs().max(), other.param_groups[0]["lr"], len(other.state)) == (0, 0.5, 0)


def test_moments_that_the_next_step_rounds_are_told(tmp_path, caplog):
    (params, opt), (again, other) = make("AdamW"), make("8 bits")
    steps(params, opt, 0, 2)
    fa.checkpoint.save(tmp_path / "one", opt)
    fa.checkpoint.load(tmp_path / "one", other)
    assert "the next step rounds exp_avg from float32 to 8bit" in caplog.text
    steps(again, other, 2, 3)
    assert other.state[again["w"]]["exp_avg"].dtype is torch.uint8


@pytest.mark.parametrize(
    ("dtype", "chosen", "key"),
    [
        (torch.bfloat16, {"master": "remainder"}, "remainder"),
        (torch.float16, {"master": "float32"}, "master"),
        (torch.float32, {"ema_decay": 0.5}, "ema"),
    ],
)
def test_what_would_go_stale_is_refused(dtype, chosen, key, tmp_path):
    """An optimizer without a master would step the parameters and leave the master beside them as it was."""

    def made(**named):
        p = torch.nn.Parameter(torch.ones(5, dtype=dtype))
        return p, fa.torch.AdamW([p], lr=0.1, **named)

    p, opt = made(**chosen)
    p.grad = torch.ones_like(p)
    opt.step()
    fa.checkpoint.save(tmp_path / "one", opt)
    q, other = made()
    with pytest.raises(ValueError, match=rf"the checkpoint has {key}\[0\]\[0\], this optimizer has not"):
        fa.checkpoint.load(tmp_path / "one", other)
    assert (q.min(), q.max(), len(other.state)) == (1, 1, 0)
    r, alike = made(**chosen)
    fa.checkpoint.load(tmp_path / "one", alike)
    assert torch.equal(r, p)
