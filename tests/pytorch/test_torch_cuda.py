"""The walk over CUDA tensors without a GPU: torch's host tensors in the place of device tensors, the stand-in for CuPy.

Held bit for bit against the walk on the CPU. Not tested so: torch's own streams and allocator.
"""

import sys

import cuda_host
import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install ".[torch]"')
pytest.importorskip("ml_dtypes", reason="bfloat16 on devices needs ml_dtypes")

from torch.nn import Parameter  # noqa: E402

import fastadam.torch as fat  # noqa: E402
from fastadam.backend import BACKENDS  # noqa: E402
from fastadam.cuda.plan import CudaPlan  # noqa: E402
from fastadam.torch import cuda, formats, optimizer  # noqa: E402

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
pytestmark = pytest.mark.skipif(cuda_host.COMPILER is None, reason="no g++: the .cu text cannot run on the host")


@pytest.fixture
def device(cupy, monkeypatch):
    """Optimizers that are made meanwhile take the CPU's tensors for a device's; device() waits for it."""
    monkeypatch.setitem(optimizer.WALKS, "cpu", cuda.CudaWalk)
    monkeypatch.setattr(cuda, "current_stream", lambda x: 1)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    put = CudaPlan.put_gradients

    def put_gradients(plan, addresses):
        """Gradients travel as addresses alone; here the stand-in learns whose these are."""
        for one in plan.signatures:
            for k in one.leaves:
                if address := int(addresses[k]):
                    memory, end = cupy.state.memory, address + plan._params[k].size * one.kind.dtype.itemsize
                    # A sparse gradient has fewer values than its parameter: they end before the device's next array.
                    after = [x.first for x in memory._near(address, end) if x.stream is not None and x.first > address]
                    memory.borrow(address, min([end, *after]))
        put(plan, addresses)

    monkeypatch.setattr(CudaPlan, "put_gradients", put_gradients)
    return cupy.cuda.Stream.null.synchronize


def parameters(kind=F32):
    """In two groups; of two sizes that end within a block of 8 bits, in another order of axes, of none, complex."""
    torch.manual_seed(2)
    return [
        Parameter(torch.randn(40, 30).to(kind)), Parameter(torch.randn(7).to(kind)),
        Parameter(torch.randn(2, 3, 4, 5).to(kind, memory_format=torch.channels_last)),
        Parameter(torch.randn(0, 3).to(kind)),
        *([Parameter(torch.randn((), dtype=torch.complex64))] if kind is F32 else ()),
    ]  # fmt: skip


def grouped(params):
    return [{"params": params[:2]}, {"params": params[2:], "lr": 0.03}]


def dense(p, t, k):
    return None if k == t % 4 else torch.randn_like(p, memory_format=torch.contiguous_format)


def trained(method, params, wait, steps=6, bad=(), scaled=False, copies=None, gradient=dense, **chosen):
    """Parameters, state, copies and findings after some steps, some without some gradients.

    bad: steps that a gradient is infinite in. scaled: whether a GradScaler asks, which finds infinity in one of them.
    copies: what copies rest in. gradient(p, t, k): that of the k-th parameter in step t.
    """
    if copies is not None:
        chosen["copy_to"] = [None if p.is_complex() else torch.zeros_like(p, dtype=copies) for p in params]
    opt, infos = method(grouped(params), lr=0.1, **chosen), []
    for t in range(steps):
        torch.manual_seed(t)
        for k, p in enumerate(params):
            p.grad = gradient(p, t, k)
        if t in bad:
            params[2].grad[1, 1] = torch.inf
        if scaled:
            opt.grad_scale, opt.found_inf = torch.tensor(8.0), torch.tensor(float(t == 2))
        opt.step()
        wait()
        infos.append(tuple(opt.info))
    copied = [x for x in chosen.get("copy_to", ()) if x is not None]
    return params, [opt.state.get(p, {}) for p in params], copied, infos


def check_equal(there, here):
    """Bit for bit."""
    for p, q in zip([*here[0], *here[2]], [*there[0], *there[2]], strict=True):
        assert p.isfinite().all()
        assert torch.equal(p, q)
    for mine, other in zip(here[1], there[1], strict=True):
        assert mine.keys() == other.keys()
        for key, x in mine.items():
            y = other[key]
            if key == "strides":
                assert torch.equal(x, y)
                continue
            assert (x.dtype, x.shape, x.stride()) == (y.dtype, y.shape, y.stride()) if key != "step" else x == y
            assert torch.equal(torch.as_tensor(x), torch.as_tensor(y))
    assert here[3] == there[3]


PLAIN = {
    "AdamW": {}, "Adam": {"amsgrad": True, "fused": True}, "NAdam": {}, "SGD": {"momentum": 0.9, "dampening": 0.3},
    "RMSprop": {"centered": True}, "AdamW max_norm": {"max_norm": 1.0}, "AdamW ema": {"ema_decay": 0.9},
    "SGD skip": {"momentum": 0.9, "dampening": 0.3, "skip_nonfinite": True}, "AdamW skip": {"skip_nonfinite": True},
    "AdamW copies": {"copies": BF16},
}  # fmt: skip
SHORT = {
    "AdamW bfloat16": (BF16, {"scaled": True}), "AdamW float16": (F16, {"copies": BF16}),
    "AdamW moments bfloat16": (F16, {"moments": "bfloat16", "skip_nonfinite": True}),
    "AdamW moments 8bit": (BF16, {"moments": "8bit", "amsgrad": True, "scaled": True}),
    "AdamW remainder": (BF16, {"master": "remainder", "copies": F16, "max_norm": 1.0}),
    "AdamW remainder 8bit skip": (BF16, {"master": "remainder", "moments": "8bit", "skip_nonfinite": True}),
    "AdamW master": (BF16, {"master": "float32", "ema_decay": 0.9, "stats": "tensor"}),
    "AdamW float16 master bfloat16": (F16, {"master": "float32", "moments": "bfloat16", "scaled": True}),
    "AdamW float16 master 8bit skip": (F16, {"master": "float32", "moments": "8bit", "skip_nonfinite": True}),
    "Adagrad 8bit": (BF16, {"moments": "8bit", "initial_accumulator_value": 0.1}),
    "Lion 8bit": (BF16, {"moments": "8bit", "master": "remainder", "max_norm": 0.5, "stats": "group"}),
    "NAdam float64 copies": (F64, {"copies": F16, "moments": "float64"}),
}  # fmt: skip
CASES = {**{name: (F32, chosen) for name, chosen in PLAIN.items()}, **SHORT}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_walk_on_the_cpu(device, monkeypatch, case):
    (kind, chosen), method = CASES[case], getattr(fat, case.split()[0])
    chosen = {"seed": 5, "index_offset": 2**32 - 1000, "bad": (0, 3) if "skip" in case else (), **chosen}
    there = trained(method, parameters(kind), device, **chosen)
    monkeypatch.undo()
    check_equal(there, trained(method, parameters(kind), lambda: None, **chosen))


def mixed():
    """Leaves of every format beside one another, two of them alike; none is complex."""
    torch.manual_seed(4)
    return [
        Parameter(torch.randn(n, 11).to(kind)) for n, kind in ((300, BF16), (3, F32), (95, F16), (2, F32), (9, BF16))
    ]


@pytest.mark.parametrize("chosen", [{"moments": "8bit", "ema_decay": 0.5}, {"master": "float32", "max_norm": 1.0}])
def test_formats_beside_one_another(device, monkeypatch, chosen):
    there = trained(fat.AdamW, mixed(), device, seed=3, **chosen)
    monkeypatch.undo()
    check_equal(there, trained(fat.AdamW, mixed(), lambda: None, seed=3, **chosen))


def sparse(p, t, k):
    """Some rows, in one step none; coalesced, so that p.grad owns what the stand-in puts off reading."""
    if k % 2:
        return dense(p, t, k)
    rows = torch.randperm(len(p))[: 0 if t == 1 else 5]
    values = torch.randn(len(rows), *p.shape[1:]).to(p.dtype)
    return torch.sparse_coo_tensor(rows[None], values, p.shape, check_invariants=True).coalesce()


def only_sparse(p, t, k):
    return None if k == t % 3 else sparse(p, t, 0)


ROWS = {
    "SGD": (F32, sparse, {}), "Adagrad": (F32, sparse, {"copies": BF16, "ema_decay": 0.9}),
    "Adagrad bfloat16": (BF16, sparse, {"moments": "bfloat16", "master": "remainder"}),
    "SparseAdam": (F32, only_sparse, {}), "SparseAdam bfloat16": (BF16, only_sparse, {"moments": "bfloat16"}),
    "SparseAdam master": (F16, only_sparse, {"master": "float32"}),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_sparse_gradients(device, cupy, monkeypatch, case):
    (kind, gradient, chosen), method = ROWS[case], getattr(fat, case.split()[0])

    def params():
        torch.manual_seed(6)
        return [Parameter(torch.randn(n, 13).to(kind)) for n in (50, 8, 20)]

    there = trained(method, params(), device, gradient=gradient, seed=3, **chosen)
    assert any("_Rows_" in launch.name for launch in cupy.state.launches)
    monkeypatch.undo()
    check_equal(there, trained(method, params(), lambda: None, gradient=gradient, seed=3, **chosen))


@pytest.mark.parametrize("chosen", [{"moments": "8bit", "master": "float32"}, {"moments": "bfloat16"}])
def test_gaps(device, cupy, monkeypatch, chosen):
    """A parameter with gaps steps through its copy, what lies between stays; in order with torch's own work on it."""

    def run():
        torch.manual_seed(7)
        wide = [torch.randn(40, 60).bfloat16() for _ in range(3)]
        params = [Parameter(x[:, ::2]) for x in wide]
        params, states, _, infos = trained(fat.AdamW, params, device, seed=3, **chosen)
        return params, states, wide, infos

    timeline, memory = cupy.state.timeline, cupy.state.memory
    at_once = lambda stream, work: timeline.run(timeline.begin(stream, work), memory)  # noqa: E731
    monkeypatch.setattr(cupy.cuda.Stream, "give", at_once)  # as one stream for both would
    there = run()
    monkeypatch.undo()
    check_equal(there, run())


@pytest.mark.parametrize("own", [{"moments": "8bit"}, {"moments": "bfloat16", "master": "remainder"}])
def test_state_comes_and_goes(device, monkeypatch, own):
    """Plain state is encoded and decoded, a master taken anew, and averages lent."""

    def run(wait):
        params = parameters(BF16)
        torch.manual_seed(1)
        opts = [fat.AdamW(params, lr=0.1, seed=seed, ema_decay=0.5, **own) for seed in (3, 4)]
        for opt, other in (opts, opts[::-1]):
            for k, p in enumerate(params):
                p.grad = dense(p, 5, k)
            opt.step()
            wait()
            other.load_state_dict(fat.to_torch_state(opt))
            with opt.averaged():
                pass
            with torch.no_grad():
                params[0].mul_(0.5)
            opt.refresh_master()
        opts[0].step()
        wait()
        return params, [opts[0].state.get(p, {}) for p in params], [], []

    there = run(device)
    monkeypatch.undo()
    check_equal(there, run(lambda: None))


def test_gradients_that_come_and_go_lay_out_nothing_anew(device, monkeypatch):
    """Only state that is new, or lies elsewhere, does."""
    made, before = [], BACKENDS["cuda"].plan
    monkeypatch.setattr(BACKENDS["cuda"], "plan", lambda *args: made.append(1) or before(*args))
    params = parameters(BF16)
    opt = fat.AdamW(params)
    for t, expected in enumerate((1, 2, 2, 2, 2, 3)):  # in the second step the first parameter begins
        for k, p in enumerate(params):
            p.grad = dense(p, t, k)
        if t == 5:
            opt.state[params[0]]["exp_avg"] = opt.state[params[0]]["exp_avg"].clone()
        opt.step()
        device()
        assert len(made) == expected


def test_numbers_on_the_device():
    """A count that lies there is read once, and again when somebody writes it."""
    x = torch.tensor(3.0)
    there = formats.OnDevice(x)
    assert there[()] == 3.0
    there[()] = 4
    assert (there[()], x.item()) == (4.0, 4.0)
    x.add_(1)
    assert there[()] == 5.0


def test_refused(device, monkeypatch):
    p = Parameter(torch.ones(4, 2))
    p.grad = torch.sparse_coo_tensor([[0]], [[1.0, 1.0]], (4, 2), check_invariants=True)
    for own in ({"max_norm": 1.0}, {"skip_nonfinite": True}, {"stats": "group"}):
        opt = fat.Adagrad([p], **own)
        with pytest.raises(NotImplementedError, match=r"the sparse gradient of params\[0\]\[0\] with max_norm, skip"):
            opt.step()
        assert torch.equal(p, torch.ones(4, 2))
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "ml_dtypes", None)
        with pytest.raises(ImportError, match="bfloat16 needs ml_dtypes"):
            fat.AdamW([p], moments="bfloat16")
    opt, p.grad = fat.Adagrad([p]), torch.ones(4, 2)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="cannot be captured"):
        opt.step()
