"""A storage format, added to a copy of the tree: bfloat16's twin under another name."""

from house.addition import Addition, Insertion

# bfloat16's twin under another name: its numbers are the same, its arrays are of uint16.
FORMAT = Addition(
    thing="a storage format",
    name="brain16",
    insertions=(
        Insertion(
            "kernels/formats.py",
            "is bfloat16\n",
            """

def _to_brain16(x: Any, slot: Slot | None, drawn: Draw) -> Any:
    return BFLOAT16.encode(x, slot, drawn).view(np.uint16)


def _of_brain16(rested: Any, slot: Slot | None, n: int) -> Any:
    return BFLOAT16.decode(rested.view(BFLOAT16.dtype), slot, n)


BRAIN16 = Format("brain16", "uint16", 2, _to_brain16, _of_brain16, draws=True, moments=True)
""",
        ),
        Insertion("kernels/formats.py", "FLOAT16, CODES, REMAINDER", ", BRAIN16"),
        Insertion("kernels/cpu/formats.py", "from ..formats import BFLOAT16", ", BRAIN16"),
        Insertion(
            "kernels/cpu/formats.py",
            "_of_bfloat16, _to_bfloat16),\n",
            "    BRAIN16: Text(_I16, _of_bfloat16, _to_bfloat16),\n",
        ),
        Insertion("kernels/cuda/__init__.py", "from ..formats import BFLOAT16", ", BRAIN16"),
        Insertion("kernels/cuda/__init__.py", 'BFLOAT16: "bf16", ', 'BRAIN16: "brain16", '),
        Insertion(
            "kernels/cuda/formats.cuh",
            "// and by those for slots\n",
            "struct brain16 : bf16 {};\nstruct brain16_p : bf16_p {};\nstruct brain16_slot : bf16_slot {};\n",
        ),
        Insertion("fastadam/torch/formats.py", "formats import BFLOAT16, ", "BRAIN16, "),
        Insertion("fastadam/torch/formats.py", "BFLOAT16: torch.bfloat16, ", "BRAIN16: torch.uint16, "),
    ),
    proof="""
import importlib.util
import numpy as np
import fastadam as fa

def stepped(moments, backend):
    rng = np.random.default_rng(0)
    params = [rng.standard_normal((30, 70)).astype("f4").T, rng.standard_normal(9).astype("f4")]
    opt = fa.AdamW(params, lr=0.1, moments=moments, backend=backend, seed=3)
    for _ in range(5):
        opt.step([rng.standard_normal(p.shape).astype("f4") for p in params])
    return opt, [*params, *(x for leaf in opt.moments().values() for x in leaf.values())]

for backend in "numpy", "numba":
    (opt, twins), (_, values) = stepped("brain16", backend), stepped("bfloat16", backend)
    assert all((x.view("u4") == y.view("u4")).all() for x, y in zip(twins, values, strict=True)), backend
    assert {x.dtype.name for x in opt.state_dict()["leaves"]["params[0]"].values() if hasattr(x, "dtype")} == {"uint16"}
    opt.convert("8bit")
    opt.convert("brain16")

from fastadam.benchmarks import truth

assert [truth.lost(np.ones(2), name, None, False, None)[0] for name in ("brain16", "bfloat16")] == [2**-8 + 2**-134] * 2

if importlib.util.find_spec("torch"):
    import torch
    import fastadam.torch

    def torchs(moments):
        generator = torch.Generator().manual_seed(0)
        p = torch.nn.Parameter(torch.randn(50, 60, generator=generator))
        opt = fastadam.torch.Adam([p], lr=0.1, moments=moments, seed=3)
        for _ in range(5):
            p.grad = torch.randn(50, 60, generator=generator)
            opt.step()
        return p, fa.torch.to_torch_state(opt)["state"][0]["exp_avg_sq"]

    for x, y in zip(torchs("brain16"), torchs("bfloat16"), strict=True):
        assert torch.equal(x, y)
else:
    print("torch is not installed: its table of formats is not looked at")
""",
    tests=("tests/cuda/test_cuda_formats.py", "-k", "brain16"),
)
