"""Arrays of a device over MPI: through page-locked memory of the host, over the stand-in for CuPy and one for MPI.

No GPU has run it.
"""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from fastadam.distributed import mpi as mpi_engine
from fastadam.distributed.mpi import Mpi


class Communicator:
    """Is one of two ranks that run in one thread: what is sent waits in a box until it is received."""

    def __init__(self, rank, boxes):
        self.rank, self.size, self.boxes, self.seen, self.kept = rank, 2, boxes, [], {}

    def Dup(self):
        return self

    def Get_attr(self, key):
        return self.kept.get(key)

    def Set_attr(self, key, value):
        self.kept[key] = value

    def Isend(self, message, dest, tag):
        self.seen.append(message[0])
        self.boxes[self.rank, dest] = message[0].copy()
        return lambda: None

    def Irecv(self, message, source, tag):
        self.seen.append(message[0])
        return lambda: np.copyto(message[0], self.boxes[source, self.rank])

    def Reduce_scatter(self, whole, total, counts):
        self.seen += [whole, total]
        np.copyto(total, 2 * whole[: counts[0]])


@pytest.fixture
def cupy(monkeypatch):
    from cuda_host import fake_cupy

    monkeypatch.setattr(mpi_engine, "KEYS", [])
    comm = SimpleNamespace(Create_keyval=lambda: "duplicate")
    mpi = SimpleNamespace(
        BYTE="byte", Comm=comm, Request=SimpleNamespace(Waitall=lambda begun: [act() for act in begun])
    )
    package = ModuleType("mpi4py")
    package.MPI = mpi
    monkeypatch.setitem(sys.modules, "mpi4py", package)
    module = fake_cupy.module(None)
    monkeypatch.setitem(sys.modules, "cupy", module)
    yield module
    fake_cupy.finish()


def test_a_swap_goes_through_page_locked_memory(cupy):
    from cuda_host import fake_cupy

    boxes = {}
    ranks = [Communicator(k, boxes) for k in range(2)]
    engines = [Mpi(one) for one in ranks]
    arrays = [cupy.asarray(np.arange(6, dtype=np.float32) + 10 * k) for k in range(2)]
    for array in arrays:
        array[:3] = array[3:]  # put off: what is sent must come after it
    rooms = [cupy.zeros(3, np.float32) for _ in range(2)]
    waits = []
    for k, engine in enumerate(engines):
        sends, receives = [None, None], [None, None]
        sends[1 - k], receives[1 - k] = arrays[k][:3], rooms[k]
        waits.append(engine.swap(sends, receives))
    for wait in waits:
        wait()
    assert [room.get().tolist() for room in rooms] == [[13.0, 14.0, 15.0], [3.0, 4.0, 5.0]]
    for one in ranks:
        assert len(one.seen) == 2
        assert all(x.dtype == np.uint8 and x.nbytes == 12 and fake_cupy.is_pinned(x) for x in one.seen)


def test_sums_go_through_the_host(cupy):
    engine, total = Mpi(Communicator(0, {})), cupy.zeros(2, np.float32)
    engine.reduce([cupy.asarray(np.ones(2, np.float32)), cupy.asarray(np.ones(3, np.float32))], total)()
    assert total.get().tolist() == [2.0, 2.0]


def test_an_mpi_that_knows_devices_gets_their_arrays(cupy):
    given = []
    communicator = Communicator(0, {})
    communicator.Isend = lambda message, dest, tag: given.append(message[0]) or (lambda: None)
    part = cupy.asarray(np.arange(4, dtype=np.float32))
    waits = cupy.state.waits
    Mpi(communicator, cuda_aware=True).swap([None, part], [None, None])()
    assert cupy.state.waits == waits + 1  # for what the stream had to do before
    assert given[0].data.ptr == part.data.ptr
    assert given[0].dtype == np.uint8
