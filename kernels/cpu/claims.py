"""Decides by locks on files who compiles what others would compile too."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # no Unix: two processes may compile the same
    fcntl = None

PATIENCE = 60.0  # seconds: as long as another process may take to compile one function


def lock(file: int) -> None:
    """Lock an open file or folder until it is closed. Raises BlockingIOError where another process has."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def claimed(path: Path | None) -> Iterator[None]:
    """Let one process at a time compile an entry; the others wait until it is kept.

    The claim is a lock on a file beside the entry, which the system lifts when its process dies. Where there are no
    locks, or one is held for longer than any compilation takes, everyone compiles.
    """
    claim, file, held = Path(), -1, False
    try:
        with suppress(OSError):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                claim = path.with_suffix(".claim")
                file = os.open(claim, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                held = _held(file)
        yield
    finally:
        if held:
            with suppress(OSError):
                if os.path.samestat(os.stat(claim), os.fstat(file)):  # else another's, who found this one's gone
                    claim.unlink()  # who still waits for it will find the entry, or no one can keep it
        if file >= 0:
            os.close(file)


def _held(file: int) -> bool:
    """Wait for the lock on a file, by asking again and again, so that no stopped process is waited for for ever.

    Returns whether it is held: if not, it is another's, and its file too.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            lock(file)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return True
    return False
