"""The suites chain and pytorch: what is timed is what they say, and something else is called wrong."""

import json

import numpy as np
import pytest

from fastadam.benchmarks import cases, report, targets, truth
from fastadam.benchmarks.contestants import Start, named
from fastadam.benchmarks.ours import FastadamTorch, by_backend
from fastadam.benchmarks.peers_torch import TORCH
from fastadam.tools.cli import main

RNG = np.random.default_rng
CONTESTANTS = by_backend("numba"), FastadamTorch, TORCH[0]


def judged(cls, chores, n=5_000):
    """What is wrong with a contestant."""
    setting, start = cases.setting("Adam", chores=chores), Start([(n // 50, 40), (n - n // 50 * 40,)])
    _, wrong = truth.check([cls(start, setting, 1)], start, RNG(1))
    return wrong


@pytest.mark.parametrize("chores", cases.CHORES)
@pytest.mark.parametrize("cls", CONTESTANTS, ids=lambda cls: cls.name)
def test_what_is_timed_is_right(cls, chores, same_threads):
    if chores not in cls.chores:
        assert cls.missing(cases.setting("Adam", chores=chores)) == f"has no {chores}"
        return
    if cls.needs:
        pytest.importorskip("torch", reason="torch is not installed: pip install torch")
    assert not judged(cls, chores)


def moved_on(self):
    self.opt.step(self.grads, *self.scale)
    self.p[0] += np.float32(1e-4)


def average_left(self):
    before = [ema.copy() for ema in self.opt.ema]
    self.opt.step(self.grads, *self.scale)
    for ema, old in zip(self.opt.ema, before, strict=True):
        ema[...] = old


def copy_left(self):
    before = [short.copy() for short in self.short]
    self.opt.step(self.grads, *self.scale)
    for short, old in zip(self.short, before, strict=True):
        short[...] = old


@pytest.mark.parametrize(
    ("step", "chores", "words"),
    [
        (moved_on, "", "step 1"), (moved_on, "max_norm", "step 1"), (moved_on, "whole", "step 1"),
        (average_left, "whole", "the average: "), (copy_left, "whole", "the copy: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(step, chores, words, same_threads):
    wrong = judged(named(by_backend("numba"), "wrong", step=step), chores)
    assert wrong["wrong"].startswith(words)


def test_a_gradient_that_is_not_clipped_is_wrong(same_threads):
    """The second of two sets is ten times the first: only what is clipped moves as the oracle does."""

    class Unclipped(by_backend("numba")):
        def __init__(self, start, setting, threads):
            super().__init__(start, cases.setting("Adam"), threads)
            self.setting = setting

    setting, start = cases.setting("Adam", chores="max_norm"), Start([(3_000,)])
    start.grads[1] = [10 * g for g in start.grads[1]]
    pair = [cls(start, setting, 1) for cls in (by_backend("numba"), named(Unclipped, "unclipped"))]
    assert list(truth.check(pair, start, RNG(0))[1]) == ["unclipped"]


def test_bytes_by_hand():
    """One pass: g for the norm; p, g, m, v, average read; p, m, v, average, copy, g written. PyTorch: each its own."""
    moved = {
        (cls.name, chores): cls.bytes(cases.setting("Adam", chores=chores))
        for cls in (CONTESTANTS[0], CONTESTANTS[2])
        for chores in cases.CHORES
    }
    assert list(moved.values()) == [28, 32, 46, 28, 40, 70]


def run(suite, size, *words):
    """The exit status of a small run."""
    return main(["bench", "--suite", suite, "--sizes", str(size), "--rounds", "1", *words])


def test_the_command_writes_what_it_prints(tmp_path, capsys, in_process):
    path = tmp_path / "x.json"
    assert main(["bench", "--suite", "chain", "--sizes", "3000", "--rounds", "2", "--json", str(path)]) == 0
    result, text = json.loads(path.read_text()), capsys.readouterr().out
    assert set(result["cases"]) == {"3000", "3000 max_norm", "3000 whole"}
    for entry in result["cases"].values():
        of = entry["contestants"]["fastadam numba"]
        assert 0 < of["p10"] <= of["seconds"] <= of["p90"]
        assert targets.duration(of["seconds"]) in text
    assert result["cases"]["3000 whole"]["contestants"]["fastadam numba"]["bytes"] == 46
    assert report.main(["--summary", str(path)]) == 0
    assert "3000 whole" in capsys.readouterr().out


@pytest.mark.parametrize("n", [1, 2, 10])
def test_tiny_sizes_are_right(n, capsys, in_process):
    assert run("chain", n) == 0
    assert "wrong" not in capsys.readouterr().out


def test_what_is_wrong_is_not_timed(monkeypatch, capsys, in_process):
    off = {"fastadam numba": "step 1: p is off"}
    monkeypatch.setattr(
        truth, "check", lambda racers, *_, report: (dict.fromkeys((one.name for one in racers), 1.0), off)
    )
    assert run("chain", 100) == 1
    text = capsys.readouterr().out
    assert text.count("fastadam numba is wrong, so not timed: step 1: p is off") == 3
    assert "times as fast:" not in text


def test_ctrl_c_keeps_the_cases_that_are_finished(capsys, tmp_path, in_process, interrupted):
    assert run("chain", 100, "--json", str(tmp_path / "x.json")) == 130
    result = json.loads((tmp_path / "x.json").read_text())
    timed = [case for case, entry in result["cases"].items() if entry["contestants"]]
    assert (timed, result["partial"]) == (["100"], "interrupted")
    assert ", interrupted" in capsys.readouterr().out


def made_up(suite, case, **seconds):
    """A result of one case, in which contestants took so many seconds a step."""
    contestants = {name: {"seconds": s, "medians": [s], "p10": s, "p90": s} for name, s in seconds.items()}
    return {"bench": suite, "cases": {case: {"contestants": contestants}}, "machine": {}, "rule": "Adam",
            "dtype": "float32"}  # fmt: skip


@pytest.mark.parametrize(("seconds", "met"), [(1.4, True), (1.39, False)])
def test_a_target_of_the_whole_step(seconds, met):
    result = made_up("chain", "2^24 whole", **{"fastadam numba": 1.0, "torch fused": seconds})
    (target,) = (one for one in targets.of(result) if one.case == "2^24 whole")
    assert target.measured(result) == (seconds, seconds, seconds, met)
    verdict = "met" if met else "missed"
    expected = f"2^24 whole: fastadam numba against torch fused: {seconds:.2f}, asked ≥ 1.4 times as fast: {verdict}"
    assert list(targets.lines(result)) == [expected]


@pytest.mark.parametrize(("seconds", "met"), [(5e-6, True), (5.1e-6, False)])
def test_a_target_in_seconds_is_of_a_gpu_alone(seconds, met):
    result = made_up("core", "2^10", **{"fastadam cuda, graph": seconds})
    assert not list(targets.lines(result))
    result["machine"]["gpu"] = {"name": "made up"}
    (line,) = targets.lines(result)
    assert line.endswith("asked ≤ 5.00 µs: met" if met else "asked ≤ 5.00 µs: missed")


def test_a_target_within_noise_is_missed_only_if_all_say_so():
    result = made_up("core", "2^26", **{"fastadam numba": 1.0, "torch fused": 0.9})
    fused = result["cases"]["2^26"]["contestants"]["torch fused"]
    (target,) = (one for one in targets.of(result) if (one.case, one.other) == ("2^26", "torch fused"))
    assert not target.measured(result)[3]
    fused |= {"medians": [0.9, 1.01, 0.9]}
    result["cases"]["2^26"]["contestants"]["fastadam numba"]["medians"] = [1.0] * 3
    assert target.measured(result) == (0.9, 0.9, 1.01, True)


def test_the_two_optimizers_learn_alike(same_threads):
    """fastadam.torch's losses are torch's, step for step, but for rounding."""
    pytest.importorskip("torch", reason="torch is not installed: pip install torch")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install scikit-learn")
    from fastadam.benchmarks import training

    entry = training.examples(10, 1)["CNN"]
    assert entry["parameters"] == 544_522
    assert entry["curves_apart"] < 1e-3
    assert 0 < entry["fastadam"]["share"] < 1
    assert len(entry["torch"]["losses"]) == 10
