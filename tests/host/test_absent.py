"""What only some systems have is taken away; steps go on, with the same bits, and what cannot go on says why."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import fastadam

STEP = """
import numpy as np, fastadam as fa
p = np.linspace(-1, 1, 100_000, dtype=np.float32)
opt = fa.AdamW({"w": p}, lr=0.1)
for t in range(3):
    opt.step({"w": np.sin(p)})
print(opt.backend, fa.get_num_threads() >= 1, fa.info()["threads"]["from"], p.tobytes().hex()[-4000:])
"""
NO = {  # the text that takes something away before fastadam is imported
    "sched_getaffinity": "import os; del os.sched_getaffinity",
    "register_at_fork": "import numba, os; del os.register_at_fork",  # Python's own random needs it when it is imported
    "madvise": "import mmap; [delattr(mmap, name) for name in dir(mmap) if name.startswith('MADV_')]",
    "cgroups and /proc": """
import pathlib
read = pathlib.Path.read_text
def read_text(self, *args, **named):
    if str(self).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", str(self))
    return read(self, *args, **named)
pathlib.Path.read_text = read_text
""",
    "fcntl": "import sys, numba; sys.modules['fcntl'] = None",
}


def expected():
    """The end of p after the three steps, by the reference."""
    p = np.linspace(-1, 1, 100_000, dtype=np.float32)
    opt = fastadam.AdamW({"w": p}, lr=0.1, backend="numpy")
    for _ in range(3):
        opt.step({"w": np.sin(p)})
    return p.tobytes().hex()[-4000:]


@pytest.mark.parametrize("name", NO)
def test_steps_go_on_without(name, fresh):
    backend, counts, source, end = fresh(NO[name] + "\n" + STEP).split()[-4:]
    assert (backend, counts, source) == ("numba", "True", "affinity")
    assert end == expected()


def test_a_clone_without_symbolic_links_says_so(fresh, tmp_path):
    """As git leaves it where the system has none: a text file with the link's target."""
    here = Path(fastadam.__file__).parent
    shutil.copytree(here, tmp_path / "fastadam", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for link in ("kernels", "benchmarks"):
        if (tmp_path / "fastadam" / link).is_symlink():
            (tmp_path / "fastadam" / link).unlink()
            (tmp_path / "fastadam" / link).write_text(f"../{link}")
        else:
            pytest.skip("this fastadam is installed, and has no links")
    text = "try:\n    import fastadam\nexcept ImportError as error:\n    print(error)"
    assert fresh(text, package=tmp_path).strip() == (
        "fastadam/kernels is a text file where a symbolic link should be: clone with git clone -c core.symlinks=true"
    )
