"""What stands at the door: versions, bad input, other platforms; programs that another process made."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax
import pytest

import fastadam as fa
import fastadam.jax
from fastadam.jax import custom_calls, gate
from fastadam.kernels.cpu import call_memory
from fastadam.tools.cover import same_bits


def test_another_jaxlib_is_refused_unless_its_bits_are_right(monkeypatch):
    monkeypatch.setattr(jaxlib, "__version__", "9.9.9")
    monkeypatch.delenv(gate.ANYWAY, raising=False)
    with pytest.raises(ImportError, match=r"jaxlib is 9\.9\.9, expected 0\.10\.2.*FASTADAM_JAX_UNTESTED=1 tries"):
        gate.check(fastadam.jax.transform)
    monkeypatch.setenv(gate.ANYWAY, "1")
    gate.check(fastadam.jax.transform)
    with pytest.raises(ImportError, match=r"100000 parameters have other bits"):
        gate.check(lambda rule, **options: fastadam.jax.transform(fa.rules.AdamW(eps=1e-7), **options))


def test_a_gpu_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    tx = fastadam.jax.adam(0.1)
    with pytest.raises(NotImplementedError, match=r"params\['w'\] lies on gpu, expected the CPU: XLA's streams there"):
        jax.jit(tx.init)({"w": jnp.ones(3)})


def step(params, grads, state=None, **options):
    tx = fastadam.jax.adam(0.1, **options)
    return tx.step(params, tx.init(params) if state is None else state, grads)


W = {"w": np.ones(3, np.float32)}
TX = fastadam.jax.adam(0.1)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: step({"w": 1.0}, W), TypeError, r"params\['w'\] is float, expected an array of float64"),
        (lambda: step({"w": np.ones(3, np.int32)}, W), TypeError, r"params\['w'\] is int32\(3,\)"),
        (lambda: step(W, {"w": np.ones(4, np.float32)}), ValueError, r"grads\['w'\] is float32\(4,\), params\['w'\]"),
        (lambda: step(W, {"w": np.ones(3, bool)}), TypeError, r"grads\['w'\] is bool\(3,\), params\['w'\] is float32"),
        (lambda: step(W, {"v": W["w"]}), ValueError, "'v'"),
        (lambda: fastadam.jax.adam(-1.0), ValueError, "lr is -1"),
        (lambda: fastadam.jax.adam(0.1, b1=1.0), ValueError, r"betas\[0\] is 1"),
        (lambda: fastadam.jax.adam(0.1, max_norm=0), ValueError, "max_norm is 0"),
        (lambda: fastadam.jax.adam(0.1, moments="4bit"), ValueError, "moments is '4bit'"),
        (lambda: fastadam.jax.adam(0.1, seed=-1), ValueError, "seed is -1"),
        (lambda: fastadam.jax.adam(0.1, ema_decay=2), ValueError, "ema_decay is 2"),
        (lambda: fastadam.jax.adam(0.1, nesterov=True), NotImplementedError, "nesterov is True, expected 0"),
        (lambda: fastadam.jax.adamw(0.1, eps_root=1e-8), NotImplementedError, "eps_root is 1e-08, expected 0"),
        (lambda: fastadam.jax.adam(0.1, eta=1), TypeError, "eta is 1, expected no such option, but any of moments, "),
        (lambda: fastadam.jax.transform(fa.rules.Adam), TypeError, "rule is <class .*expected one of fastadam.rules"),
        (lambda: step({"w": jax.random.key(0)}, W), TypeError, r"params\['w'\] is key<fry>\(\), expected an array"),
        (lambda: step(W, None), ValueError, "grads is not a tree like params"),
        (lambda: fastadam.jax.adam(lambda count: None).step(W, TX.init(W), W), TypeError, r"lr\(count\) is None"),
        (lambda: TX.step(W, TX.init(W), W, lr=jnp.ones(2)), TypeError, r"lr is float32\(2,\), expected a real number"),
        (lambda: fastadam.jax.adam(0.1, mu_dtype=np.float32, moments="8bit"), TypeError, "expected one of both"),
        (lambda: step(W, W, moments="float64"), ValueError, r"moments is 'float64', params\['w'\] is float32\(3,\)"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_as_it_is_traced(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize(
    ("state", "error", "match"),
    [
        (optax.adam(0.1).init(W), TypeError, "state is tuple, expected a FusedState"),
        (fastadam.jax.sgd(0.1).init(W), ValueError, r"state.streams has \[\], expected \['m', 'v'\]"),
        (fastadam.jax.adam(0.1, ema_decay=0.9).init(W), ValueError, r"state.streams has \['ema', 'm', 'v'\], expected"),
        (
            fastadam.jax.adam(0.1, moments="bfloat16").init(W),
            ValueError,
            r"\['m'\]\[0\] is bfloat16\(32,\), expected flo",
        ),
        (TX.init({"w": jnp.ones(5_000)}), ValueError, r"\['m'\]\[0\] is float32\(5000,\), expected float32\(16,\)"),
        (TX.init({"w": jnp.ones(5_000), "b": jnp.ones(1)}), ValueError, r"\['m'\] has 2 arrays, expected 1"),
        (
            TX.init(W)._replace(count=jnp.zeros((), jnp.int8)),
            ValueError,
            r"state.count is int8\(\), expected int32\(\)",
        ),
    ],
)
def test_a_state_that_init_has_not_made_is_refused(state, error, match):
    """Before native code walks by it: arrays that are shorter than it thinks would be written beyond their end."""
    with pytest.raises(error, match=match):
        TX.step(W, state, W)


def test_numpys_float64_is_float32_where_jax_has_no_other():
    """As JAX itself takes it, in eager code and in compiled code."""
    long = {"w": np.ones(99)}
    for take in (TX.step, jax.jit(TX.step)):
        new, state = take(long, TX.init(long), long)
        assert new["w"].dtype == state.streams["m"][0].dtype == np.float32
        np.testing.assert_allclose(new["w"], 0.9, rtol=1e-6)


@pytest.mark.parametrize("lr", [jnp.nan, jnp.inf, 1e38])
def test_what_no_step_can_take_is_an_error_of_xlas(lr):
    """Raised while the program runs, before it writes: a learning rate is an operand there."""
    tx = fastadam.jax.adam(lambda count: jnp.float32(lr))
    params = {"w": jnp.ones(3)}
    with pytest.raises(jax.errors.JaxRuntimeError, match="gives coefficients that are not finite"):
        jax.block_until_ready(jax.jit(tx.step)(params, tx.init(params), params))
    assert params["w"].tolist() == [1, 1, 1]


def test_a_tree_without_leaves_counts():
    for options in ({}, {"max_norm": 1.0}):
        tx = fastadam.jax.adam(0.1, **options)
        for params in ({}, {"w": jnp.zeros((0, 3))}):
            _, state = jax.jit(tx.step)(params, tx.init(params), params)
            assert int(state.count) == 1
            assert state.grad_norm is None or float(state.grad_norm) == 0


CALLED = """
import sys
import jax, numpy as np
import fastadam.jax
fastadam.jax.register()
exported = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
p, m, v, count, g = np.load(sys.argv[2], allow_pickle=True)
new = exported.call(p, m, v, count, g)
np.save(sys.argv[3], np.asarray(new))
"""


def test_an_exported_step_runs_in_another_process(tmp_path):
    """Which compiles, or loads, the pieces that the program names."""
    start, g = np.random.default_rng(2).standard_normal((2, 5_000)).astype(np.float32)
    tx = fastadam.jax.adam(0.1)
    state = tx.init(jnp.array(start))

    def one(p, m, v, count, g):
        return tx.step(p, state._replace(count=count, streams={"m": [m], "v": [v]}), g)[0]

    arguments = start, *(np.zeros(5_000, np.float32) for _ in range(2)), np.int32(0), g
    checks = [jax.export.DisabledSafetyCheck.custom_call(custom_calls.STEP)]
    exported = jax.export.export(jax.jit(one), disabled_checks=checks)(*map(jnp.asarray, arguments))
    (tmp_path / "program").write_bytes(exported.serialize())
    np.save(tmp_path / "arguments.npy", np.array(arguments, object), allow_pickle=True)
    paths = [str(tmp_path / name) for name in ("program", "arguments.npy", "result.npy")]
    subprocess.run([sys.executable, "-c", CALLED, *paths], check=True, timeout=120)
    theirs = start.copy()
    fa.Adam(theirs, lr=0.1, backend="numpy").step(g)
    assert same_bits(np.load(paths[2]), theirs)


KEPT = """
import sys
import jax, jax.numpy as jnp, numpy as np
import fastadam.jax
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
tx = fastadam.jax.adam(0.1, max_norm=1.0)  # the first of the process
p = jnp.linspace(-1, 1, 5_000)
state = tx.init(p)
p, state = jax.jit(tx.step, donate_argnums=(0, 1))(p, state, jnp.ones(5_000))
print(len(hits) > 0, np.asarray(p).tobytes().hex()[:64])
"""


def test_the_persistent_cache_keeps_steps(tmp_path):
    said = [
        subprocess.run([sys.executable, "-c", KEPT, str(tmp_path)], check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    ]
    assert [text.split()[0] for text in said] == ["False", "True"]
    assert said[0].split()[1] == said[1].split()[1]


def test_a_piece_that_cannot_be_made_is_an_error_of_xlas(monkeypatch):
    """As where a program of another version names a kernel that this one has not."""
    monkeypatch.setattr(custom_calls, "text_of", lambda *_: "no-such-kernel float32")
    monkeypatch.setattr(custom_calls, "piece", lambda text, measures: 0)
    tx = fastadam.jax.adam(0.1)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"cannot compile what a step of fastadam\.jax needs"):
        jax.block_until_ready(tx.step(jnp.ones(3), tx.init(jnp.ones(3)), jnp.ones(3)))
    assert custom_calls._desk[call_memory.COUNT_OF_PIECES] > 0
