"""The gate: which versions of jaxlib native code was held against, since it reads XLA's frames by their layout."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jaxlib
import numpy as np

TESTED = ("0.10.2",)
ANYWAY = "FASTADAM_JAX_UNTESTED"


def check(transform: Callable[..., Any]) -> None:
    """Refuse to work with a jaxlib that was not tested, unless $FASTADAM_JAX_UNTESTED is 1 and its bits are right.

    transform: fastadam.jax's. Raises ImportError that names the versions tested.
    """
    if jaxlib.__version__ in TESTED:
        return
    expected = f"jaxlib is {jaxlib.__version__}, expected {' or '.join(TESTED)}, which fastadam.jax was tested with"
    if os.environ.get(ANYWAY) != "1":
        raise ImportError(f"{expected}; {ANYWAY}=1 tries this one after a test of its bits")
    if wrong := differing(transform):
        raise ImportError(f"{expected}: {ANYWAY} is 1, but {' and '.join(wrong)} have other bits than NumPy's")


def differing(transform: Callable[..., Any]) -> list[str]:
    """Return what some steps of fastadam.jax, small and large, have other bits of than the NumPy backend's."""
    import jax
    import jax.numpy as jnp

    from fastadam import methods, rules

    rng = np.random.default_rng(0)
    params = {f"{n} parameters": rng.standard_normal(n).astype(np.float32) for n in (7, 5_000, 100_000)}
    by_numpy = {name: x.copy() for name, x in params.items()}
    opt, tx = methods.AdamW(by_numpy, max_norm=1.0, backend="numpy"), transform(rules.AdamW(), max_norm=1.0)
    stepped = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
    state, step = tx.init(stepped), jax.jit(tx.step, donate_argnums=(0, 1))
    for _ in range(3):
        stepped, state = step(stepped, state, params)
        opt.step(params)
    return [name for name, x in by_numpy.items() if np.asarray(stepped[name]).tobytes() != x.tobytes()]
