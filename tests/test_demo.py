"""The demo as a user runs it, and its hand-written gradients against differences of its loss."""

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastadam as fa
from fastadam import cli, demo

ROOT = Path(__file__).parent.parent


def python(*args):
    return subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_demo_reads_handwriting():
    pytest.importorskip("sklearn.datasets")
    done = python("-m", "fastadam", "demo")
    assert done.returncode == 0, done.stderr
    *_, update, last = done.stdout.splitlines()
    assert re.fullmatch(r"update: \d+\.\d\d of \d+\.\d\d s, \d+ % of the time", update)
    assert float(re.fullmatch(r"test accuracy (\d+\.\d) %", last)[1]) >= 97
    assert done.stderr == ""


def test_backends_and_repetitions_print_the_same(capsys):
    pytest.importorskip("sklearn.datasets")
    told = []
    for backend in "numpy", "numba", "numba":
        assert cli.main(["demo", "--epochs", "3", "--seed", "7", "--backend", backend]) == 0
        first, *lines = capsys.readouterr().out.splitlines()
        assert first.endswith(f"Adam on {backend}")
        told.append([line for line in lines if not line.startswith("update")])
    assert told[0] == told[1] == told[2]
    assert len(told[0]) == 4


@pytest.mark.parametrize("name", [name for name in dir(fa) if name in cli.optimizers()])
def test_every_optimizer_learns(name, capsys):
    pytest.importorskip("sklearn.datasets")
    assert cli.main(["demo", "--epochs", "10", "--optimizer", name, "--backend", "numpy"]) == 0
    assert float(capsys.readouterr().out.split()[-2]) >= 90


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    pytest.importorskip("sklearn.datasets")
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["demo", "--epochs", "2"]) == 0
    out = capsys.readouterr().out
    assert "epoch" not in out
    assert "100%" in out
    assert out.splitlines()[-1].startswith("test accuracy ")


def test_split_takes_a_share_of_every_class():
    y = np.repeat(np.arange(3), (8, 40, 100))
    learn, test = demo.split(y, np.random.default_rng(0))
    assert np.bincount(y[test]).tolist() == [2, 10, 25]
    assert sorted([*learn, *test]) == list(range(len(y)))


def test_gradients_are_those_of_the_loss():
    """(L(w+h) - L(w-h)) / 2h for every weight w; the tolerance has two parts.

    Rounding moves L by k·u·s at most, so the quotient by k·u·s/h: k counts the roundings between weights and loss, in
    sums of whatever order (Higham 2002, 3.1); s is the total size of what is added: an error e in the logits, whose
    terms have size `terms`, moves L by 2e, and L itself adds a logarithm and differences of two logits.
    Truncation is h²/6·|L'''|. No ReLU changes sides within h, so logits are linear in w with slopes within `slope`,
    and L''' is the third central moment of these slopes under softmax: over a range r = 2·slope, r³/(6√3) at most.
    """
    sizes, n, h = (3, 4, 5, 3), 6, 2.0**-17
    rng = np.random.default_rng(0)
    params = demo.mlp_init(rng, sizes, np.float64)
    for layer in params:
        layer["b"] += 0.2 * rng.standard_normal(layer["b"].shape)
    x, y = rng.random((n, 3)), rng.integers(0, 3, n)

    a, terms, most, gain, margins = x, x, 1.0, 1.0, []
    for layer in params:
        z = a @ layer["w"] + layer["b"]
        terms = terms @ np.abs(layer["w"]) + np.abs(layer["b"])
        most = max(most, np.abs(a).max())
        gain *= max(1.0, np.abs(layer["w"]).sum(axis=0).max())
        margins.append(z)
        a = np.maximum(z, 0)
    hidden = np.concatenate([z.ravel() for z in margins[:-1]])
    slope = most * gain
    assert np.abs(hidden).min() > h * slope
    assert (hidden > 0).any()
    assert (hidden < 0).any()

    classes = sizes[-1]
    k = sum(i + 1 for i in sizes[:-1]) + (n + 1) * classes + 16  # 16: exp and log of up to 4 ulp, and single operations
    s = math.log(classes) + 4 * terms.max()
    tolerance = k * np.finfo(float).eps / 2 * s / h + h**2 / 6 * (2 * slope) ** 3 / (6 * math.sqrt(3))

    _, grads, hits = demo.mlp_loss_and_grads(params, x, y)
    assert hits == (margins[-1].argmax(axis=1) == y).sum()
    for layer, grad in zip(params, grads, strict=True):
        for name, w in layer.items():
            assert grad[name].shape == w.shape
            for at in np.ndindex(w.shape):
                here, ends, losses = w[at], [], []
                for step in h, -h:
                    w[at] = here + step
                    ends.append(w[at])
                    losses.append(demo.mlp_loss_and_grads(params, x, y)[0])
                w[at] = here
                slope_seen = (losses[0] - losses[1]) / (ends[0] - ends[1])
                assert abs(grad[name][at] - slope_seen) <= tolerance, (name, at)
    assert tolerance < 1e-4 * max(np.abs(g).max() for grad in grads for g in grad.values())


def test_gradients_are_float32():
    params = demo.mlp_init(np.random.default_rng(0))
    _, grads, _ = demo.mlp_loss_and_grads(params, np.ones((2, 64), np.float32), np.array([0, 1]))
    for layer, grad in zip(params, grads, strict=True):
        assert all(layer[name].dtype == grad[name].dtype == np.float32 for name in ("w", "b"))


WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sklearn":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from fastadam.cli import main
sys.exit(main(["demo"]))
"""


def test_without_scikit_learn_one_line_says_what_to_do():
    done = python("-c", WITHOUT)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "scikit-learn is missing" in line
    assert 'pip install "fastadam[demo]"' in line


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--epochs", "0", "an integer of at least 1"),
        ("--epochs", "2.5", "an integer of at least 1"),
        ("--batch-size", "-1", "an integer of at least 1"),
        ("--batch-size", "many", "an integer of at least 1"),
        ("--lr", "0", "a number above 0 and at most 100"),
        ("--lr", "nan", "a number above 0 and at most 100"),
        ("--lr", "1e300", "a number above 0 and at most 100"),
        ("--lr", "fast", "a number above 0 and at most 100"),
        ("--seed", "-1", "an integer of at least 0"),
        ("--optimizer", "adam", "AdamW"),
        ("--optimizer", "Optimizer", "AdamW"),
        ("--backend", "gpu", "numba"),
    ],
)
def test_a_bad_option_is_one_line(option, value, expected, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["demo", option, value])
    out, err = capsys.readouterr()
    assert (exit.value.code, out) == (2, "")
    (line,) = err.splitlines()
    for word in option, repr(value), expected:
        assert word in line


def test_an_unknown_backend_in_the_environment_is_one_line(capsys, monkeypatch):
    pytest.importorskip("sklearn.datasets")
    monkeypatch.setenv("FASTADAM_BACKEND", "abacus")
    assert cli.main(["demo"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert "'abacus'" in line


def test_no_command_is_help_and_loads_nothing():
    done = python("-m", "fastadam")
    assert done.returncode == 2
    assert "usage: python -m fastadam" in done.stderr
    assert "demo" in done.stderr
    loaded = "import sys; from fastadam.cli import main; main([]); print(*sys.modules)"
    assert not {"fastadam.demo", "sklearn", "rich", "numba"} & set(python("-c", loaded).stdout.split())
