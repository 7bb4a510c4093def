"""The worker of `bench` in this process, so that a test can change what it does."""

import gc
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

import fastadam as fa
from fastadam.benchmarks import bench, clock, worker


@pytest.fixture(scope="package", autouse=True)
def no_collection():
    """A race begins without a full collection of garbage, which takes 0.5 s in a process that holds many tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "gc", SimpleNamespace(collect=lambda: 0, disable=gc.disable, enable=gc.enable))
        yield


@pytest.fixture
def same_threads():
    """Contestants set the count of threads for their process, which is the tests' own here."""
    with fa.num_threads(fa.get_num_threads()):
        yield


@pytest.fixture(scope="session")
def here():
    """here(): within it, what the worker says comes from this process, whose count of threads stays as it is."""

    def events(task, env):
        said, interrupt = [], None
        try:
            worker.table(task, lambda **event: said.append(event))
        except KeyboardInterrupt as error:
            interrupt = error
        yield from said
        if interrupt:
            raise interrupt
        yield {"ended": 0, "words": ""}

    @contextmanager
    def replaced():
        with pytest.MonkeyPatch.context() as patch, fa.num_threads(fa.get_num_threads()):
            patch.setattr(bench, "events", events)
            yield

    return replaced


@pytest.fixture
def in_process(here):
    """What the worker says comes from this process, all through the test."""
    with here():
        yield


@pytest.fixture
def interrupted(monkeypatch):
    """Ctrl-C comes in the second race."""
    race, turns = clock.race, []

    def race_or_end(*args):
        turns.append(args)
        if len(turns) == 2:
            raise KeyboardInterrupt
        return race(*args)

    monkeypatch.setattr(clock, "race", race_or_end)
