"""What stands around a step in JAX's world: transformations of programs, devices, optax, frameworks, files."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import fastadam as fa
import fastadam.jax
from fastadam.tools.cover import same_bits

RNG = np.random.default_rng(0)
W, G = RNG.standard_normal((2, 512, 256)).astype(np.float32)


def stepped(steps=1, start=W, **hyperparameters):
    theirs = start.copy()
    opt = fa.Adam(theirs, lr=1e-3, backend="numpy", **hyperparameters)
    for _ in range(steps):
        opt.step(G[: len(start)])
    return theirs


def equal(x, y):
    return same_bits(np.asarray(x), y)


def begun(tx, start=W):
    params = {"w": jnp.array(start, copy=True)}
    return params, tx.init(params), {"w": jnp.asarray(G[: len(start)])}


TX = fastadam.jax.adam(1e-3)


def compiled(function, *arguments, **options):
    return jax.jit(function, **options).lower(*arguments).compile().as_text()


# ---- in place


def test_under_donation_nothing_is_copied():
    """In the program of a step, of a step in optax's form, and of a step after a gradient; each is one call."""

    def in_optax(params, state, g):
        updates, state = TX.update(g, state, params)
        return optax.apply_updates(params, updates), state

    def trained(params, state, x):
        g = jax.grad(lambda p: jnp.sum((x @ p["w"]) ** 2))(params)
        return TX.step(params, state, g)

    params, state, g = begun(TX)
    for function, last in ((TX.step, g), (in_optax, g), (trained, jnp.ones((4, 512)))):
        text = compiled(function, params, state, last, donate_argnums=(0, 1))
        assert text.count(" copy(") == 0
        assert text.count('custom_call_target="fastadam_step"') == 1
    places = [params["w"].unsafe_buffer_pointer(), *(x.unsafe_buffer_pointer() for x in jax.tree.leaves(state.streams))]
    params, state = jax.jit(TX.step, donate_argnums=(0, 1))(params, state, g)
    after = [params["w"].unsafe_buffer_pointer(), *(x.unsafe_buffer_pointer() for x in jax.tree.leaves(state.streams))]
    assert places == after


def test_without_donation_the_arguments_stay():
    params, state, g = begun(TX)
    for function in (TX.step, jax.jit(TX.step)):
        new, after = function(params, state, g)
        assert equal(new["w"], stepped())
        assert equal(params["w"], W)
        assert int(state.count) == 0
        assert int(after.count) == 1


def test_an_array_may_be_given_twice():
    w = jnp.array(W)
    new, _ = jax.jit(TX.step)([w, w], TX.init([w, w]), [jnp.asarray(G)] * 2)
    assert all(equal(x, stepped()) for x in new)


# ---- transformations of programs


def test_grad_is_refused():
    params, state, g = begun(TX)
    with pytest.raises(TypeError, match=r"a step of fastadam\.jax has no derivative"):
        jax.grad(lambda g: TX.step(params, state, g)[0]["w"].sum())(g)


def test_vmap_and_pmap_step_each():
    many = {"w": jnp.stack([W, 2 * W])}
    g = {"w": jnp.stack([G, G])}
    for over in (jax.vmap, jax.pmap):
        state = over(TX.init)(many)
        new, state = over(TX.step)(many, state, g)
        assert equal(new["w"][0], stepped())
        assert equal(new["w"][1], stepped(start=2 * W))
        assert state.count.tolist() == [1, 1]


@pytest.mark.parametrize("shardy", [True, False])
@pytest.mark.parametrize("spec", [("d", None), (None, "d"), ()])
def test_sharded_parameters_are_stepped_where_they_lie(spec, shardy, capfd):
    """Under plain jit: nothing is gathered, nothing copied, and the state lies as the parameters do."""
    mesh = jax.make_mesh((2,), ("d",))
    shape = NamedSharding(mesh, PartitionSpec(*spec))
    before = jax.config.jax_use_shardy_partitioner
    jax.config.update("jax_use_shardy_partitioner", shardy)
    jax.clear_caches()
    try:
        params, _, g = begun(TX)
        params, g = jax.device_put(params, shape), jax.device_put(g, shape)
        state = TX.init(params)
        text = compiled(TX.step, params, state, g, donate_argnums=(0, 1))
        assert "all-gather" not in text
        assert text.count(" copy(") == 0
        step = jax.jit(TX.step, donate_argnums=(0, 1))
        for _ in range(2):
            params, state = step(params, state, g)
        assert equal(params["w"], stepped(2))
        assert params["w"].sharding.is_equivalent_to(shape, 2)
        assert state.streams["m"][0].sharding.is_equivalent_to(shape, 2)
    finally:
        jax.config.update("jax_use_shardy_partitioner", before)
        jax.clear_caches()


@pytest.mark.parametrize("spec", [("d", None), (None, "d"), ()])
def test_under_a_mesh_that_is_set_types_say_where_results_lie(spec):
    """Where its axes are explicit: results lie as what they replace, without a gather; max_norm of whole ones, too."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    shape = NamedSharding(mesh, PartitionSpec(*spec))
    tx, chosen = (TX, {}) if spec else (CLIPPED, {"max_norm": 1.0})
    with jax.set_mesh(mesh):
        params, _, g = begun(tx)
        params, g = jax.device_put(params, shape), jax.device_put(g, shape)
        state = tx.init(params)
        text = compiled(tx.step, params, state, g, donate_argnums=(0, 1))
        assert "all-gather" not in text
        assert text.count(" copy(") == 0
        step = jax.jit(tx.step, donate_argnums=(0, 1))
        for _ in range(2):
            params, state = step(params, state, g)
    assert equal(params["w"], stepped(2, **chosen))
    assert params["w"].sharding.is_equivalent_to(shape, 2)
    assert state.streams["m"][0].sharding.is_equivalent_to(shape, 2)


def test_small_sharded_parameters_are_whole_in_their_pool():
    shape = NamedSharding(jax.make_mesh((2,), ("d",)), PartitionSpec("d"))
    params, _, g = begun(TX, W[:2])
    params, g = jax.device_put(params, shape), jax.device_put(g, shape)
    new, _ = jax.jit(TX.step)(params, TX.init(params), g)
    assert equal(new["w"], stepped(start=W[:2]))


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"moments": "8bit"}])
def test_what_sharded_parameters_cannot_have_is_refused(options):
    tx = fastadam.jax.adam(1e-3, **options)
    shape = NamedSharding(jax.make_mesh((2,), ("d",)), PartitionSpec("d"))
    params, _, g = begun(tx)
    params, g = jax.device_put(params, shape), jax.device_put(g, shape)
    with pytest.raises(Exception, match=r"of sharded parameters (is|are) not built"):
        jax.jit(tx.step)(params, tx.init(params), g)


@pytest.mark.parametrize("check", [True, False])
def test_shard_map(check):
    mesh = jax.make_mesh((2,), ("d",))
    shape = NamedSharding(mesh, PartitionSpec("d", None))
    params, _, g = begun(TX)
    params, g = jax.device_put(params, shape), jax.device_put(g, shape)
    state = TX.init(params)
    specs = jax.tree.map(lambda x: PartitionSpec("d", None) if x.ndim == 2 else PartitionSpec(), (params, state, g))
    step = jax.shard_map(TX.step, mesh=mesh, in_specs=specs, out_specs=specs[:2], check_vma=check)
    text = compiled(step, params, state, g, donate_argnums=(0, 1))
    new, _ = jax.jit(step)(params, state, g)
    assert text.count(" copy(") == 0
    assert equal(new["w"], stepped())


CLIPPED = fastadam.jax.adam(1e-3, max_norm=1.0)


def over_two(tx, g_spec, check, change=lambda g: (g, {})):
    """A program whose two devices each step a half of the parameters, by what `change` makes of gradients."""
    mesh, half = jax.make_mesh((2,), ("d",)), PartitionSpec("d", None)
    params, state, g = begun(tx)
    written = jax.tree.map(lambda x: half if x.ndim == 2 else PartitionSpec(), (params, state))

    def step(params, state, g):
        g, options = change(g)
        return tx.step(params, state, g, **options)

    g_specs = jax.tree.map(lambda _: g_spec, g)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(*written, g_specs), out_specs=written, check_vma=check)
    specs = jax.tree.map(lambda spec: NamedSharding(mesh, spec), (*written, g_specs))
    return jax.jit(mapped)(*jax.device_put((params, state, g), specs))


def test_a_norm_of_parts_is_refused():
    """Under shard_map and pmap, by the axis; where shard_map does not track what varies, everything may."""
    for check in (True, False):
        with pytest.raises(NotImplementedError, match=r"max_norm is set and grads\['w'\] may differ over d: expected"):
            over_two(CLIPPED, PartitionSpec("d", None), check)
    params, _, g = begun(CLIPPED)
    many = jax.tree.map(lambda x: jnp.stack([x, x]), (params, g))
    with pytest.raises(NotImplementedError, match="may differ over i: expected"):
        jax.pmap(lambda p, g: CLIPPED.step(p, CLIPPED.init(p), g), axis_name="i")(*many)


def test_gradients_that_are_alike_have_one_norm():
    """As of parameters that all devices have whole, and whose gradients were added up."""
    mesh, whole = jax.make_mesh((2,), ("d",)), PartitionSpec()
    params, state, g = begun(CLIPPED)

    def step(params, state, g):
        return CLIPPED.step(params, state, jax.tree.map(lambda x: jax.lax.psum(x / 2, "d"), g))

    new, state = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=whole, out_specs=whole))(params, state, g)
    assert equal(new["w"], stepped(max_norm=1.0))
    assert float(state.grad_norm) == pytest.approx(np.sqrt((G.astype(np.float64) ** 2).sum()), rel=1e-7)


@pytest.mark.parametrize("check", [True, False])
def test_parts_are_clipped_by_the_norm_of_the_whole(check):
    """As the guide says: by grad_scale. The factor may be off by what float32's sum is: no bits are promised."""

    def clipped(g):
        squares = jax.lax.psum(optax.tree.norm(g, squared=True), "d")
        return g, {"grad_scale": jnp.minimum(1.0, 1.0 / jnp.sqrt(squares))}

    new, state = over_two(TX, PartitionSpec("d", None), check, clipped)
    exact = G / np.sqrt((G.astype(np.float64) ** 2).sum())
    np.testing.assert_allclose(np.asarray(state.streams["m"][0]), (1 - 0.9) * exact, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(new["w"]), stepped(max_norm=1.0), rtol=1e-5, atol=1e-7)


# ---- optax


def curve(tx, steps=30):
    """The losses of a small regression, one program a step."""
    x, y = RNG_DATA
    params = {"w": jnp.zeros((8, 3)), "b": jnp.zeros(3)}
    state = tx.init(params)

    def loss(p):
        return jnp.mean((x @ p["w"] + p["b"] - y) ** 2)

    @jax.jit
    def step(params, state):
        value, g = jax.value_and_grad(loss)(params)
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state, value

    values = []
    for _ in range(steps):
        params, state, value = step(params, state)
        values.append(float(value))
    return np.array(values)


RNG_DATA = tuple(np.random.default_rng(1).standard_normal((2, 64, 8)).astype(np.float32))
RNG_DATA = RNG_DATA[0], RNG_DATA[1][:, :3]
SCHEDULE = optax.cosine_decay_schedule(0.05, 30)
PAIRS = {
    "adam": lambda m: m.adam(0.05),
    "adamw": lambda m: m.adamw(0.05, b1=0.8, b2=0.95, eps=1e-3, weight_decay=0.1),
    "masked decay": lambda m: m.adamw(0.05, weight_decay=0.5, mask={"w": True, "b": False}),
    "mask by a function": lambda m: m.adamw(
        0.05, weight_decay=0.5, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    ),
    "lion": lambda m: m.lion(0.01, weight_decay=0.1),
    "sgd": lambda m: m.sgd(0.05),
    "momentum": lambda m: m.sgd(0.05, momentum=0.9),
    "nesterov": lambda m: m.sgd(0.05, momentum=0.9, nesterov=True),
    "schedule": lambda m: m.adam(SCHEDULE),
    "chain": lambda m: optax.chain(optax.clip_by_global_norm(0.1), m.adam(0.05)),
    "masked": lambda m: optax.chain(
        optax.masked(m.adam(0.05), {"w": True, "b": False}), optax.masked(optax.set_to_zero(), {"w": False, "b": True})
    ),
    "multi_transform": lambda m: optax.multi_transform(
        {"a": m.adam(0.05), "s": m.sgd(0.05)}, {"w": "a", "b": "s"}
    ),
    "inject_hyperparams": lambda m: optax.inject_hyperparams(m.adamw)(learning_rate=SCHEDULE, weight_decay=0.1),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_loss_curves_are_optaxs(name):
    ours, theirs = (curve(PAIRS[name](module)) for module in (fastadam.jax, optax))
    assert np.abs(ours - theirs).max() <= 1e-5 * theirs[0]
    assert ours[-1] < 0.9 * ours[0]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.chain(tx, optax.scale(0.5)),
    ],
    ids=["MultiSteps", "apply_if_finite", "a later scale"],
)
def test_what_reads_updates_needs_true_ones(wrap):
    with pytest.raises(TypeError, match=r"Stepped|true_updates=True"):
        curve(wrap(fastadam.jax.adam(0.05)), 3)
    ours = curve(wrap(fastadam.jax.adam(0.05, true_updates=True)))
    theirs = curve(wrap(optax.adam(0.05)))
    assert np.abs(ours - theirs).max() <= 1e-4 * theirs[0]


def test_an_update_belongs_to_its_parameters():
    params, state, g = begun(TX)
    updates, _ = TX.update(g, state, params)
    assert updates["w"].shape == W.shape
    with pytest.raises(TypeError, match="the parameter is another"):
        optax.apply_updates(jax.tree.map(jnp.copy, params), updates)
    with pytest.raises(ValueError, match="params is None"):
        TX.update(g, state)
    with pytest.raises(TypeError, match="what reads or changes updates needs true_updates=True"):
        np.asarray(updates["w"])
    for read in (lambda u: u**2, lambda u: u[0], lambda u: u > 0, lambda u: u.reshape(-1), lambda u: W @ u):
        with pytest.raises(TypeError, match="needs true_updates=True"):
            read(updates["w"])


def test_the_place_of_arguments_is_optaxs():
    """eps_root among them, which is 0; NumPy's arrays are parameters, too."""
    params = {"w": np.ones(3, np.float32)}
    tx, theirs = (module.adam(0.25, 0.8, 0.99, 1e-3, 0.0, jnp.bfloat16) for module in (fastadam.jax, optax))
    state = tx.init(params)
    assert state.streams["m"][0].dtype == theirs.init(params)[0].mu["w"].dtype == jnp.bfloat16
    ours, own = (optax.apply_updates(params, t.update(params, t.init(params), params)[0]) for t in (tx, theirs))
    np.testing.assert_allclose(ours["w"], own["w"], rtol=1e-5)
    parameters = [list(inspect.signature(module.adamw).parameters)[:8] for module in (fastadam.jax, optax)]
    assert parameters[0] == parameters[1]


def test_injected_hyperparameters_change_between_steps():
    """They are operands: one program for all of them."""
    tx = optax.inject_hyperparams(fastadam.jax.adam)(learning_rate=0.5)
    params = jnp.ones(3)
    state = tx.init(params)
    traced = []

    @jax.jit
    def step(params, state):
        traced.append(1)
        updates, state = tx.update(jnp.ones(3), state, params)
        return optax.apply_updates(params, updates), state

    params, state = step(params, state)
    assert params.tolist() == [0.5] * 3
    state.hyperparams["learning_rate"] = jnp.float32(0.25)
    params, state = step(params, state)
    assert params.tolist() == [0.25] * 3
    assert len(traced) == 1


def test_frameworks_take_it():
    """Flax's TrainState and nnx.Optimizer, Equinox, NumPyro; each in place of optax.adam."""
    import equinox
    import flax.training.train_state
    import numpyro
    import numpyro.distributions as dist
    from flax import nnx

    def trainstate(tx):
        state = flax.training.train_state.TrainState.create(apply_fn=None, params={"w": jnp.ones(3)}, tx=tx)
        step = jax.jit(lambda s: s.apply_gradients(grads={"w": jnp.arange(3.0)}))
        return step(step(state)).params["w"]

    def with_nnx(tx):
        model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            optimizer.update(model, nnx.grad(lambda m: jnp.sum(m(jnp.ones(2)) ** 2))(model))

        step(model, optimizer)
        return model.kernel[...]

    def with_equinox(tx):
        model = equinox.nn.Linear(2, 3, key=jax.random.key(0))
        state = tx.init(equinox.filter(model, equinox.is_array))

        @equinox.filter_jit
        def step(model, state):
            g = equinox.filter_grad(lambda m: jnp.sum(m(jnp.ones(2)) ** 2))(model)
            updates, state = tx.update(g, state, equinox.filter(model, equinox.is_array))
            return equinox.apply_updates(model, updates), state

        return step(model, state)[0].weight

    def with_numpyro(tx):
        def model():
            numpyro.sample("x", dist.Normal(3.0, 1.0))

        def guide():
            numpyro.sample("x", dist.Delta(numpyro.param("at", 0.0)))

        svi = numpyro.infer.SVI(model, guide, tx, numpyro.infer.Trace_ELBO())
        return svi.run(jax.random.key(0), 20, progress_bar=False).params["at"]

    for framework in (trainstate, with_nnx, with_equinox, with_numpyro):
        ours, theirs = (np.asarray(framework(module.adam(0.1))) for module in (fastadam.jax, optax))
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max(), framework.__name__
