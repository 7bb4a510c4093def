"""Tables and progress on a terminal, with rich where it is installed and somebody watches; plain lines elsewhere."""

import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def _watched() -> bool:
    return sys.stdout is not None and sys.stdout.isatty() and importlib.util.find_spec("rich") is not None


def track(items: Sequence[T], what: str) -> Iterable[T]:
    """The items, with a progress bar while they are worked on, or five lines."""
    if _watched():
        from rich.progress import track as bar

        return bar(items, description=what, auto_refresh=False)  # no thread: beside one, workqueue walks serially
    return _lines(items, what)


def _lines(items: Sequence[T], what: str) -> Iterator[T]:
    every = max(1, -(-len(items) // 5))
    for k, item in enumerate(items):
        if k and k % every == 0:
            print(f"{what}: {k} of {len(items)}", flush=True)
        yield item


class Table:
    """Rows of text under a head."""

    def __init__(self, *head: str) -> None:
        self._rows: list[tuple[str, ...]] = [head]

    def add(self, *row: str) -> None:
        self._rows.append(row)

    def show(self) -> None:
        head, *rows = self._rows
        if _watched():
            from rich.console import Console
            from rich.table import Column
            from rich.table import Table as Rich

            table = Rich(*(Column(title, overflow="fold") for title in head))
            for row in rows:
                table.add_row(*row)
            Console().print(table)
            return
        widths = [max(map(len, column)) for column in zip(*self._rows, strict=True)]
        for row in self._rows:
            print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())
