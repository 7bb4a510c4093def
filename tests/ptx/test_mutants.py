"""What proves the interpreter: texts of the kernels and ways of launching them that are wrong, each of which it finds.

A mutant is found where a Fault is raised, where its text is refused, or where its bits are not NumPy's.
"""

import sys
from types import SimpleNamespace

import cuda_host
import ml_dtypes
import numpy as np
import pytest
from cuda_host import fake_cupy
from test_cuda import Pair, some

import fastadam as fa
from fastadam.arrays import device as arrays
from fastadam.cuda import norm, nvrtc, signature, upload
from ptx.instructions import Fault

BF16 = np.dtype(ml_dtypes.bfloat16)


class Altered:
    """What runs kernels for the stand-in, of another text than the one that it is given. used: whether any differed."""

    def __init__(self, launcher, old, new):
        self._launcher, self._change, self.used = launcher, (old, new), False

    def __call__(self, text, options, name):
        altered = text.replace(*self._change)
        self.used |= altered != text
        return self._launcher(altered, options, name)


def gradients(rng, pair):
    return [rng.standard_normal(p.shape).astype(p.dtype) for p in pair.here]


def steps(cupy, sizes=(5, 1030, 130), dtype=np.float32, missing=(), lead=0, **chosen):
    """Two steps of AdamW over leaves of which none ends where an access of 16 bytes does; what differs from NumPy."""
    rng = np.random.default_rng(3)
    wide = some(rng, [n + lead for n in sizes], np.float32)
    pair = Pair(cupy, fa.AdamW, [x[lead:].astype(dtype) if lead == 0 else x[lead:] for x in wide], lr=0.1, **chosen)
    for t in range(2):
        grads = gradients(rng, pair)
        pair.step([None if k in missing and t else g for k, g in enumerate(grads)])
    return pair.differing()


def clipped(cupy, **chosen):
    return steps(cupy, asked=dict(NOTHING, max_norm=0.5, **chosen))


def coded(cupy):
    return steps(cupy, sizes=(1030, 2048), missing=(1,), moments="8bit")


def grouped(cupy):
    """Two groups, whose rows of coefficients differ."""
    rng = np.random.default_rng(7)
    here = some(rng, (5, 700))
    there = [cupy.asarray(p) for p in here]
    a, b = (
        fa.AdamW([{"params": x[:1], "lr": 0.1}, {"params": x[1:], "lr": 0.2}], **on)
        for x, on in ((here, {"backend": "numpy"}), (there, {}))
    )
    for _ in range(2):
        grads = some(rng, (5, 700))
        a.step([grads[:1], grads[1:]])
        b.step([[cupy.asarray(g) for g in part] for part in (grads[:1], grads[1:])])
    return [k for k, (p, q) in enumerate(zip(here, there, strict=True)) if not (p == q.get()).all()]


def rows(cupy):
    """Some rows of one leaf, twice."""
    rng = np.random.default_rng(4)
    here = rng.standard_normal((9, 7)).astype(np.float32)
    there = cupy.asarray(here)
    a, b = fa.AdamW(here, backend="numpy"), fa.AdamW(there)
    for at in ([1, 4, 8], [4, 4, 0]):
        values = rng.standard_normal((3, 7)).astype(np.float32)
        a.step_rows((np.array(at), values))
        b.step_rows((np.array(at), cupy.asarray(values)))
    return [] if (there.get() == here).all() else ["rows"]


def replayed(cupy, change=lambda opt: None, sizes=(5, 700)):
    """Steps that a graph replays."""
    rng = np.random.default_rng(5)
    pair = Pair(cupy, fa.AdamW, some(rng, sizes), lr=lambda t: 0.1 / t, capturable=True)
    grads = [cupy.asarray(np.zeros_like(p)) for p in pair.here]
    pair.opt.prepare(4)
    change(pair.opt)
    stream = cupy.Stream()
    with stream:
        stream.begin_capture()
        pair.opt.step(grads)
        graph = stream.end_capture()
        for _ in range(4):
            values = gradients(rng, pair)
            pair.reference.step(values)
            for g, x in zip(grads, values, strict=True):
                g.set(x)
            graph.launch(stream)
        there = [p.get() for p in pair.there]
    return [k for k, (p, q) in enumerate(zip(pair.here, there, strict=True)) if not (p == q).all()]


def carried(cupy):
    """Such steps of more leaves than travel by value, whose table is carried into the graph."""
    return replayed(cupy, sizes=[3] * 401)


def foreign(cupy):
    """Gradients that another library works on in a stream of its own."""
    other, p = cupy.Stream(non_blocking=True), cupy.asarray(np.zeros(64, np.float32))
    opt = fa.SGD(p, lr=1.0)
    g = cupy.asarray(np.ones(64, np.float32))
    cupy.state.stream.synchronize()
    theirs = SimpleNamespace(__cuda_array_interface__={**g.__cuda_array_interface__, "stream": other.ptr})
    other.do(lambda: g.host.fill(2), writes=[g.host])
    opt.step(theirs)
    for stream in fake_cupy.streams:
        stream.synchronize()
    return [] if (p.get() == -2).all() else ["p"]


def uploaded(cupy):
    """More leaves than travel by value, several steps ahead of the device."""
    rng = np.random.default_rng(6)
    pair = Pair(cupy, fa.SGD, some(rng, [3] * 400), lr=0.1)
    for _ in range(3):
        pair.step(gradients(rng, pair))
    return pair.differing()


def polled(cupy):
    """The same on a device that has come just as far as the event which the host asks."""
    right = fake_cupy.Event.done

    def done(event):
        if event.stream is not None and event.stream.graph is None:
            event.stream.drain(event.clock.get(event.stream, 0))
        return right.__get__(event)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fake_cupy.Event, "done", property(done))
        return uploaded(cupy)


def hostile(cupy):
    """A NaN whose bits carry into infinity, beside numbers, in 16 bits."""
    here = np.array([1, 2, 3], np.float32).astype(BF16)
    g = np.array([0x7FFFFFFF, 0x3F800000, 0x3F800000], np.uint32).view(np.float32)
    there = cupy.asarray(here)
    a, b = fa.SGD(here, backend="numpy"), fa.SGD(there)
    a.step(g)
    b.step(cupy.asarray(g))
    return [] if (np.isnan(there.get().astype(np.float32)) == np.isnan(here.astype(np.float32))).all() else ["NaN"]


def mastered(cupy):
    """Masters of parameters that are set from outside: their threads add up how many."""
    rng = np.random.default_rng(5)
    here = [x.astype(BF16) for x in some(rng, (5, 700))]
    there = [cupy.asarray(p) for p in here]
    a, b = (fa.AdamW(x, lr=0.1, master="float32", **on) for x, on in ((here, {"backend": "numpy"}), (there, {})))
    counts = []
    for _ in range(2):
        grads = some(rng, (5, 700))
        counts.append((a.step(grads).taken_over, b.step([cupy.asarray(g) for g in grads]).taken_over))
        for p, q in zip(here, there, strict=True):
            p[:3], q[:3] = 1, BF16.type(1)
    return [k for k, (p, q) in enumerate(zip(here, there, strict=True)) if not (p == q.get()).all()] + [
        (one, other) for one, other in counts if one != other
    ]


def weighed(cupy):
    """LAMB, whose leaves are each weighed by a thread."""
    rng = np.random.default_rng(3)
    pair = Pair(cupy, fa.LAMB, some(rng, (5, 1030, 130)), lr=0.1)
    for _ in range(2):
        pair.step(gradients(rng, pair))
    return pair.differing()


def clipped_large(cupy):
    """Enough blocks that their sums are added up in several pairs at once."""
    return steps(cupy, sizes=(70_000,), asked=dict(NOTHING, max_norm=0.5))


NOTHING = dict.fromkeys(["max_norm", "max_value", "ema_decay", "copy_to", "zero_grads", "skip_nonfinite", "stats"])

TEXTS = {
    "halves of a double swapped": (
        clipped,
        ': "=d"(y.x) : "r"(low), "r"(high));',
        ': "=d"(y.x) : "r"(high), "r"(low));',
    ),
    "sub for add": (steps, 'operator+, "add.rn."', 'operator+, "sub.rn."'),
    "product and sum fused": (
        steps,
        'BINARY(real, r, operator*, "mul.rn." type)',
        "DEVICE real operator*(real a, real b) { return a.x * b.x; }",
    ),
    "a barrier left out": (clipped, "__syncthreads();", ""),
    "a barrier for some": (clipped, "__syncthreads();", "if (threadIdx.x < 32) __syncthreads();"),
    "alignment of one element enough": (
        lambda cupy: steps(cupy, lead=1),
        "reinterpret_cast<u64>(at) % bytes == 0",
        "reinterpret_cast<u64>(at) % sizeof(S) == 0",
    ),
    "<= for < in a load": (
        lambda cupy: steps(cupy, sizes=(5,)),
        "low <= k && k < high ? at[k]",
        "low <= k && k <= high ? at[k]",
    ),
    "<= for < in a store": (
        lambda cupy: steps(cupy, sizes=(5,)),
        "if (low <= k && k < high) at[k]",
        "if (low <= k && k <= high) at[k]",
    ),
    "<= for < where gradients are measured": (
        clipped,
        "thread + k * LANES < own.n, thread",
        "thread + k * LANES <= own.n, thread",
    ),
    "the first element left out": (steps, "low(i < 0 ? int(-i) : 0)", "low(i < 0 ? int(-i) : i == 0)"),
    "a carry without its guard": (carried, "if (thread < piece.leaves) to[thread]", "to[thread]"),
    "NaN rounded like a number": (hostile, "value != value ? bits | 0x400000 : bits + added", "bits + added"),
    "scales of groups that were not stepped": (
        coded,
        "if (!begun.stepped || thread % 32 >= BLOCK / Coding::GROUP) return;",
        "if (thread % 32 >= BLOCK / Coding::GROUP) return;",
    ),
    "the rest of a block not filled": (coded, "&& thread * W >= chunk.n)", "&& thread * W >= BLOCK)"),
    "codes of the wrong block": (coded, "(leaf + of_block(i))", "(leaf + of_block(i) / 2)"),
    "signs of the neighbour": (coded, "bits_of(x[0]), bits_of(x[1])", "bits_of(x[1]), bits_of(x[0])"),
    "draws of the neighbour": (coded, "GROUP) + lane * MIX0", "GROUP) + (lane + 1) * MIX0"),
    "pairs added by two threads": (
        clipped_large,
        "k + apart < own.count; k += 2 * apart * threads",
        "k + apart < own.count; k += 2 * apart",
    ),
    "a row too many": (rows, "if (row >= rows.count) return;", "if (row > rows.count) return;"),
    "gradients of the row before": (
        rows,
        "next(rows.place + rows.start[row])",
        "next(rows.place + rows.start[row] - (row == 1))",
    ),
    "bounds of a launch below its threads": (
        steps,
        "__global__ void name(const Chunk* chunks",
        "__global__ void __launch_bounds__(64) name(const Chunk* chunks",
    ),
    "half a warp taken to be in step": (
        clipped,
        "together(threads, [&](unsigned thread) {\n                for (unsigned k = thread; k < columns * half",
        "[](unsigned half, const auto& phase) { phase(threadIdx.x); if (half > 8) __syncthreads(); }"
        "(half, [&](unsigned thread) {\n                for (unsigned k = thread; k < columns * half",
    ),
    "a barrier of a warp alone": (clipped, "__syncthreads();", "__syncwarp();"),
    "a line of addresses too wide": (
        clipped,
        "leaves + chunk.leaf * i64(1 + sizeof...(S)",
        "leaves + chunk.leaf * i64(2 + sizeof...(S)",
    ),
    "a row of coefficients too wide": (
        grouped,
        "coefficients<C>(rows + row * width)",
        "coefficients<C>(rows + row * (width + 1))",
    ),
    "words of codes too wide": (
        coded,
        "const unsigned group = thread * count / IN_ROW",
        "const unsigned group = thread * count / IN_ROW + (thread == 0)",
    ),
    "a tail an element too long": (steps, "high(n - i < W ? int(n - i) : W)", "high(n - i < W ? int(n - i) + 1 : W)"),
    "a head an element too long": (
        lambda cupy: steps(cupy, lead=1),
        "low(i < 0 ? int(-i) : 0)",
        "low(i < 0 ? int(-i) - 1 : 0)",
    ),
    "no share filled that begins at a leaf's end": (
        lambda cupy: steps(cupy, sizes=(1032,), moments="8bit"),
        "thread * W >= chunk.n)",
        "thread * W > chunk.n)",
    ),
    "a group too many scaled": (coded, ">= BLOCK / Coding::GROUP) return", "> BLOCK / Coding::GROUP) return"),
    "what a block has begun not said": (coded, "if (thread == 0) begun = {false, 0};", ""),
    "lanes of the neighbour": (clipped, "lanes.of[1][thread] =", "lanes.of[1][thread + 1] ="),
    "judged by two threads": (
        clipped,
        "if (thread > 0) return;\n        const f64 most",
        "if (thread > 1) return;\n        const f64 most",
    ),
    "a leaf too many weighed": (weighed, "if (leaf >= table.leaves) return;", "if (leaf > table.leaves) return;"),
    "a count that is not atomic": (
        mastered,
        "atomicAdd(static_cast<u64*>(__cvta_global_to_generic(counter)), taken)",
        "*static_cast<u64*>(__cvta_global_to_generic(counter)) += taken",
    ),
    "a count begun beside its sums": (
        mastered,
        "u64 taken = 0;",
        "u64 taken = 0; if (counted) *static_cast<u64*>(__cvta_global_to_generic(counter)) = 0;",
    ),
    "division rounded towards zero": (steps, '"div.rn." type', '"div.rz." type'),
    "an approximate division": (
        steps,
        'BINARY(real, r, operator/, "div.rn." type)',
        "DEVICE real operator/(real a, real b) { return __fdividef(float(a.x), float(b.x)); }",
    ),
    "products flushed": (steps, '"mul.rn." type', '"mul.rn.ftz." type'),
    "judged before all is added up": (
        clipped,
        "for (i64 apart = 1; apart < count; apart *= 2)",
        "for (i64 apart = 1; 2 * apart < count; apart *= 2)",
    ),
}


@pytest.fixture
def cupy_of(ptx, monkeypatch):
    """cupy_of(launcher): the stand-in for CuPy over it."""

    def install(launcher=ptx):
        nvrtc.function.cache_clear()
        module = fake_cupy.module(launcher)
        monkeypatch.setitem(sys.modules, "cupy", module)
        return module

    yield install
    nvrtc.function.cache_clear()


def wrong(scenario, cupy):
    """Whether anything is: a Fault, a refused text, other bits than NumPy's."""
    try:
        differing = scenario(cupy)
        fake_cupy.finish()
        return bool(differing)
    except (Fault, NotImplementedError):
        return True


@pytest.mark.parametrize("name", TEXTS)
def test_a_changed_text_is_found(name, cupy_of, ptx):
    scenario, old, new = TEXTS[name]
    altered = Altered(ptx, old, new)
    assert wrong(scenario, cupy_of(altered)), name
    assert altered.used, f"{old!r} is in no text"


def no_wait(monkeypatch):
    monkeypatch.setattr(arrays, "_wait", lambda first, second: None)


def events_are_always_done(monkeypatch):
    monkeypatch.setattr(fake_cupy.Event, "done", True)


def an_event_before_the_copy(monkeypatch):
    def calls(uploaded, values, right=upload.Uploaded.calls):
        return right(uploaded, values)[::-1]

    monkeypatch.setattr(upload.Uploaded, "calls", calls)


def a_copy_on_another_stream(monkeypatch):
    def calls(uploaded, values, right=upload.Uploaded.calls):
        (copy, source, _), record = right(uploaded, values)
        return [(copy, source, sys.modules["cupy"].Stream(non_blocking=True)), record]

    monkeypatch.setattr(upload.Uploaded, "calls", calls)


def measured_on_another_stream(monkeypatch):
    def measure(gradients, *args, right=norm.Norm.measure):
        other = sys.modules["cupy"].Stream(non_blocking=True)

        def on_other(launched, *arguments):
            with other:
                launched(*arguments)

        return [(on_other, *one) for one in right(gradients, *args)]

    monkeypatch.setattr(norm.Norm, "measure", measure)


def added_up_before_measured(monkeypatch):
    def measure(gradients, *args, right=norm.Norm.measure):
        return right(gradients, *args)[::-1]

    monkeypatch.setattr(norm.Norm, "measure", measure)


def rows_too_wide(monkeypatch):
    def launch_rows(one, *args, right=signature.Signature.launch_rows):
        *launch, (told,) = right(one, *args)
        told["width"] += 1
        return *launch, (told,)

    monkeypatch.setattr(signature.Signature, "launch_rows", launch_rows)


def one_block_more(monkeypatch):
    def launch(signature, *args, whole=signature.Signature.launch):
        step, (blocks,), *rest = whole(signature, *args)
        return step, (blocks + 1,), *rest

    monkeypatch.setattr(signature.Signature, "launch", launch)


def threads_for_half(monkeypatch):
    monkeypatch.setattr(cuda_host.Instantiation, "threads", property(lambda step: 64))


def an_argument_missing(monkeypatch):
    def launch(signature, *args, whole=signature.Signature.launch):
        *launch, arguments = whole(signature, *args)
        return *launch, arguments[:-1]

    monkeypatch.setattr(signature.Signature, "launch", launch)


def width_in_half(monkeypatch):
    def weigh(norm, *args, right=norm.Norm._weigh):
        *launch, (leaves, table, window, width, notes) = right(norm, *args)
        return *launch, (leaves, table, window, width.astype(np.int32), notes)

    monkeypatch.setattr(norm.Norm, "_weigh", weigh)


def chunks_that_were_freed(monkeypatch):
    def launch(signature, *args, whole=signature.Signature.launch):
        *launch, (chunks, *rest) = whole(signature, *args)
        address = np.array(chunks.copy().data.ptr, np.uint64)
        sys.modules["cupy"].state.stream.synchronize()
        return *launch, (address, *rest)

    monkeypatch.setattr(signature.Signature, "launch", launch)


def no_event_after_the_copy(monkeypatch):
    monkeypatch.setattr(upload.Uploaded, "calls", lambda *args, right=upload.Uploaded.calls: right(*args)[:1])


def streams_that_wait_the_other_way(monkeypatch):
    monkeypatch.setattr(arrays, "_wait", lambda first, second: second.wait_event(first.record()))


def chunks_that_overlap(monkeypatch):
    def overlapping(sizes, heads, most, right=signature.chunk_table):
        table = right(sizes, heads, most)
        table["n"][:-1] += 4
        return table

    monkeypatch.setattr(signature, "chunk_table", overlapping)


def window_off(by, wider=0):
    """The rows of another step, or rows that are wider."""

    def change(opt):
        for real, window in opt._plan.window.of.items():
            window["rows"] = int(window["rows"]) + by * int(window["width"]) * real.itemsize
            window["width"] += wider

    return lambda cupy: replayed(cupy, change)


LAUNCHES = {
    "no event between two streams": (foreign, no_wait),
    "a pinned buffer used again at once": (uploaded, events_are_always_done),
    "an event recorded before what it guards": (polled, an_event_before_the_copy),
    "a copy on another stream": (uploaded, a_copy_on_another_stream),
    "gradients measured on another stream": (clipped, measured_on_another_stream),
    "notes added up before they are written": (clipped, added_up_before_measured),
    "rows an element too wide": (rows, rows_too_wide),
    "a window a number too wide": (window_off(0, 1), lambda monkeypatch: None),
    "a block too many": (steps, one_block_more),
    "a window row too far": (window_off(1), lambda monkeypatch: None),
    "a window row too early": (window_off(-1), lambda monkeypatch: None),
    "an argument missing": (steps, an_argument_missing),
    "a number of half its width": (weighed, width_in_half),
    "chunks that were freed": (steps, chunks_that_were_freed),
    "no event after a copy": (uploaded, no_event_after_the_copy),
    "streams that wait the other way": (foreign, streams_that_wait_the_other_way),
    "chunks that overlap": (steps, chunks_that_overlap),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_changed_launch_is_found(name, cupy_of, monkeypatch):
    scenario, change = LAUNCHES[name]
    cupy = cupy_of()
    change(monkeypatch)
    assert wrong(scenario, cupy), name


RIGHT = [
    steps,
    clipped,
    coded,
    grouped,
    rows,
    replayed,
    carried,
    foreign,
    uploaded,
    polled,
    hostile,
    clipped_large,
    mastered,
    weighed,
]


@pytest.mark.parametrize("scenario", RIGHT, ids=lambda x: x.__name__)
def test_what_is_right_is_left_alone(scenario, cupy_of):
    assert scenario(cupy_of()) == []
    fake_cupy.finish()
