"""What pytest itself is told, and Python texts run in a process of their own."""

import gc
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from datetime import date
from pathlib import Path

import pytest

import fastadam
from fastadam.host import threads
from fastadam.tools.cover import kernels_in_use

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # a machine with a GPU may have none; the tests for it need none
    settings = None
    collect_ignore = ["test_hypothesis.py"]

EXAMPLES = 200
SPENT = pytest.StashKey[dict]()  # by architecture, what interpreters of PTX have spent, those of xdist's workers too
FEW = 25
TBB = str(Path(sys.prefix, "lib"))  # where TBB's wheel puts its library, which Numba's layer asks the loader for
NO_NVRTC = "no cuda-bindings: pip install '.[cuda-ci]'"


def pytest_addoption(parser):
    parser.addoption(
        "--all",
        action="store_true",
        help="whole counts where a tenth is usual, and whole products where a set is that covers every pair",
    )
    parser.addoption(
        "--examples", type=int, help=f"how many examples hypothesis tries in a test: {FEW}, {EXAMPLES} with --all"
    )
    parser.addoption(
        "--ptx",
        nargs="?",
        const="90",
        choices=["80", "90", "100", "120"],
        metavar="ARCH",
        help="let the stand-in for CuPy execute PTX of this architecture, 90 unless said, in place of g++'s code",
    )
    parser.addoption("--sample", type=int, default=1, metavar="K", help="run every K-th test alone, others each day")
    parser.addoption("--seed", type=int, default=date.today().toordinal(), help="which: 0 begins with the first")


def pytest_xdist_auto_num_workers(config):
    """Nothing else may run beside a GPU's tests; elsewhere xdist counts the processors."""
    return 0 if "gpu" in (config.option.markexpr or "") else None


def pytest_report_header():
    return None if settings else "no hypothesis: test_hypothesis.py is left out; pip install hypothesis"


def pytest_configure(config):
    if settings is None:
        return
    examples = config.getoption("--examples")
    # The usual number tries the same examples every time; whoever asks for more wants others.
    settings.register_profile(
        "fastadam",
        max_examples=examples or (EXAMPLES if config.getoption("--all") else FEW),
        derandomize=examples is None,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    settings.load_profile("fastadam")


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["ptx"] = {k: dict(x) for k, x in session.config.stash.get(SPENT, {}).items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    for architecture, spent in getattr(node, "workeroutput", {}).get("ptx", {}).items():
        node.config.stash.setdefault(SPENT, {}).setdefault(architecture, Counter()).update(spent)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect without the garbage collector, which finds none: all of it stays, so later it is not walked over either.

    That took two fifths of the time to collect, and 0.2 s of each full collection after.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    """What one test says of set_num_threads, as the benchmarks do, holds for that test alone.

    A fixture for all tests would take 0.1 ms of each.
    """
    chosen = threads._chosen
    try:
        return (yield)
    finally:
        threads._chosen = chosen


def pytest_collection_modifyitems(config, items):
    """Leave out what is marked as whole without --all, and what is not of the sample; pytest says how many that are."""
    everything, every = config.getoption("--all"), config.getoption("--sample")
    chosen = [item for item in items if everything or not item.get_closest_marker("whole")]
    chosen = chosen[config.getoption("--seed") % every :: every]
    left_out = set(items).difference(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = chosen


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("--sample") > 1:
        terminalreporter.write_line(f"every {config.getoption('--sample')}th test: --seed {config.getoption('--seed')}")
    for architecture, spent in config.stash.get(SPENT, {}).items():
        from ptx.interpreter import report

        terminalreporter.write_line(report(architecture, spent))


class Process:
    """A Python text under way in a process of its own, with this process's fastadam and a plain environment.

    package: another folder to import fastadam from. cwd: where it runs. strict: whether warnings are errors.
    Everything else is an environment variable; None removes one.
    """

    def __init__(self, text, *arguments, package=None, cwd=None, strict=True, **environment):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "NUMBA_", "FASTADAM_"))}
        kept = {k: os.environ[k] for k in ["FASTADAM_CACHE_DIR"] if k in os.environ}
        changed = {"PYTHONPATH": package or Path(fastadam.__file__).parents[1], **environment}
        if environment.get("NUMBA_THREADING_LAYER") == "tbb":
            changed["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [TBB, os.environ.get("LD_LIBRARY_PATH")]))
        everything = {**inherited, **kept, **changed}
        # From Python 3.12 on every fork of a threaded process warns; that it is safe is what some tests show.
        filters = ["-Werror", "-Wignore:This process (pid=:DeprecationWarning"] if strict else []
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-Xfaulthandler", *filters, "-c", text, *map(str, arguments)],
            env={k: str(v) for k, v in everything.items() if v is not None},
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def result(self, timeout=120):
        """(exit status, output). One that hangs says where each of its threads stands, and is ended."""
        try:
            output, _ = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGABRT)  # faulthandler prints the stacks
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            pytest.fail(f"no end after {timeout} s\n{self.end()}")
        return self._process.returncode, output

    def output(self, timeout=120):
        """What it printed; it must have ended well."""
        status, output = self.result(timeout)
        assert status == 0, f"exit status {status}\n{output}"
        return output

    def end(self):
        """End it and its children, if they have not ended; what it printed."""
        if self._process.stdout.closed:
            return ""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.communicate()[0]


@pytest.fixture
def start():
    """start(text, ...): a Process. Several may be under way at once; none outlives its test."""
    started = []

    def begin(*arguments, **named):
        started.append(Process(*arguments, **named))
        return started[-1]

    yield begin
    for process in started:
        process.end()


@pytest.fixture
def fresh(start):
    """fresh(text, ...): what the text prints in a process of its own, which must end well."""

    def run(*arguments, timeout=120, **named):
        return start(*arguments, **named).output(timeout)

    return run


@pytest.fixture
def times(pytestconfig):
    """times(n): how often to try what chance decides: n with --all, else two in five."""
    return lambda n: n if pytestconfig.getoption("--all") else 2 * n // 5


@pytest.fixture
def turn(pytestconfig, request):
    """None with --all; else a number that differs from kernel to kernel: each pair of kernel, size and offset is in
    some case."""
    return None if pytestconfig.getoption("--all") else kernels_in_use().index(request.node.callspec.params["case"])


@pytest.fixture(scope="session")
def host_code(pytestconfig):
    """Where the CUDA backend's text lies as g++ compiled it, for all workers and for sessions to come."""
    return pytestconfig.cache.mkdir("cuda_host")


@pytest.fixture(scope="session")
def ptx(pytestconfig):
    """PTX by the interpreter, of the architecture that was asked for, 90 where none was: what runs kernels for CuPy."""
    pytest.importorskip("cuda.bindings.nvrtc", reason=NO_NVRTC)
    from ptx.interpreter import Interpreter

    interpreter = Interpreter(pytestconfig.getoption("--ptx") or "90", pytestconfig.cache.mkdir("ptx"))
    pytestconfig.stash.setdefault(SPENT, {})[interpreter.architecture] = interpreter.spent
    return interpreter


@pytest.fixture(scope="session")
def assembled(pytestconfig):
    """assembled(text, architecture): the PTX of a program, and what NVRTC and its assembler say of it."""
    pytest.importorskip("cuda.bindings.nvrtc", reason=NO_NVRTC)
    from kept import kept

    from fastadam.benchmarks import as_cupy
    from fastadam.kernels.cuda import OPTIONS

    def assemble(text, architecture):
        options = [*OPTIONS, f"-arch=sm_{architecture}", "-Xptxas=-v"]

        def compile_to(new):
            made = as_cupy.compiled(text, *options)
            new.write_text(json.dumps([made.ptx, made.messages]))

        deciding = [text, *options, *as_cupy.ADDED, as_cupy.version()]
        return json.loads(kept(pytestconfig.cache.mkdir("ptx"), deciding, compile_to).read_text())

    return assemble


@pytest.fixture
def launcher(request):
    """What runs kernels for the stand-in for CuPy."""
    if request.config.getoption("--ptx"):
        return request.getfixturevalue("ptx")
    import cuda_host

    return cuda_host.on_host(request.getfixturevalue("host_code"))


@pytest.fixture
def cupy(launcher, monkeypatch):
    """The stand-in for CuPy, in the place of CuPy."""
    from cuda_host import fake_cupy

    from fastadam.cuda import nvrtc

    module = fake_cupy.module(launcher)
    monkeypatch.setitem(sys.modules, "cupy", module)
    nvrtc.function.cache_clear()
    yield module
    nvrtc.function.cache_clear()
    fake_cupy.finish()
