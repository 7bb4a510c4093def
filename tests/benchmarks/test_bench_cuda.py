"""The measurement's contestants of a GPU on the stand-in for CuPy: what they compute, not how fast."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import cuda_host
import numpy as np
import pytest
from cases import by_turns

import fastadam
from fastadam.benchmarks import cases, clock, limit_cuda, truth
from fastadam.benchmarks.contestants import Start
from fastadam.benchmarks.everyone import everyone
from fastadam.benchmarks.ours import by_backend
from fastadam.benchmarks.ours_cuda import WINDOW

pytestmark = pytest.mark.skipif(cuda_host.COMPILER is None, reason="no g++: the .cu text cannot run on the host")

RNG, TESTS = np.random.default_rng, Path(__file__).parents[1]


@pytest.fixture
def device(cupy):
    """The contestants that the stand-in brings."""
    caches = fastadam.backends.cache_clear if hasattr(fastadam.backends, "cache_clear") else lambda: None
    for clear in (limit_cuda.kernel.cache_clear, caches):
        clear()
    yield {one.name: one for one in everyone(["cuda"])}
    for clear in (limit_cuda.kernel.cache_clear, caches):
        clear()


WALKS = [(2, shape) for shape in product((128, 1024), limit_cuda.BYTES, limit_cuda.AHEAD)]
WALKS += [(slots, (128, 16, 2)) for slots in (0, 5)]


@by_turns(walk=WALKS, dtype=[np.float32, np.float64])
def test_the_limit_touches_every_element_once(walk, dtype, device, cupy):
    slots, shape = walk
    for n in (1, 7, 33_333, 2**16):
        p, g, *others = before = [RNG(k).standard_normal(n).astype(dtype) for k in range(2 + slots)]
        on_device = [cupy.asarray(x) for x in before]
        limit_cuda.LimitWalk(on_device[0], on_device[2:], *shape)(on_device[1], 0.5)
        assert (on_device[1].get() == g).all()
        for x, x0 in zip([on_device[0], *on_device[2:]], [p, *others], strict=True):
            wanted, eps = x0 + dtype(0.5) * g, np.finfo(dtype).eps
            np.testing.assert_allclose(x.get(), wanted, rtol=4 * eps, atol=eps)


@pytest.mark.parametrize("ahead", limit_cuda.AHEAD)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_the_limit_loads_everything_first(dtype, ahead, assembled):
    """As NVRTC compiles it for an H100: wide accesses of global memory, all loads before the first store, no spills."""
    streams, numbers = 4, "v4.f32" if dtype == np.float32 else "v2.f64"
    ptx, log = assembled(limit_cuda.source(np.dtype(dtype), streams, 16, ahead), 90)
    wide = [at.group(1) for at in re.finditer(rf"(ld|st)\.global\.{re.escape(numbers)}", ptx)]
    assert wide == ["ld"] * streams * ahead + ["st"] * (streams - 1) * ahead
    assert "0 bytes stack frame, 0 bytes spill stores" in log


@pytest.fixture
def few(monkeypatch):
    """Fewer shapes to compile."""
    monkeypatch.setattr(limit_cuda, "THREADS", (128, 256))
    monkeypatch.setattr(limit_cuda, "AHEAD", (2,))


def test_the_quickest_is_the_limit(few, device, cupy, monkeypatch):
    on_device, slot, g = (cupy.asarray(np.ones(1000, np.float32)) for _ in range(3))
    seconds = iter([1.0, 1.0, 1.0, 0.5])
    monkeypatch.setattr(limit_cuda, "_seconds", lambda walk, g: next(seconds))
    walk, chose = limit_cuda.quickest(on_device, [slot], g)
    assert (walk._threads, walk._blocks) == (256, -(-1000 // 2048))
    assert chose == "256 threads a block, 2 x 16 bytes a thread: the quickest of 4"


def test_trying_out_changes_nothing(few, device, cupy):
    p, g = RNG(0).standard_normal((2, 1000)).astype(np.float32)
    on_device, slot = cupy.asarray(p), cupy.asarray(p)
    limit_cuda.quickest(on_device, [slot], cupy.asarray(g))
    assert (on_device.get() == p).all()
    assert (slot.get() == p).all()


@pytest.mark.parametrize("name", ["fastadam cuda", "fastadam cuda, graph", "fastadam cuda, moved", "limit cuda"])
def test_everyone_is_right_and_is_timed(name, few, device):
    setting, start = cases.setting("Adam"), Start([(300, 20), (7,)])
    assert device[name].missing(setting) is None
    one = device[name](start, setting, 1)
    ulps, wrong = truth.check([one], start, RNG(0))
    assert not wrong
    assert 0 < ulps[name] < 50
    assert len(clock.race([one], 1, RNG(0))[name]) == 1


def test_replays_go_on_beyond_the_window(device, monkeypatch):
    """More steps than lie ready equal as many on NumPy, to the bit."""
    setting, start = cases.setting("Adam"), Start([(70,), (7,)])
    graph = device["fastadam cuda, graph"](start, setting, 1)
    numpy = by_backend("numpy")(start, setting, 1)
    for k in range(WINDOW + 5):
        for one in (graph, numpy):
            one.give(k)
            one.step()
    for ours_, theirs in zip(graph.params(), numpy.params(), strict=True):
        assert (ours_ == theirs).all()


@pytest.mark.parametrize("chores", cases.CHORES)
def test_the_chain_is_right(chores, device):
    setting, start = cases.setting("Adam", chores=chores), Start([(100, 40), (1_000,)])
    _, wrong = truth.check([device["fastadam cuda"](start, setting, 1)], start, RNG(1))
    assert not wrong


def test_the_gpu_script_runs_through(host_code, tmp_path, pytestconfig):
    """On the stand-in, with the smallest sizes: every command is understood, every file is written.

    By default for every fourth format beside float32, each of which is a process of its own, and without torch, which
    half of them would spend most of their time on.
    """
    every = 1 if pytestconfig.getoption("--all") else 4
    if every > 1:
        (tmp_path / "torch.py").write_text("raise ImportError('not here')")
    (tmp_path / "cupy.py").write_text(
        "import pathlib, sys\n"
        f"sys.path.append({str(TESTS)!r})\n"
        "import cuda_host\n"
        "from cuda_host import fake_cupy\n"
        "from fastadam.benchmarks import limit_cuda\n"
        "limit_cuda.THREADS, limit_cuda.AHEAD = (256,), (2,)\n"  # fewer to compile
        f"sys.modules['cupy'] = fake_cupy.module(cuda_host.on_host(pathlib.{host_code!r}))\n"
    )
    python = tmp_path / "python"
    python.write_text(
        f"""#!/bin/sh
case "$*" in
*cases.formats*) {sys.executable} "$@" | awk 'NR == 1 || (NR - 2) % {every} == 0' ;;
*) exec {sys.executable} "$@" ;;
esac
"""
    )
    python.chmod(0o700)
    out, script = tmp_path / "out", TESTS.parent / "benchmarks/gpu.sh"
    env = os.environ | {"PYTHON": str(python), "QUICK": "1", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([script, out], env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    others = [name.replace(":", "-").replace("=", "-") for name in cases.formats()][1::every]
    names = ["float32-sizes", "float32-workloads", "float32-large", *(f"{name}-sizes" for name in others)]
    results = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    assert results.keys() == {*names, "chain"}
    for name in names:
        for case in results[name]["cases"].values():
            assert {"fastadam cuda", "fastadam cuda, graph"} <= case["contestants"].keys()
            if name.removesuffix("-sizes") not in others[1:]:  # the limit holds float32 and float64 alone
                assert "the quickest of" in case["chose"]["limit cuda"]
    assert results["chain"]["machine"]["gpu"]["name"] == "stand-in"
    text = (out / "summary.txt").read_text()
    assert "FAILED" not in text
    assert "2^10: fastadam cuda, graph: " in text
    assert list(results["chain"]["cases"]) == ["2^10", "2^10 max_norm", "2^10 whole"]
    assert "collected" in (out / "tests.txt").read_text()
    if find_spec("matplotlib"):
        assert {path.stem for path in out.glob("*.png")} == results.keys()
