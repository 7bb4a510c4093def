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
