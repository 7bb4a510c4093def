"""Shows tables and progress on a terminal, with rich where it is installed and somebody watches; plain lines
elsewhere."""

import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def _watched() -> bool:
    return sys.stdout is not None and sys.stdout.isatty() and _rich()


@cache
def _rich() -> bool:
    """Return whether rich is installed and whole; says once that it is not whole."""
    if importlib.util.find_spec("rich") is None:
        return False
    try:
        import rich.console
        import rich.live
        import rich.progress
        import rich.table  # noqa: F401
    except Exception as error:  # whatever another's library raises
        print(f"plain lines: rich cannot be used ({type(error).__name__}: {error})", file=sys.stderr)
        return False
    return True


def track(items: Sequence[T], what: str) -> Iterable[T]:
    """Return the items, with a progress bar while they are worked on, or five lines."""
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


class TextTable:
    """Prints rows of text under a head."""

    def __init__(self, *head: str, title: str = "") -> None:
        self._title, self._rows = title, [head]

    def add(self, *row: str) -> None:
        self._rows.append(row)

    def show(self) -> None:
        if _watched():
            from rich.console import Console

            Console().print(self.rich())
            return
        if self._title:
            print(self._title)
        widths = [max(map(len, column)) for column in zip(*self._rows, strict=True)]
        for row in self._rows:
            print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip(), flush=True)

    def rich(self) -> Any:
        from rich import box
        from rich.console import Group
        from rich.table import Column
        from rich.table import Table as Rich
        from rich.text import Text

        head, *rows = self._rows
        columns = (Column(name, overflow="fold") for name in head)  # cut names cannot be told apart
        table = Rich(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for row in rows:
            table.add_row(*row)
        # Above the table, not in it: rich breaks a table's own title at the table's width.
        return Group(Text(self._title), table, "") if self._title else table


class Live:
    """Is a place at the bottom of the terminal that is drawn anew; without a terminal only what is printed is seen."""

    def __enter__(self) -> "Live":
        self._live: Any = None
        if _watched():
            from rich.live import Live as Rich

            self._live = Rich(transient=True, refresh_per_second=8)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, what: "str | TextTable") -> None:
        """Draw this in place of what was there."""
        if self._live is not None:
            self._live.update(what.rich() if isinstance(what, TextTable) else what)

    def print(self, what: "str | TextTable") -> None:
        """Leave this above, for good."""
        if self._live is not None:
            self._live.console.print(what.rich() if isinstance(what, TextTable) else what)
        elif isinstance(what, TextTable):
            what.show()
        else:
            print(what, flush=True)
