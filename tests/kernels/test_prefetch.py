"""What a walk asks for ahead: the streams that it reads or writes, and nothing that may not be asked for."""

import ctypes
import mmap
import sys
from itertools import count
from typing import NamedTuple

import numba
import numpy as np
import pytest
from cases import same_bits
from ml_dtypes import bfloat16
from numba import types
from numba.core.registry import cpu_target

import fastadam as fa
from fastadam.host import compiled
from fastadam.kernels.contract import Kernel, Signed
from fastadam.kernels.cpu import prefetch, traversal
from fastadam.kernels.cpu.elements import Accumulate
from fastadam.kernels.cpu.entry import native_text
from fastadam.kernels.cpu.prefetch import walked
from fastadam.kernels.cpu.words import I64, place, put_word
from fastadam.kernels.formats import FLOAT32
from fastadam.tools.cover import stored

F32, N, u64 = np.float32, 4_096, np.uint64
ANY, NONE = "", "no such feature"  # of the processors that gain, as a text that holds features knows it
NUMBERS = count()
alive = []  # code, and the memory that it writes to


def asked_for(opt, tag):
    """The names of the streams that the walk of a tag asks for."""
    names = opt._plan._kernel.streams.row
    return " ".join(names[k] for k in walked(numba.typeof(tag)))


@pytest.mark.parametrize(
    ("method", "chosen", "dtype", "step", "sums"),
    [
        (fa.AdamW, {}, F32, "p g m v", None),
        (fa.AdamW, {"amsgrad": True, "ema_decay": 0.9}, F32, "p g m v vmax ema", None),
        (fa.Adam, {"betas": (0.0, 0.9)}, F32, "p g v", None),
        (fa.Lion, {}, F32, "p g m", None),
        (fa.AdamW, {"moments": "8bit"}, F32, "p g m v", None),
        (fa.AdamW, {"moments": "bfloat16", "master": "remainder"}, bfloat16, "p g m v low", None),
        (fa.AdamW, {"master": "float32"}, bfloat16, "p g m v rounded", None),
        (fa.LAMB, {"ema_decay": 0.9}, F32, "p g m v ema", "p g m v"),
        (fa.LAMB, {"master": "remainder"}, bfloat16, "p g m v low", "p g m v low"),
        (fa.LARS, {}, F32, "p g m", "p g"),
        (fa.StableAdamW, {"master": "remainder"}, bfloat16, "p g m v low", "g v"),
        (fa.StableAdamW, {"moments": "8bit"}, F32, "p g m v", "g m v"),  # all blocks are decoded
        (fa.Prodigy, {}, F32, "p g m v s", "p g s p0"),
        (fa.AdamW, {"cautious": True}, F32, "p g m v", "p g m"),
    ],
)
def test_streams_that_are_walked_are_asked_for(method, chosen, dtype, step, sums):
    opt = method(np.ones(N, dtype), backend="numba", **chosen)
    (tag,) = opt._plan._tags
    assert asked_for(opt, tag) == step
    if sums is not None:
        (work,) = opt._plan._summing
        assert asked_for(opt, opt._plan._summing_tag(work)) == sums


def test_what_has_no_address_is_not_asked_for():
    """A copy is asked for where it is written, several arrays where they are added up."""
    opt = fa.AdamW(np.ones(N, F32), backend="numba", copy_to=np.zeros(N, bfloat16))
    (tag,) = opt._plan._tags
    assert asked_for(opt, tag) == "p g m v copy"
    assert asked_for(opt, tag._replace(several=np.uint8(1))) == "p m v copy"
    assert list(walked(numba.typeof(Accumulate(FLOAT32, FLOAT32, None)))) == [0, 1]


def test_what_a_step_reads_is_told_from_numbers():
    """p is made of p and m, x of u; v, w and x are replaced unread, and nobody reads g."""

    class Coefficients(NamedTuple):
        lr: float

    def moved(p, g, m, v, u, w, x, c):
        return p - c.lr * m, m, p, u, c.lr, u

    kernel = Kernel("moved", moved, tuple(map(Signed, "mvuwx")), Coefficients)
    summed, read, written = kernel.reached(False, [True] * 5)
    assert read.row[:7] == (True, False, True, False, True, False, False)
    assert written.slots == (False, True, False, True, True)
    assert not any(summed.row[:7])


def gaining(monkeypatch, feature):
    """Let processors of a feature be those that gain, and all pieces be compiled or loaded anew."""
    monkeypatch.setattr(prefetch, "GAINING", feature)
    monkeypatch.setattr(traversal, "pieces", {})
    monkeypatch.setattr(compiled, "PIECES", {})


class Asked:
    """Lets walks ask, whatever the processor, and write down what they ask for: the addresses of lines, in their
    order."""

    def __init__(self, monkeypatch, feature=ANY):
        self._noted = np.zeros(2**15, np.uint64)  # the first says how many follow

        def note(builder, address):
            start = place(builder, I64(self._noted.ctypes.data), I64)
            count = builder.add(builder.load(start), I64(1))
            builder.store(count, start)
            builder.store(address, builder.gep(start, [count]))

        # Numba takes code of the same name for the same, as long as any is there: these pieces have names of their own.
        number = next(NUMBERS)

        def named(name, function, signature, of="", **how):
            return native_text(name, function, signature, f"{of}, noted {number}", **how)

        monkeypatch.setattr(traversal, "native_text", named)
        monkeypatch.setattr(prefetch, "ask_for_line", note)
        gaining(monkeypatch, feature)
        alive.append((self._noted, traversal.pieces))
        monkeypatch.setenv("FASTADAM_CACHE", "0")

    def during(self, act):
        """The addresses that act() asks for."""
        fa.set_num_threads(1)
        self._noted[0] = 0
        act()
        return self._noted[1 : 1 + int(self._noted[0])]


def begins(opt, name):
    """Where a stream of the only leaf begins."""
    return int(opt._plan._table[0, opt._plan._kernel.streams.row.index(name)])


def check(asked, streams):
    """Hold what was asked for against the whole chunks of streams, each (where it begins, bytes of a chunk of 8,192
    elements): AHEAD of each element, every line of it, and nothing else."""
    asked, expected = set((asked // 64).tolist()), set()
    for start, size in streams:
        lines = set(range((start + 2_048) // 64, (start + 2_048 + CHUNKS * size - 1) // 64 + 1))
        assert lines <= asked | {max(lines)}  # the last begins behind the last 64 bytes that are asked for
        expected |= lines | {max(lines) + 1}
    assert asked <= expected


def _period(tag, address, n):
    put_word(address, 0, prefetch.period_of(tag, u64(n), u64(8_192)))


@pytest.mark.parametrize("feature", [ANY, NONE])
@pytest.mark.parametrize(("moments", "asks"), [(None, False), ("8bit", True)])
def test_only_walks_that_ask_go_in_short_pieces(feature, moments, asks, monkeypatch):
    gaining(monkeypatch, feature)
    opt = fa.AdamW(np.ones(N, F32), backend="numba", moments=moments)
    (tag,) = opt._plan._tags
    signature, period = types.void(types.int64, types.int64), np.zeros(1, np.int64)
    of = f"period, {feature}, {moments}"
    code = native_text("period", _period, signature, of, constants={"tag": numba.typeof(tag)}).entry_point
    for n, expected in ((8_191, prefetch.NEVER), (8_192, 64 if asks or feature == ANY else prefetch.NEVER)):
        code(period.ctypes.data, n)
        assert period[0] == expected


CHUNKS, REST = 3, 1_000  # whole chunks, and elements of one that is not


@pytest.mark.parametrize(
    ("dtype", "chosen", "sizes"),  # bytes of an element of p, g, m and v
    [
        (F32, {}, (4, 4, 4, 4)),
        (bfloat16, {"moments": "bfloat16"}, (2, 2, 2, 2)),
        (bfloat16, {}, (2, 2, 4, 4)),
        (F32, {"moments": "8bit"}, (4, 4, 1.0625, 1.0625)),
        (F32, {"max_norm": 1.0, "stats": "group"}, (4, 4, 4, 4)),
    ],
)
def test_whole_chunks_are_asked_for(dtype, chosen, sizes, monkeypatch):
    asked, n = Asked(monkeypatch), CHUNKS * 8_192 + REST
    opt, g = fa.AdamW(np.ones(n, dtype), backend="numba", **chosen), np.ones(n, dtype)
    lines = asked.during(lambda: opt.step(g))
    check(lines, [(begins(opt, name), int(8_192 * size)) for name, size in zip("pgmv", sizes, strict=True)])
    other = fa.AdamW(np.ones(8_191, dtype), backend="numba", **chosen)
    assert len(asked.during(lambda: other.step(np.ones(8_191, dtype)))) == 0


def test_sums_and_totals_are_asked_for(monkeypatch):
    asked, n = Asked(monkeypatch), CHUNKS * 8_192 + REST
    opt, g = fa.StableAdamW(np.ones(n, F32), backend="numba"), np.ones(n, F32)
    lines = asked.during(lambda: opt.step(g))
    sums, steps = lines[: len(lines) // 3], lines[len(lines) // 3 :]  # of g and v, then of four
    check(sums, [(begins(opt, name), 4 * 8_192) for name in "gv"])
    check(steps, [(begins(opt, name), 4 * 8_192) for name in "pgmv"])
    opt.accumulate(g)
    lines = asked.during(lambda: opt.accumulate(g))
    _, totals = opt.accumulated
    check(lines, [(x.ctypes.data, 4 * 8_192) for x in (g, *totals.values())])


def test_several_gradients_are_asked_for(monkeypatch):
    asked, n = Asked(monkeypatch), CHUNKS * 8_192
    opt, gradients = fa.Lion(np.ones(n, F32), backend="numba"), [np.ones(n, F32), np.ones(n, F32)]
    lines = asked.during(lambda: opt.step(streams=gradients))
    homes = [begins(opt, "p"), begins(opt, "m"), *(g.ctypes.data for g in gradients)]
    check(lines, [(start, 4 * 8_192) for start in homes])


class Fenced:
    """Arrays that end where memory does: behind them lies a page that nobody may read."""

    def __init__(self):
        self._maps = []

    def array(self, values):
        page = mmap.PAGESIZE
        size = -(-values.nbytes // page) * page
        memory = mmap.mmap(-1, size + page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start + size), page, 0) == 0
        self._maps.append(memory)
        x = np.frombuffer(memory, values.dtype, len(values), size - values.nbytes)
        x[:] = values
        return x


@pytest.fixture
def otherwise(monkeypatch):
    """Walks as they are on other processors: all other tests see those of this one."""
    features = cpu_target.target_context.codegen().magic_tuple()[2]
    gaining(monkeypatch, NONE if prefetch.GAINING in features else ANY)


def both(method, p, n, *, home=lambda x: x, **chosen):
    """Compiled code's parameters and NumPy's, after steps of every kind of walk."""
    rng = np.random.default_rng(n)
    start, gradients = (rng.standard_normal(shape).astype(p) for shape in (n, (3, n)))
    moved = [home(start), start.copy()]
    for x, backend in zip(moved, ("numba", "numpy"), strict=True):
        opt = method(x, backend=backend, seed=3, **chosen)
        opt.step(home(gradients[0]))
        opt.step(streams=[home(g) for g in gradients])
        for g in gradients:
            opt.accumulate(home(g))
        opt.step()
    return moved


@pytest.mark.usefixtures("otherwise")
@pytest.mark.parametrize("one", stored(), ids=str)
def test_asking_changes_no_bit(one):
    p, _ = one.dtypes()
    assert same_bits(*both(fa.AdamW, p, CHUNKS * 8_192 + REST, **one.chosen()))


@pytest.mark.usefixtures("otherwise")
def test_asking_changes_no_bit_of_sums():
    chosen = {"max_norm": 1.0, "stats": "tensor", "ema_decay": 0.9}
    assert same_bits(*both(fa.LAMB, F32, CHUNKS * 8_192 + REST, **chosen))


@pytest.mark.skipif(sys.platform != "linux", reason="the test takes a page's rights away by mprotect")
@pytest.mark.parametrize("n", [1, 63, 64, 65, 8_191, 8_192, 40_001])
@pytest.mark.parametrize(
    ("dtype", "chosen"), [(F32, {}), (bfloat16, {"moments": "bfloat16"}), (F32, {"moments": "8bit"})]
)
def test_asking_beyond_the_end_of_memory_harms_nobody(dtype, chosen, n, monkeypatch):
    gaining(monkeypatch, ANY)
    assert same_bits(*both(fa.AdamW, dtype, n, home=Fenced().array, **chosen))


@pytest.mark.parametrize(
    ("feature", "moments", "asks"),
    [(ANY, None, True), (NONE, None, False), (NONE, "bfloat16", False), (NONE, "8bit", True)],
)
def test_where_it_is_a_gain_memory_is_asked_for(feature, moments, asks, monkeypatch):
    asked, n = Asked(monkeypatch, feature), CHUNKS * 8_192
    opt, g = fa.LAMB(np.ones(n, F32), backend="numba", moments=moments), np.ones(n, F32)
    for act in (lambda: opt.step(g), lambda: opt.step(streams=[g, g])):
        assert (len(asked.during(act)) > 0) == asks
    assert (len(asked.during(lambda: opt.accumulate(g))) > 0) == (feature == ANY)
