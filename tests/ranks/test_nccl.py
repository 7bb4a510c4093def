"""What the engine over NCCL asks of CuPy, on a stand-in that records it and carries the bytes between threads.

No GPU has run it. The stand-in knows the calls of cupy.cuda.nccl that are used, with CuPy's order of arguments.
"""

import ctypes
import sys
import threading
from queue import SimpleQueue
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import fastadam as fa
from fastadam.distributed.engines import engine_of

BYTES = {"uint8": 1, "float32": 4, "float64": 8}
STREAM = 4711


class OnDevice(np.ndarray):
    """Is an array whose memory is asked for as CuPy's is."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)

    def get(self):
        return np.array(self)


def at(pointer, count, kind):
    return np.frombuffer((ctypes.c_uint8 * (count * BYTES[kind])).from_address(pointer), kind)


class NcclCommunicator:
    """Is one rank of a team of threads."""

    __module__ = "cupy.cuda.nccl"

    def __init__(self, team, rank):
        self.team, self.rank, self.calls = team, rank, []

    def rank_id(self):
        return self.rank

    def size(self):
        return self.team.size

    def send(self, pointer, count, kind, peer, stream):
        self.team.group.pending.append(lambda: self.team.queues[self.rank, peer].put(at(pointer, count, kind).copy()))
        self.calls.append(("send", count, kind, peer, stream))

    def recv(self, pointer, count, kind, peer, stream):
        def take():
            at(pointer, count, kind)[:] = self.team.queues[peer, self.rank].get(timeout=30)

        self.team.group.pending.append(take)
        self.calls.append(("recv", count, kind, peer, stream))

    def reduce(self, source, target, count, kind, op, root, stream):
        assert op == "sum"
        parts = self.team.everyone(self.rank, at(source, count, kind).copy())
        if root == self.rank:
            at(target, count, kind)[:] = sum(parts)
        self.calls.append(("reduce", count, kind, root, stream))

    def allGather(self, source, target, count, kind, stream):
        parts = self.team.everyone(self.rank, at(source, count, kind).copy())
        at(target, count * self.team.size, kind)[:] = np.concatenate(parts)
        self.calls.append(("allGather", count, kind, stream))


class Team:
    """Is what the ranks have in common."""

    def __init__(self, size):
        self.size, self.barrier, self.said = size, threading.Barrier(size, timeout=30), [None] * size
        self.queues = {(a, b): SimpleQueue() for a in range(size) for b in range(size)}
        self.group = threading.local()

    def everyone(self, rank, x):
        self.said[rank] = x
        self.barrier.wait()
        everyone = list(self.said)
        self.barrier.wait()
        return everyone

    def start(self):
        self.group.pending = []

    def end(self):
        for work in sorted(self.group.pending, key=lambda work: work.__name__ == "take"):
            work()


@pytest.fixture
def team(monkeypatch):
    team = Team(3)
    cupy = ModuleType("cupy")
    kinds = {f"NCCL_{name.upper()}": name for name in BYTES}
    nccl = SimpleNamespace(groupStart=team.start, groupEnd=team.end, NCCL_SUM="sum", **kinds)
    cupy.cuda = SimpleNamespace(nccl=nccl, get_current_stream=lambda: SimpleNamespace(ptr=STREAM))
    cupy.asarray = lambda x: np.array(x).view(OnDevice)
    cupy.empty = lambda shape, dtype: np.empty(shape, dtype).view(OnDevice)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return team


def run(team, work):
    results, communicators = [None] * team.size, [NcclCommunicator(team, rank) for rank in range(team.size)]

    def each(rank):
        results[rank] = work(engine_of(communicators[rank]))

    threads = [threading.Thread(target=each, args=(rank,)) for rank in range(team.size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, [communicator.calls for communicator in communicators]


def device(values, dtype=np.float32):
    return np.array(values, dtype).view(OnDevice)


def test_swap(team):
    """One group of sends and receives of bytes on the current stream, none of nothing and none to itself."""

    def work(engine):
        rank = engine.rank
        sends = [None if to == rank else device([10 * rank + to] * to) for to in range(3)]
        receives = [None if k == rank else device([-1] * rank) for k in range(3)]
        engine.swap(sends, receives)()
        return [None if x is None else x.tolist() for x in receives]

    results, calls = run(team, work)
    assert results == [[None, [], []], [[1.0], None, [21.0]], [[2.0, 2.0], [12.0, 12.0], None]]
    assert calls[1] == [("send", 8, "uint8", 2, STREAM), ("recv", 4, "uint8", 0, STREAM),
                        ("recv", 4, "uint8", 2, STREAM)]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reduce(team, dtype):
    def work(engine):
        parts = [device([k + 100 * engine.rank] * (k + 1), dtype) for k in range(3)]
        total = device([0] * (engine.rank + 1), dtype)
        engine.reduce(parts, total)()
        return total.tolist()

    results, calls = run(team, work)
    assert results == [[300.0], [303.0] * 2, [306.0] * 3]
    assert calls[0] == [("reduce", k + 1, np.dtype(dtype).name, k, STREAM) for k in range(3)]


def test_everyone(team):
    results, calls = run(team, lambda engine: engine.everyone({"rank": engine.rank, "text": "x" * 10 * engine.rank}))
    assert results == [[{"rank": k, "text": "x" * 10 * k} for k in range(3)]] * 3
    assert [name for name, *_ in calls[0]] == ["allGather", "allGather"]


def test_share(team):
    def work(engine):
        array = device([engine.rank] * 6)
        engine.share([array[:3], array[3:4], array[4:]])()
        return array.tolist()

    assert run(team, work)[0] == [[0.0, 0.0, 0.0, 1.0, 2.0, 2.0]] * 3


def test_arrays_of_the_host_are_refused(team):
    results, _ = run(team, lambda engine: refused(engine))
    assert results[0] == "params lie on the host, communicator carries arrays of the device: expected them there"


def refused(engine):
    try:
        fa.distributed.Sharded(fa.SGD, np.ones(3), engine)
    except TypeError as error:
        return str(error)


def test_a_backend_of_cupyx(team):
    backend = type("NCCLBackend", (), {"__module__": "cupyx.distributed._nccl_comm"})()
    backend._comm = NcclCommunicator(team, 2)
    assert (engine_of(backend).rank, engine_of(backend).size) == (2, 3)
    with pytest.raises(ValueError, match=r"timeout is 3\.0, expected None"):
        engine_of(backend, 3.0)
