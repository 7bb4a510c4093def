"""benchmarks/chain.py: what it times is what it says, and something else is called wrong."""

import json

import numpy as np
import pytest

from fastadam.benchmarks import chain


@pytest.mark.parametrize("kind", chain.ONE_PASS)
def test_what_is_timed_is_right(kind):
    rng = np.random.default_rng(1)
    p, *grads = rng.standard_normal((3, 5_000)).astype(np.float32)
    assert chain.check(chain.Ours(p, grads, kind), p, grads) is None

    class Wrong(chain.Ours):
        def step(self):
            self.opt.step(self.g * np.float32(0.5), chain.SCALE if self.kind == "full" else 1.0)
            self.p += np.float32(1e-4)

    assert chain.check(Wrong(p, grads, kind), p, grads).startswith("p is off")


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    assert chain.main(["--size", "3000", "--rounds", "2", "--json", str(tmp_path / "x.json")]) == 0
    result = json.loads((tmp_path / "x.json").read_text())
    assert set(result["kinds"]) == {"plain", "clip", "full"}
    for kind, entry in result["kinds"].items():
        low, middle, high = entry["fastadam"]["ns"]
        assert 0 < low <= middle <= high
        assert f"{kind:6} fastadam  {middle:6.3f}" in capsys.readouterr().out or kind != "plain"
    assert result["kinds"]["full"]["fastadam"]["bytes"] == 46
    assert chain.PASSES["full"] == 70


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "0"], "argument --size: expected numbers from 1 to 2^34 such as 2^20,100000, got '0'"),
        (["--size", "2^34"], "argument --size: 2^34 needs about 2240.0 GiB of memory"),
        (["--rounds", "0"], "argument --rounds: expected an integer of at least 1, got '0'"),
        (["--json", "/no/such/folder/x.json"], "argument --json: expected a file in a folder that is there"),
        (["--json", "/proc/x.json"], "argument --json: expected a file that can be written"),
    ],
)
def test_options_are_refused_with_both_sides(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        chain.main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("n", [1, 2, 10])
def test_tiny_sizes_are_right_and_said_to_be_tiny(n, capsys):
    assert chain.main(["--size", str(n), "--rounds", "1"]) == 0
    text = capsys.readouterr().out
    assert "this is what calls cost, not memory" in text
    assert "WRONG" not in text


def test_what_is_wrong_is_not_timed(monkeypatch, capsys):
    monkeypatch.setattr(chain, "check", lambda one, p, grads: "p is off" if one.name == "fastadam" else None)
    assert chain.main(["--size", "100", "--rounds", "1"]) == 1
    text = capsys.readouterr().out
    assert text.count("fastadam  WRONG, not timed: p is off") == 3
    assert "times as fast" not in text


def test_ctrl_c_keeps_the_kinds_that_are_finished(monkeypatch, capsys, tmp_path):
    race, turns = chain.clock.race, []

    def interrupted(*args):
        turns.append(args)
        if len(turns) == 2:
            raise KeyboardInterrupt
        return race(*args)

    monkeypatch.setattr(chain.clock, "race", interrupted)
    assert chain.main(["--size", "100", "--rounds", "1", "--json", str(tmp_path / "x.json")]) == 130
    result = json.loads((tmp_path / "x.json").read_text())
    assert (list(result["kinds"]), result["partial"]) == (["plain"], "interrupted")
    chain.show(result)
    assert "interrupted" in capsys.readouterr().out
