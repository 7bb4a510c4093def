"""fastadam.sklearn's estimators under scikit-learn itself."""

import copy
import io
import pickle
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn import clone, neural_network
from sklearn.datasets import load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from fastadam.sklearn import TESTED, MLPClassifier, MLPRegressor
from fastadam.sklearn.stepped import SteppedAdam

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.EstimatorCheckFailedWarning"),
]
PAIRS = [(MLPClassifier, neural_network.MLPClassifier), (MLPRegressor, neural_network.MLPRegressor)]
HARD = {"learning_rate_init": 1e-2, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3}


CHECKS = [case for kind in (MLPClassifier, MLPRegressor) for case in estimator_checks_generator(kind(max_iter=100))]


@pytest.mark.parametrize(("estimator", "check"), CHECKS, ids=lambda x: getattr(x, "func", type(x)).__name__)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def data(kind, dtype=np.float64, rows=300):
    x, y = (load_digits if issubclass(kind, neural_network.MLPClassifier) else load_diabetes)(return_X_y=True)
    x = StandardScaler().fit_transform(x)[:rows].astype(dtype)
    return x, y[:rows] if y.dtype.kind == "i" else (y[:rows] - 150) / 77


def curve(kind, dtype=np.float64, **chosen):
    """The loss after each epoch."""
    settings = {"hidden_layer_sizes": (32, 16), "max_iter": 20, "random_state": 0, **chosen}
    return np.array(kind(**settings).fit(*data(kind, dtype)).loss_curve_)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("chosen", [{}, HARD, {"early_stopping": True}, {"solver": "sgd", "learning_rate": "adaptive"}])
def test_its_losses_are_scikit_learns(ours, theirs, chosen):
    """In float64 only roundings differ, at most some thousand steps' of 2^-53 that training amplifies."""
    np.testing.assert_allclose(curve(ours, **chosen), curve(theirs, **chosen), rtol=1e-9)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_in_float32_it_is_no_further_from_the_truth(ours, theirs):
    exact = curve(theirs)
    far = abs(curve(theirs, np.float32) - exact).max()
    assert abs(curve(ours, np.float32) - exact).max() <= 2 * far
    assert far < 1e-3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_step_by_hand(dtype):
    """Kingma & Ba 2015, end of section 2, with numbers that are exact: betas of ½, a first step."""
    p, g = [np.full((2, 3), 1.0, dtype), np.full(3, -2.0, dtype)], [np.full((2, 3), 2.0, dtype), np.zeros(3, dtype)]
    opt = SteppedAdam(p, learning_rate_init=0.25, beta_1=0.5, beta_2=0.75, epsilon=1.0)
    opt.update_params(p, g)
    # m = 1, v = ¼·4 = 1; lr·√(1 - ¾)/(1 - ½) = ¼; p = 1 - ¼·1/(1 + 1)
    assert p[0].tolist() == [[0.875] * 3] * 2
    assert p[1].tolist() == [-2.0] * 3
    assert (opt.ms[0] == 1).all()
    assert (opt.vs[0] == 1).all()
    assert (opt.t, opt.learning_rate) == (1, 0.25)


@pytest.mark.parametrize(("kind", "dtype"), [(MLPClassifier, np.float32), (MLPRegressor, np.float64)])
def test_it_is_stepped_here_and_keeps_its_dtype(kind, dtype, monkeypatch):
    monkeypatch.setattr(SteppedAdam, "_get_updates", lambda self, grads: pytest.fail("scikit-learn's own step ran"))
    model = kind(hidden_layer_sizes=(8,), max_iter=2, random_state=0).fit(*data(kind, dtype))
    assert type(model._optimizer) is SteppedAdam
    assert {x.dtype for x in model.coefs_ + model._optimizer.ms + model._optimizer.vs} == {np.dtype(dtype)}
    assert type(kind(solver="sgd", max_iter=2).fit(*data(kind))._optimizer).__module__.startswith("sklearn.")


def partial(model, x, y, start=0, stop=6):
    for k in range(start, stop):
        rows = slice(40 * k, 40 * k + 40)
        classes = {"classes": np.arange(10)} if isinstance(model, neural_network.MLPClassifier) else {}
        model.partial_fit(x[rows], y[rows], **classes)
    return model


COPIES = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "deepcopy": copy.deepcopy,
    "joblib": lambda model: joblib.load(saved(model)),
}


def saved(model):
    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_a_copy_goes_on_to_the_bit(ours, theirs, how):
    x, y = data(ours)
    whole = partial(ours(hidden_layer_sizes=(16,), random_state=0), x, y)
    half = partial(ours(hidden_layer_sizes=(16,), random_state=0), x, y, stop=3)
    resumed = partial(COPIES[how](half), x, y, start=3)
    assert all((a == b).all() for a, b in zip(whole.coefs_, resumed.coefs_, strict=True))
    assert resumed._optimizer.t == whole._optimizer.t == 6
    reference = partial(theirs(hidden_layer_sizes=(16,), random_state=0), x, y)
    for a, b in zip(whole.coefs_, reference.coefs_, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_what_is_set_between_steps_counts(ours, theirs):
    """The optimizer's attributes, and coefficients in another order of axes."""
    models = [partial(kind(hidden_layer_sizes=(16,), random_state=0), *data(ours), stop=2) for kind in (ours, theirs)]
    for model in models:
        vars(model._optimizer).update(learning_rate_init=0.05, beta_1=0.5, beta_2=0.9, epsilon=1e-3)
        partial(model, *data(ours), start=2, stop=4)
        model.coefs_ = [np.asfortranarray(x / 2) for x in model.coefs_]
        partial(model, *data(ours), start=4)
    for a, b in zip(models[0].coefs_, models[1].coefs_, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    assert type(models[0]._optimizer) is SteppedAdam


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_warm_start_goes_on_from_the_weights(ours, theirs):
    models = [kind(hidden_layer_sizes=(16,), max_iter=3, warm_start=True, random_state=0) for kind in (ours, theirs)]
    for model in models:
        model.fit(*data(ours)).fit(*data(ours))
    np.testing.assert_allclose(models[0].loss_curve_, models[1].loss_curve_, rtol=1e-9)
    assert len(models[0].loss_curve_) == 6


def test_clones_pipelines_and_searches():
    model = make_pipeline(
        StandardScaler(), MLPClassifier(hidden_layer_sizes=(16,), max_iter=60, learning_rate_init=1e-2)
    )
    x, y = data(MLPClassifier)
    assert clone(model).fit(x, y).score(x, y) > 0.9
    search = GridSearchCV(
        MLPClassifier(hidden_layer_sizes=(8,), max_iter=5, random_state=0), {"learning_rate_init": [1e-4, 1e-2]}, cv=2
    )
    assert search.fit(x, y).best_params_ == {"learning_rate_init": 1e-2}
    assert clone(search.best_estimator_).get_params() == search.best_estimator_.get_params()


def test_errors_and_warnings_are_scikit_learns():
    x, y = data(MLPClassifier)
    with pytest.raises(ValueError, match="The 'beta_1' parameter of MLPClassifier must be"):
        MLPClassifier(beta_1=2.0).fit(x, y)
    with pytest.raises(AttributeError, match="no _optimizer before it is fitted"):
        MLPClassifier()._optimizer  # noqa: B018
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        MLPClassifier(hidden_layer_sizes=(8,), max_iter=2).fit(x, y)
    assert [one.category for one in said] == [ConvergenceWarning]


def test_the_extra_names_the_versions_that_were_tested():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (asked,) = project["optional-dependencies"]["sklearn"]
    low, high = re.fullmatch(r"scikit-learn>=1\.(\d+),<1\.(\d+)", asked).groups()
    assert tuple(f"1.{minor}" for minor in range(int(low), int(high))) == TESTED


def test_another_version_runs_its_own_optimizer_and_says_so():
    text = """
import sys, warnings, sklearn
sklearn.__version__ = "2.0.1"
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    from fastadam.sklearn import MLPRegressor
print(*(one.message for one in said if "fastadam" in str(one.message)))
model = MLPRegressor(hidden_layer_sizes=(4,), max_iter=2).partial_fit([[0.0], [1.0]], [0.0, 1.0])
print(type(model._optimizer).__module__, "fastadam.sklearn.stepped" in sys.modules)
"""
    printed = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == [
        "scikit-learn is 2.0.1, tested were 1.7, 1.8, 1.9: its own optimizer runs, not fastadam",
        "sklearn.neural_network._stochastic_optimizers False",
    ]
