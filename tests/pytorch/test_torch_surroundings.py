"""What stands around an optimizer in PyTorch: compiled and checkpointed models, forked workers, several processes."""

import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install ".[torch]"')

from torch.testing import assert_close  # noqa: E402

import fastadam.torch as fat  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()


def trained(opt, model, forward):
    for t in range(5):
        torch.manual_seed(t)
        opt.zero_grad()
        forward(torch.randn(4, 6, dtype=torch.float64)).square().mean().backward()
        opt.step()
    return list(model.parameters())


@pytest.mark.parametrize("around", ["compiled", "checkpointed", "autocast"])
def test_models(around):
    """The same parameters as with torch's optimizer around the same model."""
    ends = []
    for module in (torch.optim, fat):
        model = network()
        forward = model
        if around == "compiled":
            forward = torch.compile(model, backend="aot_eager")
        if around == "checkpointed":

            def forward(x, model=model):
                return torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)

        if around == "autocast":
            model.float()

            def forward(x, model=model):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    return model(x.float())

        ends.append(trained(module.AdamW(model.parameters(), lr=0.1), model, forward))
    assert_close(*ends)


def test_a_compiled_step_breaks_the_graph():
    """torch.compile of the step itself runs it as it is."""
    model = network()
    opt = fat.AdamW(model.parameters(), lr=0.1)
    other = network()
    plain = trained(fat.AdamW(other.parameters(), lr=0.1), other, other)
    step = torch.compile(opt.step, backend="aot_eager")
    for t in range(5):
        torch.manual_seed(t)
        opt.zero_grad()
        model(torch.randn(4, 6, dtype=torch.float64)).square().mean().backward()
        step()
    assert_close(list(model.parameters()), plain)


WORKERS = """
import torch
import fastadam.torch as fat

def step(p, opt):
    p.grad = torch.ones_like(p)
    opt.step()
    return p[0].item()

p = torch.nn.Parameter(torch.zeros(300_000))  # enough for several threads
opt = fat.AdamW([p], lr=0.1)

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, k):
        return step(p, opt) if stepping else float(k)

for stepping in (False, True):
    step(p, opt)
    loader = torch.utils.data.DataLoader(Data(), num_workers=2, multiprocessing_context="fork")
    seen = [x.item() for x in loader]
    assert seen == [0.0, 1.0, 2.0, 3.0] or stepping, seen
    step(p, opt)
print(round(p[0].item(), 3), [round(x, 3) for x in seen])
"""


def test_workers_that_fork_after_a_step(fresh):
    """The parent goes on stepping, and so may the children, each on a copy of its own; lr 0.1 moves p by 0.1 a step."""
    end, _, seen = fresh(WORKERS, strict=False).strip().splitlines()[-1].partition(" ")
    assert float(end) == pytest.approx(-0.4, abs=2e-3)
    assert [float(x) for x in seen.strip("[]").split(",")] == pytest.approx([-0.4, -0.4, -0.5, -0.5], abs=2e-3)


PROCESSES = """
import os
import sys
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import fastadam.torch as fat

rank, world, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=world)
torch.set_num_threads(1)
mesh = init_device_mesh("cpu", (world,))

def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()

def sharded(model):
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    return model

def trained(wrap, make):
    model = wrap(network())
    opt = make(model.parameters())
    for t in range(5):
        torch.manual_seed(10 * t + rank)
        opt.zero_grad()
        model(torch.randn(4, 6, dtype=torch.float64)).square().mean().backward()
        opt.step()
    return model, opt

for name, named in [("AdamW", {"lr": 0.1}), ("SGD", {"lr": 0.1, "momentum": 0.9}), ("Adagrad", {"lr": 0.1})]:
    theirs, ours = getattr(torch.optim, name), getattr(fat, name)
    expected = list(trained(DistributedDataParallel, lambda p: theirs(p, foreach=False, **named))[0].parameters())

    model, _ = trained(DistributedDataParallel, lambda p: ours(p, **named))
    assert_close(list(model.parameters()), expected)

    model, opt = trained(DistributedDataParallel, lambda p: ZeroRedundancyOptimizer(p, ours, **named))
    assert_close(list(model.parameters()), expected)
    opt.consolidate_state_dict()

    model, opt = trained(sharded, lambda p: ours(p, **named))
    assert_close([p.full_tensor() for p in model.parameters()], expected)
    assert all(isinstance(x, DTensor) for state in opt.state.values() for x in state.values() if x.dim())
    set_optimizer_state_dict(model, opt, get_optimizer_state_dict(model, opt))
    opt.step()

own = {"moments": "bfloat16", "index_offset": rank * 2**40, "lr": 0.1}
for named in ({}, {"master": "float32"}, {"master": "remainder"}):
    model = sharded(network().bfloat16())
    opt = fat.AdamW(model.parameters(), **named, **own)
    shards = [torch.nn.Parameter(p.to_local().detach().clone()) for p in model.parameters()]
    plain = fat.AdamW(shards, **named, **own)
    for t in range(3):
        torch.manual_seed(10 * t + rank)
        opt.zero_grad()
        model(torch.randn(4, 6, dtype=torch.bfloat16)).square().mean().backward()
        for p, q in zip(model.parameters(), shards, strict=True):
            q.grad = p.grad.to_local().clone()
        opt.step()
        plain.step()
        set_optimizer_state_dict(model, opt, get_optimizer_state_dict(model, opt))
    for p, q in zip(model.parameters(), shards, strict=True):
        assert torch.equal(p.to_local(), q)
        for key, x in plain.state[q].items():
            mine = opt.state[p][key]
            assert isinstance(mine, DTensor) or not x.dim()
            assert mine.dtype is x.dtype and torch.equal(mine.to_local() if x.dim() else mine, x), key
try:
    fat.AdamW(model.parameters(), moments="8bit")
except ValueError as error:
    print(error)

model = sharded(network())
opt = fat.AdamW(model.parameters(), max_norm=1.0)
model(torch.randn(4, 6, dtype=torch.float64)).mean().backward()
try:
    opt.step()
except ValueError as error:
    print(error)
dist.barrier()  # nobody leaves while another still talks
dist.destroy_process_group()
# Models and meshes still hold the group, so gloo's threads live on; one that drops the last reference to a tensor while
# Python ends aborts: "terminate called without an active exception", PyTorch's issue 38228. Nothing of ours is needed:
# async all_reduces of one process, and a name that holds dist.group.WORLD. So Python does not end.
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.parametrize("world", [1, 2])
def test_data_parallel_zero_redundancy_and_sharded(start, tmp_path, world):
    """DDP, ZeroRedundancyOptimizer and FSDP2 end where DDP with torch's optimizer ends; a shard's norm is no norm."""
    processes = [
        start(PROCESSES, rank, world, tmp_path / "meet", strict=False, OMP_NUM_THREADS=1) for rank in range(world)
    ]
    for process in processes:
        output = process.output()
        assert "is a DTensor: max_norm, skip_nonfinite and stats would see one shard" in output
        assert "the shape of a DTensor says nothing of its blocks" in output
