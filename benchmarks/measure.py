"""Makes the results and tables anew: `python benchmarks/measure.py`, in some ten minutes on a quiet machine.

It runs the commands that benchmarks/README.md names, for the cases and peers of the targets, each once the machine is
quiet, puts their results into results/ and lets report.py write the tables. With `--dry-run` it only says what it runs.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if not __package__:  # a script of a clone, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fastadam.benchmarks import files, machine, report
from fastadam.benchmarks.cases import MODELS
from fastadam.benchmarks.suites import SUITES
from fastadam.benchmarks.targets import CORE, TARGETS

PATIENCE = 600  # seconds to wait for a quiet machine


def commands():
    """Return {suite: what follows `python -m`}."""
    flats, models = [name for name in CORE if name not in MODELS], [name for name in MODELS if name in CORE]
    others = (target.other for target in TARGETS if target.suite == "core" and target.other not in ("", "limit"))
    peers = dict.fromkeys([*others, "torch foreach"])
    core = ["--sizes", ",".join(flats), "--workload", ",".join(models), "--processes", "3", "--rounds", "25"]
    more = {"core": [*core, "--peers", ",".join(peers)]}
    return {suite: ["fastadam", "bench", "--suite", suite, *more.get(suite, [])] for suite in SUITES}


def measure():
    """Put all results into results/ once all are there. Raises files.Unusable if a command fails."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{machine.machine()['cpu']} {machine.machine()['cores']}".lower())
    slug = f"{slug}-{machine.commit().replace(' ', '-')}"
    paths = [str(report.HERE.parent), os.environ.get("PYTHONPATH")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with tempfile.TemporaryDirectory() as folder:  # a file in the clone would mark the next result's commit
        for name, command in commands().items():
            wait()
            print("python -m " + " ".join(command), flush=True)
            out = Path(folder, f"{name}-{slug}.json")
            done = subprocess.run([sys.executable, "-m", *command, "--json", str(out)], env=env)
            if done.returncode:
                raise files.Unusable(f"{name}: exit status {done.returncode}")
        for out in Path(folder).iterdir():
            shutil.copy(out, report.RESULTS)
            print(f"written: {report.RESULTS / out.name}")


def wait(quiet=machine.QUIET, patience=PATIENCE):
    """Wait for the load average of a quiet machine, which takes it minutes to say; at most so many seconds."""
    end = time.monotonic() + patience
    while (load := os.getloadavg()[0]) > quiet and time.monotonic() < end:
        print(f"waiting for a quiet machine: load average {load:.2f}", flush=True)
        time.sleep(20)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="only say what is run")
    args = parser.parse_args(argv)
    if args.dry_run:
        for command in commands().values():
            print("python -m " + " ".join(command))
        return 0
    try:
        measure()
    except files.Unusable as unusable:
        print(f"measure: {unusable}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: results/ is as it was")
        return 130
    return report.main([])


if __name__ == "__main__":
    sys.exit(main())
