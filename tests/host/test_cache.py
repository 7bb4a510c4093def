"""Compiled code on disk: loaded where it is right, and never the cause of an error or of wrong code.

Most tests keep a function of one line, in a directory of their own, those of changed sources by copies of kernels/ that
this process imports; a few step an optimizer in processes of their own.
"""

import errno
import fcntl
import importlib
import os
import pwd
import random
import re
import shutil
import signal
import stat
import sys
import time
from itertools import count
from pathlib import Path

import llvmlite
import numba
import pytest
from numba import types

import fastadam
from fastadam.kernels.cpu import cache, claims

USE = re.compile(r"^(\w+) (compiled|loaded) for ", re.MULTILINE)


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """An empty cache directory, for this process and for those that it starts."""
    path = tmp_path / "cache"
    monkeypatch.setenv("FASTADAM_CACHE_DIR", str(path))
    for name in (
        "FASTADAM_CACHE",
        *(name for name in os.environ if name.startswith("NUMBA_")),
    ):  # none of which they get
        monkeypatch.delenv(name, raising=False)
    return path


@pytest.fixture
def call(caplog):
    """call(): keep and call a function as a new process would; whether that took "compiled" or "loaded" code.

    by: the cache of which copy of kernels/.
    """
    caplog.set_level("DEBUG", "fastadam")

    def run(name="double", by=cache):
        caplog.clear()
        assert by.native(name, lambda x: x + x, types.int64(types.int64)).entry_point(21) == 42
        ((kept, how),) = USE.findall("\n".join(caplog.messages))
        assert kept == name
        return how

    return run


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """An entry that was compiled in another directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTADAM_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        cache.native("double", lambda x: x + x, types.int64(types.int64))
        return only(cache.directory())


@pytest.fixture
def entry(directory, compiled, call):
    """The entry of call(), which is there."""
    directory.mkdir(mode=0o700)
    path = Path(shutil.copy(compiled, directory))
    assert call() == "loaded"
    return path


def only(directory):
    """The one file that lies there: a whole entry, and nothing that was on its way."""
    (path,) = directory.iterdir()
    assert path.suffix == ".bin"
    return path


def test_what_is_compiled_once_is_loaded(directory, call):
    assert [call(), call(), call("other"), call("other"), call()] == [
        "compiled",
        "loaded",
        "compiled",
        "loaded",
        "loaded",
    ]
    assert len(list(directory.iterdir())) == 2


def test_what_is_kept_is_private(directory, call):
    call()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(only(directory).stat().st_mode) == 0o600


def test_switched_off_it_writes_nothing(directory, call, monkeypatch):
    monkeypatch.setenv("FASTADAM_CACHE", "0")
    assert [call(), call()] == ["compiled", "compiled"]
    assert not directory.exists()


# ---- what is old


def aged(path, days):
    os.utime(path, (time.time() - days * 86_400,) * 2)
    return path


def test_what_other_versions_left_goes_when_nothing_has_loaded_it_for_a_month(directory, call):
    call()
    cache._sweep.cache_clear()
    young, old = (aged(directory / name, days) for name, days in others(directory, (29, 31)))
    aged(only_of(directory, "double"), 300)  # this version's own
    call("other")
    assert young.exists()
    assert not old.exists()
    assert [call(), call("other")] == ["loaded", "loaded"]
    assert time.time() - only_of(directory, "double").stat().st_mtime < 86_400  # what is loaded is young again


def test_no_file_goes_that_only_lies_in_the_same_directory(directory, call):
    """Whoever sets FASTADAM_CACHE_DIR may name a directory that holds more."""
    call()
    cache._sweep.cache_clear()
    theirs = ["thesis.tex", "data.bin", "part-1.bin", f"notes-{'0' * 8}.bin", "tmpabcdefgh", "x.claim", "y.part"]
    entry = f"step-{'0' * 8}-{'0' * 32}"
    ours = [f"{entry}.bin", f"{entry}.claim", f"{entry}x_8t4z.part"]
    for name in theirs + ours:
        (directory / name).write_text("")
        aged(directory / name, 400)
    call("other")
    assert {path.name for path in directory.iterdir() if not path.name.startswith(("double-", "other-"))} == {*theirs}


def others(directory, ages):
    """Entries of another version."""
    for days in ages:
        name = f"double-{'0' * 8}-{days:032}.bin"
        (directory / name).write_bytes(b"of another version")
        yield name, days


def only_of(directory, name):
    (path,) = (path for path in directory.glob(f"{name}-*.bin") if f"-{'0' * 8}-" not in path.name)
    return path


def test_beyond_a_size_the_oldest_entries_go(directory, call, monkeypatch):
    for name, days in (("first", 3), ("second", 5), ("third", 4)):
        call(name)
        aged(only_of(directory, name), days)
    cache._sweep.cache_clear()
    monkeypatch.setattr(cache, "LIMIT", int(2.5 * only_of(directory, "first").stat().st_size))
    call("fourth")
    assert {path.name.partition("-")[0] for path in directory.iterdir()} == {"first", "fourth"}


def test_a_process_that_compiles_for_long_says_so_once(directory, call, caplog, monkeypatch):
    monkeypatch.setattr(cache, "_spent", 0.0)
    monkeypatch.setattr(cache, "SLOW", 1e9)
    call()
    assert not [record for record in caplog.records if record.levelname == "INFO"]
    monkeypatch.setattr(cache, "SLOW", 0.0)
    call("slow")
    (record,) = (record for record in caplog.records if record.levelname == "INFO")
    assert re.match(r"compiling has taken \d+\.\d s so far, now of slow\. ", record.getMessage())
    assert f"kept in {directory}" in record.getMessage()
    assert "python -m fastadam warmup" in record.getMessage()
    call("slower")
    assert not [record for record in caplog.records if record.levelname == "INFO"]


# ---- damage


def flipped(at):
    def damage(data):
        changed = bytearray(data)
        changed[int(at * (len(data) - 1))] ^= 1
        return bytes(changed)

    return damage


DAMAGES = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "cut in the head": lambda data: data[:31],
    "only the head": lambda data: data[:32],
    "one more than the head": lambda data: data[:33],
    "half": lambda data: data[: len(data) // 2],
    "all but a byte": lambda data: data[:-1],
    "a byte more": lambda data: data + b"\0",
    "zeros": lambda data: bytes(len(data)),
    "random": lambda data: random.Random(1).randbytes(len(data)),
    "text": lambda data: b"<html>no such file</html>",
    **{f"a bit flipped at {at}": flipped(at) for at in (0, 0.001, 0.01, 0.3, 0.7, 1)},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_costs_a_compilation(damage, directory, entry, call):
    entry.write_bytes(DAMAGES[damage](entry.read_bytes()))
    assert call() == "compiled"
    assert only(directory) == entry
    assert call() == "loaded"  # and is whole again


def test_a_directory_in_the_place_of_an_entry(directory, entry, call):
    entry.unlink()
    entry.mkdir()
    assert [call(), call()] == ["compiled", "compiled"]
    assert only(directory) == entry


def test_a_link_to_nowhere_in_the_place_of_an_entry(directory, entry, call):
    entry.unlink()
    entry.symlink_to(directory / "nowhere")
    assert [call(), call()] == ["compiled", "loaded"]


# ---- files that others may write: they are pickles, so they could make this process do anything


@pytest.mark.parametrize("mode", [0o666, 0o622, 0o660, 0o620, 0o602], ids=oct)
def test_a_file_that_others_may_write_is_not_loaded(mode, entry, call):
    entry.chmod(mode)
    assert [call(), call()] == ["compiled", "loaded"]  # our own has taken its place


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o720, 0o702], ids=oct)
def test_nothing_is_loaded_from_a_directory_that_others_may_write(mode, directory, entry, call):
    directory.chmod(mode)
    assert [call(), call()] == ["compiled", "compiled"]
    directory.chmod(0o755)
    assert call() == "loaded"


@pytest.mark.parametrize("which", ["file", "directory"])
def test_nothing_is_loaded_that_someone_else_owns(which, directory, entry, call):
    if os.getuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(entry if which == "file" else directory, 54321, -1)
    assert call() == "compiled"


# ---- disks that refuse


def place(tmp_path, kind):
    """A cache directory that cannot be one."""
    file = tmp_path / "file"
    file.write_text("")
    return {
        "a file": file,
        "below a file": file / "cache",
        "a device": Path("/dev/full"),
        "where nobody can write": Path("/proc/fastadam/cache"),
        "too long a name": tmp_path / ("x" * 300),
    }[kind]


@pytest.mark.parametrize("kind", ["a file", "below a file", "a device", "where nobody can write", "too long a name"])
def test_a_directory_that_cannot_be_is_no_error(kind, tmp_path, monkeypatch, directory, call):
    monkeypatch.setenv("FASTADAM_CACHE_DIR", str(place(tmp_path, kind)))
    assert [call(), call()] == ["compiled", "compiled"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_read_only_directory_is_no_error(directory, entry, call):
    if os.getuid() == 0:
        pytest.skip("root may write to any directory, whatever its mode")
    directory.chmod(0o500)
    assert [call(), call("other")] == ["loaded", "compiled"]
    directory.chmod(0o700)
    assert only(directory) == entry
    entry.chmod(0o200)
    assert call() == "compiled"


def refusing(error):
    def refuse(*args, **named):
        raise error

    return refuse


# What fails, and whether an entry that is there can be loaded all the same.
FAULTS = {
    "no renaming": (os, "replace", OSError(errno.ENOSPC, "No space left on device"), True),
    "no new directories": (Path, "mkdir", OSError(errno.EROFS, "Read-only file system"), True),
    "no reading": (Path, "read_bytes", OSError(errno.EIO, "Input/output error"), False),
    "no looking": (Path, "stat", OSError(errno.EIO, "Input/output error"), False),
    "no memory": (Path, "read_bytes", MemoryError(), False),
}


@pytest.mark.parametrize("before", [False, True], ids=["empty", "with an entry"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_disk_that_fails_is_no_error(fault, before, directory, call, monkeypatch, request):
    owner, name, error, loads = FAULTS[fault]
    if before:
        request.getfixturevalue("entry")
    with monkeypatch.context() as failing:
        failing.setattr(owner, name, refusing(error))
        how = [call(), call()]
    assert how == ["loaded" if before and loads else "compiled"] * 2
    assert [path.suffix for path in directory.glob("*")] in ([], [".bin"])
    call()
    assert call() == "loaded"


def test_a_disk_that_turns_read_only_half_way_is_no_error(directory, call, monkeypatch):
    """As Linux does with a file system on which a write failed: then the half-written file cannot be removed either."""
    monkeypatch.setattr(os, "replace", refusing(OSError(errno.EIO, "Input/output error")))
    for owner, name in ((os, "unlink"), (os, "remove"), (Path, "unlink")):
        monkeypatch.setattr(owner, name, refusing(OSError(errno.EROFS, "Read-only file system")))
    assert call() == "compiled"


def test_an_interrupted_write_leaves_nothing(directory, call, monkeypatch):
    monkeypatch.setattr(os, "replace", refusing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        call()
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("variables", [{}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "cache"}], ids=str)
def test_without_a_home_nothing_is_left_in_the_working_directory(variables, tmp_path, monkeypatch, call):
    """A container may run as a user without HOME and without an entry in the list of users."""
    for name in ("HOME", "XDG_CACHE_HOME", "FASTADAM_CACHE", "FASTADAM_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pwd, "getpwuid", refusing(KeyError("getpwuid(): uid not found: 54321")))
    monkeypatch.chdir(tmp_path)
    assert call() == "compiled"
    assert list(tmp_path.iterdir()) == []


# ---- other processes: what they run, and what they say of it

LOG = """
import logging, sys
sys.modules["scipy"] = None  # where Numba looks for BLAS before it compiles anything, for 0.25 s
logging.basicConfig(stream=sys.stdout, format="%(message)s")
logging.getLogger("fastadam").setLevel("DEBUG")
"""
CALL = """
from numba import types
from fastadam.kernels.cpu import cache
assert cache.native("double", lambda x: x + x, types.int64(types.int64)).entry_point(21) == 42
"""
LOOK = """
from numba import types
from fastadam.kernels.cpu import cache
path = cache._path("double", types.int64(types.int64), "")
print("double", "loaded" if path.exists() else "compiled", "for all")
"""
STEP = """
import numpy as np
import fastadam as fa
p = np.array([1.0, 2.0, -3.0], np.float32)
fa.SGD(p, lr=0.5, backend="numba").step(np.array([1.0, -4.0, 0.0], np.float32))
print(p.tolist())
"""
MOVED, MIRRORED = "[0.5, 4.0, -3.0]", "[-0.5, -4.0, 3.0]"


def uses(output):
    """Which functions a process compiled and which it loaded."""
    found = USE.findall(output)
    return {name: {kept for kept, how in found if how == name} for name in ("compiled", "loaded")}


COMPILED, LOADED = ({"compiled": {"double"}, "loaded": set()}, {"compiled": set(), "loaded": {"double"}})


@pytest.fixture
def calling(pytestconfig):
    """A text that says whether code would be loaded: by default it looks for the entry, and with --all it calls it."""
    return LOG + CALL if pytestconfig.getoption("--all") else LOOK


@pytest.fixture
def copied(tmp_path):
    """copied(name): a copy of the library that a test may change."""

    def copy(name):
        shutil.copytree(Path(fastadam.__file__).parent, tmp_path / name / "fastadam")
        return tmp_path / name

    return copy


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """imported(): a copy of kernels/, imported as a new process would: its cache.

    edit(its folder) comes before that, later(its folder) between the import of kernels/ and of all that compiles.
    """
    monkeypatch.syspath_prepend(tmp_path)
    names = (f"kernels_{k}" for k in count())

    def copy(edit=lambda folder: None, later=lambda folder: None):
        name = next(names)
        shutil.copytree(Path(fastadam.__file__).parent / "kernels", tmp_path / name)
        edit(tmp_path / name)
        importlib.invalidate_caches()
        importlib.import_module(name)
        later(tmp_path / name)
        return importlib.import_module(f"{name}.cpu.cache")

    yield copy
    for name in [name for name in sys.modules if name.startswith("kernels_")]:
        del sys.modules[name]


def appended(file):
    """An edit of a copy: a comment at the end of a file."""
    return lambda folder: (folder / file).write_text((folder / file).read_text() + "# changed\n")


SOURCES = ["contract.py", "adam/__init__.py", "cpu/traversal.py", "cpu/elements.py"]


def change(package, file, old, new):
    path = package / "fastadam" / "kernels" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_second_process_loads_and_a_changed_kernel_is_compiled_anew(directory, fresh, copied):
    package = copied("package")

    def step():
        output = fresh(LOG + STEP, package=package, PYTHONDONTWRITEBYTECODE=1)
        return uses(output), output.splitlines()[-1]

    used, result = step()
    names = used["compiled"]
    assert {"walk", "step"} <= names
    assert (used["loaded"], result) == (set(), MOVED)
    assert step() == ({"compiled": set(), "loaded": names}, MOVED)
    change(package, "momentum/__init__.py", "return p, m", "return -p, m")
    assert step() == ({"compiled": names, "loaded": set()}, MIRRORED)
    change(package, "momentum/__init__.py", "return -p, m", "return p, m")
    assert step() == ({"compiled": set(), "loaded": names}, MOVED)


def test_code_of_several_processes_meets_in_one(directory, fresh):
    """Numba's names hold how many functions a process compiled before: slots in other places get the same name."""
    step = """
import numpy as np
import fastadam as fa
def bits(backend, **named):
    p = np.linspace(-1, 1, 3000, dtype=np.float32)
    opt = fa.AdamW(p, lr=0.1, moments="8bit", backend=backend, **named)
    for g in (p + 1, -2 * p):
        opt.step(g)
    return p.tobytes()
def check(**named):
    assert bits("numba", **named) == bits("numpy", **named)
"""
    first, second = "check(amsgrad=True)\n", "check()\n"
    shift = "from numba import njit\nassert njit(lambda x: x)(1) == 1\n"
    for each in (first, shift + second):
        assert uses(fresh(LOG + step + each))["compiled"]
    assert not uses(fresh(LOG + step + first + second))["compiled"]


CHANGES = {
    **{file: appended(file) for file in SOURCES},
    "added": lambda folder: (folder / "adam" / "more.py").write_text(""),
    "removed": lambda folder: (folder / "cpu" / "norm.py").unlink(),
}


def test_a_change_of_any_source_compiles_anew(entry, call, imported):
    assert call(by=imported()) == "loaded"
    found = {name: call(by=imported(edit)) for name, edit in CHANGES.items()}
    assert found == dict.fromkeys(CHANGES, "compiled")


def test_code_compiled_from_before_a_change_is_not_kept_as_the_changed(directory, call, imported):
    """A session imports the library, someone changes or upgrades it, then the session compiles what it had imported."""
    change = appended("contract.py")
    session = imported(later=change)
    assert [call(by=each) for each in (session, imported(change), imported())] == ["compiled"] * 3


UPGRADED = """
import numpy as np, pathlib
import fastadam as fa
p = np.ones(8, np.float32)
fa.SGD(p, lr=0.5, backend="numba").step(p.copy())
path = pathlib.Path(fa.kernels.__file__).parent / "cpu" / "traversal.py"
text = path.read_text()
path.write_text("# upgraded\\n" + text)
fa.Lion(p, lr=0.5, backend="numba").step(p.copy())
path.write_text(text)
print(p[0])
"""


def test_an_upgrade_under_a_session_stops_no_new_kind_of_step(directory, fresh, copied):
    """Code is made from the texts that were imported, also where none was made before them from the cache."""
    package = copied("package")
    outputs = [fresh(LOG + UPGRADED, package=package) for _ in range(2)]
    assert [output.splitlines()[-1] for output in outputs] == ["0.0"] * 2
    assert [uses(output)["compiled"] >= {"step"} for output in outputs] == [True] * 2
    assert "step" in uses(outputs[1])["loaded"]


def test_bytecode_that_is_older_than_its_source_is_not_kept_as_the_source(directory, fresh, copied):
    """Python takes bytecode for current by its source's size and second: an edit can keep both."""
    package = copied("package")
    file = package / "fastadam" / "kernels" / "momentum" / "__init__.py"

    def step(**variables):
        output = fresh(LOG + STEP, package=package, **variables)
        return bool(uses(output)["compiled"]), output.splitlines()[-1]

    change(package, "momentum/__init__.py", "return p, m", "return  p, m")
    assert step() == (True, MOVED)
    when = file.stat().st_mtime_ns
    change(package, "momentum/__init__.py", "return  p, m", "return -p, m")
    os.utime(file, ns=(when, when))
    assert step() == (True, MOVED)  # what Python itself runs
    shutil.rmtree(file.parent / "__pycache__")
    assert step() == (True, MIRRORED)
    assert step() == (False, MIRRORED)


ODD = {
    "a link to nowhere": lambda path: path.symlink_to("user@host.1:2"),  # Emacs' lock on a file that is being edited
    "a directory": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_only_looks_like_a_source_changes_nothing(odd, entry, call, imported):
    assert call(by=imported(lambda folder: ODD[odd](folder / "adam" / ".#__init__.py"))) == "loaded"


def test_a_source_that_cannot_be_read_costs_the_cache_alone(directory, call, imported, monkeypatch):
    """Tests may run as root, for whom no mode forbids reading."""
    read = Path.read_bytes

    def read_bytes(path):
        if path.name == "contract.py":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert [call(by=imported()), call(by=imported())] == ["compiled", "compiled"]


def test_a_package_whose_sources_cannot_be_read_keeps_nothing(directory, fresh, copied, tmp_path):
    """In a zip file a change would go unnoticed."""
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", copied("package"))
    assert uses(fresh(LOG + CALL, package=archive)) == COMPILED
    assert list(directory.iterdir()) == []


VERSIONS = {"numba": (numba, "__version__"), "llvmlite": (llvmlite, "__version__"), "Python": (sys, "version")}


@pytest.mark.parametrize("versions", VERSIONS)
def test_what_another_version_compiled_is_not_loaded(versions, entry, call, imported, monkeypatch):
    owner, name = VERSIONS[versions]
    with monkeypatch.context() as another:
        another.setattr(owner, name, f"{getattr(owner, name)} of another build")
        assert call(by=imported()) == "compiled"
    assert call(by=imported()) == "loaded"


OTHERS = {
    "processor": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
    "unoptimized": {"NUMBA_OPT": "0"},
    "with bounds checks": {"NUMBA_BOUNDSCHECK": "1"},
    "for a debugger": {"NUMBA_DEBUGINFO": "1"},
}


def test_what_another_processor_or_option_compiled_is_not_loaded(directory, start, calling):
    assert uses(start(LOG + CALL).output()) == COMPILED
    others = {
        name: start(calling, strict=False, **variables)  # the debugger's code warns that it has no source
        for name, variables in OTHERS.items()
    }
    assert {name: uses(other.output()) for name, other in others.items()} == dict.fromkeys(OTHERS, COMPILED)
    assert uses(start(calling).output()) == LOADED


def test_of_processes_that_step_at_once_one_compiles_each_function(directory, start, fresh):
    together = [start(LOG + STEP) for _ in range(3)]
    outputs = [process.output() for process in together]
    for output in outputs:
        assert output.splitlines()[-1] == MOVED
    compiled = [line.partition(" in ")[0] for output in outputs for line in output.splitlines() if " compiled " in line]
    assert len(set(compiled)) == len(compiled) > 0
    assert {path.suffix for path in directory.iterdir()} == {".bin"}
    output = fresh(LOG + STEP)
    assert output.splitlines()[-1] == MOVED
    assert uses(output)["compiled"] == set()


def test_a_process_killed_while_it_compiles_lets_the_next_one_compile(directory, start, call):
    killed = """
import os, signal
from numba.core import compiler
compiler.compile_extra = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
"""
    assert start(killed + LOG + CALL).result()[0] == -signal.SIGKILL
    assert [path.suffix for path in directory.iterdir()] == [".claim"]
    assert call() == "compiled"
    assert only(directory)


def test_after_ctrl_c_amid_numbas_registering_the_process_compiles(directory, fresh):
    """The moment is amid a list of Numba's overloads, in whichever thread: what is left of it would be lost."""
    interrupted = """
import os, signal
from numba.core.typing import templates
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with SIGINT ignored
pressed = []
def press(registered):
    begin = 0
    while True:
        end = len(registered)
        if end > 40 and not pressed:
            pressed.append(end)
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(10_000):
                pass
        yield iter(registered[begin:end])
        begin = end
templates.utils.stream_list = press
try:
    exec(call)
    raise SystemExit("not interrupted")
except KeyboardInterrupt:
    pass
exec(call)
import numba
assert numba.njit(lambda x: x + 1)(1) == 2
"""
    assert uses(fresh(LOG + f"call = {CALL!r}" + interrupted)) == COMPILED


def test_no_process_is_waited_for_for_ever(entry, call, monkeypatch):
    """One that is stopped while it compiles holds its claim."""
    entry.unlink()
    with open(entry.with_suffix(".claim"), "w") as claim:
        fcntl.flock(claim, fcntl.LOCK_EX)
        monkeypatch.setattr(claims, "PATIENCE", 0.05)
        assert call() == "compiled"
        assert entry.with_suffix(".claim").exists()  # it is another's
    assert call() == "loaded"


def test_a_claim_that_came_after_is_left_to_its_owner(directory):
    """Whose file was removed by one that held the lock before, and that only then gets the lock."""
    entry = directory / "entry.bin"
    with claims.claimed(entry):
        claim = entry.with_suffix(".claim")
        claim.unlink()
        claim.write_text("another's")
    assert claim.read_text() == "another's"
    with claims.claimed(entry):
        pass
    assert not claim.exists()


def test_processes_that_keep_and_load_the_same_at_every_moment(directory, start):
    """Each of four goes through the same functions, in an order of its own, with nothing but the disk between them."""
    text = """
import random, sys
sys.modules["scipy"] = None
from numba import types
from fastadam.kernels.cpu import cache
names = [f"double{k}" for k in range(12)]
random.Random(sys.argv[1]).shuffle(names)
for name in names * 3:
    assert cache.native(name, lambda x: x + x, types.int64(types.int64)).entry_point(21) == 42
"""
    for process in [start(text, k) for k in range(4)]:
        process.output()
    assert sorted(path.name.partition("-")[0] for path in directory.iterdir()) == sorted(
        f"double{k}" for k in range(12)
    )
    assert {path.suffix for path in directory.iterdir()} == {".bin"}


def test_a_full_disk_is_no_error(directory, fresh):
    """No file of this process may grow beyond 1,000 bytes: every write fails half-way, as on a full disk."""
    full = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    assert uses(fresh(full + LOG + CALL, PYTHONDONTWRITEBYTECODE=1)) == COMPILED
    assert list(directory.iterdir()) == []


def test_a_process_killed_while_it_writes_harms_no_other(directory, start, call):
    killed = "import os, signal\nos.replace = lambda *files: os.kill(os.getpid(), signal.SIGKILL)\n"
    assert start(killed + LOG + CALL).result()[0] == -signal.SIGKILL
    assert [call(), call()] == ["compiled", "loaded"]
