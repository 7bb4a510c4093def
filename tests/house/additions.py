"""What CONTRIBUTING.md's table says, as text: each thing it tells how to add, added by the steps of its row.

An addition only inserts: what stands in the tree is not edited. test_additions.py applies it to a copy.
"""

from pathlib import Path
from typing import NamedTuple


class Insertion(NamedTuple):
    """Text that a file gets right behind an anchor, which stands there once; a new file has no anchor."""

    file: str
    anchor: str | None
    text: str


class Addition(NamedTuple):
    """One thing that is added to a copy of the tree.

    thing:      what CONTRIBUTING's table calls it: the first column of its row.
    name:       its own name, which stands for <name> in that row and is in its lines of `verify`.
    insertions: all that it takes.
    proof:      a Python text that fails unless the thing does what it should, beside what `verify` finds.
    tests:      what is handed to pytest in the copy: tests that find the thing by themselves.
    """

    thing: str
    name: str
    insertions: tuple[Insertion, ...]
    proof: str
    tests: tuple[str, ...] = ()

    def apply(self, root: Path) -> None:
        """Insert everything under `root`."""
        for file, anchor, text in self.insertions:
            path = root / file
            if anchor is None:
                assert not path.exists(), f"{file} is there already"
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)
            else:
                before, *more = path.read_text().split(anchor)
                assert len(more) == 1, f"{file} has {anchor!r} {len(more)} times"
                path.write_text(before + anchor + text + more[0])


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
        Insertion("fastadam/torch/leaf.py", "formats import (\n    BFLOAT16,\n", "    BRAIN16,\n"),
        Insertion("fastadam/torch/leaf.py", "BFLOAT16: torch.bfloat16, ", "BRAIN16: torch.uint16, "),
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

ADDITIONS = {addition.thing: addition for addition in (FORMAT,)}
OPEN = {"a rule over a kernel that exists", "a kernel", "a backend"}  # rows that no addition follows yet
