"""The second process of `verify`: one that dies or is stopped is not waited for for ever."""

import os
import signal

import pytest

from fastadam.tools import second
from fastadam.tools.second import Second

PROGRAM = "import json, time; print(json.dumps([2]), flush=True); print(json.dumps([2, 0.5]), flush=True); %s"


@pytest.fixture
def started():
    """started(rest): a Second whose program has checked case 2, and then does the rest."""
    processes = []

    def start(rest):
        processes.append(Second(PROGRAM % rest))
        return processes[-1]

    yield start
    for one in processes:
        one.end()


def test_what_it_has_checked_and_what_it_will_not(started):
    ended = started("pass")
    ended._process.wait(60)
    assert [ended.outcome(k) for k in (2, 1, 0)] == [[0.5], None, None]


def test_one_that_is_stopped_is_ended_and_said_so(started, monkeypatch, capsys):
    stopped = started("print(json.dumps([1]), flush=True); time.sleep(600)")
    while stopped._begun != 1:
        stopped._read(1)
    os.kill(stopped._process.pid, signal.SIGSTOP)
    monkeypatch.setattr(second, "PATIENCE", 0.2)
    assert stopped.outcome(1) is None
    assert stopped._process.poll() == -signal.SIGKILL
    assert "has not answered for 0.2 s" in capsys.readouterr().out
    assert stopped.outcome(2) == [0.5]
    assert stopped.outcome(0) is None
