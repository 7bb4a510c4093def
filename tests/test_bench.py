"""The command `bench`: its processes, options and files. No test asserts a time of this machine's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import made_up

import fastadam
from fastadam.benchmarks import bench, cases, compare, machine, options, report, summary, worker
from fastadam.benchmarks.ours import everyone
from fastadam.cli import main

ROOT = Path(__file__).parent.parent


# Processes and memory.


def test_a_peer_that_kills_the_process_takes_nobody_with_it(monkeypatch):
    tasks = []

    def events(task, env):
        tasks.append(task)
        if not task["without"]:
            yield {"absent": "Thinc", "reason": "is not installed", "install": "pip install thinc"}
            yield {"trying": "optax"}
            yield {"ended": -6, "words": "bad_alloc"}
        elif len(tasks) == 2:
            yield {"trying": ""}
            yield {"case": "2^10"}
            yield {"ended": -9, "words": ""}
        else:
            yield {"case": "2^14"}
            yield {"sample": "limit", "seconds": 1.0}
            yield {"ended": 0, "words": ""}

    monkeypatch.setattr(bench, "events", events)
    run = bench.collect({"without": [], "cases": ["2^10", "2^14"]}, {}, lambda *_: None)
    assert [task["without"] for task in tasks] == [[], ["optax"], ["optax"]]
    assert run["absent"] == {"optax": {"reason": "the process ended with SIGABRT: bad_alloc", "install": ""}}
    assert "SIGKILL" in run["cases"]["2^10"]["skipped"]
    assert run["cases"]["2^14"]["samples"] == {"limit": [1.0]}


def test_a_process_that_cannot_start_is_an_error(monkeypatch):
    monkeypatch.setattr(bench, "events", lambda task, env: iter([{"ended": 1, "words": "no module"}]))
    with pytest.raises(RuntimeError, match="exit status 1: no module"):
        bench.collect({"without": [], "cases": ["2^10"]}, {}, lambda *_: None)


def test_memory_and_time_decide_who_is_admitted(monkeypatch):
    n, setting, dtype = 2**20, cases.settings()["Adam"], np.dtype(np.float32)
    present = [one for one in everyone(["numba", "numpy"]) if one.name in ("fastadam numba", "limit", "plain NumPy")]
    room = 4 * n * (3 + 7 + 3)  # the start, one contestant with its temporaries, another without
    monkeypatch.setattr(machine, "available_memory", lambda: room)
    there, why = worker.admitted(n, present, setting, dtype, {})
    assert [one.name for one in there] == ["fastadam numba", "limit"]
    assert "GiB of memory" in why["plain NumPy"]
    monkeypatch.setattr(machine, "available_memory", lambda: 1e12)
    there, why = worker.admitted(n, present, setting, dtype, {"plain NumPy": 1e-5})
    assert [one.name for one in there] == ["fastadam numba", "limit"]
    assert "10 s" in why["plain NumPy"]


def test_available_memory_heeds_this_process_limit(fresh):
    text = """
        import resource
        from fastadam.benchmarks import machine
        before = machine.available_memory()
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
        assert machine.available_memory() < min(before, 2**31), machine.available_memory()
        print("ok")
    """
    assert fresh("\n".join(line.strip() for line in text.splitlines())) == "ok\n"


# The command.


ONE_CORE = """
import os
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
"""


def run(*words, **environment):
    """`python -m fastadam bench` as a user types it, without a terminal."""
    env = os.environ | {"PYTHONPATH": str(ROOT), **environment}
    one_core = (
        "import os; hasattr(os, 'sched_setaffinity') and os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
    )
    command = [sys.executable, "-c", one_core + "from fastadam.cli import main; raise SystemExit(main())", "bench"]
    done = subprocess.run([*command, *words], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_command_on_one_core_without_a_terminal(tmp_path):
    path = tmp_path / "result.json"
    text = run(
        "--sizes", "2^6,100", "--workload", "mlp", "--rounds", "2", "--peers", "plain NumPy", "--json", str(path)
    )
    assert "\x1b" not in text
    result = json.loads(path.read_text())
    assert result["versions"]["numpy"] == np.__version__
    assert {"cpu", "cores", "memory_gib"} <= result["machine"].keys()
    assert result["commit"] != "unknown"
    assert len(result["date"]) == 20
    assert list(result["cases"]) == ["2^6", "100", "mlp"]
    for entry in result["cases"].values():
        assert list(entry["contestants"]) == ["fastadam numba", "limit", "fastadam numpy", "plain NumPy"]
        assert entry["contestants"]["fastadam numba"]["of_limit"][0] > 0
    assert text.count("plain NumPy") == 4  # three tables and the closing one


def test_the_command_without_numba(tmp_path):
    (tmp_path / "numba.py").write_text("raise ImportError('not here')")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    text = run("--sizes", "64", "--rounds", "1", "--peers", "plain NumPy", PYTHONPATH=paths)
    assert "fastadam numpy" in text
    assert "absent: limit: ImportError: not here" in text


def test_first_use():
    text = run("--first-use", "--sizes", "64", "--backend", "numpy", "--peers", "plain NumPy")
    assert text.count("plain NumPy") == 2
    assert "with empty caches" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "2^"], "'2^'"),
        (["--sizes", "0"], "expected numbers from 1 to 2^34"),
        (["--sizes", "2^40"], "'2^40'"),
        (["--workload", "gpt9"], "'gpt9', expected one of mlp, resnet50"),
        (["--workload", ","], "expected names with commas between"),
        (["--rule", "Adan"], "'Adan', expected one of Adam, "),
        (["--dtype", "int8"], "'int8', expected one of float32"),
        (["--backend", "rocm"], "'rocm', expected one of numba"),
        (["--peers", "torch"], "'torch', expected one of torch fused"),
        (["--threads", "0"], "expected an integer of at least 1, got '0'"),
        (["--threads", "100000"], "100000, but this process may use"),
        (["--json", "/no/such/folder/file.json"], "expected a file in a folder that is there"),
    ],
)
def test_options_are_refused_with_both_sides(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bench", *words])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_plot_needs_matplotlib(monkeypatch, capsys, tmp_path):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["bench", "--sizes", "64", "--plot", str(tmp_path / "x.png")])
    assert "pip install matplotlib" in capsys.readouterr().err


def test_a_plot_is_drawn(tmp_path):
    report.main(["--plot", str(tmp_path / "x.png")])
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_sizes_and_their_names():
    assert options.sizes("2^10, 1024,100000") == ["2^10", "100000"]


# The files.


def test_readme_is_what_report_writes(monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as caught:
        report.main(["--check"])
    assert caught.value.code == 0
    edited = tmp_path / "README.md"
    edited.write_text((ROOT / "README.md").read_text().replace("| mlp:", "| mlp :"))
    monkeypatch.setattr(report, "README", edited)
    with pytest.raises(SystemExit, match=r"run python benchmarks/report\.py"):
        report.main(["--check"])
    report.main([])
    assert edited.read_text() == (ROOT / "README.md").read_text()


@pytest.fixture
def pair(tmp_path):
    """write(name, seconds by contestant): a result file."""

    def write(name, **changes):
        entry = summary.case("2^20", [made_up(numba=2e-3, limit=1e-3, fused=3e-3) | changes.pop("run", {})], 2**25)
        result = {
            "bench": "core",
            "rule": "Adam",
            "dtype": "float32",
            "threads": 2,
            "commit": name,
            "date": "2026-01-01",
        }
        result |= {"machine": {"cpu": "x", "load_before": 0}, "versions": {}, "cases": {"2^20": entry}, **changes}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(result))
        return str(path)

    return write


def test_compare_prints_what_got_slower_beyond_the_spread(pair, capsys):
    old, same = pair("old"), pair("same", run=made_up(numba=2.1e-3, limit=1e-3, fused=3e-3))
    assert compare.main([old, same]) == 0
    assert "3 compared, 0 slower, 0 faster" in capsys.readouterr().out
    new = pair("new", run=made_up(numba=3e-3, limit=1e-3, fused=2e-3), machine={"cpu": "y"})
    assert compare.main([old, new]) == 1
    text = capsys.readouterr().out
    assert "cpu: x -> y" in text
    slower, faster = text.split("faster beyond")
    assert "fastadam numba  2.00 ms  3.00 ms  1.50" in slower
    assert "torch fused  3.00 ms  2.00 ms  1.50" in faster
    assert compare.main([new, old]) == 0  # only a peer got slower


def test_compare_refuses_other_work(pair, tmp_path):
    old = pair("old")
    with pytest.raises(SystemExit, match=r"dtype is float64, in .* it is float32"):
        compare.main([old, pair("new", dtype="float64")])
    with pytest.raises(SystemExit, match="No such file"):
        compare.main([old, str(tmp_path / "none.json")])
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(SystemExit, match="expected a file written by bench --json"):
        compare.main([old, str(tmp_path / "other.json")])


@pytest.mark.parametrize("script", ["report.py --help", "compare.py --help", "report.py --check"])
def test_scripts_run_from_a_clone_that_is_not_installed(script, tmp_path):
    name, *words = script.split()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / name, *words], env=env, cwd=tmp_path)
    assert done.returncode == 0


@pytest.mark.skipif(fastadam.backends().get("cuda") == "ready", reason="there is a GPU here, so nothing is refused")
def test_the_gpu_script_refuses_a_machine_without_one(tmp_path):
    env = os.environ | {"PYTHON": sys.executable}
    script = str(ROOT / "benchmarks/gpu.sh")
    done = subprocess.run([script, str(tmp_path / "out")], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout.startswith("benchmarks/gpu.sh: ")
    assert "GPU" in done.stdout or "CUDA" in done.stdout
    assert (tmp_path / "out/summary.txt").read_text() == done.stdout
    assert subprocess.run([script], env=env, capture_output=True).returncode == 2
