"""What got slower beyond the spread: `python benchmarks/compare.py OLD.json NEW.json`, two files of `bench --json`.

Several files a side, with commas between, count as more processes. A contestant is slower where all of its processes'
medians are above all of the old ones; with one process on a side, where its p10 is above the old p90. Exit status 1 if
fastadam got slower anywhere, 2 where there is nothing to compare.
"""

import argparse
import statistics
import sys
from math import comb
from pathlib import Path

if not __package__:  # a script of a clone, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fastadam.benchmarks import files, machine
from fastadam.benchmarks.summary import duration, number
from fastadam.tools.console import Table

SAME = ("rule", "dtype", "threads")  # what makes files comparable
NAMED = ("rounds", "processes")  # what may explain a difference, beside the machine and the versions


class Side:
    """The files of one side, as one."""

    def __init__(self, text):
        self.paths = text.split(",")
        self.files = [files.read(path, "core") for path in self.paths]

    def entries(self, case, name):
        """What each file that has it says of a contestant of a case."""
        found = [one["cases"].get(case, {}).get("contestants", {}).get(name) for one in self.files]
        return [one for one in found if one]

    def names(self):
        """(case, contestant), each once."""
        cases = [pair for one in self.files for pair in one["cases"].items()]
        return list(dict.fromkeys((case, name) for case, entry in cases for name in entry.get("contestants", {})))

    def title(self):
        return ", ".join(f"{one['commit']} ({one['date'][:10]})" for one in self.files)

    def facts(self):
        """{what: its value, or all of them}: what may explain a difference."""
        found = {}
        for one in self.files:
            of = one["machine"] | one["versions"] | {key: one.get(key) for key in NAMED}
            for key in of.keys() - {"load_before"}:
                found.setdefault(key, []).append(of[key])
        return {key: values[0] if all(v == values[0] for v in values) else values for key, values in found.items()}


def medians(entries):
    """Seconds of each process; a file from before they were kept has one of all."""
    return [t for one in entries for t in one.get("medians", [one["seconds"]])]


def verdict(old, new):
    """("slower", "faster" or "", seconds before, seconds now, processes of each side) from both sides' entries."""
    was, now = medians(old), medians(new)
    counts = len(was), len(now)
    before, after = statistics.median(was), statistics.median(now)
    if min(counts) < 2:
        was, now = ([one[p] for one in side for p in ("p10", "p90")] for side in (old, new))
    word = "slower" if min(now) > max(was) else "faster" if max(now) < min(was) else ""
    return word, before, after, counts


def remarks(old, new):
    """What else differs or is amiss, a line each."""
    was, now = old.facts(), new.facts()
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            yield f"{key}: {was.get(key)} -> {now.get(key)}"
    for side in (old, new):
        for path, one in zip(side.paths, side.files, strict=True):
            if machine.unquiet(one["machine"]):
                yield f"{path}: {machine.unquiet(one['machine'])}"
            if "partial" in one:
                yield f"{path}: partial: {one['partial']}"


def confidence(counts):
    """How often this would call equal programs slower or faster: a line."""
    least = min(counts, key=min)
    if min(least) < 2:
        return "one process on a side: how processes differ is not seen; measure with --processes 5, or give more files"
    odds = comb(sum(least), least[0]) // 2
    return (
        f"ranges over {least[0]} and {least[1]} processes: equal programs' would miss each other in 1 of {odds} cases"
    )


def refuse(why):
    print(f"compare: {why}", file=sys.stderr)
    return 2


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", metavar="OLD.json[,OLD2.json]", help="before")
    parser.add_argument("new", metavar="NEW.json[,NEW2.json]", help="after")
    args = parser.parse_args(argv)
    try:
        old, new = Side(args.old), Side(args.new)
    except files.Unusable as unusable:
        return refuse(unusable)
    for path, one in zip(old.paths + new.paths, old.files + new.files, strict=True):
        for key in SAME:
            if one.get(key) != old.files[0].get(key):
                return refuse(f"{path}: {key} is {one.get(key)}, in {old.paths[0]} it is {old.files[0].get(key)}")
    common = [pair for pair in new.names() if pair in old.names()]
    if not common:
        return refuse(f"{args.old} and {args.new} have no contestant of any case in common")
    print(f"{old.title()} -> {new.title()}")
    for line in remarks(old, new):
        print(line)
    rows = [(case, name, *verdict(old.entries(case, name), new.entries(case, name))) for case, name in common]
    for word in ("slower", "faster"):
        table = Table("case", "contestant", "old", "new", f"times as {word}", title=f"\n{word} beyond the spread:")
        chosen = [row for row in rows if row[2] == word]
        for case, name, _, was, now, _ in chosen:
            table.add(case, name, duration(was), duration(now), number(max(was, now) / min(was, now)))
        if chosen:
            table.show()
    slower, faster = ([row for row in rows if row[2] == word] for word in ("slower", "faster"))
    print(f"{len(rows)} compared, {len(slower)} slower, {len(faster)} faster")
    print(confidence([row[-1] for row in rows]))
    return int(any(name.startswith("fastadam") for _, name, *_ in slower))


if __name__ == "__main__":
    sys.exit(main())
