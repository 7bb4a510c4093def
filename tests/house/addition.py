"""What CONTRIBUTING.md's table says, as text: each thing it tells how to add, added by the steps of its row.

An addition only inserts: what stands in the tree is not edited. test_additions.py applies it to a copy.
"""

from pathlib import Path
from typing import NamedTuple


class Insertion(NamedTuple):
    """Text that a file gets right behind an anchor, which stands there once; a new file has no anchor."""

    file: str
    anchor: str | None
    text: str


class Addition(NamedTuple):
    """One thing that is added to a copy of the tree.

    thing:      what CONTRIBUTING's table calls it: the first column of its row.
    name:       its own name, which stands for <name> in that row and is in its lines of `verify`.
    insertions: all that it takes.
    proof:      a Python text that fails unless the thing does what it should, beside what `verify` finds.
    tests:      what is handed to pytest in the copy: tests that find the thing by themselves.
    generated:  Python files that write what is generated, once everything is inserted.
    """

    thing: str
    name: str
    insertions: tuple[Insertion, ...]
    proof: str
    tests: tuple[str, ...] = ()
    generated: tuple[str, ...] = ()

    def apply(self, root: Path) -> None:
        """Insert everything under `root`."""
        for file, anchor, text in self.insertions:
            path = root / file
            if anchor is None:
                assert not path.exists(), f"{file} is there already"
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)
            else:
                before, *more = path.read_text().split(anchor)
                assert len(more) == 1, f"{file} has {anchor!r} {len(more)} times"
                path.write_text(before + anchor + text + more[0])
