"""Says whether anything got slower since a commit: `python benchmarks/compare.py --against COMMIT`.

That commit is checked out beside this clone, and a process of each steps the same rows in turns, old new new old, so
that a machine that drifts slows both. Every such four give a ratio, new time over old; a pair of processes gives their
median. Processes differ by where their memory and their code lie, so several pairs are started, and what is shown is
the median over pairs and its confidence interval, by order statistics. Exit status: 1 where a whole interval lies above
1.02, 2 where there is nothing to compare. The suites of methods that older commits have not (lamb, stableadamw, muon)
are compared where --rows names them; jax is not.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

if not __package__:  # a script of a clone, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fastadam
from fastadam.benchmarks import bench, clock, machine, options
from fastadam.benchmarks.suites import FASTADAM, PLAIN, SUITES, TORCH
from fastadam.benchmarks.targets import CORE

ALLOWED = 1.02  # times the old time
CONFIDENCE = 0.95
PAIRS, SECONDS = 16, 0.4  # of processes, which differ by ±2 % (2^10, two Zen 4 cores); for each row in each pair
FEWEST, MOST = 3, 60  # ratios of a row in a pair
USUAL = [name for name, suite in SUITES.items() if suite.compared]
ROWS = f"suites, or rows: 'core 2^10'; else all suites but {', '.join(name for name in SUITES if name not in USUAL)}"
QUICK = ("core 2^10", "core mlp", "pytorch mlp")


class Incomparable(Exception):
    """Raised when nothing can be compared; its text says why."""


def rows():
    """Return {name: what side.py is told of it} of everything that fastadam steps in the suites."""
    named = {}
    for suite, usual in SUITES.items():
        for workload in CORE if suite == "core" else usual.workloads:
            for case, entrants in usual.races(workload, ["numba"]):
                for name, format in entrants or [(FASTADAM, PLAIN)]:
                    if name in (FASTADAM, TORCH):
                        row = f"{suite} {case}" + f" {format}" * (suite == "narrow")
                        named[row] = {"rule": usual.rule, "case": case, "name": name, "format": format}
    return named


class Side:
    """Drives a process that steps one commit's fastadam."""

    def __init__(self, root, links, errors, threads):
        env = bench.environment(threads)
        env["PYTHONPATH"] = os.pathsep.join([str(root), str(links)])
        self._errors = errors
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "measured.side"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=env, text=True,
        )  # fmt: skip

    def ask(self, **order):
        """Return what the process answers to an order."""
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            self._errors.seek(0)
            words = self._errors.read().decode(errors="replace").strip().splitlines()
            raise Incomparable(f"a process ended: {words[-1] if words else 'it said nothing'}") from None

    def prepare(self, row):
        """Make a row's contestant; return how many calls a turn should have, and a checksum of its results."""
        return self.ask(row=row)

    def turn(self, calls):
        """Return seconds per call of a turn."""
        return self.ask(calls=calls)["seconds"]

    def close(self):
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


@contextmanager
def checkout(commit):
    """Check a commit out into a folder while it is needed. Raises Incomparable if there is no such commit."""

    def git(*words):
        done = subprocess.run(["git", "-C", str(machine.ROOT), *words], capture_output=True, text=True)
        if done.returncode:
            raise Incomparable(
                f"argument --against: {commit!r}, expected a commit of this clone; {done.stderr.strip()}"
            )
        return done.stdout.strip()

    sha = git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "old")
        git("worktree", "add", "--quiet", "--detach", str(path), sha)
        try:
            yield path
        finally:
            git("worktree", "remove", "--force", str(path))


@contextmanager
def opened(old, new, threads):
    """Start a pair of processes over these two folders, which both measure with this clone's code."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        Path(folder, "measured").symlink_to(Path(__file__).resolve().parent, target_is_directory=True)
        pair = []
        for root in (old, new):
            pair.append(Side(root, folder, stack.enter_context(tempfile.TemporaryFile()), threads))
            stack.callback(pair[-1].close)
        yield pair


def ratios(old, new, calls, seconds):
    """Return ratios of new time over old, of four turns each, for about so many seconds.

    Of a side's two turns the quicker counts: what interrupts one only adds to it. Which side is in the middle changes.
    """
    until, paired = clock.now() + seconds, []
    while len(paired) < FEWEST or (len(paired) < MOST and clock.now() < until):
        first, second = (old, new) if len(paired) % 2 else (new, old)
        quickest = {old: math.inf, new: math.inf}
        for side in (first, second, second, first):
            quickest[side] = min(quickest[side], side.turn(calls))
        paired.append(quickest[new] / quickest[old])
    return paired


def measure(chosen, pair, pairs, seconds):
    """Return ({row: median ratio of each pair of processes}, the rows whose results differ).

    pair(): a context of two sides, old and new, as processes anew.
    """
    medians, other_bits = {name: [] for name in chosen}, set()
    for k in range(pairs):
        with pair() as (old, new):
            for name, row in chosen.items():
                was, now = old.prepare(row), new.prepare(row)
                if was["bits"] != now["bits"]:
                    other_bits.add(name)
                paired = ratios(old, new, max(was["calls"], now["calls"]), seconds)
                medians[name].append(statistics.median(paired))
                print(f"pair {k + 1} of {pairs}: {name}: {medians[name][-1]:.3f} of {len(paired)}", flush=True)
    return medians, other_bits


def interval(values):
    """Return (low, median, high, how often such an interval holds the median that endless pairs would have).

    Of n values the k-th from either end miss it with the chance that fewer than k of n fair coins fall that way.
    """
    ordered, n = sorted(values), len(values)

    def covered(k):
        return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n

    k = max((k for k in range(1, (n + 1) // 2 + 1) if covered(k) >= CONFIDENCE), default=1)
    return ordered[k - 1], statistics.median(ordered), ordered[-k], covered(k)


def verdict(low, median):
    """Say what a row's interval means: "slower" beyond doubt, "slower?" by its median, or nothing."""
    return "slower" if low > ALLOWED else "slower?" if median > ALLOWED else ""


def main(argv=None):
    most = fastadam.get_num_threads()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", required=True, metavar="COMMIT", help="what is compared with")
    parser.add_argument("--rows", nargs="+", default=USUAL, metavar="ROW", help=ROWS)
    parser.add_argument("--quick", action="store_const", const=QUICK, dest="rows", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--pairs", type=options.count, default=PAIRS, metavar="N", help=f"of processes ({PAIRS})")
    parser.add_argument("--threads", type=options.count, default=most, metavar="N", help=f"{most}; 1 on a busy machine")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for a row in a pair ({SECONDS:g})")
    args = parser.parse_args(argv)
    if args.threads > most:
        parser.error(f"argument --threads: {args.threads}, but this process may use {most}")
    chosen = {name: row for name, row in rows().items() if any(f"{name} ".startswith(f"{word} ") for word in args.rows)}
    for word in args.rows:
        if not any(f"{name} ".startswith(f"{word} ") for name in chosen):
            parser.error(f"argument --rows: {word!r}, expected some of {', '.join([*SUITES, *rows()])}")
    try:
        with checkout(args.against) as old:
            medians, other_bits = measure(
                chosen, lambda: opened(old, machine.ROOT, args.threads), args.pairs, args.seconds
            )
    except Incomparable as why:
        print(f"compare: {why}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted")
        return 130
    return show(medians, other_bits, args.against)


def show(medians, other_bits, against):
    """Print what was measured; exit status 1 if a row is slower."""
    intervals = {name: interval(values) for name, values in medians.items()}
    *_, coverage = next(iter(intervals.values()))
    print(f"\ntimes the time of {against}: median over {len(next(iter(medians.values())))} pairs of processes, and its")
    print(f"{coverage:.0%} interval; {ALLOWED:g} is allowed; load average {os.getloadavg()[0]:.2f}")
    for name, (low, median, high, _) in intervals.items():
        bits = "other bits" if name in other_bits else "same bits"
        print(f"{name:60} {median:.3f} ({low:.3f}–{high:.3f})  {bits}  {verdict(low, median)}".rstrip())
    slower = [name for name, (low, median, *_) in intervals.items() if verdict(low, median) == "slower"]
    print(f"{len(intervals)} compared, {len(slower)} slower")
    return int(bool(slower))


if __name__ == "__main__":
    sys.exit(main())
