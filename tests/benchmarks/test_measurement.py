"""The measurement: its cases, oracle, limit and clock, and what samples say. No test asserts a time that was taken."""

import ast
import copy
import importlib.util
import io
import sys
from itertools import count
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import pytest
from cases import METHODS, made_up

import fastadam
from fastadam.benchmarks import cases, clock, limit, summary, truth
from fastadam.benchmarks.contestants import Start
from fastadam.benchmarks.everyone import everyone
from fastadam.benchmarks.limits import Limit
from fastadam.benchmarks.ours import by_backend
from fastadam.benchmarks.peers import PlainNumpy
from fastadam.kernels.contract import NonNegative, Signed
from fastadam.kernels.formats import DTYPES, decoded, encoded
from fastadam.tools import console

RNG = np.random.default_rng

WORKLOADS = {
    "160-leaves": (160_000, 160),
    "mlp": (8_970, 6),
    "resnet50": (25_557_032, 161),
    "vit-b": (85_054_464, 144),
    "gpt2": (124_439_808, 148),
    "gpt2-layer": (7_077_888, 4),
    "200-matrices": (819_200, 200),
    "bert-large": (335_141_888, 391),
    "gpt2-xl": (1_557_611_200, 580),
    "llama2-7b": (6_738_415_616, 291),
}


def test_workloads_have_the_published_counts():
    assert {name: (cases.size(shapes), len(shapes)) for name, shapes in cases.MODELS.items()} == WORKLOADS


@pytest.mark.parametrize("n", [1, 1000, 2**10, 2**26])
def test_a_flat_size_and_its_name(n):
    assert cases.shapes(cases.flat(n)) == [(n,)]


def test_every_method_is_a_setting_with_its_bytes():
    settings = cases.settings()
    assert {method.__name__ for method in METHODS} <= settings.keys()
    moved = {name: settings[name].bytes for name in ("SGD", "Lion", "Adam", "AdamW-amsgrad")}
    assert moved == {"SGD": 12, "Lion": 20, "Adam": 28, "AdamW-amsgrad": 36}
    assert cases.setting("Adam", "float64").bytes == 56
    with_sums = {name: settings[name].bytes for name in ("LAMB", "LARS", "StableAdamW", "Prodigy")}
    assert with_sums == {"LAMB": 44, "LARS": 28, "StableAdamW": 36, "Prodigy": 52}
    assert settings["AdamW-amsgrad"].hyperparameters["weight_decay"] == 0.01


@pytest.mark.parametrize(
    ("name", "moved"),  # DESIGN's table of storage formats
    [
        ("float32", 28),
        ("float32:moments=bfloat16", 20),
        ("float32:moments=8bit", 16.25),
    ],
)
def test_what_a_format_moves(name, moved):
    assert cases.setting("Adam", name).bytes == moved


@pytest.mark.parametrize(
    ("rule", "name", "moved"),
    [
        ("LAMB", "float32:moments=8bit", 5 * 4 + 6 * (1 + 4 / 64)),  # p, g; p again, g again; m and v, and again
        ("LARS", "float32:moments=8bit", 5 * 4 + 3 * (1 + 4 / 64)),
        ("StableAdamW", "float32:moments=8bit", 4 * 4 + 6 * (1 + 4 / 64)),
        ("ScheduleFreeAdamW", "float32:moments=8bit", 5 * 4 + 2 * (1 + 4 / 64)),
        (
            "StableAdamW",
            "bfloat16:moments=bfloat16:master=remainder",
            2 * 2 + 2 * 2 + 2 * 2 + 2 * 2 + 3 * 2,
        ),  # p, low, g, m, v
        ("Muon", "float32", 3 * 4 + 3 * 4),  # g into the momentum, the products into p
    ],
)
def test_what_the_benchmarks_say_is_moved_is_what_the_optimizer_says(rule, name, moved):
    """Counted by hand: 8 bits and a float32 scale for each 64 of them; every walk decodes all blocks."""
    setting = cases.setting(rule, name)
    assert setting.bytes == moved
    one = by_backend("numba")(Start([(64, 64)], setting.dtype), setting, 1)
    assert one.moved(4096) == moved


def test_formats_are_those_that_the_library_steps():
    assert list(cases.formats())[: len(DTYPES)] == [dtype.name for dtype in DTYPES]
    for one in cases.formats().values():
        p = np.ones(64, one.dtype)
        fastadam.Adam(p, lr=0.1, backend="numpy", **one.options).step(p.copy())
        assert (p != 1).all()


# The oracle.


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("rule", cases.settings())
def test_the_oracle_accepts_every_method(rule, dtype):
    setting, start = cases.settings()[rule], Start([(30, 40), (7,)], dtype)
    ulps, wrong = truth.check([by_backend("numpy")(start, setting, 1)], start, RNG(0))
    assert not wrong
    assert 0 < ulps["fastadam numpy"] < np.inf


class Mutant(PlainNumpy):
    """Adam by hand with one mistake."""

    name = "mutant"

    def step(self):
        before = [p.copy() for p in self.p]
        super().step()
        self.spoil(before)


def late(self, before):
    self.t += 1


def decayed(self, before):
    for p, old in zip(self.p, before, strict=True):
        p -= 1e-5 * old


def tail_left(self, before):
    self.p[-1][-1] = before[-1][-1]


def moments_mixed_up(self, before):
    self.m, self.v = self.v, [np.abs(m) for m in self.m]


def no_number(self, before):
    self.p[0][3, 3] = np.nan


def constant(self, before):
    for p, old in zip(self.p, before, strict=True):
        p[...] = old


@pytest.mark.parametrize("spoil", [late, decayed, tail_left, moments_mixed_up, no_number, constant])
@pytest.mark.parametrize("shapes", [[(30, 40), (7,)], [(300, 300), (9,)]], ids=["whole", "sampled"])
def test_the_oracle_refuses_a_mistake(spoil, shapes, monkeypatch):
    monkeypatch.setattr(truth, "MOST", 1 << 16)  # so that 90,000 elements are sampled, as more than 2^20 are
    if spoil is no_number and shapes[0][0] == 300:
        shapes = [(7, 7), *shapes]  # a leaf that is not sampled but taken whole
    setting, start = cases.settings()["Adam"], Start(shapes)
    mutant = type("Mutant", (Mutant,), {"spoil": spoil})
    ulps, wrong = truth.check([PlainNumpy(start, setting, 1), mutant(start, setting, 1)], start, RNG(0))
    assert list(wrong) == ["mutant"]
    assert "where the oracle has" in wrong["mutant"]
    assert ulps["plain NumPy"] < 10


NARROW = [name for name in cases.formats() if name not in ("float32", "float64")]


@pytest.mark.parametrize("rule", ["Adam", "AdamW-amsgrad", "Lion"])
@pytest.mark.parametrize("format", NARROW)
def test_the_oracle_knows_what_a_format_loses(format, rule):
    setting, start = cases.setting(rule, format), Start([(30, 41), (7,), (9_001,)], cases.Precision(format).dtype)
    _, wrong = truth.check([by_backend("numpy")(start, setting, 1)], start, RNG(0))  # whose bits the others have
    assert not wrong


def v_forgotten(opt):
    opt.load_state_dict(edited(opt.state_dict(), "v", lambda x: x // 2 if x.dtype == np.uint8 else x * 0.25))


def m_forgotten(opt):
    opt.load_state_dict(edited(opt.state_dict(), "m", np.zeros_like))


def p_stepped_back(opt):
    opt._state.params[0][0] *= 1.02


def edited(state, slot, change):
    """That state with the first leaf's slot changed."""
    slots = next(iter(state["leaves"].values()))
    slots[slot] = np.asarray(change(slots[slot])).astype(slots[slot].dtype)
    return state


@pytest.mark.parametrize("mistake", [v_forgotten, m_forgotten, p_stepped_back])
@pytest.mark.parametrize("format", NARROW)
def test_the_oracle_refuses_a_mistake_in_every_format(format, mistake):
    """Made before the second step, whose bound has grown by what the first one stored."""

    class Mistaken(by_backend("numpy")):
        def give(self, k):
            super().give(k)
            if k == 1:
                mistake(self.opt)

    setting, start = cases.setting("Adam", format), Start([(300, 40), (7,)], cases.Precision(format).dtype)
    _, wrong = truth.check([Mistaken(start, setting, 1)], start, RNG(0))
    assert list(wrong) == ["fastadam numpy"]
    assert wrong["fastadam numpy"].startswith("step 2")


@pytest.mark.parametrize(
    ("name", "slot", "drawn"),
    [
        ("bfloat16", None, False), ("bfloat16", None, True), ("float16", None, False),
        ("8bit", Signed, False), ("8bit", NonNegative, False), ("8bit", NonNegative, True),
    ],
)  # fmt: skip
def test_what_a_rounding_loses_is_within_the_bound_and_comes_near_it(name, slot, drawn):
    rng, slot = RNG(0), slot and slot("x")
    x = (rng.standard_normal(1 << 16) * 10.0 ** rng.uniform(-4, 2, 1 << 16)).astype(np.float32)
    x = np.abs(x) if isinstance(slot, NonNegative) else x
    like = np.empty(0, np.uint8 if name == "8bit" else cases.Precision(name).dtype)
    short = encoded(x, like, slot, (12345, 0) if drawn else None)
    back = decoded(short, slot, len(x), np.float32) if slot else short.astype(np.float32)
    groups = truth.groups_of([(0, slice(0, len(x)))])
    share = np.abs(back - x) / truth.lost(np.abs(x).astype(np.float64), name, slot, drawn, groups)
    assert 0.9 < share.max() <= 1


def test_a_sample_holds_the_ends_of_every_leaf():
    shapes = [(truth.MOST,), (5,), (3 * truth.MOST,), (0,)]
    pieces = truth.sample(shapes, RNG(0))
    for leaf, (n,) in enumerate(shapes):
        mine = [part for at, part in pieces if at == leaf]
        assert (mine[0].start, mine[-1].stop) == (0, n)
    assert sum(part.stop - part.start for _, part in pieces) < 1.1 * truth.MOST


def test_no_module_imports_in_a_circle():
    """Late imports count: what a function imports, its module needs."""
    folder = Path(cases.__file__).parent
    modules = {path.stem: ast.parse(path.read_text()) for path in folder.glob("*.py") if path.stem != "__init__"}
    imports = {name: set() for name in modules}
    for name, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (
                node.level or (node.module or "").startswith("fastadam.benchmark")
            ):
                last = (node.module or "").rpartition(".")[2]
                imports[name] |= {last, *(alias.name for alias in node.names)} & modules.keys()
    assert {"truth", "clock", "machine"} <= imports["worker"]  # the test sees imports
    while free := [name for name in imports if not imports[name] & imports.keys()]:
        for name in free:
            del imports[name]
    assert not imports


def test_modules_are_short():
    lengths = [len(path.read_text().splitlines()) for path in Path(cases.__file__).parent.glob("*.py")]
    assert max(lengths) <= 300
    assert median(lengths) <= 150


# The limit.


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("slots", range(8))
def test_the_limit_touches_every_stream_once(slots, dtype, threads):
    n = limit.SERIAL + limit.CHUNK + 3
    leaves = [[RNG(k).standard_normal(size).astype(dtype) for k in range(2 + slots)] for size in (n, 5)]
    before = copy.deepcopy(leaves)
    limit.walk_for(n + 5, threads)(*limit.plan(leaves, threads), dtype(0.5))
    for (p, g, *others), (p0, g0, *others0) in zip(leaves, before, strict=True):
        assert np.array_equal(g, g0)
        for x, x0 in zip([p, *others], [p0, *others0], strict=True):
            np.testing.assert_allclose(x, x0 + dtype(0.5) * g0, rtol=4 * np.finfo(dtype).eps, atol=np.finfo(dtype).eps)


@pytest.mark.parametrize("rule", ["SGD", "Adam", "AdamW-amsgrad", "RMSprop-centered-momentum"])
def test_the_limit_is_held_against_its_oracle(rule):
    setting, start = cases.settings()[rule], Start([(300, 200), (7,)])
    _, wrong = truth.check([Limit(start, setting, 2)], start, RNG(0))
    assert not wrong


# The clock.


class Paced:
    """A contestant whose steps take a made-up time on a made-up clock."""

    device = "cpu"

    def __init__(self, name, seconds, hand, rng, noise=0.1):
        self.name, self._seconds, self._hand, self._rng, self._noise = name, seconds, hand, rng, noise

    def give(self, k):
        self._hand[0] += 1.0  # not to be counted

    def step(self):
        self._hand[0] += self._seconds * (1 + self._noise * self._rng.random())


@pytest.fixture
def hand(monkeypatch):
    """The time on the made-up clock, in a list of one."""
    hand = [0.0]
    monkeypatch.setattr(clock, "now", lambda: hand[0])
    monkeypatch.setattr(clock.time, "sleep", lambda seconds: None)
    return hand


@pytest.mark.parametrize("seconds", [2e-6, 1e-3, 0.3])
def test_the_same_contestant_twice_comes_out_within_the_spread(hand, seconds):
    rng = RNG(1)
    one, twin, slow = (Paced(name, s * seconds, hand, rng) for name, s in (("one", 1), ("twin", 1), ("slow", 1.5)))
    samples = clock.race([one, twin, slow], 15, rng)
    spreads = {name: clock.spread(times) for name, times in samples.items()}
    assert max(spreads["one"][0], spreads["twin"][0]) <= min(spreads["one"][2], spreads["twin"][2])
    assert spreads["slow"][0] > max(spreads["one"][2], spreads["twin"][2])
    assert all(seconds * 0.999 <= t <= 1.1001 * seconds for t in samples["one"])


def test_slow_contestants_sit_rounds_out(hand):
    quick, slow = Paced("quick", 1e-4, hand, RNG(0)), Paced("slow", 1.0, hand, RNG(0))
    samples = clock.race([quick, slow], 15, RNG(0))
    assert len(samples["quick"]) == 15
    assert len(samples["slow"]) == clock.FEWEST


class Free(Paced):
    """One whose gradients take no time to come."""

    def give(self, k):
        pass


def test_a_race_heeds_its_seconds(hand):
    one, other = (Free(name, 1e-3, hand, RNG(0), noise=0.0) for name in ("one", "other"))
    assert {len(times) for times in clock.race([one, other], 100, RNG(0), seconds=1.0).values()} == {45}
    assert {len(times) for times in clock.race([one, other], 100, RNG(0), seconds=0.0).values()} == {clock.FEWEST}
    assert {len(times) for times in clock.race([one, other], 3, RNG(0), seconds=0.0).values()} == {3}


def test_a_race_is_not_interrupted_by_collections_of_garbage(hand, monkeypatch):
    said = []
    for name in ("collect", "disable", "enable"):
        monkeypatch.setattr(clock.gc, name, lambda name=name: said.append(name))
    one = Free("one", 1e-3, hand, RNG(0), noise=0.0)
    clock.race([one], 3, RNG(0), report=lambda *turn: said.append("turn"))
    assert said == ["collect", "disable", *["turn"] * 3, "enable"]


def test_a_race_ends_when_calls_turn_slow(hand):
    class Slowing(Free):
        def step(self):
            super().step()
            self._seconds = 0.5  # another program has begun

    one = Slowing("one", 1e-3, hand, RNG(0), noise=0.0)
    assert len(clock.race([one], 100, RNG(0), seconds=10.0)["one"]) < 20


class Event:
    """A CUDA event on the made-up clock."""

    def __init__(self, hand):
        self._hand = hand

    def record(self):
        self.at = self._hand[0]

    def synchronize(self):
        pass


@pytest.mark.parametrize("needs_wall", [False, True])
def test_events_time_a_gpu(hand, monkeypatch, needs_wall):
    def between(first, last):
        return (last.at - first.at) * 1e3  # CUDA counts milliseconds

    cuda = SimpleNamespace(Event=lambda: Event(hand), get_elapsed_time=between)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    one = Paced("one", 0.25, hand, RNG(0), noise=0.0)
    one.device, one.needs_wall, one.finish = "cuda", needs_wall, lambda: None
    given = 1.0 if needs_wall else 0.0  # by the wall, what gives the gradients counts too
    assert clock.turn(one, 3, count()) == pytest.approx(0.25 + given)


def test_a_gpu_brings_its_own_contestants():
    names = [one.name for one in everyone(["cuda", "numba", "numpy"])]
    assert names[:5] == ["fastadam cuda", "limit", "limit cuda", "fastadam numba", "fastadam numpy"]
    assert names[-2:] == ["fastadam cuda, graph", "fastadam cuda, moved"]
    assert {"torch fused", "torch fused cuda", "optax cuda"} <= set(names)
    assert len(set(names)) == len(names)


def test_the_real_clock_runs():
    start, setting = Start([(64,)]), cases.settings()["Adam"]
    twins = [PlainNumpy(start, setting, 1) for _ in range(2)]
    twins[1].name = "twin"
    seen = []
    samples = clock.race(twins, 3, RNG(0), report=lambda name, seconds: seen.append(name))
    assert {name: len(times) for name, times in samples.items()} == {"plain NumPy": 3, "twin": 3}
    assert sorted(seen) == sorted(["plain NumPy", "twin"] * 3)
    assert all(t > 0 for times in samples.values() for t in times)


# What samples say.


def test_a_summary_of_made_up_samples():
    runs = [made_up(numba=2e-3, limit=1e-3, fused=3e-3), made_up(numba=2e-3, limit=1e-3, fused=5e-3)]
    entry = summary.case("2^20", runs, cache=2**25)
    of = entry["contestants"]["fastadam numba"]
    assert of["ns_per_param"] == pytest.approx(2e-3 / 2**20 * 1e9)
    assert of["gb_per_s"] == pytest.approx(28 * 2**20 / 2e-3 * 1e-9)
    assert of["of_limit"] == pytest.approx([0.5, 0.5, 0.5])
    assert of["times_faster_than"]["torch fused"] == pytest.approx([2.0, 1.5, 2.5])
    assert (of["p10"], of["p90"], of["samples"]) == (pytest.approx(1.8e-3), pytest.approx(2.2e-3), 6)
    assert entry["in"] == "cache"
    assert summary.case("2^26", runs, cache=2**25)["in"] == "memory"
    text = "\n".join(summary.notes(entry))
    assert "optax is wrong" in text
    assert "Thinc is not run" in text
    one = summary.case("2^20", runs[:1], cache=2**25)["contestants"]["fastadam numba"]
    assert one["times_faster_than"]["torch fused"] == pytest.approx([1.5, 2.7 / 2.2, 3.3 / 1.8])


def test_a_table_fits_a_terminal():
    """With a name and times as long as they come, in 80 columns: nothing is broken into two lines, nor the title."""
    rich = pytest.importorskip("rich.console", reason="rich is not installed: pip install rich")
    run = made_up(numba=9.87e-3, limit=1e-3, **{"bitsandbytes 8-bit": 0.123})
    run["ulps"]["bitsandbytes 8-bit"] = 4.76e5
    table = summary.table("resnet50", summary.case("resnet50", [run], cache=2**10))
    out = io.StringIO()
    rich.Console(width=80, file=out).print(table.rich())
    title, head, _, *rows = out.getvalue().splitlines()
    assert title == "resnet50: 25,557,032 parameters in 161 arrays, in DRAM"
    assert [row.split("  ")[0].strip() for row in rows] == [
        "fastadam numba",
        "limit",
        "bitsandbytes 8-bit",
        "optax",
        "",
    ]
    assert "× ours" in head


def test_broken_rich_costs_the_colours_alone(monkeypatch, capsys):
    """On a terminal with a rich that cannot be imported: plain lines, and why."""
    console._rich.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    try:
        with console.Live() as live:
            live.show("not seen")
            table = console.TextTable("a", "b", title="what")
            table.add("1", "2")
            live.print(table)
            assert list(console.track([1, 2], "counted")) == [1, 2]
    finally:
        console._rich.cache_clear()
    out, err = capsys.readouterr()
    assert out.startswith("what\na  b\n1  2\n")
    assert err.count("plain lines: rich cannot be used (ModuleNotFoundError: ") == 1


def test_the_crossover():
    def entry(n, cpu, gpu, moved):
        times = {"fastadam numba": cpu, "fastadam cuda": gpu, "fastadam cuda, moved": moved}
        return {"n": n, "tensors": 1, "contestants": {name: {"seconds": s} for name, s in times.items()}}

    rows = {"2^10": (1, 5, 9), "2^14": (10, 5, 20), "2^18": (100, 6, 300)}
    result = {"cases": {name: entry(2 ** int(name[2:]), *row) for name, row in rows.items()}}
    first, second = summary.crossover(result)
    assert "from 2^14 parameters" in first
    assert "nowhere up to 2^18" in second
