"""What a user installs: a wheel and an sdist, each in its own environment, away from the sources and beside them."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numba
import pytest

ROOT = Path(__file__).parent.parent

STEP = """
import importlib.util, sys
import numpy as np, fastadam as fa, fastadam.kernels
p = np.ones(100_000, np.float32)
opt = fa.AdamW({"w": p}, lr=0.5, weight_decay=0.0)
opt.step({"w": np.ones_like(p)})
assert opt.backend == "numba" and opt.t == 1 and np.allclose(p, 0.5), p
assert importlib.util.find_spec("kernels") is None or %r, "a package named kernels stands at the top level"
print(fa.__file__)
"""


def run(*command, **options):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FASTADAM", "VIRTUAL_ENV"))}
    done = subprocess.run(command, env=clean, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist of the sources, and the wheel that is built from that sdist.

    By the setuptools of the test extra: whoever installed that has seen pip fetch what pyproject.toml builds with.
    """
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    return out


def test_both_archives_hold_the_same_package(built):
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    inside = set(zipfile.ZipFile(wheel).namelist())
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fastadam").glob("*.py")}
    sources |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "fastadam/tools/demo").glob("*.py")}
    for linked in ("kernels", "benchmarks"):
        for kind in ("*.py", "*.cu*"):
            sources |= {f"fastadam/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / linked).rglob(kind)}
    sources.add("fastadam/py.typed")
    assert sources <= inside
    assert {name.split("/")[0] for name in inside if ".dist-info" not in name} == {"fastadam"}
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert sources <= names
    assert "LICENSE" in names


@pytest.mark.parametrize("kind", ["*.whl", pytest.param("*.tar.gz", marks=pytest.mark.whole)])
def test_an_archive_installs_and_steps(built, kind, tmp_path, pytestconfig):
    """By default the wheel alone, which was built from the sdist, with the NumPy and Numba of this environment."""
    (archive,) = built.glob(kind)
    whole = pytestconfig.getoption("--all")
    run(sys.executable, "-m", "venv", *([] if whole else ["--without-pip"]), tmp_path / "env")
    python = tmp_path / ("env/Scripts/python.exe" if os.name == "nt" else "env/bin/python")
    pip = [python, "-m", "pip"] if whole else [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "--quiet", "--no-compile", *([] if whole else ["--no-deps"]), archive)
    if not whole:
        packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        Path(packages, "dependencies.pth").write_text(str(Path(numba.__file__).parents[1]))
    away = run(python, "-c", STEP % False, cwd=tmp_path)
    assert Path(away.strip()).is_relative_to(tmp_path)
    beside = run(python, "-c", STEP % True, cwd=ROOT)  # ./fastadam shadows the installed one there, and must work
    assert Path(beside.strip()).is_relative_to(ROOT)
    assert "demo" in run(python, "-m", "fastadam", "--help", cwd=ROOT)
    bench = "-m", "fastadam", "bench", "--sizes", "100", "--rounds", "1", "--peers", "plain NumPy", "--threads", "1"
    assert "plain NumPy" in run(python, *bench, cwd=tmp_path)
