"""benchmarks/compare.py on a made-up clock: a slow-down is caught under noise and drift, equal programs are not called
slower; and once for real, where no time is asserted."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fastadam.benchmarks import clock, compare

ROOT = Path(__file__).parents[2]
# Of a turn; its chance of an interruption; over seconds; of a side, as pairs of one commit differed by ±2 % (2^10).
NOISE, INTERRUPTED, DRIFT, BETWEEN = 0.02, 0.1, 0.2, 0.01


@pytest.fixture
def hand(monkeypatch):
    """The seconds on the made-up clock, in a list of one."""
    hand = [0.0]
    monkeypatch.setattr(clock, "now", lambda: hand[0])
    return hand


class Simulated:
    """A side whose calls take so many seconds, times how the machine drifts, what interrupts them and noise."""

    def __init__(self, seconds, hand, rng, bits=1):
        self.bits, self.hand, self.rng = bits, hand, rng
        self.seconds = seconds * np.exp(BETWEEN * rng.standard_normal())

    def prepare(self, row):
        return {"calls": 100, "bits": self.bits}

    def turn(self, calls):
        drift = 1 + DRIFT * np.sin(self.hand[0] / 3)
        interrupted = 1 + (self.rng.random() < INTERRUPTED) * self.rng.exponential()
        seconds = self.seconds * drift * interrupted * np.exp(NOISE * self.rng.standard_normal())
        self.hand[0] += 0.01 + calls * seconds
        return seconds


def compared(slower, hand, seed, bits=1, pairs=compare.PAIRS):
    """What measure() says of a new side that takes so many times the time of an old one."""
    rng = np.random.default_rng(seed)

    @contextmanager
    def pair():
        yield Simulated(1e-5, hand, rng), Simulated(slower * 1e-5, hand, rng, bits)

    return compare.measure({"core 2^10": {}}, pair, pairs, compare.SECONDS)


@pytest.mark.parametrize("seed", range(20))
def test_a_slow_down_of_5_percent_is_caught_and_an_equal_one_is_not(seed, hand, capsys):
    assert compare.show(*compared(1.05, hand, seed), "abc") == 1
    assert "1 compared, 1 slower" in capsys.readouterr().out
    assert compare.show(*compared(1.0, hand, seed), "abc") == 0
    assert "1 compared, 0 slower" in capsys.readouterr().out


def test_what_is_left_out_unless_it_is_named_is_said(capsys):
    """In the help, in the module's first words and in the guide; rows of what is left out can be named."""
    left_out = [name for name in compare.SUITES if name not in compare.USUAL]
    assert left_out == ["jax", "lamb", "stableadamw", "muon"]
    assert {row.partition(" ")[0] for row in compare.rows()} == {*compare.SUITES} - {"jax"}
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    guide = (ROOT / "benchmarks" / "README.md").read_text()
    of_compare = guide[guide.index("compare.py --against") : guide.index("`--distributed` times")]
    for text in (capsys.readouterr().out, compare.__doc__, of_compare):
        assert all(name in text for name in left_out)


def test_a_drift_that_favours_one_side_cancels(hand):
    """Calls that take ever longer, the new side's like the old side's: every four have a ratio near 1."""

    class Drifting(Simulated):
        def turn(self, calls):
            self.hand[0] += 0.01
            return 1e-5 * (1 + self.hand[0])

    old, new = (Drifting(1e-5, hand, np.random.default_rng(0)) for _ in range(2))
    paired = compare.ratios(old, new, 100, 1.0)
    assert np.prod(paired[: len(paired) // 2 * 2]) ** (1 / len(paired)) == pytest.approx(1, abs=2e-3)


def test_turns_change_places():
    order = []

    class Noted:
        def __init__(self, name):
            self.name = name

        def turn(self, calls):
            order.append(self.name)
            return 1.0

    compare.ratios(Noted("old"), Noted("new"), 1, 0.0)
    assert order == ["new", "old", "old", "new", "old", "new", "new", "old"] + ["new", "old", "old", "new"]


def test_an_interval_by_hand():
    """Of 12 the third from either end: 1 - 2 (1 + 12 + 66) / 2^12; of 6 the extremes: 1 - 2 / 2^6."""
    values = [float(k) for k in range(12)]
    assert compare.interval(values[::-1]) == (2.0, 5.5, 9.0, 1 - 2 * 79 / 4096)
    assert compare.interval(values[:6]) == (0.0, 2.5, 5.0, 1 - 2 / 64)
    assert compare.interval([3.0, 1.0]) == (1.0, 2.0, 3.0, 0.5)
    assert compare.interval([1.0]) == (1.0, 1.0, 1.0, 0.0)


def test_an_interval_that_straddles_what_is_allowed_is_no_verdict(capsys):
    medians = {"core 2^10": [1.01] * 4 + [1.05] * 8, "core mlp": [1.03] * 12, "pytorch mlp": [1.0] * 12}
    assert compare.show(medians, {"core mlp"}, "abc") == 1
    out = capsys.readouterr().out
    first, second, third = (line for line in out.splitlines() if "bits" in line)
    assert first.endswith("1.050 (1.010–1.050)  same bits  slower?")
    assert second.endswith("1.030 (1.030–1.030)  other bits  slower")
    assert third.endswith("1.000 (1.000–1.000)  same bits")
    assert "3 compared, 1 slower" in out


def test_other_results_are_told(hand):
    assert compared(1.0, hand, 0, bits=2, pairs=1)[1] == {"core 2^10"}


def test_rows_are_those_that_fastadam_steps():
    names = list(compare.rows())
    assert set(compare.QUICK) <= set(names)
    assert {"core 2^26", "chain 2^24 whole", "narrow 2^24 float32:moments=8bit", "pytorch 2^24 max_norm"} <= set(names)
    assert {row["name"] for row in compare.rows().values()} == {"fastadam numba", "fastadam.torch"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "HEAD", "--rows", "core 2^11"], "argument --rows: 'core 2^11', expected some of core, "),
        (["--quick"], "the following arguments are required: --against"),
        (["--against", "HEAD", "--threads", "100000"], "argument --threads: 100000, but this process may use "),
        (["--against", "HEAD", "--pairs", "0"], "argument --pairs: expected an integer of at least 1, got '0'"),
    ],
)
def test_options_are_refused_with_both_sides(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        compare.main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_commit_that_is_none(capsys):
    assert compare.main(["--against", "no-such-commit", "--quick"]) == 2
    assert "'no-such-commit', expected a commit of this clone" in capsys.readouterr().err


def test_against_the_last_commit_for_real(tmp_path):
    """One pair of processes of one row: whatever they take, both are stepped, and no worktree is left."""
    command = [sys.executable, ROOT / "benchmarks/compare.py", "--against", "HEAD", "--rows", "core 2^10"]
    command += ["--pairs", "1", "--seconds", "0.01"]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "pair 1 of 1: core 2^10: " in done.stdout
    assert "1 compared" in done.stdout
    trees = subprocess.run(["git", "-C", ROOT, "worktree", "list"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in trees
    assert not list(tmp_path.iterdir())
