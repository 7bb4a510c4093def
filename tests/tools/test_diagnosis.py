"""info, verify, warmup and the log: what the library says of itself, and that it says so when something is wrong."""

import json
import logging
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from itertools import combinations, product

import numpy as np
import pytest
from cases import by_turns, kernels_in_use, variants

import fastadam as fa
from fastadam import kernels
from fastadam.tools import cover, verify


def command(*words, **environment):
    """python -m fastadam ..., in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "fastadam", *words], env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_info_leaves_no_name_to_code_that_is_compiled_later(fresh):
    """Numba's LLVM is the process's: a program's external function is its own, however often info was asked."""
    assert (
        fresh(
            """
import ctypes
from llvmlite import binding
from numba import njit, types
import fastadam as fa
fa.info(), fa.info()
probe = ctypes.CFUNCTYPE(ctypes.c_int64)(lambda: 7)
binding.add_symbol("probe", ctypes.cast(probe, ctypes.c_void_p).value)
external = types.ExternalFunction("probe", types.int64())
print(njit(lambda: external())())
"""
        )
        == "7\n"
    )


def test_info_says_the_same_as_json_as_text_and_in_python(tmp_path):
    done = command("info", "--json", FASTADAM_CACHE_DIR=str(tmp_path / "new"), NUMBA_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert re.fullmatch(re.escape(fa.__version__) + "(, not installed: from .+)?", found["versions"]["fastadam"])
    assert found["versions"]["numpy"] == np.__version__
    assert found["backends"] == {"numba": "ready", "numpy": "ready", "cuda": fa.backends()["cuda"]}
    assert found["threads"]["count"] == 1
    assert found["threads"]["from"] in ("NUMBA_NUM_THREADS", "affinity")
    assert found["threads"]["limits"]["NUMBA_NUM_THREADS"] == 1
    assert found["cache"] == {"directory": str(tmp_path / "new"), "state": "writable", "entries": 0, "bytes": 0}
    assert found["threading_layer"]["name"] in ("omp", "tbb", "workqueue")
    assert found["subnormals"] == "kept"
    assert found["tested"].keys() == found["backends"].keys()
    assert found["tested"]["cuda"].startswith("PTX executed by interpreter")
    if platform.machine() == "x86_64":
        assert found["cpu"]["vector_bits"] in (128, 256, 512)
        generic = json.loads(command("info", "--json", NUMBA_CPU_NAME="generic").stdout)["cpu"]
        assert generic == {"name": "generic", "features": [], "vector_bits": 128}
    assert set(fa.info()) == set(found)
    text = command("info").stdout
    assert "backends:" in text
    assert "threads:" in text
    assert sum(1 + len(line) // 80 for line in text.splitlines()) <= 24  # a screen


def test_info_names_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FASTADAM_CACHE_DIR", str(tmp_path / "file"))
    assert fa.info()["cache"]["state"].startswith("not writable")
    monkeypatch.setenv("FASTADAM_CACHE", "0")
    assert fa.info()["cache"]["directory"] is None


def test_info_names_the_layer_that_was_asked_for():
    found = json.loads(command("info", "--json", NUMBA_THREADING_LAYER="workqueue").stdout)
    assert found["threading_layer"] == {"name": "workqueue", "why": "NUMBA_THREADING_LAYER=workqueue"}


def test_info_says_what_mends_a_layer_that_there_is_not():
    found = json.loads(command("info", "--json", NUMBA_THREADING_LAYER="bogus").stdout)
    assert found["threading_layer"]["name"] == "none"
    assert "'bogus'" in found["threading_layer"]["why"]
    assert "; unset NUMBA_THREADING_LAYER, or set it to " in found["threading_layer"]["why"]
    assert (found["threads"]["count"], found["threads"]["limits"]["no threading layer"]) == (1, 1)


def test_info_without_numba_has_the_same_lines():
    found = json.loads(command("info", "--json", NUMBA_NUM_THREADS="0").stdout)
    assert found["backends"]["numba"].endswith("; unset NUMBA_NUM_THREADS")
    whole = fa.info()
    assert set(found) == set(whole)
    for part in ("cpu", "threading_layer", "cache", "threads"):
        assert set(found[part]) == set(whole[part])


SINKS = {"/dev/full": (1, "No space left on device"), "pipe": (141, "")}
COMMANDS = ["info", "info --json", "verify", "warmup"]


@by_turns(command_line=COMMANDS, sink=SINKS)
def test_output_that_nobody_takes_ends_a_command_in_peace(command_line, sink):
    words, (status, said) = command_line.split(), SINKS[sink]
    if sink == "/dev/full" and not os.path.exists(sink):
        pytest.skip("this system has no /dev/full")
    reads, writes = os.pipe()
    os.close(reads)
    with open(sink if sink != "pipe" else writes, "w") as stdout:
        done = subprocess.run([sys.executable, "-c", QUICK, *words], stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert done.returncode == status, done.stderr
    assert len(done.stderr.splitlines()) == bool(said)
    assert said in done.stderr


QUICK = """
import sys
from fastadam.tools import cli, cover, verify, warmup
verify.cases = lambda *_: [cover.Case(cover.kernels_in_use()[-1], verify.np.float32, "numpy", 1)] * 5
warmup.kernels_in_use = lambda: []
sys.exit(cli.main())
"""


def test_a_command_without_any_output_runs():
    done = subprocess.run(f"{sys.executable} -c '{QUICK}' warmup >&-", shell=True, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_verify_passes_here(pytestconfig):
    """By default the cases of some methods, of which a second process takes its share: what all compare, other tests do
    in their own way, methods in test_truth.py, formats in test_formats.py, chores in test_chores.py."""
    only = "" if pytestconfig.getoption("--all") else "AdamW"
    done = command("verify", "--only", only)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.rstrip().endswith(" ok")]
    expected = [case for case in verify.cases() if only in str(case)]
    assert len(rows) == len(expected) >= 20
    assert f"{len(rows)} cases, 0 failed" in done.stdout
    for method, _ in variants():
        assert only or any(row.split()[0].split("-")[0] == method.__name__ for row in rows)


def test_verify_fails_when_a_kernel_is_wrong(monkeypatch, capsys):
    """An equation that is wrong on all backends shows against the paper; a walk that is wrong, against NumPy."""
    adagrad = kernels.ALL["adagrad"]

    def wrong(p, g, sum, c):
        p, sum = adagrad.element(p, g, sum, c)
        return p + p * c.eps, sum

    monkeypatch.setattr(verify, "cases", lambda *_: [cover.Case(v, np.float32, "numpy", 1) for v in variants()[-2:]])
    assert verify.run() == 0
    monkeypatch.setitem(kernels.ALL, "adagrad", adagrad._replace(element=wrong))
    assert verify.run() == 1
    assert "FAILED" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(verify, "cases", lambda *_: [cover.Case(v, np.float32, "numpy", 1) for v in variants()[-1:]])
    monkeypatch.setattr(verify, "same_as_numpy", lambda *_: False)
    assert verify.run() == 1
    assert " NO " in capsys.readouterr().out


PARALLEL = """
import os, sys, threading
import fastadam as fa
from fastadam.tools import cover, verify
from fastadam.host.compiled import NumbaPlan
if "one processor" in sys.argv:
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
if "a child" in sys.argv and (child := os.fork()):
    sys.exit(os.waitpid(child, 0)[1])
if "another thread" in sys.argv:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
used, run = set(), NumbaPlan._run
def watched(plan, workers, after):
    used.add(workers)
    run(plan, workers, after)
NumbaPlan._run = watched
kernel = cover.kernels_in_use()[-1]
verify.cases = lambda *_: [cover.Case(kernel, verify.np.float32, "numba", threads) for threads in (1, 2)]
assert verify.run() == 0
print("used", used)
"""


@pytest.mark.parametrize("limit", ["NUMBA_NUM_THREADS=1", "one processor", "another thread", "a child"])
def test_verify_walks_in_parallel_or_says_that_it_did_not(limit, start):
    """Each row that names the parallel walk has taken it, on a machine with one processor too."""
    if limit == "one processor" and not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no sched_setaffinity")
    variables = {"NUMBA_NUM_THREADS": 1} if "=" in limit else {}
    if limit == "another thread":
        variables["NUMBA_THREADING_LAYER"] = "workqueue"
    status, output = start(PARALLEL, limit, **variables).result()
    assert status == 0, output
    if limit in ("another thread", "a child"):
        assert "numba, parallel  " not in output
        assert "not verified: numba, parallel: " in output
        assert "used {1}\n" in output
    else:
        assert "numba, parallel  " in output
        assert "not verified: numba" not in output
        assert "used {1, 2}\n" in output


def test_verify_tells_of_a_kernel_that_nothing_uses(monkeypatch, capsys):
    monkeypatch.setattr(verify, "cases", lambda *_: [])
    monkeypatch.setitem(kernels.ALL, "idle", kernels.ALL["adagrad"])
    assert verify.run() == 1
    assert "FAILED: kernel idle: no method uses it" in capsys.readouterr().out


def test_verify_shows_no_error_where_none_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(
        verify, "cases", lambda *_: [cover.Case(variants()[-1], np.float32, "numba", 1, {"zero_grads": True})]
    )
    assert verify.run() == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" ok")]
    assert row.split()[-4:] == ["-", "-", "yes", "ok"]


def on_a_terminal(program, columns=80):
    """What a program shows on a terminal of so many columns."""
    import pty

    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", program], stdout=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        with suppress(OSError):  # how Linux ends a terminal that nobody holds
            while some := os.read(ours, 65_536):
                seen += some
    os.close(ours)
    assert process.returncode == 0, seen
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())


def test_progress_is_a_bar_on_a_terminal_and_a_few_lines_elsewhere(fresh):
    pytest.importorskip("rich")
    program = "import threading\nfrom fastadam.tools.console import track\n"
    program += "print(sum(track(range(20), 'compiling')), max(threading.active_count() for _ in track([1, 2], 'on')))"
    seen = on_a_terminal(program)
    assert "compiling" in seen
    assert "100%" in seen
    assert "190 1" in seen  # no thread of its own: beside one, walks under workqueue are serial
    assert fresh(program).splitlines() == [
        *(f"compiling: {k} of 20" for k in (4, 8, 12, 16)),
        "on: 1 of 2",
        "190 1",
    ]


def test_a_table_on_a_narrow_terminal_drops_no_letter():
    pytest.importorskip("rich")
    program = "from fastadam.tools.console import TextTable\nt = TextTable(*'abcdefg')\n"
    program += "t.add('Adam-' + 'x' * 30 + '-1', *['y' * 20] * 6)\nt.show()"
    seen = on_a_terminal(program)
    assert "…" not in seen
    assert (seen.count("x"), seen.count("y")) == (30, 120)


NO_SCIPY = "import sys; sys.modules['scipy'] = None\n"  # where Numba looks for BLAS before it compiles, for 0.25 s
FLUSH = """
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

@intrinsic
def control(typing, value):
    def generate(context, builder, signature, args):
        word, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        place = builder.alloca(word)
        builder.store(args[0], place)
        load = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [byte]), "llvm.x86.sse.ldmxcsr")
        builder.call(load, [builder.bitcast(place, byte)])
        return context.get_dummy_value()
    return types.void(types.uint32), generate

njit([(types.uint32,)])(lambda x: control(x))(0x1F80 | 0x8040)      # FTZ and DAZ
from fastadam.tools import cover, verify
import fastadam, sys
print(fastadam.info()["subnormals"])
verify.cases = lambda *_: []
sys.exit(verify.run())
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="sets x86-64's MXCSR; this is " + platform.machine())
def test_flushed_subnormals_are_noticed():
    done = subprocess.run([sys.executable, "-c", NO_SCIPY + FLUSH], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "flushed to zero" in done.stdout
    assert "FAILED: this process flushes subnormal numbers" in done.stdout


def test_the_cases_cover_every_pair_and_every_rule():
    found = cover.cases()
    walks = {(case.backend, case.threads) for case in found}
    assert walks == {("numpy", 1), ("numba", 1), ("numba", 2)}
    assert {cover.label(case.variant) for case in found} >= {cover.label(v) for v in variants()}
    assert {case.stored for case in found} == {None, *cover.stored()}
    found, every = [case for case in found if not (case.chores or case.stored)], found
    kinds = {cover._signature(v) for v in kernels_in_use()}
    dtypes = {case.dtype for case in found}
    assert len(dtypes) == 2
    seen = [(cover._signature(c.variant), c.dtype, (c.backend, c.threads)) for c in found]
    for kind in kinds:
        assert {d for k, d, _ in seen if k == kind} == dtypes
        assert {w for k, _, w in seen if k == kind} == walks
    assert {(d, w) for _, d, w in seen} == {(d, w) for d in dtypes for w in walks}
    sets = [case.chores for case in every if case.chores and not case.stored]
    for one, other in combinations(cover.CHORES, 2):
        pairs = product(cover.CHORES[one], cover.CHORES[other])
        assert {(str(s[one]), str(s[other])) for s in sets} == {(str(a), str(b)) for a, b in pairs}
    chosen = len(kernels_in_use()) * len(cover.chores()) * (len(walks) - 1)
    narrow = len(kernels_in_use()) * len(cover.stored()) * (len(walks) - 1)
    assert len(cover.cases(everything=True)) == (len(variants()) * len(walks) + chosen) * len(dtypes) + narrow
    assert len(found) < len(cover.cases(everything=True)) / 3


def test_pairwise_leaves_no_pair_out():
    factors = [range(4), range(3), range(2), range(2)]
    rows = cover.pairwise(*factors)
    for i in range(4):
        for j in range(i + 1, 4):
            assert {(r[i], r[j]) for r in rows} == {(a, b) for a in factors[i] for b in factors[j]}
    assert len(rows) < 4 * 3 * 2 * 2 / 2


WARMUP = (
    NO_SCIPY
    + """
from fastadam.tools import cli, cover, warmup
warmup.kernels_in_use = lambda: cover.kernels_in_use()[-1:]  # what the command does for each
warmup.DTYPES = warmup.DTYPES[:1]
sys.exit(cli.main(["warmup"]))
"""
)
LIMIT = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))\n"  # as on a disk that fills up


def test_warmup_leaves_nothing_to_compile(start, tmp_path):
    log = "import logging\nlogging.basicConfig(level='DEBUG')\n"
    for before in ("", log):
        output = start(before + WARMUP, FASTADAM_CACHE_DIR=tmp_path / "cache").output()
        assert "pieces compiled: 1; " in output
        kept = sorted((tmp_path / "cache").iterdir())
        assert len(kept) >= 2
        for path in kept:
            path.chmod(0o400)
    assert "compiled for" not in output
    assert "share loaded for" in output  # what several threads need


def test_warmup_on_a_full_disk_fails(start, tmp_path):
    status, output = start(LIMIT.format(10_000) + WARMUP, FASTADAM_CACHE_DIR=tmp_path / "cache").result()
    assert status == 1, output
    assert "but 3 were not kept, and a new process compiles them again: step: " in output
    assert [path.name.partition("-")[0] for path in (tmp_path / "cache").glob("*.bin")] == ["share"]
    (tmp_path / "file").write_text("in the way")
    status, output = start(WARMUP, FASTADAM_CACHE_DIR=tmp_path / "file").result()
    assert status == 1, output
    assert "were not kept" in output


def test_info_says_that_a_full_disk_is_no_place_for_entries(fresh, tmp_path):
    program = "from pathlib import Path\nfrom fastadam.kernels.cpu import cache\n"
    for limit in (100_000, 0):
        program += LIMIT.format(limit) + f"print(cache.state(Path({str(tmp_path)!r})))\n"
    assert [line.startswith("not writable (") for line in fresh(program).splitlines()] == [True, True]


def test_the_log_names_backend_and_traversal(caplog, monkeypatch):
    with caplog.at_level(logging.DEBUG, "fastadam"):
        fa.Adagrad(np.ones(3, np.float32), backend="numpy")
        assert "backend numpy chosen: backend asks for it" in caplog.text
        monkeypatch.setenv("FASTADAM_BACKEND", "numba")
        fa.Adagrad(np.ones(3, np.float32))
        assert "backend numba chosen: FASTADAM_BACKEND asks for it" in caplog.text
    monkeypatch.delenv("FASTADAM_BACKEND")
    code = "import logging, numpy as np, fastadam as fa; logging.basicConfig(level=10); "
    code += "fa.Lion(np.ones(3)).step(np.ones(3))"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert "DEBUG:fastadam:backend numba chosen: the fastest that is ready" in text
    for what in ("walk", "step", "place"):
        assert any(f":{what} {done} for" in text for done in ("loaded", "compiled"))
