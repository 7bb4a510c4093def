"""fastadam.keras under Keras's own fit: the losses are those of Keras's optimizers, whatever surrounds a step."""

from contextlib import nullcontext
from copy import deepcopy
from functools import partial

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

import fastadam.keras as ours
from fastadam.stepper import Stepper

# Keras, and what its backends import on the way, warn of each other's affairs.
pytestmark = pytest.mark.filterwarnings("ignore")
BACKEND = keras.config.backend()
x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32")
FEW = x[:320], y[:320]
# What training makes of some hundred roundings of 2^-24: Keras's own foreach and per-variable steps are as far apart.
NEAR = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture
def counted(monkeypatch):
    """What has taken steps, once for each: a Stepper, or on JAX what steps are compiled from."""
    if BACKEND == "jax":
        from fastadam.jax.fused import Fused

        kind, name = Fused, "step"
    else:
        kind, name = Stepper, "__call__"
    calls, call = [], getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda *given, **named: calls.append(given[0]) or call(*given, **named))
    return calls


def float64():
    """A context in which the backend has float64, which JAX has not unless asked."""
    if BACKEND != "jax":
        return nullcontext()
    import jax

    return jax.enable_x64(True)


def model(optimizer, policy=None, embed=False, constraint=None, **chosen):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    first = layers.Dense(32, activation="relu", dtype=policy, kernel_constraint=constraint)
    if embed:
        stack = [layers.Input((64,), dtype="int32"), layers.Embedding(17, 4), layers.Flatten()]
    else:
        stack = [layers.Input((64,)), first]
    network = keras.Sequential([*stack, layers.Dense(10, activation="softmax", dtype=policy)])
    network.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", **chosen)
    return network


def losses(network, epochs=2, inputs=FEW[0]):
    history = network.fit(inputs, FEW[1], epochs=epochs, batch_size=64, verbose=0, shuffle=False)
    return np.array(history.history["loss"])


def test_the_program_that_users_write(counted):
    """Real digits, ten epochs, accuracy and validation: but for the optimizer's name as it is written for Keras."""

    def train(optimizer):
        network = keras.models.Sequential(
            [
                keras.layers.Dense(128, activation="relu", input_shape=(64,)),
                keras.layers.Dense(10, activation="softmax"),
            ]
        )
        network.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        if weights:
            network.set_weights(weights)
        weights[:] = network.get_weights()
        keras.utils.set_random_seed(0)  # of the order of rows
        return network.fit(x[:1500], y[:1500], epochs=10, validation_data=(x[1500:], y[1500:]), verbose=0).history

    keras.utils.set_random_seed(0)
    weights = []
    fast = train(ours.Adam(learning_rate=0.001))
    steps = len(counted)
    own = train(keras.optimizers.Adam(learning_rate=0.001))
    assert steps == len(counted) == 10 * 47 or BACKEND == "jax"
    for curve in ("loss", "val_loss"):  # Keras's 1 - β2 is float32's, 6e-5 of itself off at the first step
        np.testing.assert_allclose(fast[curve], own[curve], rtol=1e-3)
    assert fast["accuracy"][-1] > 0.96
    assert fast["val_accuracy"][-1] > 0.85


METHODS = {
    "Adam": [{}, {"amsgrad": True, "epsilon": 1e-3}],
    "AdamW": [{"weight_decay": 0.1}],
    "Nadam": [{}],
    "Adamax": [{"epsilon": 1e-3}],
    "Lion": [{"learning_rate": 1e-4}],
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"nesterov": True}],
    "RMSprop": [{"epsilon": 1e-3}, {"centered": True, "epsilon": 1e-3}, {"momentum": 0.9, "centered": True}],
    "Adagrad": [{"epsilon": 1e-2, "learning_rate": 1e-2}],
}


@pytest.mark.parametrize(("name", "chosen"), [(name, chosen) for name, all_ in METHODS.items() for chosen in all_])
def test_each_method_is_kerass(name, chosen, counted):
    settings = {"learning_rate": 3e-3, **chosen}
    own, fast = (losses(model(getattr(module, name)(**settings))) for module in (keras.optimizers, ours))
    np.testing.assert_allclose(fast, own, **NEAR)
    assert counted
    assert issubclass(getattr(ours, name), getattr(keras.optimizers, name))
    assert getattr(ours, name)(name="x").get_config() == getattr(keras.optimizers, name)(name="x").get_config()


def test_every_method_is_tested():
    assert set(METHODS) == set(ours.__all__)


SURROUNDINGS = {
    "schedule": {"learning_rate": lambda: keras.optimizers.schedules.CosineDecay(1e-2, 10)},
    "callable lr": {"learning_rate": lambda: lambda: 2e-3},
    "clipnorm": {"clipnorm": 0.1},
    "global_clipnorm": {"global_clipnorm": 0.1},
    "clipvalue": {"clipvalue": 0.01},
    "weight_decay": {"weight_decay": 0.01},
    "use_ema": {"use_ema": True},
    "ema_overwrite_frequency": {"use_ema": True, "ema_overwrite_frequency": 3},
    "loss_scale_factor": {"loss_scale_factor": 8.0},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_what_surrounds_a_step_is_kerass(name):
    made = {key: value() if callable(value) else value for key, value in SURROUNDINGS[name].items()}
    both = [model(module.Adam(**{"learning_rate": 3e-3, **made})) for module in (keras.optimizers, ours)]
    own, fast = map(losses, both)
    np.testing.assert_allclose(fast, own, **NEAR)
    for a, b in zip(both[0].optimizer.variables, both[1].optimizer.variables, strict=True):
        assert np.linalg.norm(b.numpy() - a.numpy()) <= 1e-3 * np.linalg.norm(a.numpy())  # the average among them


COMPILED = {
    "constraint": {"constraint": keras.constraints.MaxNorm(0.5)},
    "mixed_float16": {"policy": "mixed_float16"},
    "mixed_bfloat16": {"policy": "mixed_bfloat16"},
    "float64": {"policy": "float64"},
    "run_eagerly": {"run_eagerly": True},
}


@pytest.mark.parametrize("name", COMPILED)
def test_whatever_the_model_is_compiled_with(name):
    with float64() if name == "float64" else nullcontext():
        own, fast = (
            losses(model(module.Adam(learning_rate=3e-3), **COMPILED[name])) for module in (keras.optimizers, ours)
        )
    far = {"mixed_float16": {"rtol": 1e-2}, "mixed_bfloat16": {"rtol": 1e-2}}.get(name, NEAR)
    if name == "float64":
        far = {"rtol": 1e-9 if BACKEND == "torch" else 1e-5}  # elsewhere Keras's betas are float32's, all the same
    np.testing.assert_allclose(fast, own, **far)


def test_variables_excluded_from_decay():
    def make(module):
        optimizer = module.AdamW(learning_rate=3e-3, weight_decay=0.5)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        return optimizer

    np.testing.assert_allclose(*(losses(model(make(module))) for module in (ours, keras.optimizers)), **NEAR)


def test_loss_scale_optimizer():
    def make(module):
        return keras.optimizers.LossScaleOptimizer(module.Adam(learning_rate=3e-3), initial_scale=1024.0)

    np.testing.assert_allclose(*(losses(model(make(module))) for module in (ours, keras.optimizers)), **NEAR)
    network = model(make(ours))
    losses(network, 1)
    before = [w.copy() for w in network.get_weights()]
    bad = FEW[0].copy()
    bad[:] = np.nan
    losses(network, 1, bad)
    assert all((a == b).all() for a, b in zip(before, network.get_weights(), strict=True))
    assert int(network.optimizer.iterations) == 5


def dense(name):
    """Keras's optimizer of this name, by which the gradients of one row are added up first, as on all other backends.

    Under TensorFlow it squares each of them, and adds the squares.
    """
    kind = getattr(keras.optimizers, name)
    if BACKEND != "tensorflow":
        return kind
    import tensorflow as tf

    def densified(self, grads, variables, lr):
        kind._backend_update_step(self, [tf.convert_to_tensor(g) for g in grads], variables, lr)

    return type(name, (kind,), {"_backend_update_step": densified})


@pytest.mark.parametrize("name", ["Adam", "Adagrad", "SGD"])
def test_embeddings(name):
    tokens = (FEW[0] * 16).astype("int32")
    own, fast = (
        losses(model(kind(learning_rate=1e-2), embed=True), inputs=tokens)
        for kind in (dense(name), getattr(ours, name))
    )
    np.testing.assert_allclose(fast, own, **NEAR)


@pytest.mark.skipif(BACKEND != "tensorflow", reason=f"of TensorFlow's IndexedSlices; the backend is {BACKEND}")
@pytest.mark.parametrize("name", ["Adagrad", "SGD", "Adam"])
def test_sparse_gradients_by_rows(name, counted):
    """Rows that are given twice are added up; Adam's other rows decay, as in Keras."""
    import tensorflow as tf

    def step(kind):
        table = keras.Variable(np.ones((50, 3), "float32"))
        optimizer = kind(learning_rate=0.25)
        optimizer.build([table])
        for rows in ([7, 2, 7], [7, 9, 4]):
            values = tf.constant(np.arange(9.0, dtype="float32").reshape(3, 3))
            optimizer.apply([tf.IndexedSlices(values, tf.constant(rows), (50, 3))])
        return table.numpy()

    np.testing.assert_allclose(step(getattr(ours, name)), step(dense(name)), rtol=1e-4)
    assert [stepper._like[0][1] for stepper in counted] == ([(50, 3)] * 2 if name == "Adam" else [(2, 3), (3, 3)])


def test_in_bfloat16_it_learns_where_kerass_does_not():
    own, fast = (
        losses(model(module.Adam(learning_rate=1e-3), policy="bfloat16"), 20) for module in (keras.optimizers, ours)
    )
    assert fast[-1] < 0.6 * fast[0]
    assert own[-1] > fast[-1] + 0.2


def test_files_resume_to_the_bit(tmp_path):
    whole = model(ours.Adam(learning_rate=3e-3))
    losses(whole, 2)
    whole.save(tmp_path / "m.keras")
    whole.save_weights(tmp_path / "m.weights.h5")
    rest = losses(whole, 2)
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert type(loaded.optimizer) is ours.Adam
    assert int(loaded.optimizer.iterations) == 10
    assert (losses(loaded, 2) == rest).all()
    weights = model(ours.Adam(learning_rate=3e-3))
    weights.optimizer.build(weights.trainable_variables)
    weights.load_weights(tmp_path / "m.weights.h5")
    assert (losses(weights, 2) == rest).all()


@pytest.mark.parametrize("name", METHODS)
def test_weights_are_exchanged_with_kerass_own(name, tmp_path):
    chosen = {"learning_rate": 1e-3, **METHODS[name][-1]}
    for module, other in ((keras.optimizers, ours), (ours, keras.optimizers)):
        start = model(getattr(module, name)(**chosen))
        losses(start, 1)
        start.save_weights(tmp_path / "m.weights.h5")
        taken = model(getattr(other, name)(**chosen))
        taken.optimizer.build(taken.trainable_variables)
        taken.load_weights(tmp_path / "m.weights.h5")
        for a, b in zip(start.optimizer.variables, taken.optimizer.variables, strict=True):
            assert (a.numpy() == b.numpy()).all()
        np.testing.assert_allclose(losses(taken, 1), losses(start, 1), **NEAR)


@pytest.mark.parametrize("name", METHODS)
def test_configs_go_both_ways(name):
    fast, own = getattr(ours, name), getattr(keras.optimizers, name)
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, 40)
    made = fast(clipnorm=0.5, **METHODS[name][0] | {"learning_rate": schedule})
    config = made.get_config()
    for kind in (fast, own):
        assert kind.from_config(deepcopy(config)).get_config() == config  # from_config changes what it is given
    again = keras.optimizers.deserialize(keras.optimizers.serialize(made))
    assert (type(again), again.get_config()) == (fast, config)


def test_the_learning_rate_and_what_trains_may_change():
    network = model(ours.Adam(learning_rate=3e-3))
    losses(network, 1)
    network.optimizer.learning_rate = 0.0
    before = network.get_weights()
    losses(network, 1)
    assert all((a == b).all() for a, b in zip(before, network.get_weights(), strict=True))
    network.optimizer.learning_rate = 3e-3
    network.layers[0].trainable = False
    network.compile(optimizer=ours.Adam(learning_rate=3e-3), loss="sparse_categorical_crossentropy")
    losses(network, 1)
    after = network.get_weights()
    assert (after[0] == before[0]).all()
    assert (after[2] != before[2]).any()


def test_one_variable_by_update_step():
    """The public method steps one variable and leaves the others' state alone."""
    a, b = keras.Variable(np.ones(3, "float32")), keras.Variable(np.ones(2, "float32"))
    optimizer, reference = ours.Adam(learning_rate=0.25), keras.optimizers.Adam(learning_rate=0.25)
    optimizer.build([a, b])
    other = keras.Variable(np.ones(3, "float32"))
    reference.build([other, keras.Variable(np.ones(2, "float32"))])
    gradient = keras.ops.convert_to_tensor(np.array([1.0, -2.0, 0.0], "float32"))
    optimizer.update_step(gradient, a, 0.25)
    reference.apply([gradient, keras.ops.zeros(2)])
    np.testing.assert_allclose(a.numpy(), other.numpy(), rtol=1e-4)  # Keras's 1 - 0.999 is 6e-5 of itself off
    assert b.numpy().tolist() == [1.0, 1.0]


@pytest.mark.skipif(BACKEND != "torch", reason=f"of PyTorch's memory; the backend is {BACKEND}")
def test_tensors_are_stepped_where_they_lie():
    import torch

    network = model(ours.Adam(learning_rate=3e-3))
    losses(network, 1)
    optimizer = network.optimizer
    tensors = [v.value for v in [*network.trainable_variables, *optimizer.variables]]
    places = [t.data_ptr() for t in tensors]
    versions = [t._version for t in tensors]
    losses(network, 1)
    assert [t.data_ptr() for t in tensors] == places
    assert all(t._version > v for t, v in zip(tensors, versions, strict=True) if t.ndim)
    weight = network.trainable_variables[0].value
    loss = (weight**2).sum()
    optimizer.apply([torch.ones_like(v.value) for v in network.trainable_variables])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.skipif(BACKEND != "torch", reason=f"of PyTorch's tensors; the backend is {BACKEND}")
def test_sparse_tensors_are_refused_before_anything_changes():
    import torch

    v = keras.Variable(np.ones((3, 2), "float32"))
    optimizer = ours.Adam()
    optimizer.build([v])
    with pytest.raises(ValueError, match="expected dense floats on the CPU"):
        optimizer.apply([torch.eye(3, 2).to_sparse()])
    with pytest.raises(TypeError, match=r"a gradient is list, expected a torch\.Tensor"):
        optimizer.apply([[[1.0, 1.0]] * 3])
    assert (v.numpy() == 1).all()
    assert int(optimizer.iterations) == 0


@pytest.mark.skipif(BACKEND != "torch", reason=f"of PyTorch's tensors; the backend is {BACKEND}")
def test_a_lazily_negated_gradient_has_its_sign():
    import torch

    v = keras.Variable(np.zeros(2, "float32"))
    optimizer = ours.SGD(learning_rate=1.0)
    optimizer.build([v])
    gradient = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    optimizer.apply([torch.view_as_complex(gradient).conj().imag])
    assert v.numpy().tolist() == [2.0, 4.0]


def test_a_copied_optimizer_steps_its_own_variables():
    a = keras.Variable(np.ones(3, "float32"))
    optimizer = ours.Adam(learning_rate=0.25)
    optimizer.build([a])
    optimizer.apply([keras.ops.ones(3)])
    copied = deepcopy(optimizer._stepping)
    assert type(copied) is type(optimizer._stepping)
    assert copied._planned is None


@pytest.mark.skipif(BACKEND != "tensorflow", reason=f"of TensorFlow's strategies; the backend is {BACKEND}")
def test_strategies_are_refused_by_name():
    import tensorflow as tf

    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        v = keras.Variable(np.ones(3, "float32"))
        optimizer = ours.Adam()
        optimizer.build([v])
        with pytest.raises(ValueError, match=r"the strategy is .*MirroredStrategy.*expected none"):
            optimizer.apply([tf.ones(3)])
    assert (v.numpy() == 1).all()


def test_a_backend_without_steps_is_refused_by_name(fresh):
    text = """
import warnings
warnings.simplefilter("ignore")
import keras, fastadam.keras
try:
    fastadam.keras.Adam().build([keras.Variable([1.0])])
except ImportError as error:
    print(error)
"""
    printed = fresh(text, KERAS_BACKEND="numpy", strict=False)
    assert printed.strip() == "KERAS_BACKEND is 'numpy', expected any of torch, jax, tensorflow"


@pytest.mark.skipif(BACKEND == "jax", reason="under JAX every step is compiled already")
def test_jit_compile(monkeypatch):
    if BACKEND == "tensorflow":
        with pytest.raises(ValueError, match="jit_compile is True, expected False"):
            losses(model(ours.Adam(learning_rate=3e-3), jit_compile=True), 1)
    else:
        import torch

        # Whether torch.compile can trace around a step does not depend on what it makes of the rest.
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        own = losses(model(keras.optimizers.Adam(learning_rate=3e-3)), 2)
        np.testing.assert_allclose(losses(model(ours.Adam(learning_rate=3e-3), jit_compile=True), 2), own, **NEAR)
