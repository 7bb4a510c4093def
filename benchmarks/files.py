"""Reads and writes results: one JSON for each measurement, with machine, versions, commit and date in it."""

import json
from pathlib import Path

ALL = ("bench", "date", "commit", "machine", "versions", "threads")  # what every result has


class Unusable(ValueError):
    """Raised for a file that is not a result; its text is the line to print."""


def write(path, result):
    """Write a result and say so."""
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {path}")


def read(path, *kinds):
    """Return one file's result, of one of these kinds: a suite's, first-use, fidelity. Raises Unusable."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise Unusable(f"{path}: no JSON: {error}") from None
    if not isinstance(result, dict) or not set(ALL) <= result.keys():
        raise Unusable(f"{path}: expected a file written by bench --json")
    if result["bench"] not in kinds:
        raise Unusable(f"{path}: a result of {result['bench']}, expected one of {' or '.join(kinds)}")
    if result["bench"] != "fidelity" and not isinstance(result.get("cases"), dict):
        raise Unusable(f"{path}: a result of {result['bench']} without cases")
    return result
