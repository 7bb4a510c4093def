"""What memory.py, streams.py and races.py write down stays right: where rooms grow, views stride, streams are many."""

import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_host import fake_cupy

from ptx.instructions import Fault
from ptx.small import I, launch, two

COPY = I + "x[i] = y[i];"
EVERYTHING = 1 << 30  # a number beyond any task's


@pytest.fixture
def streams(device):
    """Streams that nothing orders."""

    def some(count):
        device.state.stream.synchronize()
        return [device.Stream(non_blocking=True) for _ in range(count)]

    return some


def growth(device):
    """Allocate more than there are numbers for, and return the arrays."""
    return [device.empty(1 << 20, np.float32) for _ in range(3)]


@pytest.fixture
def grown(device, streams):
    """(x, y, a stream): another has written x and read y, before memory grew."""
    x, y, add = two(device)
    first, second = streams(2)
    with first:
        add((1,), (64,), (x, y))
    first.drain(EVERYTHING)
    more = growth(device)
    yield x, y, second
    assert len(more) == 3


def test_growth_keeps_who_wrote(grown):
    x, _, stream = grown
    with pytest.raises(Fault, match="wrote, and nothing orders"):
        x.get(stream=stream)


def test_growth_keeps_who_read(grown):
    _, y, stream = grown
    with stream:
        y[...] = 3
    with pytest.raises(Fault, match="read, and nothing orders"):
        stream.synchronize()


def test_faults_in_memory_beyond_the_first_room(device):
    more = growth(device)
    x, y = device.zeros(64, np.float32), device.zeros(65, np.float32)
    launch(device, COPY, x, y)
    with pytest.raises(Fault, match="outside all arrays"):
        launch(device, COPY, x, y, threads=65)
    last = device.zeros(1 << 20, np.float32)
    with pytest.raises(Fault, match="a race"):
        launch(device, "x[(1 << 19) + threadIdx.x / 2] = y[0];", last, y)
    with pytest.raises(Fault, match="memory that nobody has written"):
        launch(device, COPY, x, more[0])


VIEWS = {
    "rows backwards": np.s_[::-1],
    "every second column": np.s_[:, ::2],
    "rows and columns backwards": np.s_[::-1, ::-2],
    "some rows backwards": np.s_[7:3:-1],
}


@pytest.mark.parametrize("view", [*VIEWS, "transposed"])
def test_strided_writes_are_in_an_order(view, device, streams):
    x = device.zeros((8, 8), np.int32)
    first, second = streams(2)
    with first:
        (x.transpose(1, 0) if view == "transposed" else x[VIEWS[view]])[...] = 5
    first.drain(EVERYTHING)
    with pytest.raises(Fault, match="wrote, and nothing orders"):
        x.get(stream=second)


def test_strided_writes_touch_nothing_between(device, streams):
    x = device.zeros((8, 8), np.int32)
    first, second = streams(2)
    with first:
        x[:, ::-2][...] = 5
    first.drain(EVERYTHING)
    with second:
        x[:, ::2][...] = 6
    second.drain(EVERYTHING)
    assert x.host.tolist() == [[6, 5] * 4] * 8


def test_a_copy_of_what_is_partly_written_is_as_partly_written(device):
    x, z = device.empty((8, 8), np.float32), device.zeros(64, np.float32)
    x[:, ::2][...] = 1.0
    y = x.copy()
    launch(device, I + "if (i % 2 == 0) x[i] = y[i];", z, y)
    with pytest.raises(Fault, match="nobody has written"):
        launch(device, COPY, z, y)


def test_a_transposed_copy_is_unwritten_where_its_source_is(device):
    x, y, z = device.empty((8, 8), np.float32), device.empty((8, 8), np.float32), device.zeros(64, np.float32)
    x[1:][...] = 1.0
    y[...] = x.transpose(1, 0)
    launch(device, I + "if (i % 8) x[i] = y[i];", z, y)
    with pytest.raises(Fault, match="nobody has written"):
        launch(device, COPY, z, y)


def test_what_one_unwritten_element_fills_is_unwritten(device):
    x, y, z = device.empty(1, np.float32), device.zeros(64, np.float32), device.zeros(64, np.float32)
    y[...] = x
    with pytest.raises(Fault, match="nobody has written"):
        launch(device, COPY, z, y)


def test_an_array_of_an_odd_number_of_bytes_ends_there(device):
    x = device.zeros(7, np.uint8)
    launch(device, "((unsigned short*)x)[2] = 1;", x, threads=1)
    with pytest.raises(Fault, match="outside all arrays"):
        launch(device, "((unsigned short*)x)[3] = 1;", x, threads=1)


def test_empty_arrays_hold_nothing_beside_their_neighbours(device):
    before, x, after = device.zeros(0, np.float32), device.zeros(64, np.float32), device.zeros((3, 0), np.float32)
    launch(device, COPY, x, device.zeros(64, np.float32))
    for empty in (before, after):
        with pytest.raises(Fault, match="outside all arrays"):
            launch(device, "x[0] = 1;", empty, x, threads=1)


@pytest.mark.parametrize("waited", [4, 5])
def test_a_write_comes_after_all_who_read(waited, device, streams):
    _, y, add = two(device)
    targets = [device.zeros(64, np.int32) for _ in range(5)]
    *readers, writer = streams(6)
    for stream, x in zip(readers, targets, strict=True):
        with stream:
            add((1,), (64,), (x, y))
        stream.drain(EVERYTHING)
    for stream in readers[:waited]:
        writer.wait_event(stream.record())
    with writer:
        y[...] = 1
    if waited == 5:
        writer.synchronize()
    else:
        with pytest.raises(Fault, match="read, and nothing orders"):
            writer.synchronize()


def test_a_stream_that_is_further_hides_no_other(device, streams):
    """One stream's work is waited for in part, another's earlier work is not waited for at all."""
    x, y, add = two(device)
    first, second, reader = streams(3)
    z = device.zeros(64, np.int32)
    device.state.stream.synchronize()
    for stream, target in ((first, x), (second, z)):
        with stream:
            add((1,), (64,), (target, y))
        stream.drain(EVERYTHING)
    reader.wait_event(second.record())
    with second:
        add((1,), (64,), (z, y))
    with pytest.raises(Fault, match="wrote, and nothing orders"):
        x.get(stream=reader)


def test_bytes_beside_an_array_belong_to_nobody(device, monkeypatch):
    """Where the host's memory for one array begins at the other's last byte, what runs over an end is in neither."""
    room, taken = np.empty(1 << 14, np.uint8), 0

    def full(size, value, dtype):
        nonlocal taken
        piece, taken = room[taken : taken + size], taken + size
        piece.fill(value)
        return piece.view(dtype)

    with monkeypatch.context() as patch:
        patch.setattr(np, "full", full)
        x, y = (device.empty(64, np.float32) for _ in range(2))
    for one in (x, y):
        for at in (-128, -1, 64, 64 + 127):
            with pytest.raises(Fault, match="outside all arrays"):
                launch(device, f"x[{at}] = 1;", one, threads=1)


def test_what_comes_right_after_an_event_is_not_over_by_it(device, streams):
    x, y, add = two(device)
    writer, reader = streams(2)
    event = writer.record()
    with writer:
        add((1,), (64,), (x, y))
    writer.drain(EVERYTHING)
    reader.wait_event(event)
    with pytest.raises(Fault, match="wrote, and nothing orders"):
        x.get(stream=reader)


def test_the_default_stream_orders_no_stream_that_is_not_blocking(device, streams):
    x, y, add = two(device)
    (reader,) = streams(1)
    add((1,), (64,), (x, y))
    device.state.stream.drain(EVERYTHING)
    with pytest.raises(Fault, match="wrote, and nothing orders"):
        x.get(stream=reader)


def test_more_tasks_than_there_was_room_for_forget_no_stream(device, streams):
    x, y, add = two(device)
    writer, other, reader = streams(3)
    with writer:
        add((1,), (64,), (x, y))
    for _ in range(1100):
        other.record()
    reader.wait_event(writer.record())
    assert x.get(stream=reader).tolist() == [1] * 64


def test_memory_of_other_libraries_counts_as_written(device):
    raw, x = np.ones(64, np.float32), device.zeros(64, np.float32)
    device.cuda.UnownedMemory(raw.ctypes.data, raw.nbytes, raw)
    launch(device, COPY, x, np.array(raw.ctypes.data, np.uint64))
    assert x.get().tolist() == raw.tolist()


def test_neighbours_of_other_libraries_stay_apart(device):
    raw, before = np.ones(64, np.float32), len(device.state.memory.extents)
    for half in (raw[:32], raw[32:]):
        device.cuda.UnownedMemory(half.ctypes.data, half.nbytes, raw)
    assert len(device.state.memory.extents) == before + 2
    device.cuda.UnownedMemory(raw.ctypes.data + 64, 128, raw)
    assert len(device.state.memory.extents) == before + 1


def test_what_others_see_of_our_memory_is_ours(device):
    x = device.empty(64, np.float32)
    device.cuda.UnownedMemory(x.data.ptr, x.nbytes, x)
    with pytest.raises(Fault, match="nobody has written"):
        launch(device, COPY, device.zeros(64, np.float32), x)
    alive = weakref.ref(x.host.base)
    del x
    device.state.launches.clear()
    assert alive() is None


def test_memory_that_is_others_and_ours_is_refused(device):
    x = device.empty(64, np.float32)
    with pytest.raises(AssertionError, match="arrays overlap"):
        device.cuda.UnownedMemory(x.data.ptr + 4, x.nbytes, x)


def test_an_array_that_leaves_its_memory_is_found(device):
    x = device.zeros(64, np.float32)
    device.state.stream.synchronize()
    longer = {**x.host.__array_interface__, "shape": (65,)}
    device.state.stream.do(lambda: None, reads=[np.asarray(SimpleNamespace(__array_interface__=longer))])
    with pytest.raises(Fault, match="leaves the device's memory"):
        device.state.stream.synchronize()


def test_what_is_put_off_over_other_libraries_memory_is_done_in_the_end(device):
    x = device.cuda.UnownedMemory((raw := np.ones(64, np.float32)).ctypes.data, raw.nbytes, raw)
    other = device.ndarray((64,), np.float32, device.cuda.MemoryPointer(x, 0))
    other[...] = 3
    fake_cupy.finish()
    assert raw.tolist() == [3] * 64


def test_what_is_put_off_is_left_where_nobody_keeps_the_memory(device):
    raw, owner = np.ones(128, np.float32), SimpleNamespace()
    device.state.memory.borrow(raw.ctypes.data, raw.ctypes.data + 256)
    device.cuda.UnownedMemory(raw.ctypes.data + 128, 384, owner)  # what holds both has both owners
    device.state.stream.do(lambda: raw.fill(3))
    fake_cupy.finish()
    assert raw.tolist() == [1] * 128
    device.state.stream.synchronize()
    assert raw.tolist() == [3] * 128


def test_whoever_owns_borrowed_memory_is_kept(device):
    raw, owners = np.ones(64, np.float32), [np.zeros(1) for _ in range(3)]
    seen = [weakref.ref(owner) for owner in owners]
    for owner, (first, n) in zip(owners, ((0, 128), (64, 32), (64, 192)), strict=True):
        device.cuda.UnownedMemory(raw.ctypes.data + first, n, owner)
    del owners, owner
    assert None not in [owner() for owner in seen]


def test_zeros_that_are_put_off_keep_no_memory(device, streams):
    (other,) = streams(1)
    with other:
        y = device.zeros(64, np.float32)
        alive = weakref.ref(y.host.base)
    del y
    assert alive() is None


def test_arrays_begin_where_cuda_would_begin_them(device):
    assert [device.empty(n, np.uint8).data.ptr % 256 for n in range(1, 40)] == [0] * 39
