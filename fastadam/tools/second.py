"""Runs the other half of `verify`, in a process of its own."""

import json
import os
import select
import subprocess
import sys
import time
from typing import Any

PATIENCE = 120.0  # seconds: longer than any case takes, so a process that is silent as long was stopped


class Second:
    """Is a process that checks the cases of `verify` from the other end: most of the work is compiling and oracles.

    program: prints [number] before each case, and [number, *outcome] after it.
    """

    def __init__(self, program: str) -> None:
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # two processes share the processors
        self._process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        self._outcomes: dict[int, Any] = {}
        self._begun: float = float("inf")
        self._text, self._running = b"", True

    def outcome(self, k: int) -> Any:
        """Return the outcome of case k, waited for if this process is at it; None if it has not come so far, or
        died."""
        self._read(0)
        end = time.monotonic() + PATIENCE
        while self._begun <= k not in self._outcomes and self._running and (left := end - time.monotonic()) > 0:
            self._read(left)
        if self._begun <= k not in self._outcomes and self._running:
            print(f"the other process has not answered for {PATIENCE:g} s, and is ended: its cases are checked here")
            self._running = False
            self.end()
        return self._outcomes.get(k)

    def _read(self, seconds: float) -> None:
        """Take what it has printed, or wait for it. Without a thread: under workqueue that would end parallel walks."""
        pipe: Any = self._process.stdout
        while self._running and select.select([pipe], [], [], seconds)[0]:
            seconds, data = 0, os.read(pipe.fileno(), 1 << 16)
            self._running = bool(data)
            *lines, self._text = (self._text + data).split(b"\n")
            for k, *outcome in map(json.loads, lines):
                self._begun = k
                if outcome:
                    self._outcomes[k] = outcome

    def end(self) -> None:
        """End the process, whatever it is at."""
        pipe: Any = self._process.stdout
        self._process.kill()
        if not pipe.closed:
            self._process.communicate()
