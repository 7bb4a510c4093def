"""replace: a parameter becomes another tensor, and its state follows the rows.

The oracle is an optimizer made anew whose state is put together by hand; of 8 bits, from torch's state.
"""

from copy import deepcopy

import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install ".[torch]"')

import fastadam.torch as fat  # noqa: E402
from fastadam.torch.formats import ORDER  # noqa: E402

ROWS = [4, 2, -1, 2, 0, 99]  # of 5: some go, one comes twice, two begin anew
NAMES = ["SGD", "Adagrad", "Adam", "AdamW", "Adamax", "Lion", "NAdam", "RAdam", "RMSprop"]
FORMATS = [
    (torch.float32, {"ema_decay": 0.9}), (torch.float32, {"moments": "8bit"}), (torch.float64, {}),
    (torch.float32, {"moments": "bfloat16"}), (torch.bfloat16, {"master": "remainder"}),
    (torch.float16, {"master": "float32", "moments": "8bit"}), (torch.complex64, {}),
]  # fmt: skip


def parameters(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Parameter(torch.randn(5, 300).to(dtype)), torch.nn.Parameter(torch.ones(3))


def steps(opt, params, seeds):
    for seed in seeds:
        torch.manual_seed(seed)
        for p in params:
            p.grad = torch.randn(p.shape).to(p.dtype)
        opt.step()


def grown(x, fill):
    """Rows of x, and where there is none those of `fill`."""
    return torch.stack([x[row] if 0 <= row < 5 else fill[k] for k, row in enumerate(ROWS)])


def check_follows(method, dtype=torch.float32, **own):
    p, q = parameters(dtype)
    opt = method([{"params": [q]}, {"params": [p]}], **own)
    steps(opt, [p, q], range(3))
    new = torch.nn.Parameter(grown(p.detach(), torch.full((6, 300), 7.0).to(dtype)))
    twin, r = torch.nn.Parameter(new.detach().clone()), torch.nn.Parameter(q.detach().clone())
    other = method([{"params": [r]}, {"params": [twin]}], **own)
    saved, wide = deepcopy(opt.state_dict()), fat.to_torch_state(opt)["state"][1]
    mine = saved["state"][1]
    for key, x in mine.items():
        slot = wide[key] if ORDER in mine and key in opt.slots.values() else x
        if slot.dim() and key != ORDER:
            fill = new.detach().to(slot.dtype) if key in ("ema", "master") else torch.zeros(6, 300).to(slot.dtype)
            mine[key] = grown(slot, fill)
    mine.pop(ORDER, None)
    other.load_state_dict(saved)
    opt.replace(p, new, ROWS)
    assert opt.param_groups[1]["params"] == [new]
    assert p not in opt.state
    steps(opt, [new, q], range(3, 6))
    steps(other, [twin, r], range(3, 6))
    assert torch.equal(new, twin)
    assert torch.equal(q, r)
    for key, x in opt.state[new].items():
        assert torch.equal(x, other.state[twin][key]), key


@pytest.mark.parametrize("name", NAMES)
def test_state_follows_the_rows_of_every_method(name):
    check_follows(getattr(fat, name), **({"momentum": 0.9, "lr": 0.1} if name == "SGD" else {}))


@pytest.mark.parametrize(("dtype", "own"), FORMATS, ids=str)
def test_every_format_follows(dtype, own):
    check_follows(fat.AdamW, dtype, amsgrad=True, **own)


def test_before_the_first_step_and_with_initial_values():
    p, q = parameters()
    opt = fat.Adagrad([p, q], initial_accumulator_value=0.5)
    new = torch.nn.Parameter(torch.ones(7, 300))
    opt.replace(p, new)
    assert (opt.state[new]["sum"] == 0.5).all()
    opt = fat.AdamW([q])
    opt.replace(q, torch.nn.Parameter(torch.ones(2)), torch.tensor([0, 1]))
    assert not opt.state


def test_copies_are_replaced_too():
    p, q = parameters()
    opt = fat.AdamW([p, q], copy_to=[torch.zeros(5, 300).half(), torch.zeros(3).half()])
    steps(opt, [p, q], range(1))
    new, short = torch.nn.Parameter(p.detach()[:2].clone()), torch.zeros(2, 300).half()
    with pytest.raises(ValueError, match="copy_to is NoneType, expected a tensor"):
        opt.replace(p, new)
    with pytest.raises(TypeError, match="expected bfloat16 or float16"):
        opt.replace(p, new, copy_to=torch.zeros(2, 300))
    assert opt.param_groups[0]["params"] == [p, q]
    assert p in opt.state
    opt.replace(p, new, copy_to=short)
    steps(opt, [new, q], range(1, 2))
    assert torch.equal(short, new.half())


def test_what_cannot_be_replaced():
    p, q = parameters()
    opt = fat.AdamW([p, q])
    steps(opt, [p, q], range(1))
    new = torch.nn.Parameter(torch.ones(2, 300))
    for args, error, words in [
        ((new, p), ValueError, "old is no parameter of this optimizer"),
        ((p, q), TypeError, "new is Parameter, expected a leaf tensor that is no parameter here yet"),
        ((p, new * 2), TypeError, "new is Tensor, expected a leaf"),
        ((p, torch.ones(2, 4)), ValueError, r"new is float32\(2, 4\) on cpu, old is float32\(5, 300\) on cpu"),
        ((p, torch.ones(2, 300).double()), ValueError, r"new is float64\(2, 300\)"),
        ((p, new, [0]), ValueError, r"rows is int64\(1,\), expected one index for each of the 2 rows"),
        ((p, new, torch.tensor([0, -2])), IndexError, r"rows\[1\] is -2"),
        ((p, new, None, new), ValueError, "copy_to is Parameter"),
    ]:
        with pytest.raises(error, match=words):
            opt.replace(*args)
        assert opt.param_groups[0]["params"] == [p, q]
        assert set(opt.state) == {p, q}
