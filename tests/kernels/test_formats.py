"""Storage in fewer bytes: the same bits on every backend, whatever p, g and moments rest in; and what rounding does."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from cases import hostile, kernels_in_use, label, same_bits, state_arrays
from ml_dtypes import bfloat16

import fastadam as fa
from fastadam.kernels import codes as coding
from fastadam.kernels import formats
from fastadam.kernels.contract import NonNegative
from fastadam.tools.cover import chores, chores_for, stored

F16, F32, F64 = np.float16, np.float32, np.float64
STORED = [(*one.dtypes(), one.moments, one.master) for one in stored()]
SIZES = (3, 0, 17, 1023, 1025, 40_000, 8192 + 5)


def name_of(x):
    return "-".join("None" if y is None else y if isinstance(y, str) else np.dtype(y).name for y in x)


def tree_of(rng, dtype, bad=False):
    """Hostile values at odd offsets of their memory."""
    with np.errstate(all="ignore"):
        return [hostile(rng, n + k, F32, bad=bad)[k:].astype(dtype) for k, n in enumerate(SIZES)]


def stepped(case, formats_of, asked, backend, threads, semantics=None):
    (method, chosen), (p_dtype, g_dtype, moments, master) = case, formats_of
    rng = np.random.default_rng(3)
    params = tree_of(rng, p_dtype)
    more = chores_for(asked, params, master)
    where = {"moments": moments, "master": master, "index_offset": 2**32 - 20_000}
    opt = method(params, backend=backend, seed=5, **where, **chosen, **more)
    found = []
    with fa.num_threads(threads):
        for t in range(4):
            grads = tree_of(rng, g_dtype, bad=t == 3)
            found.append(repr(opt.step([None if k == 1 + t else g for k, g in enumerate(grads)], 0.5)))
    arrays = {f"p{k}": p for k, p in enumerate(params)} | state_arrays(opt) | {f"g{k}": g for k, g in enumerate(grads)}
    return arrays | {f"copy{k}": x for k, x in enumerate(more.get("copy_to", ()))}, found


def assert_same(one, other):
    assert one[1] == other[1]
    assert one[0].keys() == other[0].keys()
    assert [key for key in one[0] if not same_bits(one[0][key], other[0][key])] == []


@pytest.mark.parametrize("number", range(len(STORED)), ids=lambda k: name_of(STORED[k]))
def test_every_backend_gives_the_same_bits(number):
    """Each set of formats with one kernel and one set of chores; which ones changes from set to set."""
    kernels, sets = kernels_in_use(), chores()
    for asked in ({},) if number % 3 else (sets[number % len(sets)],):
        case = kernels[number % len(kernels)]
        reference = stepped(case, STORED[number], asked, "numpy", 1)
        assert_same(stepped(case, STORED[number], asked, "numba", 1 if number % 4 == 0 else 2), reference)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_exact_rows_are_the_dense_step(backend):
    rng = np.random.default_rng(4)
    ours = rng.standard_normal((30, 50)).astype(bfloat16)
    theirs = ours.copy()
    a = fa.AdamW(ours, backend=backend, moments="bfloat16", seed=3)
    b = fa.AdamW(theirs, backend="numpy", moments="bfloat16", seed=3)
    for _ in range(40):
        at = rng.permutation(30)[:3]
        g = np.zeros((30, 50), bfloat16)
        g[at] = rng.standard_normal((3, 50))
        a.step_rows((at, g[at]), semantics="exact")
        b.step(g)
    a.catch_up()
    assert same_bits(ours, theirs)
    assert same_bits(state_arrays(a)["params.v"], state_arrays(b)["params.v"])


def test_gradients_may_change_their_format_between_steps():
    rng = np.random.default_rng(5)
    for backend in ("numpy", "numba"):
        p, q = np.ones(5_000, F32), np.ones(5_000, F32)
        a, b = fa.Adam([p], backend=backend), fa.Adam([q], backend="numpy")
        for dtype in (F32, F16, F16, bfloat16, F64, F32):
            g = rng.standard_normal(5_000).astype(dtype)
            a.step([g])
            b.step([g.astype(F32)])
        assert same_bits(p, q)


def test_bits_depend_on_seed_count_and_index_alone():
    rng = np.random.default_rng(6)
    p = rng.standard_normal(30_000).astype(bfloat16)
    grads = [rng.standard_normal(30_000).astype(bfloat16) for _ in range(3)]

    def run(cuts, seed=1, offset=0, resume=False):
        pieces = [x.copy() for x in np.split(p, cuts)]
        opt = fa.Adam(pieces, seed=seed, index_offset=offset, moments="bfloat16")
        for g in grads:
            if resume:
                state = opt.state_dict()
                opt = fa.Adam(pieces, seed=9, index_offset=offset, moments="bfloat16")
                opt.load_state_dict(state)
            opt.step(np.split(g, cuts))
        return np.concatenate(pieces)

    whole = run([])
    assert same_bits(whole, run([1, 17, 9_000]))
    assert same_bits(whole, run([], resume=True))
    assert not same_bits(whole, run([], seed=2))
    assert not same_bits(whole, run([], offset=1))
    shard = [x[11_111:].copy() for x in (p, *grads)]
    opt = fa.Adam(shard[0], seed=1, index_offset=11_111, moments="bfloat16")
    for g in shard[1:]:
        opt.step(g)
    assert same_bits(whole[11_111:], shard[0])


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", [F16, bfloat16])
def test_every_pattern_of_bits_survives(dtype, backend):
    """A step of length 0 leaves what is finite as it is: what needs no rounding gets none."""
    p = np.arange(2**16, dtype=np.uint16).view(dtype)
    finite = np.isfinite(p.astype(F32))
    kept = p.copy()
    fa.SGD(p, lr=0.0, backend=backend).step(np.zeros(p.size, F32))
    assert same_bits(p[finite], kept[finite])
    assert not np.isfinite(p[~finite].astype(F32)).any()


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_stochastic_rounding_is_unbiased(backend):
    """The mean of n roundings of one value is off by less than 5 standard deviations of a draw: one in 1.7 million."""
    n = 200_000
    for x in (1.0, 1.001, -3.0007, 1e-20, 2.0**-126 * 1.3, 65_535.7, -1e30):
        x = F32(x)
        low = (np.array([x]).view(np.uint32) & np.uint32(0xFFFF0000)).view(F32)[0]
        high = (np.array([low]).view(np.uint32) + np.uint32(0x10000)).view(F32)[0]
        share = (F64(x) - F64(low)) / (F64(high) - F64(low))
        p = np.zeros(n, bfloat16)
        fa.SGD(p, lr=1.0, backend=backend).step(np.full(n, -x, F32))
        ups = int((p.astype(F32) == high).sum())
        assert ups + int((p.astype(F32) == low).sum()) == n
        assert abs(ups - n * share) <= 5 * np.sqrt(n * share * (1 - share)) + 1e-9


def test_nan_and_infinity_are_kept():
    for backend in ("numpy", "numba"):
        p = np.array([1, 1, 1, 3.3e38], bfloat16)
        fa.SGD(p, lr=1.0, backend=backend).step(np.array([-np.inf, np.inf, np.nan, 0], F32))
        assert same_bits(p, np.array([np.inf, -np.inf, np.nan, 3.3e38], bfloat16))


def test_nan_keeps_its_sign_everywhere():
    """What eps = 0 and no gradient give: the bits themselves, which same_bits does not compare."""
    found = []
    for backend in ("numpy", "numba"):
        p = np.ones(128, bfloat16)
        fa.Adam([p], lr=1e-2, eps=0.0, backend=backend).step([np.zeros(128, bfloat16)])
        assert np.isnan(p.astype(F32)).all()
        found.append(p.view(np.uint16).tolist())
    assert found[0] == found[1]


def test_random_bits_are_uniform_and_independent():
    """Both halves of the hash: bytes equally often, and no correlation between neighbours, steps or halves."""
    n = 1 << 18
    draws = np.array([formats.random_bits(formats.key(7, t), 1000, n) for t in range(1, 5)])
    halves = formats.for_p(draws), formats.for_slots(draws)
    for half in halves:
        for one in half:
            for byte in (one & 255, one >> 8):
                counts = np.bincount(byte, minlength=256)
                chi = ((counts - n / 256) ** 2 / (n / 256)).sum()
                assert abs(chi - 255) < 6 * np.sqrt(2 * 255)
    u = [half.astype(F64) / 65536 - 0.5 for half in halves]
    limit = 6 / np.sqrt(n) / 12
    for a in u:
        for lag in (*range(1, 65), 1_024, 8_192):  # neighbours
            assert abs((a[:, lag:] * a[:, :-lag]).mean(axis=1)).max() < limit
        assert abs((a[1:] * a[:-1]).mean(axis=1)).max() < limit  # steps
    assert abs((u[0] * u[1]).mean(axis=1)).max() < limit  # halves
    other = formats.random_bits(formats.key(8, 1), 1000, n)
    assert abs((u[0][0] * (formats.for_p(other) / 65536 - 0.5)).mean()) < limit  # seeds


def test_pairs_of_random_bits_are_independent():
    """Chi-squared of the 256 pairs of upper four bits: with one multiplication less, many distances fail."""
    n, groups = 1 << 19, 1 << 13
    random = formats.random_bits(formats.key(7, 1), 0, n)
    codes = formats.random_codes(formats.key(7, 1), 0, groups).reshape(-1)
    for draws, bits in ((formats.for_p(random), 16), (formats.for_slots(random), 16), (codes, 20)):
        upper = (draws >> (bits - 4)).astype(np.int64)
        for lag in (*range(1, 40), 64, 128, 175, 2_688, 4_096, 16_384, 61_440, 131_072, 155_648):
            counts = np.bincount(upper[lag:] * 16 + upper[:-lag], minlength=256)
            expected = (n - lag) / 256
            assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 6 * np.sqrt(2 * 255), (bits, lag)


def test_every_bfloat16_as_parameter_and_gradient():
    """NaNs too, of every payload: where all streams are bfloat16, compiled code rounds them unguarded."""
    found = []
    for backend in ("numpy", "numba"):
        p = np.arange(1 << 16, dtype=np.uint16).view(bfloat16)
        opt, rng = fa.AdamW(p, lr=0.1, moments="bfloat16", backend=backend), np.random.default_rng(1)
        for _ in range(3):
            with np.errstate(all="ignore"):
                opt.step(rng.permutation(1 << 16).astype(np.uint16).view(bfloat16))
        found.append([p, *opt.moments()["params"].values()])
    assert np.isnan(found[0][0].astype(F32)).sum() > 700
    for x, y in zip(*found, strict=True):
        assert_same_or_nan(x.astype(F32), y.astype(F32))


def assert_same_or_nan(x, y):
    """The same bits, but for what a NaN holds."""
    nan = np.isnan(x)
    assert (nan == np.isnan(y)).all()
    assert x[~nan].tobytes() == y[~nan].tobytes()


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_groups_of_zeros_survive_conversions(backend):
    """An unsigned zero decoded as -0 would read as larger than infinity."""
    p, q = np.ones(100, F32), np.ones(100, F32)
    opt = fa.Adam(p, moments="8bit", backend=backend)
    assert not np.signbit(opt.moments()["params"]["v"]).any()
    for moments in ("float32", "8bit", "bfloat16", "8bit", "8bit"):
        opt.convert(moments)
    opt.step(np.ones(100, F32))
    fa.Adam(q, moments="8bit", backend=backend).step(np.ones(100, F32))
    assert np.isfinite(p).all()
    assert p.tobytes() == q.tobytes()


def test_blocks_follow_the_order_in_memory():
    """A state of 8 bits goes to parameters that lie in another order."""
    g = np.random.default_rng(3).standard_normal((4, 50, 60)).astype(F32)
    opt = fa.Adam(np.ones((4, 50, 60), F32), moments="8bit")
    opt.step(g)
    for axes in ((2, 0, 1), (2, 1, 0), (0, 1, 2)):
        p = np.ones([g.shape[axis] for axis in axes], F32).transpose(np.argsort(axes))
        other = fa.Adam(p, moments="8bit")
        other.load_state_dict(opt.state_dict())
        for slot, most in (("m", 2.0**-4), ("v", 2.0**-3)):
            mine, its = (each.moments()["params"][slot] for each in (opt, other))
            assert (abs(its - mine) <= most * abs(mine) + 2.0**-9 * mine.max()).all()


@pytest.mark.parametrize("wrong", [[0, 0, 1], [0, 1], [1.0, 0.0, 2.0], [True, False, 2], 5, None, "012"])
def test_an_order_of_axes_that_is_none_changes_nothing(wrong):
    opt, other = (fa.Adam([np.ones(5, F32), np.ones((2, 3, 4), F32)], moments="8bit") for _ in range(2))
    opt.step([np.ones(5, F32), np.ones((2, 3, 4), F32)])
    state, before = opt.state_dict(), pickle.dumps(other.state_dict())
    state["leaves"]["params[1]"]["order"] = wrong
    with pytest.raises(
        (TypeError, ValueError), match=r"state\['leaves'\]\['params\[1\]'\]\['order'\].* is .*, expected"
    ):
        other.load_state_dict(state)
    assert pickle.dumps(other.state_dict()) == before


@pytest.mark.parametrize("moments", ["bfloat16", None])
def test_state_of_other_moments_says_so(moments):
    coded, plain = fa.Adam(np.ones(5, F32), moments="8bit"), fa.Adam(np.ones(5, F32), moments=moments)
    with pytest.raises(ValueError, match=f"has moments of 8 bits, this optimizer's moments are {moments!r}: load it"):
        plain.load_state_dict(coded.state_dict())
    with pytest.raises(ValueError, match="has no moments of 8 bits, this optimizer's moments are '8bit': load it"):
        coded.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_that_would_wrap(seed):
    with pytest.raises(ValueError, match=rf"seed is {seed}, expected an integer of at least 0 and at most {2**64 - 1}"):
        fa.Adam(np.ones(5, F32), seed=seed)


def test_bfloat16_v_follows_a_falling_gradient():
    """To nearest it could not: at beta2 = 0.999 a step moves v by less than half of what bfloat16 resolves."""
    rng = np.random.default_rng(8)
    p, q = np.zeros(4_000, F32), np.zeros(4_000, F32)
    a, b = fa.Adam(p), fa.Adam(q, moments="bfloat16")
    for t in range(1500):
        g = (rng.standard_normal(4_000) * (3 if t < 300 else 1)).astype(F32)
        a.step(g)
        b.step(g)
    ratio = state_arrays(b)["params.v"].astype(F64) / state_arrays(a)["params.v"]
    assert abs(ratio.mean() - 1) < 0.01


@pytest.mark.parametrize(("params", "moments", "text"), [
    (np.ones(3, F32), "float64", "moments is 'float64'"), (np.ones(3, F64), "bfloat16", "moments is 'bfloat16'"),
    (np.ones(3, F32), "int8", "moments is 'int8', expected one of"),
])  # fmt: skip
def test_moments_that_do_not_fit_are_refused(params, moments, text):
    with pytest.raises(ValueError, match=text):
        fa.Adam(params, moments=moments)


def test_copies_draw_the_same_bits():
    p = np.ones(100, bfloat16)
    opt = fa.Adam(p, moments="bfloat16", seed=4, index_offset=7)
    opt.step(np.ones(100, bfloat16))
    q, twin = copy.deepcopy((p, opt))
    for params, each in ((p, opt), (q, twin)):
        each.step(np.linspace(-1, 1, 100).astype(bfloat16))
        assert params.dtype == bfloat16
    assert same_bits(p, q)


@pytest.mark.parametrize("k", range(0, len(kernels_in_use()), 4), ids=lambda k: label(kernels_in_use()[k]))
def test_kernels_in_few_bytes(k):
    """Some: `verify --all` takes the product, and each of these takes seconds to compile."""
    case, formats_of = kernels_in_use()[k], STORED[(1, 11, 16)[k % 3]]
    reference = stepped(case, formats_of, {}, "numpy", 1)
    assert_same(stepped(case, formats_of, {}, "numba", 2), reference)


# ---- 8 bits

SIGNS = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])


def group_of(codes, scale=1.0):
    """A block whose first group holds these codes, in the order of elements."""
    coded = np.zeros(coding.BYTES, np.uint8)
    rested, scales = coding.codes_and_scales(coded)
    rested[0, :64] = np.asarray(codes, np.uint8).reshape(4, 16).T.reshape(-1)
    scales[0, 0] = scale
    return coded


def every_code(signed):
    return np.concatenate([coding.decode(group_of(range(k, k + 64)), signed, 64) for k in range(0, 256, 64)])


def test_what_codes_are_worth():
    """Hard values, from 2 + x = (1 + mantissa / 8) * 2^exponent."""
    m, v = every_code(True), every_code(False)
    assert m[:9].tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    assert m[127] == 2**16 * 1.875 - 2
    assert same_bits(m[128:], -m[:128])
    assert v[:4].tolist() == [-0.125, 0.125, 0.375, 0.625]  # no number is encoded as the first
    assert v[255] == F32(2.0**32 * 1.875)
    assert (np.diff(m[:128]) > 0).all()
    assert (np.diff(v) > 0).all()


@SIGNS
def test_all_codes_survive(signed):
    """Encoding to nearest what was decoded gives the codes back; the largest number keeps the scale."""
    codes = np.arange(256).reshape(4, 64).copy()
    codes[:, 0] = 127 if signed else 255
    codes[codes == 0] = 1  # no number is encoded as an unsigned 0
    for group in codes:
        x = coding.decode(group_of(group, 3e-5), signed, 64)
        again = coding.encode(x, signed)
        assert same_bits(again[:64], group_of(group)[:64])
        assert abs(coding.codes_and_scales(again)[1][0, 0] / F32(3e-5) - 1) < 2.0**-22


@SIGNS
def test_8_bits_are_close(signed):
    """To nearest within half a step: 1/16 of 2 units + x."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(64 * 500) * 10.0 ** rng.uniform(-3, 3, 64 * 500)).astype(F32)
    x = x if signed else np.abs(x)
    y = coding.decode(coding.encode(x, signed), signed, x.size)
    unit = np.abs(x).reshape(-1, 64).max(axis=1).repeat(64) / float(coding.TOP[signed])
    off = np.abs(y - x.astype(F64))
    assert (off <= (np.abs(x) + 2.25 * unit) / 16 * (1 + 1e-5)).all()
    assert signed or (y > 0).all()


@SIGNS
def test_8_bits_of_extremes(signed):
    """Groups of zeros, subnormal and huge numbers; what is not finite makes its group NaN, and no other."""
    x = np.zeros(64 * 8, F32)
    x[64:128] = 2.0**-149
    x[128:192], x[130] = 1e-38, 3e38
    x[192:256] = 3.4e38
    x[260], x[330] = np.inf, np.nan
    x[384:448] = 2.0**-126
    y = coding.decode(coding.encode(x, signed), signed, x.size)
    assert (y[:64] == 0).all()
    assert np.isnan(y[256:384]).all()
    assert np.isfinite(y[:256]).all()
    assert (y[448:] == 0).all()
    assert abs(y[130] / F32(3e38) - 1) < 1e-6
    assert (abs(y[192:256] / F32(3.4e38) - 1) < 1e-6).all()
    assert (abs(y[384:448] / F32(2.0**-126) - 1) <= (0 if signed else 1 / 8)).all()  # half a step is the least scale's
    assert signed or (y[64:256] > 0).all()


def test_stochastic_codes_are_unbiased():
    """The mean of n roundings is off by less than 5 standard deviations of a draw, besides 1/8 of a unit for zero."""
    n = 64 * 4_000
    for share in (0.9, 0.31, 1e-3, 1e-6, 1e-8):
        x = np.full(n, share, F32)
        x[::64] = 1  # every group's largest
        y = coding.decode(formats.CODES.encode(x, NonNegative("v"), (formats.key(3, 1), 77)), False, n).astype(F64)
        y = np.delete(y.reshape(-1, 64), 0, axis=1).reshape(-1)
        unit = 1 / float(coding.TOP[False])
        assert len(np.unique(y)) <= 2
        assert (y > 0).all()
        assert abs(y.mean() - share - unit / 8) <= 5 * y.std() / np.sqrt(y.size) + 1e-6 * share


def test_random_codes_are_uniform_and_independent():
    n = 4_000
    draws = np.array([formats.random_codes(formats.key(7, t), 2**32 - 1000, n) for t in range(1, 5)])
    assert draws.max() < 2**20
    counts = np.bincount(draws.reshape(-1) >> 12, minlength=256)
    expected = draws.size / 256
    assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 6 * np.sqrt(2 * 255)
    u, limit = draws.reshape(4, -1) / 2.0**20 - 0.5, 6 / np.sqrt(n * 64) / 12
    for lag in range(1, 129):
        assert abs((u[:, lag:] * u[:, :-lag]).mean(axis=1)).max() < limit
    assert abs((u[1:] * u[:-1]).mean(axis=1)).max() < limit


# ---- masters


def trained(p, steps=30, **more):
    opt = fa.AdamW([p], lr=1e-2, weight_decay=0.1, **more)
    rng = np.random.default_rng(9)
    for _ in range(steps):
        opt.step([rng.standard_normal(p.shape).astype(bfloat16)])
    return opt


@pytest.mark.parametrize("moments", [None, "bfloat16", "8bit"])
@pytest.mark.parametrize("master", ["remainder", "float32"])
def test_a_master_is_float32_parameters(master, moments):
    start = np.random.default_rng(1).standard_normal((50, 70)).astype(bfloat16)
    p, q = start.copy(), start.astype(F32)
    ours, theirs = trained(p, master=master, moments=moments), trained(q, moments=moments)
    state = ours.state_dict()["leaves"]["params[0]"]
    if master == "remainder":
        assert same_bits(formats.join(p, state["remainder"]), q)
    else:
        assert same_bits(state["master"], q)
        assert same_bits(p, q.astype(bfloat16))
    assert abs(p.astype(F64) / q - 1).max() <= 2.0**-8
    for name, x in theirs.state_dict()["leaves"]["params[0]"].items():
        assert name in ("count", "format") or same_bits(np.atleast_1d(x), np.atleast_1d(state[name]))


def test_splitting_loses_nothing():
    rng = np.random.default_rng(2)
    bits = rng.integers(0, 2**32, 2**20, np.uint32)
    bits[: 2**17] = (np.arange(2**17, dtype=np.uint32) << 15) + np.uint32(0x4000)  # every pattern of the upper 17 bits
    x = bits.view(F32)
    high, low = formats.split(x, bfloat16)
    number = ~np.isnan(x)
    assert same_bits(formats.join(high, low)[number], x[number])
    assert np.isnan(formats.join(high, low)[~number]).all()
    assert np.isnan(high[~number].astype(F32)).all()
    usual = np.abs(x) < 3e38
    off = np.abs(high[usual].astype(F64) - x[usual])
    assert (off <= np.maximum(np.abs(x[usual]).astype(F64) * 2.0**-8, 2.0**-134)).all()


def impossible_halves(*more):
    """bfloat16 beside low halves, of which `split` never gives some together, and the float32 that they mean."""
    highs = 0x0000, 0x8000, 0x0001, 0x3F80, 0xBF80, 0x7F7F, *more
    pairs = [(high, low) for high in highs for low in (-(2**15), -5, -1, 0, 1, 5, 2**15 - 1)]
    bits = [((high << 16) + low) % 2**32 for high, low in pairs]
    means = [high << 16 if b % 2**31 > 0x7F800000 else b for b, (high, _) in zip(bits, pairs, strict=True)]
    high, low = np.array(pairs).T
    return high.astype(np.uint16).view(bfloat16), low.astype(np.int16), np.array(means, np.uint32).view(F32)


def beside(p, low, backend):
    """An optimizer whose steps change nothing, over bfloat16 parameters beside these low halves."""
    opt = fa.Adam([p], lr=0.0, master="remainder", backend=backend)
    state = opt.state_dict()
    state["leaves"]["params[0]"]["remainder"] = low
    opt.load_state_dict(state)
    return opt


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_halves_that_make_a_nan_are_the_high_one_alone(backend):
    p, low, means = impossible_halves(0x7F80, 0xFF80)
    assert same_bits(formats.join(p, low), means)
    assert not np.isnan(means).any()
    p, low, means = impossible_halves()  # of infinity a step makes NaN: l2 is 0
    opt = beside(p, low, backend)
    opt.step([np.zeros_like(p)])
    high, rest = formats.split(means, bfloat16)
    assert same_bits(p, high)
    assert same_bits(opt.state_dict()["leaves"]["params[0]"]["remainder"], rest)


def test_parameters_from_outside():
    """After refresh_master, steps go on from the values that were written; of "float32" see test_taken_over.py."""
    p = np.ones(100, bfloat16)
    opt = trained(p, master="remainder")
    p[:] = 2
    opt.refresh_master()
    before = opt.moments()["params[0]"]["m"].copy()
    opt.step([np.zeros(100, bfloat16)])
    assert (before != 0).all()
    assert (abs(p.astype(F32) - 2) < 0.05).all()


def test_sizes():
    """DESIGN's table: bytes of state, and bytes that a step moves, for each parameter."""
    n = 2**12
    for (p, moments, master), state, moved in (
        ((F32, None, None), 8, 28), ((bfloat16, None, "remainder"), 10, 26), ((F32, "bfloat16", None), 4, 20),
        ((bfloat16, "bfloat16", "remainder"), 6, 18), ((F32, "8bit", None), 2.125, 16.25),
        ((bfloat16, "bfloat16", None), 4, 14), ((bfloat16, "8bit", None), 2.125, 10.25),
        ((bfloat16, None, "float32"), 12, 30), ((F64, None, None), 16, 56),
    ):  # fmt: skip
        opt = fa.Adam(np.ones(n, p), moments=moments, master=master, backend="numpy")
        assert (opt.state_bytes / n, opt.bytes_per_step / n) == (state, moved)


@pytest.mark.parametrize(
    ("method", "named", "moments", "moved"),
    [
        # p and the slots read and written, g read: 4 bytes each; and once more what the sums are made of.
        (fa.LAMB, {}, None, 28 + 16),  # p, g, m, v
        (fa.LARS, {}, None, 20 + 8),  # p, g
        (fa.LARS, {"max_norm": 1.0}, None, 20 + 8 + 4),
        (fa.StableAdamW, {}, None, 28 + 8),  # g, v
        (fa.StableAdamW, {}, "8bit", 12 + 4 * 1.0625 + 4 + 2 * 1.0625),  # blocks of m are decoded, too
        (fa.Prodigy, {}, None, 36 + 16),  # p, g, s, p0, which the sums alone read
        (fa.AdamW, {"cautious": True}, None, 28 + 12),  # p, g, m
        (fa.AdamW, {"cautious": True, "amsgrad": True}, None, 36 + 12),
        (fa.Lion, {"cautious": True}, None, 20 + 8),  # g, m
        (fa.Lion, {"cautious_decay": True}, None, 20),
        (fa.ScheduleFreeAdamW, {}, None, 28),
    ],
)
def test_bytes_of_a_step_with_sums(method, named, moments, moved):
    n = 2**12
    opt = method(np.ones(n, F32), moments=moments, backend="numpy", **named)
    assert opt.bytes_per_step / n == moved


def test_bytes_of_a_step_with_sums_and_masters():
    """p is told from its remainder, and a master from the parameter beside it, in the walk that sums as well."""
    n = 2**12
    for master, moved in (
        ("remainder", 26 + 2 + 2 + 2 + 8),
        ("float32", 30 + 4 + 2 + 2 + 8),
    ):  # p, low or master, g, m, v
        opt = fa.LAMB(np.ones(n, bfloat16), master=master, backend="numpy")
        assert opt.bytes_per_step / n == moved


PROTECTED = """
import ctypes
import numpy as np
import fastadam as fa

protect = ctypes.CDLL(None).mprotect
g = np.full(2**16, 0.5, np.float32)


def begun(method, name):
    opt = method(np.ones_like(g), backend="numba")
    opt.step(g)
    slot = opt.moments()["params"][name]
    first = -(-slot.ctypes.data // 4096) * 4096
    return opt, ctypes.c_void_p(first), ctypes.c_size_t((slot.ctypes.data + slot.nbytes - first) // 4096 * 4096)


for method, name in ((fa.LARS, "m"), (fa.StableAdamW, "m"), (fa.Prodigy, "m"), (fa.Prodigy, "v")):
    opt, first, length = begun(method, name)
    opt._plan.accept([g])
    opt._table.fill(1.0, [True])
    assert protect(first, length, 0) == 0
    opt._plan.sum_up()
    assert protect(first, length, 3) == 0
opt, first, length = begun(fa.Prodigy, "p0")
assert protect(first, length, 1) == 0
opt.step(g)
assert protect(first, length, 3) == 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects pages as Linux does")
def test_what_is_not_counted_is_not_touched():
    """A walk that reads or writes the protected slot ends its process."""
    subprocess.run([sys.executable, "-c", PROTECTED], check=True, timeout=300)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_format_changes_in_the_middle(backend):
    p = np.linspace(-1, 1, 3_000, dtype=F32)
    opt = trained(p, backend=backend)
    exact = {name: x.copy() for name, x in opt.moments()["params[0]"].items()}
    for moments, error in (("8bit", 0.07), ("bfloat16", 0.07), (None, 0.07)):
        opt.convert(moments)
        for name, x in opt.moments()["params[0]"].items():
            big = np.abs(exact[name]) > np.abs(exact[name]).max() / 100
            assert x.dtype == F32
            assert (np.abs(x / exact[name] - 1)[big] < error).all()
    assert opt.t == 30
    opt.step([np.ones(3_000, F32)])
    assert opt.t == 31
    with pytest.raises(ValueError, match="moments is '4bit'"):
        opt.convert("4bit")


def test_state_of_few_bytes_comes_back():
    for which in (F32, F32, "8bit", None), (bfloat16, bfloat16, "8bit", "remainder"), (F16, F32, None, "float32"):
        p_dtype, g_dtype, moments, master = which
        p = np.random.default_rng(3).standard_normal(2_000).astype(p_dtype)
        opt = fa.Adam([p], moments=moments, master=master, seed=2)
        opt.step([np.ones(2_000, g_dtype)])
        (q,), twin = copy.deepcopy(([p], opt))[0], copy.deepcopy(opt)
        other = fa.Adam([q], moments=moments, master=master)
        other.load_state_dict(opt.state_dict())
        r = twin.params[0]
        for each in (opt, other, twin):
            each.step([np.linspace(-1, 1, 2_000).astype(g_dtype)])
        assert same_bits(p, q)
        assert same_bits(p, r)


def test_storage_that_cannot_be_is_refused():
    p, half = np.ones(3, F32), np.ones(3, F16)
    with pytest.raises(ValueError, match="master is 'bfloat16', expected one of remainder, float32, or None"):
        fa.Adam(p, master="bfloat16")
    with pytest.raises(ValueError, match=r"master is 'remainder', params is float16\(3,\)"):
        fa.Adam(half, master="remainder")
    with pytest.raises(ValueError, match=r"copy_to is given, expected None with master='float32'"):
        fa.Adam(half, master="float32", copy_to=np.ones(3, F16))
    with pytest.raises(ValueError, match="has moments of 8 bits"):
        fa.Adam(np.ones((4, 5), F32), moments="8bit").step_rows((np.arange(2), np.ones((2, 5), F32)))
    for wrong in (-1, 1.5, 2**63):
        with pytest.raises((TypeError, ValueError), match="index_offset"):
            fa.Adam(p, index_offset=wrong)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_8_bit_v_of_dead_units_is_never_zero_or_negative(backend):
    """Groups in which one gradient came once, and groups without any: v decays, and no step explodes."""
    p = np.zeros(256, F32)
    opt = fa.Adam([p], moments="8bit", lr=1e-3, backend=backend)
    for t in range(300):
        g = np.zeros(256, F32)
        g[3], g[70:128] = t == 0, 1e-20 * (t % 7 == 0)
        opt.step([g])
        v = opt.moments()["params[0]"]["v"]
        assert (v[:64] > 0).all()
        assert (v[128:] == 0).all()
    assert np.isfinite(p).all()
    assert abs(p).max() < 0.1
