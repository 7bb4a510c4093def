"""What got slower beyond the spread: `python benchmarks/compare.py OLD.json NEW.json`, two files of `bench --json`.

Slower: the new p10 lies above the old p90; faster: the other way round. Exit status 1 if fastadam got slower anywhere.
"""

import argparse
import json
import sys
from pathlib import Path

if not __package__:  # a script of a clone, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fastadam.benchmarks.summary import duration, number
from fastadam.console import Table

SAME = ("bench", "rule", "dtype", "threads")  # what makes two files comparable
NAMED = ("machine", "versions")  # what may explain a difference


def differences(old, new):
    """(case, contestant, old entry, new entry, "slower" or "faster") beyond the spread; and how many were compared."""
    found, compared = [], 0
    for case, entry in new["cases"].items():
        before = old["cases"].get(case, {}).get("contestants", {})
        for name, now in entry.get("contestants", {}).items():
            if name in before:
                compared += 1
                was = before[name]
                verdict = "slower" if now["p10"] > was["p90"] else "faster" if now["p90"] < was["p10"] else ""
                if verdict:
                    found.append((case, name, was, now, verdict))
    return found, compared


def explanations(old, new):
    """What else differs between the two runs, a line each; the load is not a difference."""
    for part in NAMED:
        for key in sorted(old[part].keys() | new[part].keys()):
            was, now = old[part].get(key), new[part].get(key)
            if was != now and key != "load_before":
                yield f"{key}: {was} -> {now}"


def refuse(path, why):
    sys.exit(f"compare: {path}: {why}")


def load(path):
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        refuse(path, error)
    if not isinstance(result, dict) or "cases" not in result:
        refuse(path, "expected a file written by bench --json")
    return result


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", metavar="OLD.json")
    parser.add_argument("new", metavar="NEW.json")
    args = parser.parse_args(argv)
    old, new = load(args.old), load(args.new)
    for key in SAME:
        was, now = (result.get(key, {"rule": "Adam", "dtype": "float32"}.get(key)) for result in (old, new))
        if was != now:
            refuse(args.new, f"{key} is {now}, in {args.old} it is {was}")
    print(f"{old['commit']} ({old['date'][:10]}) -> {new['commit']} ({new['date'][:10]})")
    for line in explanations(old, new):
        print(line)
    found, compared = differences(old, new)
    for verdict in ("slower", "faster"):
        table = Table(
            "case", "contestant", "old", "new", f"times as {verdict}", title=f"\n{verdict} beyond the spread:"
        )
        chosen = [row for row in found if row[-1] == verdict]
        for case, name, was, now, _ in chosen:
            pair = was["seconds"], now["seconds"]
            table.add(case, name, *map(duration, pair), number(max(pair) / min(pair)))
        if chosen:
            table.show()
    slower = [row for row in found if row[-1] == "slower"]
    print(f"{compared} compared, {len(slower)} slower, {len(found) - len(slower)} faster")
    return int(any(name.startswith("fastadam") for _, name, *_ in slower))


if __name__ == "__main__":
    sys.exit(main())
