"""The worker of `bench` in this process, so that a test can change what it does."""

import pytest

import fastadam as fa
from fastadam.benchmarks import bench, worker


@pytest.fixture
def same_threads():
    """Contestants set the count of threads for their process, which is the tests' own here."""
    with fa.num_threads(fa.get_num_threads()):
        yield


@pytest.fixture
def in_process(monkeypatch, same_threads):
    """What the worker says comes from this process."""

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

    monkeypatch.setattr(bench, "events", events)
