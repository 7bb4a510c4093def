"""The steps of fastadam.jax have the bits of the NumPy backend: every kernel, every format, chores, scans, threads."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from llvmlite import binding, ir

import fastadam as fa
import fastadam.jax
from fastadam import kernels
from fastadam.kernels.cpu import subnormals
from fastadam.kernels.formats import FORMATS
from fastadam.tools.cover import STORED, kernels_in_use, label, same_bits, variants

SHAPES = {"w": (130, 70), "b": (70,), "s": (), "empty": (0, 3), "v": (5000,)}  # pooled ones and others


def tree(rng, dtype, scale=1.0):
    return {name: np.asarray(scale * rng.standard_normal(shape)).astype(dtype) for name, shape in SHAPES.items()}


def in_jax(x):
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), x)


def flat_views(opt):
    """The optimizer's state by stream and path, as the steps of JAX keep it."""
    state = {}
    for streams, path in zip(opt._state.streams, opt.paths, strict=True):
        slots = dict(zip([slot.name for slot in opt._kernel.slots], streams.slots, strict=True))
        for name, x in (slots | {"ema": streams.ema, "master": streams.master, "remainder": streams.low}).items():
            state[name, path] = x
    return state


def differing(tx, params, state, theirs, opt):
    wrong = [name for name in params if not same_bits(np.asarray(params[name]), theirs[name])]
    for stream in state.streams:
        for (name, x), path in zip(tx.stream(stream, params, state).items(), opt.paths, strict=True):
            y = flat_views(opt)[stream, path]
            if (x is None) != (y is None) or (x is not None and np.asarray(x).tobytes() != y.tobytes()):
                wrong.append(f"{stream} of {name}")
    return wrong


def both(rule, method, hyperparameters, start, **options):
    theirs = jax.tree.map(lambda x: x.copy(), start)
    opt = method(theirs, backend="numpy", **hyperparameters, **options)
    tx = fastadam.jax.transform(rule, **options)
    params = in_jax(start)
    return tx, params, tx.init(params), theirs, opt


def sums(variant):
    method, hyperparameters = variant
    rule = method.rule(**hyperparameters)
    return kernels.ALL[rule.kernel].summed(rule.options)


@pytest.mark.parametrize("variant", [v for v in variants() if not sums(v)], ids=label)
def test_every_rule(variant):
    """All that a rule may branch on, in single steps and at counts where RAdam changes its ways."""
    method, hyperparameters = variant
    rng = np.random.default_rng(5)
    tx, params, state, theirs, opt = both(
        method.rule(**hyperparameters), method, hyperparameters, tree(rng, np.float32)
    )
    step = jax.jit(tx.step, donate_argnums=(0, 1))
    for _ in range(7):
        g = tree(rng, np.float32)
        params, state = step(params, state, in_jax(g), grad_scale=0.5)
        opt.step(g, grad_scale=0.5)
        assert differing(tx, params, state, theirs, opt) == []
    assert int(state.count) == 7
    assert not same_bits(theirs["w"], tree(np.random.default_rng(5), np.float32)["w"])
    for name, x in state.carried.items():
        assert np.asarray(x).view(np.float64)[0] == opt.state_dict()["leaves"]["params['w']"][name]


USED = [variant for variant in kernels_in_use() if not sums(variant)]
FORMAT_CASES = [(variant, stored) for k, variant in enumerate(USED) for stored in STORED[k % 4 :: 4]]


@pytest.mark.parametrize(("variant", "stored"), FORMAT_CASES, ids=[f"{label(v)} {s}" for v, s in FORMAT_CASES])
def test_every_format(variant, stored):
    (method, hyperparameters), (p_dtype, g_dtype) = variant, stored.dtypes()
    rng = np.random.default_rng(6)
    options = stored.chosen() | {"seed": 11, "index_offset": 77, "ema_decay": 0.9, "max_value": 0.5, "max_norm": 20.0}
    with jax.enable_x64(True):
        tx, params, state, theirs, opt = both(
            method.rule(**hyperparameters), method, hyperparameters, tree(rng, p_dtype), **options
        )
        step = jax.jit(tx.step, donate_argnums=(0, 1))
        for k in range(3):
            g = tree(rng, g_dtype, scale=0.01 if k == 1 else 1.0)
            params, state = step(params, state, in_jax(g))
            info = opt.step(g)
            assert differing(tx, params, state, theirs, opt) == []
            assert float(state.grad_norm) == float(np.float32(info.grad_norm))


def test_mixed_trees_count_their_elements_over_all_leaves():
    """What rounds a bfloat16 leaf depends on its first element's index among all, whatever the others rest in."""
    rng = np.random.default_rng(7)
    start = {"a": tree(rng, np.float32), "b": tree(rng, ml_dtypes.bfloat16), "c": tree(rng, np.float16)}
    theirs = jax.tree.map(lambda x: x.copy(), start)
    opt, tx = (
        fa.Adam(theirs, lr=0.1, seed=3, backend="numpy", max_norm=1.0),
        fastadam.jax.adam(0.1, seed=3, max_norm=1.0),
    )
    params = in_jax(start)
    state, step = tx.init(params), jax.jit(tx.step, donate_argnums=(0, 1))
    for _ in range(4):
        g = jax.tree.map(lambda x: np.asarray(rng.standard_normal(x.shape)).astype(x.dtype), start)
        params, state = step(params, state, in_jax(g))
        opt.step(g)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(theirs), strict=True)
    assert all(same_bits(np.asarray(x), y) for x, y in pairs)
    hlo = step.lower(params, state, in_jax(g)).compile().as_text()
    assert hlo.count('custom_call_target="fastadam_step"') == 1


@pytest.mark.parametrize("size", [5_000, 300_000])
def test_three_hundred_steps_and_a_scan(size):
    """One by one and in one scan, on one thread and on XLA's own."""
    rng = np.random.default_rng(8)
    start, g = rng.standard_normal((2, size)).astype(np.float32)
    theirs = start.copy()
    opt, tx = fa.AdamW(theirs, lr=1e-3, weight_decay=0.1), fastadam.jax.adamw(1e-3, weight_decay=0.1)
    for _ in range(300):
        opt.step(g)
    gradient = jnp.array(g)

    def many(p, state):
        return jax.lax.scan(lambda carry, _: (tx.step(*carry, gradient), None), (p, state), None, length=300)[0]

    p = jnp.array(start, copy=True)
    scanned, state = jax.jit(many, donate_argnums=(0, 1))(p, tx.init(p))
    assert same_bits(np.asarray(scanned), theirs)
    assert int(state.count) == 300
    step = jax.jit(tx.step, donate_argnums=(0, 1))
    p = jnp.array(start, copy=True)
    state = tx.init(p)
    for _ in range(300):
        p, state = step(p, state, gradient)
    assert same_bits(np.asarray(p), theirs)


def test_lr_of_the_call():
    """An operand, so that one program serves every one."""
    p, g = {"w": np.linspace(-1, 1, 33, dtype=np.float32)}, {"w": np.ones(33, np.float32)}
    tx, theirs = fastadam.jax.transform(fa.rules.Adam(eps_hat=True)), p["w"].copy()
    opt, state, step = fa.Adam(theirs, eps_hat=True, backend="numpy"), tx.init(in_jax(p)), jax.jit(tx.step)
    params = in_jax(p)
    for lr in (0.5, 0.25, 0.0):
        params, state = step(params, state, g, lr=jnp.float32(lr))
        opt.groups[0].lr = lr
        opt.step(g["w"])
    assert same_bits(np.asarray(params["w"]), theirs)


def test_rules_that_need_sums_over_whole_leaves_are_refused():
    refused = [method.rule(**hyperparameters) for method, hyperparameters in filter(sums, variants())]
    assert refused
    for rule in refused:
        with pytest.raises(NotImplementedError, match="needs sums over whole leaves"):
            fastadam.jax.transform(rule)


def test_subnormal_numbers_are_kept_and_xlas_mode_restored():
    """XLA flushes them in its threads: steps do not, small or large, and what follows them in a program still does."""
    tx = fastadam.jax.sgd(0.5)

    @jax.jit
    def stepped_and_halved(p, g):
        new, _ = tx.step(p, tx.init(p), g)
        return new, new * jnp.float32(0.5)

    for size in (9, 40_000):
        tiny = np.full(size, 1e-40, np.float32)
        theirs = tiny.copy()
        fa.SGD(theirs, lr=0.5, backend="numpy").step(tiny)
        assert 0 < theirs[0] < tiny[0]
        for _ in range(300):  # who does the last of a large step runs what follows, which is another thread at times
            new, halved = stepped_and_halved(jnp.array(tiny), jnp.array(tiny))
            assert same_bits(np.asarray(new), theirs)
            assert not np.asarray(halved).any()


def test_on_arm_the_mode_is_that_of_fpcr(monkeypatch):
    """What LLVM makes of it for such a processor: read, two bits cleared, written; written again."""
    monkeypatch.setattr(subnormals, "ARM", True)
    module, word = ir.Module(), ir.IntType(64)
    builder = ir.IRBuilder(ir.Function(module, ir.FunctionType(word, [word]), "f").append_basic_block())
    subnormals._write(builder, builder.and_(subnormals._read(builder), builder.function.args[0]))
    builder.ret(word(0))
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple("aarch64-unknown-linux-gnu").create_target_machine()
    text = machine.emit_assembly(binding.parse_assembly(str(module)))
    assert [line.split() for line in text.splitlines() if "FPCR" in line] == [
        ["mrs", "x8,", "FPCR"],
        ["msr", "FPCR,", "x8"],
    ]


def test_float64_is_computed_in_float64():
    with jax.enable_x64(True):
        start = np.random.default_rng(9).standard_normal(999)
        theirs = start.copy()
        opt, tx = fa.NAdam(theirs, backend="numpy"), fastadam.jax.transform(fa.rules.NAdam())
        p = jnp.array(start)
        state = tx.init(p)
        for _ in range(5):
            p, state = tx.step(p, state, jnp.array(start))
            opt.step(start)
        assert p.dtype == np.float64
        assert same_bits(np.asarray(p), theirs)


def test_formats_are_those_of_the_registry():
    """A new format is stepped here without an edit."""
    moments = {stored.moments for stored in STORED} - {None}
    assert moments == {name for name, format in FORMATS.items() if format.moments and not format.is_compute}
