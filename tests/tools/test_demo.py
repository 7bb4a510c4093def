"""The demo as a user runs it, and its hand-written gradients against differences of its loss."""

import math
import os
import re
import subprocess
import sys
import sysconfig
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import fastadam as fa
from fastadam.tools import cli, demo
from fastadam.tools.demo import learning, models, texts
from fastadam.tools.demo.models import Layer, convolution, dense_on_pooled

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Let pictures go where nobody keeps anything; return the path there."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch):
    """Let no picture be drawn, which takes longer than the training: losses are drawn alike, whatever they are of."""
    monkeypatch.setattr(demo.picture, "find_spec", lambda name: None)


def python(*args):
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=300)


def test_demo_reads_handwriting(folder):
    pytest.importorskip("sklearn.datasets")
    pytest.importorskip("matplotlib")
    done = python("-m", "fastadam", "demo")
    assert done.returncode == 0, done.stderr
    *_, update, picture, last = done.stdout.splitlines()
    assert re.fullmatch(r"update: \d+\.\d\d of \d+\.\d\d s, \d+ % of the time", update)
    assert float(re.fullmatch(r"test accuracy (\d+\.\d) %", last)[1]) >= 97
    assert done.stderr == ""
    assert picture == "picture: fastadam-mlp.png"
    assert (folder / "fastadam-mlp.png").read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib_the_usual_picture_is_left_out_aloud(folder, undrawn, capsys):
    pytest.importorskip("sklearn.datasets")
    assert cli.main(["demo", "--epochs", "1"]) == 0
    assert 'no picture: matplotlib is missing: pip install "fastadam[demo]"' in capsys.readouterr().out.splitlines()
    assert cli.main(["demo", "--epochs", "1", "--out", "a.png"]) == 1
    assert capsys.readouterr().err == 'fastadam demo: matplotlib is missing: pip install "fastadam[demo]"\n'
    assert not list(folder.iterdir())


def test_backends_and_repetitions_print_the_same(undrawn, capsys):
    pytest.importorskip("sklearn.datasets")
    told = []
    for backend in "numpy", "numba", "numba":
        assert cli.main(["demo", "--epochs", "3", "--seed", "7", "--backend", backend]) == 0
        first, *lines = capsys.readouterr().out.splitlines()
        assert first.endswith(f"Adam on {backend}, lr 0.001")
        told.append([line for line in lines if not line.startswith("update")])
    assert told[0] == told[1] == told[2]
    assert len(told[0]) == 5


@pytest.mark.parametrize("backend", ["numba", pytest.param("numpy", marks=pytest.mark.whole)])
@pytest.mark.parametrize("name", [name for name in dir(fa) if name in cli.optimizers()])
def test_every_optimizer_learns(name, backend, undrawn, capsys):
    """On either backend the same, as the test before says; NumPy's takes four times as long."""
    pytest.importorskip("sklearn.datasets")
    assert cli.main(["demo", "--epochs", "6", "--optimizer", name, "--backend", backend]) == 0
    assert float(capsys.readouterr().out.split()[-2]) >= 90


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    pytest.importorskip("sklearn.datasets")
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["demo", "--epochs", "2"]) == 0
    out = capsys.readouterr().out
    assert "epoch" not in out
    assert "100%" in out
    assert set(demo.BLOCKS) & set(out)
    assert out.splitlines()[-1].startswith("test accuracy ")


def test_a_curve_of_losses_falls():
    assert demo.curve([100, 10, 1, math.nan, 0.1]) == "█▆▃▁  100 to 0.1"
    assert demo.curve([1.0] * 3) == "▁▁▁  1 to 1"
    assert demo.curve([math.nan]) == ""
    assert len(demo.curve(range(1, 1000)).split()[0]) == demo.WIDTH


def accuracy(capsys):
    return float(re.fullmatch(r"test accuracy (\d+\.\d) %", capsys.readouterr().out.splitlines()[-1])[1])


@pytest.mark.parametrize(("model", "least"), [("logistic", 95), ("cnn", 97)])
def test_adam_with_default_betas_learns_every_model(model, least, capsys):
    pytest.importorskip("sklearn.datasets")
    assert cli.main(["demo", "--model", model, "--seed", "1"]) == 0
    assert accuracy(capsys) >= least


@pytest.mark.parametrize("schedule", cli.SCHEDULES)
def test_every_schedule_learns(schedule, undrawn, capsys):
    pytest.importorskip("sklearn.datasets")
    assert cli.main(["demo", "--model", "logistic", "--epochs", "8", "--schedule", schedule]) == 0
    assert accuracy(capsys) >= 85
    assert (
        cli.main(["demo", "--model", "logistic", "--epochs", "1", "--batch-size", "9999", "--schedule", schedule]) == 0
    )


def test_the_command_knows_what_the_demo_has():
    assert list(cli.MODELS) == list(demo.MODELS)
    assert [name for name in cli.SCHEDULES if not name.startswith("warmup-")] == list(demo.SCHEDULES)


def test_split_takes_a_share_of_every_class():
    y = np.repeat(np.arange(3), (8, 40, 100))
    learn, test = learning.split(y, np.random.default_rng(0))
    assert np.bincount(y[test]).tolist() == [2, 10, 25]
    assert sorted([*learn, *test]) == list(range(len(y)))


def test_a_convolution_is_a_convolution():
    """Against its definition; whole numbers, so every sum is exact."""
    side, channels, filters, n = 4, 2, 3, 2
    rng = np.random.default_rng(0)
    x = rng.integers(-4, 5, (n, side, side, channels)).astype(float)
    w = rng.integers(-4, 5, (3, 3, channels, filters)).astype(float)
    out = np.zeros((n, side, side, filters))
    for image, i, j, di, dj in product(range(n), range(side), range(side), range(3), range(3)):
        if 0 <= i + di - 1 < side and 0 <= j + dj - 1 < side:
            out[image, i, j] += x[image, i + di - 1, j + dj - 1] @ w[di, dj]
    columns = convolution(side, channels, filters).gather(x.reshape(-1, channels))
    assert np.array_equal((columns @ w.reshape(-1, filters)).reshape(out.shape), out)


@pytest.mark.parametrize("layer", [convolution(4, 2, 3), dense_on_pooled(4, 2, 3)], ids=["convolution", "pooling"])
def test_scatter_is_the_transpose_of_gather(layer):
    """<gather(a), b> = <a, scatter(b)>, exactly: whole numbers, and quarters of them."""
    rng = np.random.default_rng(0)
    a = rng.integers(-9, 10, (2 * 16, 2)).astype(float)
    gathered = layer.gather(a)
    b = rng.integers(-9, 10, gathered.shape).astype(float)
    assert gathered.shape[1] == layer.rows
    assert (gathered * b).sum() == (a * layer.scatter(b)).sum() != 0


TINY = {
    "logistic": [Layer(4, 3)],
    "mlp": [Layer(3, 4), Layer(4, 5), Layer(5, 3)],
    "cnn": [convolution(4, 1, 2), convolution(4, 2, 2), dense_on_pooled(4, 2, 3)],
}


@pytest.mark.parametrize("name", TINY)
def test_gradients_are_those_of_the_loss(name):
    """(L(w+h) - L(w-h)) / 2h for every weight w; the tolerance has two parts.

    Rounding moves L by k·u·s at most, so the quotient by k·u·s/h: k counts the roundings between weights and loss, in
    sums of whatever order (Higham 2002, 3.1); s is the total size of what is added: an error e in the logits, whose
    terms have size `terms`, moves L by 2e, and L itself adds a logarithm and differences of two logits.
    Truncation is h²/6·|L'''|. No ReLU changes sides within h, so logits are linear in w with slopes within `slope`,
    and L''' is the third central moment of these slopes under softmax: over a range r = 2·slope, r³/(6√3) at most.
    Terms and slopes are those of the same model with the sizes of its weights, which no ReLU touches.
    """
    model, n, h = TINY[name], 6, 2.0**-17
    rng = np.random.default_rng(0)
    params = models.init(model, rng, np.float64)
    for layer in params:
        layer["b"] += 0.2 * rng.standard_normal(layer["b"].shape)
    pixels = 16 if name == "cnn" else model[0].rows
    x, y = rng.random((n, pixels)), rng.integers(0, 3, n)

    sizes = [{key: np.abs(w) for key, w in layer.items()} for layer in params]
    terms, slope = models.forward(model, sizes, x)[1][-1], 0.0
    for layer in sizes:
        for w in layer.values():
            for at in np.ndindex(w.shape):
                w[at] += 1
                slope = max(slope, (models.forward(model, sizes, x)[1][-1] - terms).max())
                w[at] -= 1

    classes = model[-1].columns
    k = sum(layer.rows + 6 for layer in model) + (n + 1) * classes + 16  # 6: bias and pooling; 16: exp and log of up to
    s = math.log(classes) + 4 * terms.max()  # 4 ulp, and single operations
    tolerance = k * np.finfo(float).eps / 2 * s / h + h**2 / 6 * (2 * slope) ** 3 / (6 * math.sqrt(3))

    _, grads, hits = models.loss_and_grads(model, params, x, y)
    *hidden, logits = models.forward(model, params, x)[1]
    assert hits == (logits.argmax(axis=1) == y).sum()
    assert all((z > 0).any() and (z < 0).any() for z in hidden)
    for layer, grad in zip(params, grads, strict=True):
        for key, w in layer.items():
            assert grad[key].shape == w.shape
            for at in np.ndindex(w.shape):
                here, ends, losses = w[at], [], []
                for step in h, -h:
                    w[at] = here + step
                    ends.append(w[at])
                    losses.append(models.loss_and_grads(model, params, x, y)[0])
                    sides = models.forward(model, params, x)[1][:-1]
                    assert all(np.array_equal(z > 0, side > 0) for z, side in zip(hidden, sides, strict=True))
                w[at] = here
                slope_seen = (losses[0] - losses[1]) / (ends[0] - ends[1])
                assert abs(grad[key][at] - slope_seen) <= tolerance, (key, at)
    assert tolerance < 1e-4 * max(np.abs(g).max() for grad in grads for g in grad.values())


@pytest.mark.parametrize("model", [models.LOGISTIC, models.MLP, models.CNN], ids=["logistic", "mlp", "cnn"])
def test_gradients_are_float32(model):
    params = models.init(model, np.random.default_rng(0))
    _, grads, _ = models.loss_and_grads(model, params, np.ones((2, 64), np.float32), np.array([0, 1]))
    for layer, grad in zip(params, grads, strict=True):
        assert all(layer[name].dtype == grad[name].dtype == np.float32 for name in ("w", "b"))
        assert all(layer[name].shape == grad[name].shape for name in ("w", "b"))


# ---- text

MODULE = '''"""Head of the module."""
import sys  # why: because
NAME = "text", b"bytes"
def f(a):
    # before the docstring
    """What f gives."""
    return a + 12  # twelve
'''


def test_words_are_told_apart_by_kind():
    code, docstrings, comments = texts.words_by_kind(MODULE)
    assert code == ["import", "sys", "name", "def", "f", "a", "return", "a"]
    assert docstrings == ["head", "of", "the", "module", "what", "f", "gives"]
    assert comments == ["why", "because", "before", "the", "docstring", "twelve"]


def test_features_are_words_and_their_neighbours():
    assert list(texts.features(["a", "b", "c"])) == ["a", "b", "c", "a b", "b c", "a b c"]


@pytest.fixture(scope="module")
def texts_of_few(tmp_path_factory):
    """A standard library of every sixth of its single files only: what texts.py makes of it, once for all tests."""
    root, few = Path(sysconfig.get_path("stdlib")), tmp_path_factory.mktemp("stdlib")
    for path in sorted(root.glob("*.py"))[::6]:
        (few / path.name).symlink_to(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sysconfig, "get_path", lambda name: str(few))
        passages = texts.passages.__wrapped__()
    return {"passages": lambda: passages, "bags_without": cache(texts.bags_without.__wrapped__)}


@pytest.fixture
def few_passages(texts_of_few, monkeypatch):
    """Those of few modules, in place of all."""
    for name, function in texts_of_few.items():
        monkeypatch.setattr(texts, name, function)
    return texts.passages()


def test_whole_modules_are_held_out(few_passages):
    task = learning.text(np.random.default_rng(0))
    files = np.array([passage.file for passage in few_passages])
    assert not set(files[task.learn]) & set(files[task.test])
    assert len(task.learn) + len(task.test) == len(few_passages)
    assert len(task.test) > 0
    learned = {f for i in task.learn for f in texts.features(few_passages[i].words)}
    assert len(task.init(np.random.default_rng(0))["embedding"]) == len(learned) + 1
    for i in task.test:
        unknown = [feature not in learned for feature in texts.features(few_passages[i].words)]
        assert (task.x[[i]][0] == 0).tolist() == unknown


def test_text_has_the_gradient_of_a_dense_layer(few_passages):
    """Of the same logistic regression on a matrix of counts, in float64; roundings of sums of up to 4·57 terms."""
    task = learning.text(np.random.default_rng(0))
    rng = np.random.default_rng(1)
    params = {"embedding": rng.standard_normal((task.rows, 3)), "bias": rng.standard_normal(3)}
    bags, y = task.x[task.learn[:4]], task.y[task.learn[:4]]
    x = np.array([np.bincount(bag, minlength=task.rows) / np.float32(np.sqrt(len(bag))) for bag in bags])
    loss, grads, hits = texts.loss_and_grads(params, bags, y)
    dense = texts.densely(grads, task.rows)
    expected = models.loss_and_grads([Layer(task.rows, 3)], [{"w": params["embedding"], "b": params["bias"]}], x, y)
    assert (loss, hits) == (pytest.approx(expected[0], rel=1e-6), expected[2])
    np.testing.assert_allclose(dense["embedding"], expected[1][0]["w"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(dense["bias"], expected[1][0]["b"], rtol=1e-5, atol=1e-7)


def test_exact_rows_learn_what_the_dense_step_learns(few_passages):
    learned = []
    for way in "exact", "dense":
        rng = np.random.default_rng(0)
        task = learning.text(rng, way)
        params = task.init(rng)
        opt = fa.Adam(params, lr=0.01)
        for _ in learning.train(task, params, opt, 2, 32, rng):
            pass
        opt.catch_up()
        learned.append(params)
    assert np.array_equal(learned[0]["embedding"], learned[1]["embedding"])
    assert np.array_equal(learned[0]["bias"], learned[1]["bias"])


def test_text_is_told_apart(capsys, request):
    """Clearly better than naming the commonest class, in modules that were held out; of few modules but with --all."""
    if not request.config.getoption("--all"):
        request.getfixturevalue("few_passages")
    assert cli.main(["demo", "--model", "text", "--epochs", "1"]) == 0
    *_, head, lazy, exact, dense, commonest, _picture, last = capsys.readouterr().out.splitlines()
    assert re.split("  +", head) == ["update", "ms a step", "of it to spread the gradient out", "test accuracy"]
    assert 0 < float(dense.split()[3]) < float(dense.split()[2])
    ends = [line.split()[-2] for line in (lazy, exact, dense, commonest, last)]
    assert ends[1] == ends[2] == ends[4]
    assert float(ends[0]) >= float(ends[3]) + 20
    assert float(ends[2]) >= float(ends[3]) + 20


def test_numpy_leaves_exact_rows_out_and_says_so(few_passages, undrawn, capsys):
    few_steps = "--epochs", "1", "--batch-size", "2048"
    assert cli.main(["demo", "--model", "text", "--backend", "numpy", *few_steps]) == 0
    exact, *_ = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step_rows, exact")]
    assert "left out" in exact


# ---- all methods side by side


def test_methods_are_compared(tmp_path, monkeypatch, capsys, pytestconfig):
    pytest.importorskip("sklearn.datasets")
    pytest.importorskip("matplotlib")
    from fastadam.tools.demo import sweep

    names = "Adam", "SGD", "momentum"
    monkeypatch.setattr(sweep, "METHODS", {name: sweep.METHODS[name] for name in names})
    monkeypatch.setattr(sweep, "SWEEP", (1e-3, 1e-1))
    if not pytestconfig.getoption("--all"):  # one worker: starts take longest
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    picture = tmp_path / "a.png"
    few = ["--model", "logistic", "--epochs", "3", "--seeds", "2", "--out", str(picture)]
    assert cli.main(["demo", "--compare", *few]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = {line.split()[0]: line for line in lines}
    assert all(re.search(rf"{name} +0\.001 +\d+\.\d ± \d+\.\d % ", table[name]) for name in names)
    assert lines[-2] == f"picture: {picture}"
    assert re.fullmatch(r"test accuracy \d+\.\d %", lines[-1])
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("place", [".", "nowhere/a.png", "file/a.png"])
def test_a_picture_that_could_not_be_saved_is_refused_at_once(place, tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn.datasets")
    pytest.importorskip("matplotlib")
    from fastadam.tools.demo import sweep

    monkeypatch.setattr(sweep, "measure", None)
    (tmp_path / "file").touch()
    for compare in ["--compare"], []:
        assert cli.main(["demo", *compare, "--out", str(tmp_path / place)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        assert "--out is " in line
        assert "expected a file that can be written: " in line


def test_a_look_whether_a_picture_can_be_saved_changes_nothing(tmp_path):
    old = tmp_path / "old.png"
    old.write_bytes(b"picture")
    assert demo.picture.impossible(str(old)) is demo.picture.impossible(str(tmp_path / "new.png")) is None
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("old.png", b"picture")]


def test_every_point_of_a_curve_is_of_two_batches_or_more():
    """43 batches an epoch, the last of 3 images."""
    pytest.importorskip("sklearn.datasets")
    from fastadam.tools.demo.sweep import TRIALS, Training, work

    for epochs in 1, 3:
        run = work(Training("logistic", "SGD", 0.1, 0, epochs, 32))
        assert run.step[-1] == 43 * epochs
        assert run.examples.sum() == epochs * 1347
        assert run.examples.min() >= 32 + 3
        assert len(run.step) <= TRIALS["logistic"].points


def made_up(steps, points, seeds, lr=0.1, names=None):
    from fastadam.tools.demo import sweep

    at = sweep.ends(steps, points)
    one = sweep.Run(at, 2 / np.sqrt(at), np.linspace(0, 1, points), np.full(points, 99), 1e-5)
    return {name: (sweep.Row(1e-3, [one] * seeds), sweep.Row(lr, [one] * seeds)) for name in names or sweep.METHODS}


@pytest.mark.parametrize(
    ("steps", "points"),
    [(516, 60), (60000, 60), (6, 3), *(pytest.param(*x, marks=pytest.mark.whole) for x in ((129, 20), (500, 12)))],
)
def test_no_words_of_the_picture_lie_on_others_or_outside(steps, points, pytestconfig):
    """Of two rows of panels but with --all: under more rows the words lie in the same places, to the pixel."""
    pytest.importorskip("matplotlib")
    from fastadam.tools.demo import sweep

    names = list(sweep.METHODS)
    if not pytestconfig.getoption("--all"):
        names = names[: 8 - -len(names) % 4]  # as many places without a panel
    longest = max((trial.about for trial in sweep.TRIALS.values()), key=len)
    figure = sweep.draw(made_up(steps, points, 10, names=names), f"{longest}, batches of 1024")
    figure.draw_without_rendering()
    for text in figure.texts:
        extent = text.get_window_extent()
        assert figure.bbox.x0 < extent.x0 < extent.x1 < figure.bbox.x1, text
    for ax in [ax for ax in figure.axes if ax.get_visible()][-4:]:
        low, high = ax.get_xlim()
        words = [
            label.label1.get_window_extent()
            for minor in (False, True)
            for label in (ax.xaxis.get_minor_ticks() if minor else ax.xaxis.get_major_ticks())
            if label.label1.get_text() and low <= label.get_loc() <= high
        ]
        assert words
        assert all(not a.overlaps(b) for i, a in enumerate(words) for b in words[:i])


def test_a_best_learning_rate_at_the_edge_of_the_sweep_is_marked(capsys):
    from fastadam.tools.demo import sweep

    sweep.show(made_up(500, 12, 2), 0.9)
    assert "*" not in capsys.readouterr().out
    sweep.show(made_up(500, 12, 2, lr=1.0), 0.9)
    *_, row, last = capsys.readouterr().out.splitlines()
    assert " 1* " in row
    assert last == "* the edge of the sweep, 0.0001 to 1: a better one may lie beyond"


def test_a_training_that_fails_is_no_ones_best():
    from fastadam.tools.demo.sweep import Run

    at, never = np.arange(1, 21), np.zeros(20)
    counts = np.append(np.full(19, 96), 32)
    failed = Run(at, np.full(20, np.nan), never, counts, 1e-5)
    assert failed.end == math.inf
    assert failed.steps_to(0.9) == math.inf
    worked = Run(at * 8, np.append(np.ones(18), [0.5, 0.25]), np.linspace(0, 1, 20), counts, 1e-5)
    assert worked.end == 0.4375  # three parts of 0.5, one of 0.25
    assert worked.steps_to(0.9) == 19 * 8


WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sklearn":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from fastadam.tools.cli import main
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
        ("--model", "resnet", "cnn"),
        ("--schedule", "cosin", "warmup-cosine"),
        ("--seeds", "0", "an integer of at least 1"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compare", "--lr", "0.1"], "argument --lr: not with --compare"),
        (["--compare", "--schedule", "cosine"], "argument --schedule: not with --compare"),
        (["--seeds", "3"], "argument --seeds: only with --compare"),
    ],
)
def test_options_that_would_be_ignored_are_refused(options, message, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["demo", *options])
    assert exit.value.code == 2
    assert capsys.readouterr().err.endswith(f": {message}\n")


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
    loaded = "import sys; from fastadam.tools.cli import main; main([]); print(*sys.modules)"
    assert not {"fastadam.tools.demo", "sklearn", "rich", "numba"} & set(python("-c", loaded).stdout.split())
