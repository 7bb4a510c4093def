"""A backend, added to a copy of the tree: NumPy's under another name."""

from house.addition import Addition, Insertion

# NumPy's backend under another name.
BACKEND = Addition(
    thing="a backend",
    name="twin",
    insertions=(
        Insertion(
            "fastadam/host/twin.py",
            None,
            '''"""The plan of the twin backend: NumPy's."""

from fastadam.host.reference import NumpyPlan


class TwinPlan(NumpyPlan):
    """Is whole-array arithmetic, under another name."""
''',
        ),
        Insertion(
            "fastadam/backend.py",
            "from fastadam.host.reference import NumpyPlan\n",
            "from fastadam.host.twin import TwinPlan\n",
        ),
        Insertion(
            "fastadam/backend.py",
            'Backend("numpy", NumpyPlan, host.Judge, "numpy"),',
            ' Backend("twin", TwinPlan, host.Judge, "numpy"),',
        ),
    ),
    proof="""
import numpy as np
import fastadam as fa

assert fa.backends()["twin"] == "ready"
for backend in "numpy", "twin":
    p = np.linspace(-1, 1, 3000, dtype="f4")
    opt = fa.AdamW(p, lr=0.1, backend=backend)
    opt.step(p[::-1].copy())
    assert opt.backend == backend
    if backend == "numpy":
        first = p
assert (first.view("u4") == p.view("u4")).all()
""",
)
