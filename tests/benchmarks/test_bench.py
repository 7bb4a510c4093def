"""The command `bench`: its processes, options and files. No test asserts a time of this machine's."""

import json
import os
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cases import made_up

import fastadam
from fastadam.benchmarks import (
    admission,
    bench,
    cases,
    compiling,
    first_use,
    machine,
    markdown,
    measure,
    options,
    report,
    summary,
    targets,
)
from fastadam.benchmarks.contestants import named
from fastadam.benchmarks.everyone import everyone
from fastadam.benchmarks.suites import SUITES
from fastadam.tools.cli import main

ROOT = Path(__file__).parents[2]


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
    run = bench.collect({"without": [], "peers": [], "seconds": 9, "cases": ["2^10", "2^14"]}, {}, lambda *_: None)
    assert [task["without"] for task in tasks] == [[], ["optax"], ["optax"]]
    assert run["absent"] == {"optax": {"reason": "the process ended with SIGABRT: bad_alloc", "install": ""}}
    assert "SIGKILL" in run["cases"]["2^10"]["skipped"]
    assert run["cases"]["2^14"]["samples"] == {"limit": [1.0]}


def test_results_of_other_machines_compare(tmp_path):
    """pytest-benchmark's notices are words, not the errors that warnings are elsewhere in this project."""
    folder = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "benchmarks/test_steps.py",
        "-q",
        "-k",
        "nosuch",
        "-p",
        "no:cacheprovider",
        f"--benchmark-json={tmp_path / 'x.json'}",
        "--benchmark-compare=0099",
    ]
    env = {name: x for name, x in os.environ.items() if not name.startswith("PYTEST")}  # it is no worker of this run
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert "PytestBenchmarkWarning: Not saving anything" in done.stdout + done.stderr
    assert "PytestBenchmarkWarning: Can't compare" in done.stdout + done.stderr
    assert "INTERNALERROR" not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_peer_that_leaves_is_named(monkeypatch):
    """It ends the process with status 0, or the peer was asked for by name."""

    def events(task, env):
        if "optax" not in task["without"]:
            yield {"trying": "optax"}
        else:
            yield {"case": "2^10"}
        yield {"ended": 0, "words": ""}

    monkeypatch.setattr(bench, "events", events)
    task = {"without": [], "peers": [], "seconds": 9, "cases": ["2^10"]}
    assert bench.collect(task, {}, lambda *_: None)["absent"]["optax"]["reason"].startswith(
        "the process ended with exit"
    )
    with pytest.raises(bench.Refused, match="optax: the process ended"):
        bench.collect(task | {"peers": ["optax"]}, {}, lambda *_: None)


def test_a_process_that_cannot_start_is_an_error(monkeypatch):
    monkeypatch.setattr(bench, "events", lambda task, env: iter([{"ended": 1, "words": "no module"}]))
    with pytest.raises(RuntimeError, match="exit status 1: no module"):
        bench.collect({"without": [], "peers": [], "seconds": 9, "cases": ["2^10"]}, {}, lambda *_: None)


def test_memory_and_time_decide_who_is_admitted(monkeypatch):
    n, setting = 2**20, cases.setting("Adam")
    names = "fastadam numba", "limit", "plain NumPy"
    present = [named(one, one.name, setting=setting) for one in everyone(["numba", "numpy"]) if one.name in names]
    room = 4 * n * (3 + 7 + 3)  # the start, one contestant with its temporaries, another without
    monkeypatch.setattr(machine, "available_memory", lambda: room)
    fitting, why = admission.admitted(n, present, {})
    assert [one.name for one in fitting] == ["fastadam numba", "limit"]
    assert "GiB of memory" in why["plain NumPy"]
    monkeypatch.setattr(machine, "available_memory", lambda: 1e12)
    fitting, why = admission.admitted(n, present, {"plain NumPy": 1e-5})
    assert [one.name for one in fitting] == ["fastadam numba", "limit"]
    assert "10.5 s" in why["plain NumPy"]
    pace = {"fastadam numba": 1e-6, "limit": 1e-6, "plain NumPy": 1e-7}  # the slowest first, but never these two
    fitting, why = admission.admitted(2**18, present, pace, seconds=0.1)
    assert [one.name for one in fitting] == ["fastadam numba", "limit"]
    assert why == {"plain NumPy": "would take about 0 of the 0 s for this case"}
    assert len(admission.admitted(2**18, present, pace, seconds=10.0)[0]) == 3


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
    command = [
        sys.executable,
        "-c",
        one_core + "from fastadam.tools.cli import main; raise SystemExit(main())",
        "bench",
    ]
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


def test_first_use(tmp_path, pytestconfig):
    path, rounds = tmp_path / "first.json", 2 if pytestconfig.getoption("--all") else 1
    words = ["--sizes", "64,100", "--backend", "numpy", "--peers", "plain NumPy", "--json", str(path)]
    text = run("--first-use", *words, "--rounds", str(rounds))
    assert text.count("plain NumPy: ") == 2 * rounds  # of two sizes
    assert f"median (range) of {rounds} rounds" in text
    result = json.loads(path.read_text())
    assert list(result["cases"]) == ["2^6", "100"]
    for entry in result["cases"].values():
        assert {name: len(of[how]) for name, of in entry.items() for how in of} == {
            "fastadam numpy": rounds,
            "plain NumPy": rounds,
        }
    assert report.main(["--summary", str(path)]) == 0


def test_compiling_is_told_in_plain_loops(capsys):
    times = {"loop": [(2.0, 2.0), (1.0, 1.0), (1.0, 2.0)], "warm loop": [1.0, 1.0, 1.0], "warm step": [0.5, 1.3, 1.3]}
    for name, (first, further) in targets.FIRST_USE.items():
        times[name] = [(seconds * first, seconds) for seconds in (2.0, 1.0, 9.0)]
        times[f"{name}, further"] = [(seconds * (further + 0.1), seconds) for seconds in (2.0, 1.0, 1.0)]
    compiling.show(times)
    rows = {line.split("  ")[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines()}
    for name in targets.FIRST_USE:
        assert rows[name] == "met"
        assert rows[f"{name}, further"] == "missed"
    assert rows["asked ≤ 1.25: missed"] == "missed"


def test_first_use_takes_rounds_in_turns(monkeypatch, capsys):
    taken = []

    def both(name, case, args):
        taken.append(name)
        if name == "optax":
            return {"absent": "optax is not installed"}, {}
        return {"seconds": float(len(taken))}, {"seconds": 0.5}

    monkeypatch.setattr(first_use, "starts", both)
    assert main(["bench", "--first-use", "--backend", "numpy", "--rounds", "3"]) == 0
    assert taken.count("plain NumPy") == 3
    assert taken.count("optax") == 1  # absent is absent
    rounds = [name for name in taken if name in ("plain NumPy", "fastadam numpy")]
    assert {frozenset(rounds[k : k + 2]) for k in (0, 2, 4)} == {frozenset(("plain NumPy", "fastadam numpy"))}
    text = capsys.readouterr().out
    assert "absent: optax: optax is not installed; pip install optax jax" in text
    assert "absent: torchao 8-bit: compiles for 20 s" in text


# What ends early, what is absent.


def finished(case, task):
    """The events of a case that `task` asks for, all of a contestant's."""
    yield {"case": case}
    yield {"trying": "fastadam numba"}
    names = ("fastadam numba", "limit")
    yield {
        "trying": "",
        "ulps": dict.fromkeys(names, 1.0),
        "wrong": {},
        "left_out": {},
        "bytes": dict.fromkeys(names, 28),
    }
    for name in names:
        yield {"sample": name, "seconds": 1e-3}


def test_ctrl_c_keeps_what_was_finished(monkeypatch, capsys, tmp_path):
    """The second process is interrupted: the first one's cases stand, and one of them twice."""
    seeds = []

    def events(task, env):
        seeds.append(task["seed"])
        yield from finished("2^10", task)
        yield from finished("2^14", task)
        if task["seed"]:
            raise KeyboardInterrupt
        yield {"ended": 0, "words": ""}

    monkeypatch.setattr(bench, "events", events)
    path = tmp_path / "x.json"
    words = ["--sizes", "2^10,2^14", "--processes", "3", "--json", str(path), "--plot", str(tmp_path / "x.png")]
    assert main(["bench", *words]) == 130
    assert seeds == [0, 1]
    result = json.loads(path.read_text())
    assert result["partial"] == "interrupted"
    assert {case: entry["processes"] for case, entry in result["cases"].items()} == {"2^10": 2, "2^14": 1}
    assert (tmp_path / "x.png").exists()
    text = capsys.readouterr().out
    assert ", interrupted" in text
    assert "fastadam numba" in text


def test_ctrl_c_before_anything_was_finished_writes_nothing(monkeypatch, capsys, tmp_path):
    def events(task, env):
        yield {"trying": "limit"}
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "events", events)
    assert main(["bench", "--json", str(tmp_path / "x.json")]) == 130
    assert "interrupted; nothing was finished" in capsys.readouterr().out
    assert not (tmp_path / "x.json").exists()


def test_ctrl_c_is_heard_by_the_command_alone(tmp_path):
    """SIGINT to the whole group, as a terminal sends it, amid a long run."""
    path = tmp_path / "x.json"
    words = [
        "--sizes",
        "64,2^16",
        "--rounds",
        "100000",
        "--backend",
        "numpy",
        "--peers",
        "plain NumPy",
        "--json",
        str(path),
    ]
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "fastadam", "bench", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True, process_group=0,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:  # fmt: skip
        try:
            process.stdout.readline()  # it has begun
            os.killpg(process.pid, signal.SIGINT)
            text, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "interrupted" in text


def test_an_absent_peer_that_was_asked_for_is_an_error(monkeypatch, capsys):
    absent = {"absent": "optax", "reason": "optax is not installed", "install": "pip install optax jax"}
    monkeypatch.setattr(bench, "events", lambda task, env: iter([{"trying": "optax"}, absent]))
    assert main(["bench", "--peers", "optax"]) == 2
    assert "--peers: optax: optax is not installed; pip install optax jax" in capsys.readouterr().err
    monkeypatch.setattr(bench, "events", lambda task, env: iter([absent, *finished("2^10", task), {"ended": 0}]))
    assert main(["bench", "--sizes", "2^10"]) == 0
    assert "absent: optax: optax is not installed; pip install optax jax" in capsys.readouterr().out


def test_a_load_is_said_and_kept(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "events", lambda task, env: iter([*finished("2^10", task), {"ended": 0}]))
    for load, times in ((1.5, 2), (0.1, 0)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 9.0, 9.0))
        assert main(["bench", "--sizes", "2^10", "--json", str(tmp_path / "x.json")]) == 0
        assert capsys.readouterr().out.count(f"load average {load:g} before the run") == times
        result = json.loads((tmp_path / "x.json").read_text())
        assert result["machine"]["load_before"] == load
        result |= {"rule": "Adam", "rounds": 1}
        assert ("not a quiet machine" in markdown.taken_on(result)) == bool(times)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "2^"], "'2^'"),
        (["--sizes", "0"], "expected numbers from 1 to 2^34"),
        (["--sizes", "2^40"], "'2^40'"),
        (["--workload", "gpt9"], "'gpt9', expected one of mlp, resnet50"),
        (["--workload", ","], "expected names with commas between"),
        (["--rule", "Adan"], "'Adan', expected one of Adam, "),
        (["--rule", "adamw"], "; did you mean AdamW?"),
        (["--dtype", "int8"], "'int8', expected one of float32"),
        (["--format", "float32:moments=2bit"], "'float32:moments=2bit', expected one of float32"),
        (["--json", "/proc/x.json"], "expected a file that can be written, got '/proc/x.json'"),
        (["--plot", "x.xyz"], "expected a name that ends in .png, .svg, .pdf, got 'x.xyz'"),
        (["--suite", "chain", "--rule", "Adam"], "argument --rule: not with --suite chain"),
        (["--suite", "narrow", "--first-use"], "argument --first-use: not with --suite narrow"),
        (["--training", "3"], "argument --training: not with --suite core"),
        (["--suite", "chain", "--sizes", "2^34"], "argument --sizes: 2^34 needs about 2240.0 GiB of memory"),
        (["--suite", "narrow", "--sizes", "2^34"], "argument --sizes: 2^34 needs about 2240.0 GiB of memory"),
        (["--suite", "narrow", "--rounds", "0"], "argument --rounds: expected an integer of at least 1, got '0'"),
        (["--first-use", "--plot", "x.png"], "--plot: not with --first-use"),
        (["--first-use", "--processes", "2"], "--processes: not with --first-use"),
        (["--first-use", "--seconds", "2"], "--seconds: not with --first-use"),
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
    monkeypatch.delitem(sys.modules, "fastadam.benchmarks.plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit):
        main(["bench", "--sizes", "64", "--plot", str(tmp_path / "x.png")])
    assert "pip install matplotlib" in capsys.readouterr().err


def test_a_plot_is_drawn(tmp_path):
    assert report.main(["--plot", str(tmp_path / "x.png")]) == 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_the_bars_say_which_result_they_show(tmp_path, monkeypatch, capsys):
    assert report.main(["--bars", str(tmp_path / "x.png")]) == 0
    assert report.label(report.newest("core")) in (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(b"another")
    monkeypatch.setattr(report, "PICTURE", tmp_path / "x.png")
    assert report.main(["--check"]) == 2
    assert "is of another result" in capsys.readouterr().err


def test_sizes_and_their_names():
    assert options.sizes("2^10, 1024,100000") == ["2^10", "100000"]


# The files.


@pytest.mark.parametrize(
    ("file", "row"),
    [
        ("README.md", "| mlp:"), ("benchmarks/README.md", "| 2^24 whole:"),
        ("benchmarks/FIDELITY.md", "| groups of 32 |"), ("fastadam/README.md", "| `float32 parameters` |"),
    ],
)  # fmt: skip
def test_readme_is_what_report_writes(file, row, monkeypatch, tmp_path, capsys):
    assert report.main(["--check"]) == 0
    edited, text = tmp_path / "README.md", (ROOT / file).read_text()
    assert row in text
    edited.write_text(text.replace(row, row + " "))
    monkeypatch.setattr(report, "FILES", [edited])
    assert report.main(["--check"]) == 2
    assert "run python benchmarks/report.py" in capsys.readouterr().err
    assert report.main([]) == 0
    assert edited.read_text() == text


def test_every_table_stands_in_the_benchmarks_readme():
    texts = [path.read_text() for path in report.FILES]
    marks = [mark for mark in report.SECTIONS for text in texts if f"<!-- {mark} -->" in text]
    assert sorted(marks) == sorted(report.SECTIONS)
    assert all(len(text.splitlines()) < 250 for text in texts)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """The commands that measure.py runs, which here write what is given, and end with a status."""
    ran, status = [], []

    def run(command, env):
        ran.append(command[2:-2])
        Path(command[-1]).write_text("{}")
        return SimpleNamespace(returncode=status.pop() if status else 0)

    monkeypatch.setattr(measure.subprocess, "run", run)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(machine, "commit", lambda: "abc")
    return SimpleNamespace(ran=ran, status=status, results=tmp_path)


def test_measure_runs_the_commands_that_readme_names(measured):
    measure.measure()
    kinds = sorted(path.name.split("-")[0] for path in measured.results.iterdir())
    assert kinds == sorted(SUITES)
    assert all(path.name.endswith("-abc.json") for path in measured.results.iterdir())
    lines = (ROOT / "benchmarks/README.md").read_text().replace("\\\n", " ").splitlines()
    named = [shlex.split(line)[2:-2] for line in lines if line.startswith("python -m fastadam") and "NAME.json" in line]
    assert measured.ran == named
    asked = {target.case for target in targets.TARGETS if target.suite == "core"}
    assert asked == {*named[0][5].split(","), *named[0][7].split(",")}
    for suite, usual in SUITES.items():
        if suite != "core":
            races = [race.case for name in usual.workloads for race in usual.races(name, ["numba", "cuda"])]
            on_gpu = {"2^26 whole"}
            assert {target.case for target in targets.TARGETS if target.suite == suite} <= {*races, *on_gpu}


def test_measure_leaves_the_results_if_a_command_fails(measured, capsys):
    measured.status.append(2)
    assert measure.main([]) == 1
    assert capsys.readouterr().err == "measure: core: exit status 2\n"
    assert not any(measured.results.iterdir())


def test_measure_waits_for_a_quiet_machine(monkeypatch):
    loads, naps = iter([3.0, 1.0, 0.1]), []
    monkeypatch.setattr(os, "getloadavg", lambda: (next(loads), 0.0, 0.0))
    monkeypatch.setattr(measure.time, "sleep", naps.append)
    measure.wait()
    assert len(naps) == 2


def test_summaries_name_the_file_that_is_none(pair, tmp_path, capsys):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text("[]")
    paths = [tmp_path / "none.json", tmp_path / "broken.json", tmp_path / "other.json", pair("good")]
    assert report.main(["--summary", *map(str, paths)]) == 2
    out, err = capsys.readouterr()
    assert [line.split("/")[-1].split(":")[0] for line in err.splitlines()] == [
        "none.json",
        "broken.json",
        "other.json",
    ]
    assert "Adam float32: speed" in out


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
            "rounds": 11,
            "commit": name,
            "date": "2026-01-01",
        }
        result |= {"machine": {"cpu": "x", "load_before": 0}, "versions": {}, "cases": {"2^20": entry}, **changes}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(result))
        return str(path)

    return write


@pytest.mark.parametrize("script", ["report.py --check", "compare.py --help", "measure.py --dry-run"])
def test_scripts_run_from_a_clone_that_is_not_installed(script, tmp_path):
    name, *words = script.split()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / name, *words], env=env, cwd=tmp_path)
    assert done.returncode == 0


def test_the_tests_for_a_gpu_need_no_hypothesis(tmp_path, pytestconfig):
    """Nor do all others, which --all collects, but for the file that says so itself."""
    others = ["tests", "--ignore=tests/pytorch"] if pytestconfig.getoption("--all") else ["tests/arrays"]
    (tmp_path / "hypothesis.py").write_text("raise ImportError('not here')")
    command = [sys.executable, "-m", "pytest", "-p", "no:hypothesispytest", "-n0", "--collect-only", "-q", "-v"]
    command += ["-m", "gpu", "tests/cuda/test_gpu.py", *others]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_two_devices" in done.stdout
    assert "no hypothesis: " in done.stdout


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
