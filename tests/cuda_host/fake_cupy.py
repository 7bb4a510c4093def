"""A stand-in for as much of CuPy as fastadam uses, over the memory of the host.

Work on a stream is put off until somebody waits for it, so that whatever is overwritten or freed too early shows, and
tests/ptx holds what it touches against the order that CUDA promises. Launches are recorded; `state.launcher` runs them:
as the host's compilation of the same text, which tells nothing of what it touches, or as PTX.
"""

import ctypes
import time
import weakref
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from ptx.instructions import Fault
from ptx.memory import Memory
from ptx.streams import Clock, Timeline, Work


class Launch(NamedTuple):
    name: str
    grid: tuple
    block: tuple
    arguments: list  # bytes of those by value, arrays: which a launch keeps no more than CuPy does
    stream: Any
    device: int
    captured: bool


def not_in_a_capture():
    assert state.stream.graph is None, "not while a graph is captured"


class Event:
    def __init__(self, block=False, disable_timing=False):
        self.past, self.clock, self.stream, self.disable_timing = True, Clock(), None, disable_timing
        self.graph, self.records = None, 0  # that it was recorded into; how often

    @property
    def done(self):
        not_in_a_capture()
        if self.past:
            state.timeline.host.take(self.clock)
        return self.past

    def record(self, stream=None):
        self.stream, self.past, self.records = stream or state.stream, False, self.records + 1
        self.graph = self.stream.graph
        self.stream.do(partial(self._come, self.records))
        self.clock = Clock(self.stream.clock)

    def _come(self, record):
        if record == self.records:  # whoever asks, asks of the last alone
            self.past, self.at = True, time.perf_counter()

    def synchronize(self):
        self.stream.wait(self.clock)


class Graph:
    def __init__(self, work):
        self.work = work

    def launch(self, stream=None):
        for one in self.work:
            (stream or state.stream).give(one)


class Stream:
    def __init__(self, null=False, non_blocking=False, ptr=None):
        self.queue, self.graph, self.ptr, self.clock = [], None, ptr if ptr is not None else id(self), Clock()
        streams.append(self)
        self.number = len(streams)
        if not (ptr or non_blocking):  # those that other libraries made are not ordered around the default stream
            state.timeline.serial.append(self)

    @staticmethod
    def from_external(x):
        kind, handle = x.__cuda_stream__()
        assert kind == 0
        return next((s for s in streams if s.ptr == handle), None) or Stream(ptr=handle)

    def do(self, act, reads=(), writes=()):
        """Put this off; reads, writes: NumPy arrays over device memory that it is known to touch."""
        self.give(Work(act, tuple(reads), tuple(writes)))

    def give(self, work):
        if self.graph is None:
            self.queue.append(state.timeline.begin(self, work))
        else:
            self.graph.append(work)

    def synchronize(self):
        self.wait(self.clock)

    def wait(self, clock):
        """Let the host come after what is over by then."""
        assert self.graph is None, "a stream that is captured cannot be waited for"
        state.waits += 1
        for stream, number in clock.items():
            stream.drain(number)
        state.timeline.host.take(clock)

    def drain(self, until):
        """Do what has been put off, up to the task of that number."""
        while self.queue and self.queue[0].number <= until:
            state.timeline.run(self.queue.pop(0), state.memory)

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        if event.graph is not self.graph:  # a capture is isolated; none here spreads to another stream
            raise Fault("a stream waits for an event across the bounds of a capture")
        if self.graph is None:
            self.clock.take(event.clock)

    def begin_capture(self):
        self.graph = []

    def end_capture(self):
        work, self.graph = self.graph, None
        return Graph(work)

    def is_capturing(self):
        return self.graph is not None

    def __enter__(self):
        state.entered.append(state.stream)
        state.stream = self
        return self

    def __exit__(self, *error):
        state.stream = state.entered.pop()


class Device:
    def __init__(self, number=None):
        self.id = state.device if number is None else number

    def __enter__(self):
        state.devices.append(state.device)
        state.device = self.id
        return self

    def __exit__(self, *error):
        state.device = state.devices.pop()


class MemoryPointer:
    def __init__(self, memory, offset):
        self.mem, self.ptr, self.device_id = memory, memory.ptr + offset, memory.device_id

    def memset_async(self, value, nbytes, stream=None):
        into = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(self.ptr))
        (stream or state.stream).do(lambda: into.fill(value), writes=[into])


class UnownedMemory:
    def __init__(self, ptr, size, owner, device_id=-1):
        self.ptr, self.size, self._owner = ptr, size, owner
        self.device_id = state.device if device_id == -1 else device_id
        state.memory.borrow(ptr, ptr + size, owner)


def alloc_pinned_memory(nbytes):
    not_in_a_capture()
    memory = bytearray(nbytes)
    pinned.append(np.frombuffer(memory, np.uint8))
    return memory


def is_pinned(x):
    return any(home.ctypes.data <= x.ctypes.data < home.ctypes.data + max(1, home.nbytes) for home in pinned)


class ndarray:
    def __init__(self, shape, dtype=float, memptr=None, strides=None):
        dtype = np.dtype(dtype)
        if memptr is None:
            not_in_a_capture()
            # Freed memory is handed out again to work on the same stream only, which comes later.
            self.host, self.number = state.memory.allocate(shape, dtype, state.stream), state.device
            allocated.append(SimpleNamespace(nbytes=self.host.nbytes))
        else:
            ends = [(n - 1) * stride for n, stride in zip(shape, strides or (), strict=False)]
            span = int(np.prod(shape)) * dtype.itemsize if strides is None else sum(map(abs, ends)) + dtype.itemsize
            before = -sum(end for end in ends if end < 0)  # bytes of the array in front of its first element
            buffer = (ctypes.c_char * span).from_address(memptr.ptr - before)
            self.host = np.ndarray(shape, dtype, buffer, before, strides)
            self.number, self.keep = memptr.device_id, memptr.mem

    @classmethod
    def around(cls, host, number):
        made = object.__new__(cls)
        made.host, made.number = host, number
        return made

    dtype = property(lambda self: self.host.dtype)
    shape = property(lambda self: self.host.shape)
    strides = property(lambda self: self.host.strides)
    size = property(lambda self: self.host.size)
    nbytes = property(lambda self: self.host.nbytes)
    ndim = property(lambda self: self.host.ndim)
    itemsize = property(lambda self: self.host.itemsize)
    device = property(lambda self: Device(self.number))
    flags = property(lambda self: SimpleNamespace(c_contiguous=self.host.flags.c_contiguous))

    @property
    def data(self):
        return MemoryPointer(SimpleNamespace(ptr=self.host.ctypes.data, device_id=self.number, home=self.host), 0)

    @property
    def __cuda_array_interface__(self):
        return {**self.host.__array_interface__, "version": 3, "stream": 1}

    def __dlpack_device__(self):
        return 2, self.number

    def __array__(self, *args, **named):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __len__(self):
        return len(self.host)

    def transpose(self, *axes):
        return ndarray.around(self.host.transpose(*axes), self.number)

    def reshape(self, *shape):
        return ndarray.around(self.host.reshape(*shape), self.number)

    def view(self, dtype=None):
        return ndarray.around(self.host.view() if dtype is None else self.host.view(dtype), self.number)

    def __getitem__(self, key):
        return ndarray.around(self.host[key], self.number)

    def __setitem__(self, key, value):
        assert self.number == state.device, "work on another device's array"
        assert not isinstance(value, ndarray) or value.number == state.device, "work on another device's array"
        into = state.memory.unkept(self.host[key])
        if isinstance(value, ndarray):
            source = state.memory.unkept(value.host)
            state.stream.do(lambda: copied(source, into), [source], [into])
        else:
            state.stream.do(lambda: np.copyto(into, value), writes=[into])

    def copy(self):
        made = ndarray(self.shape, self.dtype)
        made[...] = self
        return made

    def get(self, stream=None, out=None):
        """Comes after what one stream has to do, and waits for that, as CuPy does."""
        stream, out = stream or state.stream, np.empty_like(self.host) if out is None else out

        def act():  # at once, so the array lives
            # The host's compilation of a kernel tells nothing of what it writes.
            if (state.memory.epoch or not state.launches) and not state.memory.written(self.host):
                raise Fault("the host reads memory that nobody has written")
            np.copyto(out, self.host)

        stream.do(act, reads=[self.host])
        stream.synchronize()
        return out

    def set(self, values, stream=None):
        assert (values.dtype, values.shape, values.flags.c_contiguous) == (self.dtype, self.shape, True)
        if not self.host.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        given, pinned, into = values.copy(), is_pinned(values), state.memory.unkept(self.host)

        def act():
            if pinned and values.tobytes() != given.tobytes():
                raise Fault("pinned memory was written over before the device had copied it")
            np.copyto(into, given)

        (stream or state.stream).do(act, writes=[into])

    def __reduce__(self):
        return asarray, (self.get(),)


ndarray.__module__ = "cupy"


def copied(source, target):
    np.copyto(target, source)
    state.memory.copied(source, target)


def empty(shape, dtype=float):
    return ndarray(shape, dtype)


def zeros(shape, dtype=float):
    made = ndarray(shape, dtype)
    into = state.memory.unkept(made.host)
    state.stream.do(lambda: into.fill(0), writes=[into])
    return made


def asarray(x):
    if isinstance(x, ndarray):
        return x
    made = ndarray(np.shape(x), np.asarray(x).dtype)
    made.set(np.asarray(x, order="C"))
    return made


def from_dlpack(x):
    return x.as_cupy()


class RawModule:
    def __init__(self, code, options=()):
        not_in_a_capture()
        self.code, self.options, self.device = code, options, state.device
        state.compiled.append((self.device, code.splitlines()[-1]))

    def get_function(self, name):
        return Function(self, name)


class Function:
    def __init__(self, module, name):
        self.module, self.name = module, name
        self.native = state.launcher(module.code, tuple(module.options), name)

    def __call__(self, grid, block, arguments):
        assert self.module.device == state.device, "loaded on another device"
        stream, passed = state.stream, []
        for x in arguments:
            if isinstance(x, ndarray):
                assert x.number == state.device
                passed.append(np.array(x.host.ctypes.data, np.uint64))
            else:  # what CuPy passes by value: NumPy arrays of size 1, read now
                assert isinstance(x, np.ndarray)
                assert x.size == 1
                passed.append(x.copy())
        assert sum(-(-x.nbytes // 8) * 8 for x in passed) <= 4096, "more than a kernel's parameters may hold"
        state.launches.append(
            Launch(
                self.name,
                grid,
                block,
                [
                    (p, x if isinstance(x, np.ndarray) else weakref.proxy(x))
                    for p, x in zip(passed, arguments, strict=True)
                ],
                stream,
                state.device,
                stream.is_capturing(),
            )
        )
        # CuPy's cuda/function.pyx makes one block of none.
        stream.do(lambda: self.native(max(1, grid[0]), block[0], passed, state.memory))


def finish():
    """Do all that has been put off, so that whatever is wrong with it shows; not where another library's memory may be
    gone."""
    if not any(owner is None for extent in state.memory.extents for owner in extent.owners):
        for stream in streams:
            stream.synchronize()


streams: list = []
pinned: list = []
allocated: list = []
state = SimpleNamespace()


def module(launcher):
    """A fresh stand-in. launcher(program, options, name): what runs a kernel, by blocks, threads, arguments, memory."""
    streams.clear()
    pinned.clear()
    allocated.clear()
    timeline = Timeline()
    state.__dict__.update(
        device=0, devices=[], entered=[], launches=[], compiled=[], launcher=launcher, waits=0, allocated=allocated,
        timeline=timeline, memory=Memory(timeline),
    )  # fmt: skip
    state.stream = Stream.null = timeline.default = Stream(ptr=0)
    timeline.serial.remove(Stream.null)
    Stream.ptds = Stream(ptr=2)
    made = ModuleType("cupy")
    made.__spec__ = ModuleSpec("cupy", None)
    made.__dict__.update(
        __version__="14.2.0", ndarray=ndarray, empty=empty, zeros=zeros, asarray=asarray, from_dlpack=from_dlpack,
        RawModule=RawModule, state=state, Stream=Stream,
        get_default_memory_pool=lambda: SimpleNamespace(free_all_blocks=lambda: None),
        cuda=SimpleNamespace(
            Device=Device, Stream=Stream, Event=Event, MemoryPointer=MemoryPointer, UnownedMemory=UnownedMemory,
            alloc_pinned_memory=alloc_pinned_memory, get_current_stream=lambda device=-1: state.stream,
            get_elapsed_time=lambda first, last: (last.at - first.at) * 1e3,
            runtime=SimpleNamespace(
                driverGetVersion=lambda: 13000, runtimeGetVersion=lambda: 13000, getDeviceCount=lambda: 2,
                getDeviceProperties=lambda device: {"name": b"stand-in", "totalGlobalMem": 2**31, "l2CacheSize": 2**20},
                memGetInfo=lambda: (2**31, 2**31),
            ),
        ),
    )  # fmt: skip
    return made
