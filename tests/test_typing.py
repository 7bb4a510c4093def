"""Type checkers see every hyperparameter: the stubs say what the signatures say, which are made from the rules.

`python tests/test_typing.py` writes the stubs anew.
"""

import inspect
import subprocess
import sys
from pathlib import Path

import fastadam
from fastadam import functional, kernels
from fastadam.optimizer import Optimizer
from fastadam.tools.cover import METHODS

FOLDER = Path(fastadam.__file__).parent
ARRAYS = {"p", "g", *(slot.name for kernel in kernels.ALL.values() for slot in kernel.slots)}


def argument(p):
    """One parameter as source text."""
    kind = p.annotation
    if p.name == "lr":
        text = "LearningRate"
    elif p.name == "params":
        text = "Tree"
    elif p.name in ARRAYS:
        text = "Array" + (" | None" if p.default is None else "")
    else:
        text = kind.__name__ if isinstance(kind, type) and "[" not in str(kind) else str(kind)
        text = text.replace("collections.abc.", "").replace("typing.Any", "Tree")
    return f"{p.name}: {text}" + (f" = {p.default!r}" if p.default is not p.empty else "")


def signature(function, first=(), options=None):
    """options: parameters that go without saying, and the name of the TypedDict that says them."""
    words, starred = list(first), False
    for p in inspect.signature(function).parameters.values():
        if options and p.name in options[0]:
            continue
        if p.kind is p.KEYWORD_ONLY and not starred:
            words.append("*")
            starred = True
        words.append(argument(p))
    if options:
        words.append(f"**options: Unpack[{options[1]}]")
    return "(\n" + "".join(f"        {word},\n" for word in words) + "    )"


def methods_stub():
    head = "# Written by tests/test_typing.py from the rules.\n\nfrom collections.abc import Callable\n"
    head += "from typing import TypedDict, Unpack\n\nfrom fastadam.arrays.tree import Tree\n"
    head += "from fastadam.optimizer import Optimizer\nfrom fastadam.rule import LearningRate\n"
    own = inspect.signature(Optimizer.__init__).parameters.values()
    own = [p for p in own if p.kind is p.KEYWORD_ONLY]
    options = "".join(f"    {argument(p.replace(default=p.empty))}\n" for p in own)
    text = f"{head}\nclass Options(TypedDict, total=False):\n{options}"
    for m in METHODS:
        said = signature(m, ["self"], ({p.name for p in own}, "Options"))
        text += f"\nclass {m.__name__}(Optimizer):\n    def __init__{said} -> None: ...\n"
    return text


def functional_stub():
    head = "# Written by tests/test_typing.py from the functions and the rules.\n\n"
    head += "from fastadam.arrays.host import Array\n"
    head += "from fastadam.rule import LearningRate\n"
    functions = [f for name, f in vars(functional).items() if name.endswith("_step")]
    text = head
    for f in functions:
        gives = {
            functional.nadam_step: "float", functional.schedulefree_step: "tuple[float, float]",
            functional.prodigy_step: "tuple[float, float, float]",
        }.get(f, "None")  # fmt: skip
        text += f"\ndef {f.__name__}{signature(f)} -> {gives}: ...\n"
    return text


STUBS = {"methods.pyi": methods_stub, "functional.pyi": functional_stub}


def formatted(text):
    command = [
        sys.executable,
        "-m",
        "ruff",
        "format",
        "--stdin-filename",
        "x.pyi",
        "--config",
        FOLDER.parent / "pyproject.toml",
    ]
    return subprocess.run([*command, "-"], input=text, capture_output=True, text=True, check=True).stdout


def test_the_stubs_say_what_the_signatures_say():
    for name, write in STUBS.items():
        assert (FOLDER / name).read_text() == formatted(write()), f"python tests/test_typing.py writes {name} anew"


PROGRAM = """
import numpy as np
import fastadam as fa
p = np.ones(3)
fa.Adam(p, 1e-3, (0.9, 0.99), weight_decay=0.1, backend="numpy").step(p, grad_scale=0.5)
fa.adam_step(p, p, p, p, t=1, betas=(0.9, 0.99))
fa.Adam(p, learning_rate=1e-3)
fa.AdamW(p, betas=0.9)
fa.adam_step(p, p, p, p, t=1, foo=1)
fa.nadam_step(p, p, p, p)
"""


def test_a_type_checker_finds_what_is_wrong(tmp_path, pytestconfig):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        "",
        "--follow-imports",
        "silent",
        "--ignore-missing-imports",
    ]
    found = subprocess.run(
        [*command, "--cache-dir", pytestconfig.cache.mkdir("mypy"), tmp_path / "program.py"],
        capture_output=True, text=True, cwd=FOLDER.parent,
    ).stdout  # fmt: skip
    lines = sorted({int(line.split(":")[1]) for line in found.splitlines() if ": error:" in line})
    assert lines == [7, 8, 9, 10], found


if __name__ == "__main__":
    for name, write in STUBS.items():
        (FOLDER / name).write_text(formatted(write()))
