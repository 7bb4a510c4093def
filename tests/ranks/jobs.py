"""Jobs of several processes: by mpiexec from the wheels in this environment, or by torch.distributed's variables."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import fastadam

HERE = Path(__file__).parent
PATHS = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), str(Path(fastadam.__file__).parents[1])])


def environment(**more):
    kept = {name: x for name, x in os.environ.items() if not name.startswith(("PYTHON", "FASTADAM_BACKEND"))}
    return {**kept, "PYTHONPATH": PATHS, **{name: str(x) for name, x in more.items()}}


def mpiexec():
    """The wheel's, beside this Python; the test is skipped where there is none."""
    pytest.importorskip("mpi4py", reason="no mpi4py: pip install '.[mpi]'")
    beside = shutil.which("mpiexec", path=os.path.dirname(sys.executable))
    if beside is None:
        pytest.skip("no mpiexec beside this Python: pip install '.[mpi]'")
    return beside


def mpi(size, script, *arguments, timeout=120, cwd=None, **variables):
    """(exit status, output) of a job over MPI; whoever raises ends it, as `-m mpi4py` has it."""
    command = [mpiexec(), "-n", str(size), sys.executable, "-Werror", "-m", "mpi4py", str(script), *map(str, arguments)]
    done = subprocess.run(
        command, env=environment(**variables), timeout=timeout, cwd=cwd, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def gloo(size, script, *arguments, timeout=120, **variables):
    """(exit statuses, outputs) of a job over gloo."""
    pytest.importorskip("torch", reason="no torch: pip install torch")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(size):
        named = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks.append(
            subprocess.Popen(
                [sys.executable, str(script), *map(str, arguments)], env=environment(**named, **variables),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
        )  # fmt: skip
    outputs = [process.communicate(timeout=timeout)[0] for process in ranks]
    return [process.returncode for process in ranks], outputs
