"""benchmarks/fidelity.py: the formats are what their papers say, Adam is Adam, and a run says what it must."""

import json

import ml_dtypes
import numpy as np
import pytest

import papers
from fastadam.benchmarks import codings, fidelity, fidelity_report, problems
from fastadam.benchmarks.codings import BFloat16, DynamicTree, FlashOptim, ShiftedFloat, dynamic_map

f32 = np.float32
RNG = np.random.default_rng
SHIFTED = sorted({c for of in codings.EVERY.values() for c in (of.m, of.v) if isinstance(c, ShiftedFloat)}, key=repr)


def test_shifted_floats_by_hand():
    m = ShiftedFloat(4, 3, signed=True)
    # 2^E·(1 + M/8) - 1 for code 8·E + M.
    assert m.values(np.array([0, 1, 7, 8, 9, 127])).tolist() == [0, 1 / 8, 7 / 8, 1, 1.25, 2**15 * 1.875 - 1]
    v = ShiftedFloat(5, 3)
    assert v.values(np.array([0, 1, 8, 16])).tolist() == [1 / 16, 1 / 8, 1, 3]
    root = ShiftedFloat(3, 5, halvings=1)
    # Exact at even powers of two: w = 1 is a value of 1, w = 1/4 of 1/16, code 0 is w = 1/64.
    assert root.values(np.array([32, 8, 0])).tolist() == [1, 1 / 16, 2.0**-12]
    assert ShiftedFloat(2, 6, halvings=2).values(np.array([64, 16])).tolist() == [1, 2.0**-8]


@pytest.mark.parametrize("coding", SHIFTED, ids=str)
def test_every_code_is_read_back_in_order(coding):
    codes = np.arange(coding.last + 1)
    values = coding.values(codes)
    assert (np.diff(values) > 0).all()
    assert values[0] == 0 if coding.signed else values[0] > 0
    # All codes in one group: what was read is stored as it was, to nearest.
    nearest = ShiftedFloat(coding.exponent, coding.mantissa, coding.signed, False, len(codes), coding.halvings)
    again, scale = nearest.encode(values, None)
    assert scale == 1
    # Code 0 of the unsigned lies half way to code 1 and rounds up; only what is below comes back to it.
    assert (again.ravel()[1:] == codes[1:]).all()
    assert again.ravel()[0] == (0 if coding.signed else 1)


def test_the_largest_and_the_smallest():
    for coding in (codings.M8, codings.V8):
        x = np.zeros(2 * coding.group, f32)
        x[3], x[5] = 0.37, 1e-30
        for _ in range(20):
            x = coding(x, RNG(0))
        assert x[3] == pytest.approx(0.37, rel=1e-6)  # 20 roundings of the scale, none of the code
        assert (x[coding.group :] == 0).all()
        assert x[5] == 0 if coding.signed else (x[: coding.group] > 0).all()
    assert np.signbit(codings.M8(np.full(64, -1e-3, f32), RNG(0))).all()


@pytest.mark.parametrize("coding", [BFloat16(True), *(c for c in SHIFTED if c.stochastic and not c.signed)], ids=str)
def test_stochastic_rounding_is_unbiased(coding):
    draws = 256 * 500
    for value in (0.0103, 0.31, 0.77):
        x = np.full((draws // 256, 256), value, f32)
        x[:, :: getattr(coding, "group", 256)] = 1  # what the scale follows
        read = coding(x.ravel(), RNG(1)).reshape(x.shape)[x != 1].astype(np.float64)
        assert len(np.unique(read)) == 2
        # 5 standard errors; the halved bits bend once between powers of two, by less than a code squared.
        bend = 0.0 if not getattr(coding, "halvings", 0) else 2e-3 * value
        assert abs(read.mean() - value) < 5 * read.std() / len(read) ** 0.5 + 1e-7 + bend


def test_bfloat16_is_ml_dtypes():
    x = RNG(0).standard_normal(100_000).astype(f32) * f32(10) ** RNG(1).integers(-30, 30, 100_000).astype(f32)
    assert (BFloat16()(x, None) == x.astype(ml_dtypes.bfloat16).astype(f32)).all()


def test_flashoptim_by_hand():
    # m: φ(z) = 2z/(1 + |z|) of z = 1, 0.5, -0.25, 0.002: 1, 2/3, -0.4, 0.00399; in 127ths: 127, 85, -51, 1.
    x = np.zeros(32, f32)
    x[:4] = 2, 1, -0.5, 0.004
    z = np.array([127, 85, -51, 1]) / 127
    assert FlashOptim(True)(x, None)[:4] == pytest.approx(2 * z / (2 - abs(z)), rel=1e-6)
    # v: √v/largest = 1, 0.5, 0.001: in 255ths 255, 127.5 to even, 0; the scale 3 is a float16.
    v = np.zeros(32, f32)
    v[:3] = 9, 2.25, 9e-6
    assert FlashOptim(False)(v, None)[:3] == pytest.approx([9, (128 / 255 * 3) ** 2, 0], rel=1e-6)
    # A scale of 1/3 is stored as 0.33325 of float16, the code is of 1/3.
    assert FlashOptim(True)(np.full(32, 1 / 3, f32), None)[0] == float(np.float16(1 / 3)) != 1 / 3


def test_dynamic_map_as_published():
    """bitsandbytes' own: 5.5e-7 and 3.25e-7 the smallest, 0.99296875 and 0.99648438 the largest below 1."""
    signed, unsigned = dynamic_map(True), dynamic_map(False)
    for values in (signed, unsigned):
        assert len(values) == 256
        assert (np.diff(values) > 0).all()
    assert signed[[0, 127, 128, 254, 255]] == pytest.approx([-0.99296875, 0, 5.5e-7, 0.99296875, 1], rel=1e-6)
    assert signed[[129, 130]] == pytest.approx([3.25e-6, 7.75e-6], rel=1e-6)
    assert unsigned[[0, 1, 2, 254, 255]] == pytest.approx([0, 3.25e-7, 7.75e-7, 0.99648438, 1], rel=1e-6)


def test_bitsandbytes_takes_the_nearest_and_keeps_the_sign():
    x = RNG(0).standard_normal(512).astype(f32) ** 3
    for signed in (True, False):
        y = x if signed else x * x
        scale = np.abs(y).reshape(2, 256).max(axis=1).repeat(256)
        distance = np.abs(y[:, None] / scale[:, None] - dynamic_map(signed)).min(axis=1)
        read, large = DynamicTree(signed)(y, None), np.abs(y) > 1e-6 * scale
        assert (np.abs(read - y) / scale)[large] == pytest.approx(distance[large], abs=1e-7)
    tiny = np.full(256, 1e-9, f32)
    tiny[0], tiny[1] = 1, -1e-9
    read = DynamicTree(True)(tiny, None)
    assert read[1] == pytest.approx(-5.5e-7)
    assert (read[2:] == 0).all()


def test_never_zero():
    v = np.array([1, 1e-30] * 128, f32)
    assert FlashOptim(False)(v, None)[1] == DynamicTree(False)(v, None)[1] == 0
    assert FlashOptim(False, never_zero=True)(v, None)[:2] == pytest.approx([1, (0.5 / 255) ** 2])
    assert DynamicTree(False, never_zero=True)(v, None)[:2] == pytest.approx([1, 1.625e-7])


def test_uncoded_it_is_adam():
    p, exact_p, state = np.zeros(7, f32), np.zeros(7), {"m": 0.0, "v": 0.0}
    opt = fidelity.Modelled(p, [(7,)], "float32", 0.99, 1e-2, 0)
    for t, g in enumerate(RNG(0).standard_normal((50, 7)).astype(f32), start=1):
        opt.step(g)
        exact_p, state = papers.adam(
            t, exact_p, g.astype(np.float64), state, lr=1e-2, betas=(fidelity.BETA1, 0.99), eps=fidelity.EPS
        )
    assert p == pytest.approx(exact_p, abs=1e-6)


def test_leaves_begin_groups():
    shapes = [(3, 5), (256,), (), (300,)]
    flat = problems.room(shapes)
    leaves = problems.views(flat, shapes)
    assert [leaf.shape for leaf in leaves] == shapes
    assert flat.size == 256 * 5
    for k, leaf in enumerate(leaves, 1):
        leaf[...] = k
    assert flat[[0, 14, 15, 256, 511, 512, 513, 768, 1067, 1068]].tolist() == [1, 1, 0, 2, 2, 3, 0, 4, 4, 0]


def test_made_up_gradients_are_of_their_kinds():
    g = np.array(list(problems.synthetic(60, 3))).reshape(60, 4, problems.SIZE)
    size = np.abs(g).mean(axis=2)
    assert size[:20, 0].mean() / size[-20:, 0].mean() == pytest.approx(30, rel=0.1)
    rows = (g[:, 2] != 0).reshape(60, -1)[:, : 42 * 48].reshape(60, 42, 48)
    assert (rows.all(axis=2) == rows.any(axis=2)).all()
    assert 0.05 < rows.mean() < 0.5
    never, before, after = (g[:, 3] == 0).all(axis=0), g[:10, 3] != 0, g[10:, 3] != 0
    assert never.mean() == pytest.approx(1 / 4, abs=0.04)
    assert (before.any(axis=0) & ~after.any(axis=0)).mean() == pytest.approx(1 / 8, abs=0.03)


def test_a_run_in_small(monkeypatch):
    """Two formats, one β2, a few steps: the result has every number, and float32 is no distance from itself."""
    found = fidelity.fidelity((0.99, ["float32", codings.EIGHT_BITS, "FlashOptim"], False, 30))
    assert set(found) == set(problems.KINDS)
    for kind in found.values():
        assert kind["float32"] == {"distance": 0, "root": [1, 1, 1], "step": kind["float32"]["step"]}
        assert 0 < kind[codings.EIGHT_BITS]["distance"] < 0.3
    monkeypatch.setitem(problems.PROBLEMS, "mlp", lambda seed: problems.Digits([*problems.models.LOGISTIC], 2, seed))
    base = fidelity.train(("mlp", "float32", 0.999, False, 1))
    ours = fidelity.train(("mlp", codings.EIGHT_BITS, 0.999, False, 1))
    assert ours == pytest.approx(base, rel=0.02)
    assert ours != base
    json.dumps(found)


def invented(ours, rival):
    """A result of one problem: float32's losses 1, 2, 3, so a standard deviation of 1; the others' as given."""
    entry = {name: [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]] for name in codings.EVERY}
    entry |= {codings.EIGHT_BITS: ours, "FlashOptim": rival}
    kind = {name: {"distance": 0.25, "root": [0.5, 1.0, 2.0], "step": 1.0} for name in codings.EVERY}
    return {
        "training": {"mlp": {beta2: entry for beta2 in ("0.95", "0.999", "0.9999")}},
        "synthetic": {beta2: {k: kind for k in problems.KINDS} for beta2 in ("0.95", "0.999", "0.9999")},
        "formats": {name: of.bytes for name, of in codings.EVERY.items()}, "seeds": 3, "steps": 10, "library": False,
        "bench": "fidelity", "machine": {"cpu": "none"}, "versions": {}, "threads": 2, "commit": "abc",
        "date": "2026-01-01", "absent": {"text": "torch is not installed"},
    }  # fmt: skip


def test_told_from_the_result(tmp_path, capsys):
    result = invented([[1.5, 4.0], [2.5, 5.0], [3.5, 6.0]], [[1.0, 4.0], [None, None], [3.0, 6.0]])
    (tmp_path / "in.json").write_text(json.dumps(result))
    assert fidelity.main(["--read", str(tmp_path / "in.json"), "--plot", str(tmp_path / "out.png")]) == 0
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    told = capsys.readouterr().out
    assert "| 8-bit | 2.12 | +0.50 / +0.50 | 0.250 / 0.250 |" in told
    assert "| FlashOptim | 2.12 | diverged / diverged | 0.250 / 0.250 |" in told
    assert "| bfloat16 to nearest | 4.00 | +0.00 / +0.00 |" in told
    assert "up to 0.999: met." in told
    assert "Not run: characters, transformer (torch is not installed)." in told


@pytest.mark.parametrize("last", [None, 7.5])
def test_a_loss_beyond_the_spread_or_none_is_missed(last):
    """7.5 for 3 among three seeds is 1.5 standard deviations on average; it may as well be the held-out loss."""
    for at in (0, 1):
        ours = [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
        ours[2][at] = last and last + 3 * at
        assert not fidelity_report.kept(invented(ours, ours))
