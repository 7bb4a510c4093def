"""Every public class and function has an example in its docstring, and it runs."""

import doctest
import importlib
import inspect
import linecache

import numpy as np
import pytest

import fastadam

LIBRARIES = {
    "torch": "PyTorch",
    "jax": "JAX",
    "keras": "Keras",
    "scipy": "SciPy",
    "sklearn": "scikit-learn",
}  # that wings of the same name are for
PARTS = "schedules", "checkpoint", "distributed"
MODULES = "fastadam", *(f"fastadam.{name}" for name in (*PARTS, *LIBRARIES))


def public(name):
    """The public classes and functions of a module, by their full names."""
    module = importlib.import_module(name)
    names = getattr(module, "__all__", None) or [n for n, x in vars(module).items() if inspect.isclass(x)]
    things = {n: getattr(module, n) for n in names if not n.startswith("_")}
    return {
        f"{name}.{n}": x
        for n, x in things.items()
        if (inspect.isclass(x) or inspect.isfunction(x)) and x.__module__.startswith("fastadam")
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"fastadam": fastadam, "fa": fastadam, "np": np}
    if (library := module.rpartition(".")[2]) in LIBRARIES:
        reason = f'needs {LIBRARIES[library]}: pip install ".[{library}]"'
        names[library] = pytest.importorskip(library, reason=reason)
        names["fat"] = importlib.import_module(module)
        names["jnp"] = getattr(names[library], "numpy", None)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said = []
    for name, thing in public(module).items():
        text = inspect.cleandoc((vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__) or "")
        assert ">>> " in text, f"{name} has no example in its docstring"
        example = doctest.DocTestParser().get_doctest(text, dict(names), name, None, 0)
        runner.run(example, out=said.append, clear_globs=False)
    linecache.clearcache()
    assert not runner.failures, "".join(said)
    assert runner.tries >= len(public(module))
