"""CONTRIBUTING.md is true: its steps add a thing of each kind to a copy of the tree, no other file touched."""

import filecmp
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from house.additions import ADDITIONS

ROOT = Path(__file__).parents[2]
# Of a clone: what is built or kept in it beside is not copied.
PARTS = "fastadam", "kernels", "benchmarks", "tests", "pyproject.toml"
ADDED = list(ADDITIONS.values())
# Tests that look through everything there is: what is added must be what they ask for.
LISTS = [
    "tests/test_house.py",
    "tests/test_docstrings.py::test_examples_run[fastadam]",
    "tests/test_functional.py::test_every_kernel_has_a_function",
    "tests/test_guides.py::test_every_method_stands_in_the_table_that_helps_to_choose",
    "tests/test_convergence.py::test_every_method_is_here",
    "tests/test_optimizer.py::test_the_table_above_knows_every_method",
]


def files_of_rows():
    """The files in each row of CONTRIBUTING's table, by what is to be added."""
    rows = re.findall(r"^\| (an? [^|]*?) \| ([^|]*) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    return {thing: set(re.findall(r"`([\w/.<>]+)`", files)) for thing, files in rows}


def files_under(root):
    """Every file's path below `root`, but for links and what lies behind them."""
    walked = [(Path(folder), files) for folder, _, files in os.walk(root) if "__pycache__" not in folder]
    paths = [folder / file for folder, files in walked for file in files]
    return {str(path.relative_to(root)) for path in paths if not path.is_symlink()}


@pytest.fixture
def copied(tmp_path):
    """A copy of the tree, links as links."""
    root = tmp_path / "tree"
    root.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, root / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, root / part)
    return root


def run(root, *arguments, timeout=600):
    """What a command of Python prints in a copy of the tree, whose library it loads; it must end well."""
    other = "PYTHON", "NUMBA_", "FASTADAM_", "PYTEST_"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(other)}
    environment |= {"PYTHONPATH": str(root), "FASTADAM_CACHE_DIR": str(root.parent / "cache")}
    command = [sys.executable, "-P", *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{arguments}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_row_of_the_table_has_an_addition():
    assert files_of_rows().keys() == ADDITIONS.keys()


@pytest.mark.parametrize("addition", ADDED, ids=lambda addition: addition.name)
def test_an_addition_touches_the_files_of_its_row_and_verify_finds_it(addition, copied):
    before = files_under(copied)
    addition.apply(copied)
    for file in addition.generated:
        run(copied, file)
    after = files_under(copied)
    touched = {
        file for file in after if file not in before or not filecmp.cmp(copied / file, ROOT / file, shallow=False)
    }
    assert before <= after
    assert touched == {file.replace("<name>", addition.name) for file in files_of_rows()[addition.thing]}

    assert run(copied, "-c", "import fastadam; print(fastadam.__file__)").strip() == str(
        copied / "fastadam/__init__.py"
    )
    verified = run(copied, "-m", "fastadam", "verify", "--only", addition.name)
    cases, failed = re.search(r"^(\d+) cases, (\d+) failed$", verified, re.MULTILINE).groups()
    assert int(cases) > 0, verified
    assert int(failed) == 0, verified
    run(copied, "-c", addition.proof)
    kept = f"cache_dir={copied.parent / 'pytest'}"  # beside the tree, where no file may be touched
    found = run(copied, "-m", "pytest", "-q", "-n", "0", "-o", kept, *LISTS, *addition.tests)
    assert re.search(r"\d+ passed", found), found
