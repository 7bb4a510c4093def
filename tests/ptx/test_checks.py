"""Each check of the interpreter: a kernel or an order of work that it must find, and its neighbour that is right."""

import ml_dtypes
import numpy as np
import pytest
from cuda_host import fake_cupy

from ptx.instructions import Fault
from ptx.launch import Program
from ptx.small import I, function, launch, two

EXCHANGE = "__shared__ float s[64]; s[threadIdx.x] = y[threadIdx.x]; {} x[threadIdx.x] = s[63 - threadIdx.x];"
SUMS = "if (threadIdx.x == 0) x[0] = y[0]; {} if (threadIdx.x == 1) x[1] = x[0];"

# (what is found, a body in which it is, one in which it is not, the arguments of `launch`)
BODIES = {
    "outside all arrays": (I + "x[i] = y[i];", I + "if (i < n) x[i] = y[i];", {"n": 60, "size": 60}),
    "outside all arrays, before": (I + "x[i] = y[i - 1];", I + "x[i] = y[i > 0 ? i - 1 : 0];", {}),
    "misaligned": (
        "*(float2*)(x + 1) = *(const float2*)y;",
        "*(float2*)(x + 2) = *(const float2*)y;",
        {"threads": 1},
    ),
    "shared memory that nobody has written": (
        "__shared__ float s[64]; if (threadIdx.x > 0) s[threadIdx.x] = y[0]; __syncthreads();"
        "x[threadIdx.x] = s[threadIdx.x];",
        "__shared__ float s[64]; s[threadIdx.x] = y[0]; __syncthreads(); x[threadIdx.x] = s[threadIdx.x];",
        {},
    ),
    "outside shared memory": (
        "__shared__ float s[64]; s[threadIdx.x + n] = y[0]; __syncthreads(); x[threadIdx.x] = s[threadIdx.x];",
        "__shared__ float s[64]; s[threadIdx.x + n - 1] = y[0]; __syncthreads(); x[threadIdx.x] = s[threadIdx.x];",
        {"n": 1},
    ),
    "a race in shared memory": (EXCHANGE.format("n += 1;"), EXCHANGE.format("__syncthreads();"), {}),
    "a race": (SUMS.format(""), "if (threadIdx.x == 0) { x[0] = y[0]; x[1] = x[0]; }", {"apart": True}),
    "a race between barriers": (
        SUMS.format("") + "__syncthreads(); x[2 + threadIdx.x] = 0;",
        SUMS.format("__syncthreads();") + "x[2 + threadIdx.x] = 0;",
        {"apart": True, "size": 80},
    ),
    "a race, of stores": (
        "x[threadIdx.x / 2] = y[0];",
        "if (threadIdx.x % 2 == 0) x[threadIdx.x / 2] = y[0];",
        {"apart": True},
    ),
    "a race, between blocks": (
        "if (threadIdx.x == 0) x[0] = y[0];",
        "if (threadIdx.x == 0) x[blockIdx.x] = y[0];",
        {"grid": 2, "apart": True},
    ),
    "a race, between blocks with barriers": (
        "__syncthreads(); if (threadIdx.x == 0) x[0] = y[0];",
        "__syncthreads(); if (threadIdx.x == 0) x[blockIdx.x] = y[0];",
        {"grid": 2, "apart": True},
    ),
    "wait at different barriers": (
        "__shared__ float s[64]; s[threadIdx.x] = y[0]; if (threadIdx.x < 32) __syncthreads();"
        "x[threadIdx.x] = s[threadIdx.x];",
        "__shared__ float s[64]; s[threadIdx.x] = y[0]; if (n < 32) __syncthreads();x[threadIdx.x] = s[threadIdx.x];",
        {},
    ),
    "wait at different barriers, or have returned before one": (
        "if (threadIdx.x == 3) return; x[threadIdx.x] = y[0]; __syncthreads(); x[threadIdx.x] = 1;",
        "if (n == 3) return; x[threadIdx.x] = y[0]; __syncthreads(); x[threadIdx.x] = 1;",
        {},
    ),
    "a division by zero": ("x[n / threadIdx.x] = y[0];", "x[n / (threadIdx.x + 1)] = y[0];", {"threads": 1}),
    "a division by zero, of what it leaves": (
        "x[n % threadIdx.x] = 0;",
        "x[n % (threadIdx.x + 1)] = 0;",
        {"threads": 1},
    ),
}


@pytest.mark.parametrize("what", BODIES)
def test_a_fault_is_found_and_its_neighbour_is_none(what, device):
    wrong, right, chosen = BODIES[what]
    chosen = dict(chosen)
    x, apart = device.zeros(chosen.pop("size", 64), np.float32), chosen.pop("apart", False)
    y = device.zeros(64, np.float32) if apart or "x[i]" not in wrong else device.zeros(x.size, np.float32)
    launch(device, right, x, y, **chosen)
    with pytest.raises(Fault, match=what.split(",")[0] if "or have" not in what else what):
        launch(device, wrong, x, y, **chosen)


def test_memory_that_nobody_has_written(device):
    x, y = device.zeros(64, np.float32), device.empty(64, np.float32)
    y[:63] = 1.0
    body = I + "if (i < n) x[i] = y[i];"
    launch(device, body, x, y, n=63)
    with pytest.raises(Fault, match="memory that nobody has written"):
        launch(device, body, x, y, n=64)
    with pytest.raises(Fault, match="memory that nobody has written"):  # a copy of it is no better
        launch(device, body, x, y.copy(), n=64)


def test_the_host_reads_no_memory_that_nobody_has_written(device):
    x, y = device.zeros(64, np.float32), device.empty(64, np.float32)
    for one in (y, y[:1], y.copy()):
        with pytest.raises(Fault, match="host reads memory that nobody has written"):
            one.get()
    launch(device, I + "if (i < n) x[i] = y[i];", y, x, n=63)
    assert y[:63].get().tolist() == [0] * 63
    with pytest.raises(Fault, match="host reads memory that nobody has written"):
        y.get()


def test_parameters(device):
    table = "struct Table { int n; int words[3]; };"
    told = np.zeros((), [("n", "i4"), ("words", "i4", 3)])
    get = function(device, "x[0] = table.words[table.n];", "int* x, const __grid_constant__ Table table", table)
    x = device.zeros(4, np.int32)
    for told["n"] in (2, 3):
        get((1,), (1,), (x, told.copy()))
    with pytest.raises(Fault, match="outside the parameters"):
        device.state.stream.synchronize()
    get((1,), (1,), (x,))
    with pytest.raises(Fault, match=r"parameters of \[8\] bytes, expected \[8, 16\]"):
        device.state.stream.synchronize()


GENERIC = """.shared .align 16 .b32 s[12];
ld.param.u64 %rd1, [f_param_0];
mov.u32 %r1, %tid.x;
mul.wide.u32 %rd4, %r1, 16;
mov.u64 %rd2, s;
add.s64 %rd2, %rd2, %rd4;
st.shared.v4.u32 [%rd2], {6, 7, 8, 9};
mov.u64 %rd3, f_param_0;
cvta.shared.u64 %rd2, %rd2;
cvta.param.u64 %rd3, %rd3;
setp.eq.u32 %p1, %r1, 0;
setp.eq.u32 %p2, %r1, 1;
selp.b64 %rd5, %rd2, %rd3, %p2;
selp.b64 %rd5, %rd1, %rd5, %p1;
mul.wide.u32 %rd6, %r1, 4;
add.s64 %rd6, %rd6, %rd1;
"""  # the first thread's address is one of global memory, the second's of shared memory, any other's of the parameter


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("ld.u32 %r2, [%rd5+4]; st.global.u32 [%rd6+16], %r2;", [0, 1, 2, 3, 1, 7, None, 7]),
        ("@%p1 bra there; bra.uni end; there: st.u32 [%rd1+8], 9; ld.u32 %r2, [%rd1+8]; end:", [0, 1, 9, *range(3, 8)]),
        ("ld.u32 %r2, [%rd5+8];", "outside the parameters"),
        ("ld.u32 %r2, [%rd5+2];", "misaligned"),
        ("st.u32 [%rd5], 9; ld.u32 %r2, [%rd5];", "a parameter is stored"),
    ],
)
def test_a_generic_address_leads_to_the_space_that_it_is_of(body, what, device):
    x = device.asarray(np.arange(8, dtype=np.uint32))
    one, place = program(GENERIC + body.replace("; ", ";\n").replace(": ", ":\n")), [np.array(x.data.ptr, np.uint64)]
    device.state.stream.do(lambda: one(1, 3, place, device.state.memory))
    if isinstance(what, str):
        with pytest.raises(Fault, match=what):
            device.state.stream.synchronize()
    else:  # None: the upper half of the address that is the parameter
        assert x.get().tolist() == [x.data.ptr >> 32 if number is None else number for number in what]


@pytest.mark.parametrize("name", ["atom.global.add.u64", "atom.relaxed.gpu.global.add.u64"])
def test_sums_of_many_threads_are_whole(name, device):
    x = device.zeros(1, np.uint64)
    one = program(f"ld.param.u64 %rd1, [f_param_0];\n{name} %rd2, [%rd1], 3;")
    place = [np.array(x.data.ptr, np.uint64)]
    device.state.stream.do(lambda: one(2, 32, place, device.state.memory))
    assert x.get() == 3 * 64


COUNTED = "unsigned long long* x, const unsigned long long* y, long long n"
START, ADDED = "if (i == 0) x[0] = 0;", "atomicAdd(x, 1ull);"
PLAIN = "if (threadIdx.x == 63) x[0] += 1;"


@pytest.mark.parametrize(
    ("grid", "wrong", "right"),
    [
        (1, START + ADDED, START + "__syncthreads();" + ADDED),
        (1, ADDED + "x[1 + i] = x[0];", ADDED + "__syncthreads(); x[1 + i] = x[0];"),
        (1, "x[1 + i] = x[0];" + ADDED, "x[1 + i] = x[0]; __syncthreads();" + ADDED),
        (1, ADDED + START, ADDED + "__syncthreads();" + START),
        (1, "if (i < 2) {" + ADDED + "if (i == 0) x[1] = x[0]; }", "if (i == 0) {" + ADDED + "x[1] = x[0]; }"),
        (1, "if (i < 2) {" + START + ADDED + "}", "if (i == 0) {" + START + ADDED + "}"),
        (2, "__syncthreads();" + PLAIN + "__syncthreads();" + ADDED, ADDED),
        (2, START + "__syncthreads();" + ADDED, "__syncthreads();" + ADDED),
    ],
)  # fmt: skip
def test_sums_are_in_a_race_with_all_but_sums(grid, wrong, right, device):
    for body in (right, wrong):
        x, told = device.zeros(200, np.uint64), {"parameters": COUNTED, "grid": grid}
        if body is right:
            launch(device, I + body, x, **told)
        else:
            with pytest.raises(Fault, match="a race"):
                launch(device, I + body, x, **told)


def test_sums_in_memory_that_nobody_has_written(device):
    launch(device, I + START + "__syncthreads();" + ADDED, device.empty(1, np.uint64), parameters=COUNTED)
    with pytest.raises(Fault, match="memory that nobody has written"):
        launch(device, ADDED, device.empty(1, np.uint64), parameters=COUNTED)


def test_a_variable_in_shared_memory_ends_before_the_next(device):
    body = (
        "__shared__ float s[64], t[64]; s[threadIdx.x + n] = y[0]; t[threadIdx.x] = y[0]; __syncthreads();"
        "x[threadIdx.x] = s[threadIdx.x + n]; x[threadIdx.x] = t[63 - threadIdx.x];"
    )
    x, y = device.zeros(64, np.float32), device.zeros(64, np.float32)
    launch(device, body, x, y)
    for n in (1, -1):
        with pytest.raises(Fault, match="outside shared memory"):
            launch(device, body, x, y, n=n)


def test_a_block_has_no_more_threads_than_its_kernel_is_compiled_for(device):
    x = device.zeros(128, np.int32)
    text = 'extern "C" __global__ void __launch_bounds__(64{}) f(int* x) {{ x[threadIdx.x] = 1; }}\n'
    one = device.RawModule(text.format("")).get_function("f")
    one((1,), (64,), (x,))
    assert x.get().sum() == 64
    one((1,), (65,), (x,))
    with pytest.raises(Fault, match="1 blocks of 65 threads, expected from 1 to 64"):
        device.state.stream.synchronize()
    with pytest.raises(NotImplementedError, match="minnctapersm"):
        device.RawModule(text.format(", 2")).get_function("f")


def test_blocks_of_no_threads_and_grids_of_no_blocks(device):
    x = device.zeros(4, np.int32)
    one = function(device, "x[blockIdx.x] += 1;", "int* x")
    one((0,), (1,), (x,))
    assert x.get().tolist() == [1, 0, 0, 0]  # CuPy makes one block of none
    one((1,), (0,), (x,))
    with pytest.raises(Fault, match="1 blocks of 0 threads"):
        device.state.stream.synchronize()


def test_memory_that_was_freed(device):
    x, y, add = two(device)
    address = np.array(y.data.ptr, np.uint64)
    add((1,), (64,), (x, address))
    del y  # the pool gives it to what comes later on this stream: what was given before is right
    device.state.stream.synchronize()
    add((1,), (64,), (x, address))
    with pytest.raises(Fault, match="was freed before"):
        device.state.stream.synchronize()


def test_memory_that_was_freed_while_another_stream_works_on_it(device):
    for waits in (True, False):
        x, y, add = two(device)
        device.state.stream.synchronize()
        other = device.Stream(non_blocking=True)
        with other:
            add((1,), (64,), (x, y))
        if waits:
            device.state.stream.wait_event(other.record())
        del y
        if waits:
            other.synchronize()
        else:
            with pytest.raises(Fault, match="was freed before"):
                other.synchronize()


PUT_OFF = {
    "set": lambda x, y: y.set(np.ones(64, np.int32)),
    "read": lambda x, y: x.__setitem__(..., y),
    "write": lambda x, y: y.__setitem__(..., x),
    "fill": lambda x, y: y.__setitem__(..., 3),
    "shorts": lambda x, y: y.view(ml_dtypes.bfloat16).__setitem__(..., x.view(ml_dtypes.bfloat16)),
}


@pytest.mark.parametrize("name", PUT_OFF)
def test_work_that_was_put_off_keeps_no_memory(name, device):
    """The pool may give what is freed to its own stream at once, while another has not copied it yet."""
    x, y, _ = two(device)
    device.state.stream.synchronize()
    other = device.Stream(non_blocking=True)
    with other:
        PUT_OFF[name](x, y)
    del y
    with pytest.raises(Fault, match="was freed before"):
        other.synchronize()


@pytest.mark.parametrize("order", ["none", "event", "event of before", "default", "host"])
def test_work_on_two_streams_is_in_order(order, device):
    x, y, add = two(device)
    first = device.Stream(non_blocking=True)
    second = device.Stream.null if order == "default" else device.Stream(non_blocking=True)
    first = device.Stream() if order == "default" else first
    device.state.stream.synchronize()
    early = first.record()
    with first:
        add((1,), (64,), (y, x))
    if order.startswith("event"):
        second.wait_event(early if "before" in order else first.record())
    if order == "host":
        first.synchronize()
    with second:
        add((1,), (64,), (x, y))
        if order in ("none", "event of before"):
            with pytest.raises(Fault, match="nothing orders the two"):
                x.get(), first.synchronize()
        else:
            assert (x.get() == 2).all()


@pytest.mark.parametrize("waits", [True, False])
def test_the_host_reads_what_it_has_waited_for(device, waits):
    x, y, add = two(device)
    device.state.stream.synchronize()
    other = device.Stream(non_blocking=True)
    with other:
        add((1,), (64,), (x, y))
        done = device.cuda.Event()
        done.record()
    if waits:
        done.synchronize()
    else:
        other.drain(10**9)  # the device may well have come so far, which the host does not know
        with pytest.raises(Fault, match=r"reads what task \d+ on stream \d+ wrote, and nothing orders"):
            x.get(stream=device.Stream(non_blocking=True))
        return
    assert (x.get(stream=device.Stream(non_blocking=True)) == 1).all()


def test_an_event_that_is_recorded_again_is_done_with_the_last(device):
    x, y, add = two(device)
    device.state.stream.synchronize()
    other, event = device.Stream(non_blocking=True), device.cuda.Event()
    for _ in range(2):
        with other:
            add((1,), (64,), (x, y))
        event.record(other)
    records = [task.number for task in other.queue[1::2]]
    other.drain(records[0])
    assert not event.done
    with pytest.raises(Fault, match="nothing orders"):
        x.get()
    other.drain(records[1])
    assert event.done
    assert x.get().tolist() == [1] * 64


def test_pinned_memory_is_used_again_once_the_device_has_copied_it(device):
    x, pinned = device.zeros(4, np.float32), np.frombuffer(device.cuda.alloc_pinned_memory(16), np.float32)
    event = device.cuda.Event()
    for waits in (True, False):
        pinned[:] = 3
        x.set(pinned)
        event.record()
        if waits:
            event.synchronize()
        else:
            assert not event.done
        pinned[:] = 4
        if waits:
            assert (x.get() == 3).all()
        else:
            with pytest.raises(Fault, match="pinned memory was written over"):
                x.get()


def test_a_graph_is_replayed_in_order_and_keeps_its_arguments(device):
    x = device.zeros(64, np.int32)
    stream, n = device.Stream(), np.array(3, np.int32)
    more = function(device, I + "x[i] += n;", "int* x, int n")
    with stream:
        stream.begin_capture()
        more((1,), (64,), (x, n))
        graph = stream.end_capture()
        n[...] = 100
        graph.launch(stream)
        graph.launch(stream)
    assert (x.get() == 6).all()
    other = device.Stream(non_blocking=True)
    graph.launch(other)
    graph.launch(device.Stream(non_blocking=True))
    with pytest.raises(Fault, match="nothing orders the two"):
        for one in fake_cupy.streams:
            one.synchronize()


@pytest.mark.parametrize("within", [True, False])
def test_a_stream_waits_for_no_event_across_the_bounds_of_a_capture(within, device):
    stream, other = device.Stream(), device.Stream(non_blocking=True)
    with stream:
        early = other.record()
        stream.begin_capture()
        late = stream.record()
        stream.wait_event(late)
        waits = [(other, late)] if within else [(stream, early)]
        for one, event in waits:
            with pytest.raises(Fault, match="across the bounds of a capture"):
                one.wait_event(event)
        stream.end_capture()
    stream.wait_event(early)


# What is no error when it is read.

HEAD = ".version 9.0\n.target sm_90\n.visible .entry f(\n.param .u64 f_param_0\n)\n{\n"
REGISTERS = "".join(
    f".reg .{kind} {name}<9>;\n"
    for kind, name in [("pred", "%p"), ("b16", "%rs"), ("b32", "%r"), ("f32", "%f"), ("b64", "%rd"), ("f64", "%fd")]
)


def program(body):
    return Program(f"{HEAD}{REGISTERS}{body}\nret;\n}}\n", "f")


@pytest.mark.parametrize(
    "text",
    [
        "fma.rn.f32 %f1, %f2, %f3, %f4;",
        "mad.rn.f32 %f1, %f2, %f3, %f4;",
        "add.ftz.f32 %f1, %f2, %f3;",
        "add.f32 %f1, %f2, %f3;",
        "div.approx.f32 %f1, %f2, %f3;",
        "div.full.f32 %f1, %f2, %f3;",
        "sqrt.approx.ftz.f32 %f1, %f2;",
        "rcp.rn.f32 %f1, %f2;",
        "add.rz.f32 %f1, %f2, %f3;",
        "add.sat.s32 %r1, %r2, %r3;",
        "min.f32 %f1, %f2, %f3;",
        "setp.lt.f32 %p1, %f1, %f2;",
        "setp.gt.ftz.f32 %p1, %f1, %f2;",
        "cvt.f16.f32 %rs1, %f1;",
        "cvt.rz.f16.f32 %rs1, %f1;",
        "cvt.rn.f32.s32 %f1, %r1;",
        "ld.volatile.global.u32 %r1, [%rd1];",
        "ld.local.u32 %r1, [%rd1];",
        "ld.const.u32 %r1, [%rd1];",
        "ld.global.u8 %rs1, [%rd1];",
        "st.u8 [%rd1], %rs1;",
        "atom.global.add.u32 %r1, [%rd1], %r2;",
        "bar.sync 1;",
        "@%p1 add.rn.f32 %f1, %f2, %f3;",
        "add.cc.u32 %r1, %r2, %r3;",
        "mul.hi.u64 %rd1, %rd2, %rd3;",
        "vote.sync.any.pred %p1, %p2, 1;",
        "ld.global.v2.f32 %f1, [%rd1];",
        "mov.u32 %r1, %clock;",
        "bra nowhere;",
        "cvt.u32.u16 %rs1, %rs2;",
        "cvt.rn.f16.f32 %r1, %f1;",
        "ld.global.f32 %rd1, [%rd2];",
        # Hostile: names that a reader could take for its own, operands too few or too many, orders of memory, widths.
        "set.gt.u32.f32 %r1, %f1, %f2;",
        "move.u32 %r1, %r2;",
        "add.u32 %r1, %r2;",
        "add.u32 %r1, %r2, %r3, %r4;",
        "neg.f32 %f1;",
        "min.s32 %r1, %r2;",
        "selp.b32 %r1, %r2, %r3;",
        "add.rn.f16 %rs1, %rs2, %rs3;",
        "add.rn.bf16 %rs1, %rs2, %rs3;",
        "add.rn.f32x2 %rd1, %rd2, %rd3;",
        "add.f64 %fd1, %fd2, %fd3;",
        "mad.rn.f64 %fd1, %fd2, %fd3, %fd4;",
        "fma.rn.f64 %fd1, %fd2, %fd3, %fd4;",
        "sqrt.rn.ftz.f32 %f1, %f2;",
        "mul.rn.sat.f32 %f1, %f2, %f3;",
        "neg.ftz.f32 %f1, %f2;",
        "abs.ftz.f32 %f1, %f2;",
        "ex2.approx.f32 %f1, %f2;",
        "setp.gt.and.f32 %p1, %f1, %f2, %p2;",
        "setp.gt.u32 %p1|%p2, %r1, %r2;",
        "cvt.rz.f32.f64 %f1, %fd1;",
        "cvt.rn.ftz.f32.f64 %f1, %fd1;",
        "cvt.rn.bf16.f32 %rs1, %f1;",
        "shf.l.clamp.b32 %r1, %r2, %r3, 4;",
        "lop3.or.b32 %r1, %r2, %r3, %r4, 1;",
        "prmt.b32.f4e %r1, %r2, %r3, %r4;",
        "ld.global.nc.f32 %f1, [%rd1];",
        "ld.global.L2::128B.f32 %f1, [%rd1];",
        "ld.relaxed.gpu.global.f32 %f1, [%rd1];",
        "ld.global.b128 %rd1, [%rd2];",
        "ld.global.v8.f32 {%f1, %f2, %f3, %f4, %f5, %f6, %f7, %f8}, [%rd1];",
        "ld.global.v2.f32 {%f1, %f2, %f3}, [%rd1];",
        "st.release.gpu.global.u32 [%rd1], %r1;",
        "st.param.u32 [f_param_0], %r1;",
        "atom.add.u64 %rd1, [%rd2], %rd3;",
        "atom.relaxed.sys.global.add.u64 %rd1, [%rd2], %rd3;",
        "atom.acquire.gpu.global.add.u64 %rd1, [%rd2], %rd3;",
        "cvta.to.param.u64 %rd1, %rd2;",
        "cvta.local.u64 %rd1, %rd2;",
        "st.global.f32 [%rd1], %r1, %r2;",
        "red.global.add.u32 [%rd1], %r1;",
        "membar.gl;",
        "fence.acq_rel.gpu;",
        "bar.warp.sync -1;",
        "bar.sync 0, 64;",
        "barrier.cluster.arrive;",
        "bra.conv nowhere;",
        "brx.idx %r1, nowhere;",
        "call.uni f, ();",
        "exit;",
        "mov.u32 %r1, %laneid;",
        "mov.u32 %r1, %tid.y;",
        "mov.u32 %r1, elsewhere;",
        "mov.b64 %rd1, {%rs1, %rs2};",
        ".local .align 4 .b8 stack[8];",
        ".branchtargets nowhere;",
        ".reg .b128 %rq<2>;",
        ".reg .f64 %f1;",
    ],
)
def test_what_is_fused_flushed_approximate_or_unknown_is_refused_when_it_is_read(text):
    program("add.rn.f32 %f1, %f2, %f3;")
    with pytest.raises(NotImplementedError):
        program(text)
    with pytest.raises(KeyError, match="no kernel g"):
        Program(HEAD + "ret;\n}\n", "g")


# What instructions mean, on values that others would get wrong.

MEANINGS = {
    "prmt.b32 {0}, 0x33221100, 0x77665544, 0x7531;": 0x77553311,
    "prmt.b32 {0}, 0x80, 0, 0x0008;": 0x808080FF,
    "shf.l.wrap.b32 {0}, 0x80000001, 0x7, 4;": 0x78,
    "shf.r.wrap.b32 {0}, 0x80000001, 0x7, 4;": 0x78000000,
    "lop3.b32 {0}, 0xf0f0, 0xcccc, 0xaaaa, 0xea;": 0xEAEA,
    "lop3.b32 {0}, 0xf0f0, 0xcccc, 0xaaaa, 0x1e;": 0x1E1E,
    "bfi.b32 {0}, 0xff, 0x10000001, 8, 4;": 0x10000F01,
    "bfe.u32 {0}, 0x12345678, 8, 8;": 0x56,
    "shl.b32 {0}, 1, 32;": 0,
    "shr.u32 {0}, 0x80000000, 40;": 0,
    "shr.s32 {0}, 0x80000000, 40;": 0xFFFFFFFF,
    "mul.hi.u32 {0}, 0x80000000, 6;": 3,
    "mul.lo.u32 {0}, 0x80000000, 6;": 0,
    "mad.lo.s32 {0}, 7, -3, 1;": -20 % 2**32,
    "div.s32 {0}, -7, 2;": -3 % 2**32,
    "rem.s32 {0}, -7, 2;": -1 % 2**32,
    "div.u32 {0}, 0xfffffff9, 2;": 0x7FFFFFFC,
    "min.s32 {0}, -1, 1;": 0xFFFFFFFF,
    "min.u32 {0}, -1, 1;": 1,
    "add.rn.f32 {0}, 0f7F800000, 0fFF800000;": 0x7FFFFFFF,  # the device's NaN
    "add.rn.f32 {0}, 0f00000001, 0f00000001;": 2,  # subnormal
    "neg.f32 {0}, 0f7FC00001;": 0xFFC00001,
    "abs.f32 {0}, 0fFFC00001;": 0x7FC00001,
    "div.rn.f32 {0}, 0f3F800000, 0f40400000;": 0x3EAAAAAB,
    "sqrt.rn.f32 {0}, 0f40000000;": 0x3FB504F3,
    "{{ .reg .pred q; setp.gt.f32 q, 0f7FC00000, 0f00000000; selp.s32 {0}, 1, 0, q; }}": 0,
    "{{ .reg .pred q; setp.neu.f32 q, 0f7FC00000, 0f7FC00000; selp.s32 {0}, 1, 0, q; }}": 1,
    "cvt.rn.f16.f32 %rs1, 0f477FF000; cvt.u32.u16 {0}, %rs1;": 0x7C00,  # half way beyond the largest
    "cvt.rn.f16.f32 %rs1, 0f33000001; cvt.u32.u16 {0}, %rs1;": 1,
    "cvt.s32.s16 {0}, -2;": 0xFFFFFFFE,
    "mov.b64 %rd1, -2; cvt.rn.f64.s64 %fd1, %rd1; mov.b64 {{%r2, {0}}}, %fd1;": 0xC0000000,
    "mov.b64 %rd1, {{1, 2}}; cvt.u32.u64 {0}, %rd1;": 1,
    "mov.b64 {{%r2, {0}}}, 0x200000001;": 2,
}


@pytest.mark.parametrize("text", MEANINGS)
def test_instructions_mean_what_they_do_on_the_device(text, device):
    out = "%f5" if "{0}, 0f" in text and ".f32 {0}" in text else "%r5"
    lines = text.format(out).replace("; ", ";\n\t").replace("{ ", "{\n") + "\n"
    body = f"ld.param.u64 %rd8, [f_param_0];\n{lines}st.global.{'f' if out[1] == 'f' else 'u'}32 [%rd8], {out};"
    x, one = device.zeros(1, np.uint32), program(body)
    place = [np.array(x.data.ptr, np.uint64)]
    device.state.stream.do(lambda: one(1, 1, place, device.state.memory))
    assert hex(x.get()[0]) == hex(MEANINGS[text])
