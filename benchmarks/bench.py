"""`python -m fastadam bench` runs processes that measure, shows a table that grows, writes a file and a picture."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fastadam
from fastadam.tools.console import Live

from . import files, machine, summary, targets

PACKAGE = Path(fastadam.__file__).parent.parent


def environment(threads):
    """Return the environment of a process that measures: counts of threads for every library, and this fastadam."""
    n = str(threads)
    env = os.environ | {"OMP_NUM_THREADS": n, "MKL_NUM_THREADS": n, "OPENBLAS_NUM_THREADS": n, "NUMBA_NUM_THREADS": n}
    env.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's tensors on huge pages too, as NumPy's arrays are
    env.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take three quarters of a GPU
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # DeepSpeed looks for ninja
    return env


def events(task, env=None):
    """Yield what one process says; last, how it ended: {"ended": exit status, "words": its last line of errors}."""
    command = [sys.executable, "-m", "fastadam.benchmarks.worker"]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=env, text=True,
            process_group=0,  # Ctrl-C is this process's to hear, which then ends that one
        )  # fmt: skip
        try:
            with process.stdin as pipe:
                pipe.write(json.dumps(task))
            yield from map(json.loads, process.stdout)
            process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        errors.seek(0)
        words = errors.read().decode(errors="replace").strip().splitlines()
        yield {"ended": process.returncode, "words": words[-1] if words else ""}


class Failed(RuntimeError):
    """Raised when the process that measures does not get as far as the first case."""


class Refused(Exception):
    """Raised when somebody who was asked for by name cannot take part: nothing is measured."""


def refusal(event):
    """Say who was asked for and cannot take part, and how to mend that."""
    mend = f"; {event['install']}" if event["install"] else ""
    return f"python -m fastadam bench: argument --peers: {event['absent']}: {event['reason']}{mend}"


def collect(task, env, show):
    """Run all cases once: in a process, and when one dies in another for the rest, without who killed it."""
    run, died = {"absent": {}, "cases": {}}, {}
    while True:
        run["absent"], case, trying, began = dict(died), None, None, time.time()
        for event in events(task, env):
            trying = event.get("trying", trying)
            if "absent" in event:
                if event["absent"] in task["peers"]:
                    raise Refused(refusal(event))
                run["absent"][event["absent"]] = {"reason": event["reason"], "install": event["install"]}
            elif "gpu" in event:
                run["gpu"] = event["gpu"]
            elif "case" in event:
                began, case = began if case else time.time(), event["case"]
                run["cases"][case] = {"samples": {}, "wrong": {}}
            elif "examples" in event:
                run["examples"] = event["examples"]
            elif "skipped" in event:
                run["cases"][case]["skipped"] = event["skipped"]
            elif "ulps" in event:
                run["cases"][case].update(event)
            elif "sample" in event:
                run["cases"][case]["samples"].setdefault(event["sample"], []).append(event["seconds"])
            elif "ended" in event:
                break
            show(case, trying, run)
        if event["ended"] == 0 and not trying and case == task["cases"][-1]:
            return run
        how = f"the process ended with {ending(event['ended'])}: {event['words']}"
        left = task["cases"][task["cases"].index(case) if case else 0 :]
        if trying in task["peers"]:
            raise Refused(refusal({"absent": trying, "reason": how, "install": ""}))
        task = task | {"seconds": max(1.0, task["seconds"] - (time.time() - began) * (case is not None))}
        if trying:
            died[trying] = {"reason": how, "install": ""}
            task = task | {"without": [*task["without"], trying], "cases": left}
        elif case:
            run["cases"][case]["skipped"] = how
            task = task | {"cases": left[1:]}
        else:
            raise Failed(how)


def ending(status):
    """Say how a process ended: the signal or the exit status."""
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def run(args):
    """Measure, print, write.

    Returns the exit status: 1 where fastadam computed something wrong, or nothing ran; 2 where a peer that was asked
    for is absent; 130 after Ctrl-C, with what was finished printed and written.
    """
    begin, result = time.time(), head(args.suite, args.rule, args.format, args.threads)
    result |= {"rounds": args.rounds, "processes": args.processes, "absent": {}, "cases": {}}
    screen, status = Screen(result), 0
    try:
        for seed in range(args.processes):
            task = {
                "rule": args.rule, "format": args.format, "threads": args.threads, "rounds": args.rounds, "seed": seed,
                "cases": args.cases, "entrants": args.entrants, "backends": args.backends, "peers": args.peers,
                "without": [], "seconds": args.seconds / args.processes, "training": args.training * (seed == 0),
            }  # fmt: skip
            with Live() as live:
                screen.begin(live, last=seed == args.processes - 1)
                screen.done(collect(task, environment(args.threads), screen.show))
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        result["partial"], status = "interrupted", 130
    except Failed as why:
        result["partial"], status = str(why), 1
    result["seconds"] = time.time() - begin
    if status and not result["cases"]:
        print(f"{result['partial']}; nothing was finished")
        return status
    finish(result, args)
    failed = [one for case in result["cases"].values() for one in case.get("wrong", {}) if one.startswith("fastadam")]
    return status or int(bool(failed) or not any(case.get("contestants") for case in result["cases"].values()))


def head(bench, rule, dtype, threads):
    """Print and return what stands at the top of every result."""
    of = machine.machine()
    print(f"{rule} {dtype}, {threads} threads; {of['cpu']}, {of['cores']} cores, {of['memory_gib']} GiB")
    if machine.unquiet(of):
        print(machine.unquiet(of))
    return {
        "bench": bench, "date": machine.date(), "commit": machine.commit(), "machine": of,
        "versions": machine.versions(), "rule": rule, "dtype": dtype, "threads": threads,
    }  # fmt: skip


def finish(result, args):
    """Print what stands below the tables, and write the files."""
    print()
    targets.show(result)
    for name, why in result["absent"].items():
        print(f"absent: {name}: {why['reason']}" + (f"; {why['install']}" if why["install"] else ""))
    if machine.unquiet(result["machine"]):
        print(machine.unquiet(result["machine"]))
    print(f"{result['seconds']:.0f} s" + (f", {result['partial']}" if "partial" in result else ""))
    if args.json:
        files.write(args.json, result)
    if args.plot and any(case.get("contestants") for case in result["cases"].values()):
        from .plot import draw  # which needs matplotlib

        draw(result, args.plot)
        print(f"written: {args.plot}")


class Screen:
    """Draws the case under way again and again while somebody watches, and prints and keeps each finished case."""

    def __init__(self, result):
        self._result, self._finished = result, {}

    def begin(self, live, last):
        """Begin with the cases of a process."""
        self._live, self._last, self._case = live, last, None

    def show(self, case, trying, run):
        """Show how far a process is: who is tried, or the times of the case under way."""
        if case != self._case and self._case is not None:
            self._finish(run, self._case)
        self._case = case
        if "gpu" in run:
            self._result["machine"]["gpu"] = run["gpu"]
        if case is None:
            self._live.show(f"looking for {trying} ..." if trying else "")
        elif trying:
            self._live.show(f"{case}: checking {trying} ...")
        elif run["cases"][case]["samples"]:
            self._live.show(summary.table(case, self._entry(case, [run["cases"][case]])))

    def done(self, run):
        """End with the cases of a process."""
        if self._case is not None:
            self._finish(run, self._case)
        self._result["absent"] |= run["absent"]
        if "examples" in run:
            self._result["examples"] = run["examples"]

    def _entry(self, case, runs):
        of = self._result["machine"]
        return summary.case(case, runs, machine.last_cache(of["caches"]), of.get("gpu", {}).get("l2", 0))

    def _finish(self, run, case):
        runs = self._finished.setdefault(case, [])
        runs.append(run["cases"][case])
        self._live.show("")
        entry = self._result["cases"][case] = self._entry(case, runs)
        if self._last:
            self._live.print(summary.table(case, entry))
            for line in summary.notes(entry):
                self._live.print(line)
