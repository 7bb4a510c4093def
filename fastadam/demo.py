"""python -m fastadam demo: a small network on handwritten digits, its gradients by hand.

A model is a pair of functions,

    init(rng) -> params                                 any tree of arrays
    loss_and_grads(params, x, y) -> loss, grads, hits   grads: like params; hits: how many of y it got right

and everything below them trains any such pair.
"""

import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

import fastadam as fa

Array = NDArray[Any]
Layers = list[dict[str, Array]]
Init = Callable[[np.random.Generator], Any]
LossAndGrads = Callable[[Any, Array, Array], tuple[float, Any, int]]
Model = tuple[Init, LossAndGrads]
Report = Callable[[int, float, float], None]  # epoch, loss, share of hits

# Where 40 epochs at the class's own default fall short of what the method can do.
LEARNING_RATES = {"SGD": 0.5, "RMSprop": 1e-3}

# 0.1 as in the paper. Over 40 seeds it lifts the mean accuracy from 98.3 % to 98.9 %, the worst from 97.1 to 98.0 %.
SMOOTHING = 0.1


def mlp_init(
    rng: np.random.Generator, sizes: tuple[int, ...] = (64, 256, 256, 10), dtype: DTypeLike = np.float32
) -> Layers:
    """Weights as in He et al. 2015, which keep the size of what passes through a ReLU; biases 0."""
    return [
        {"w": (rng.standard_normal((i, o)) * math.sqrt(2 / i)).astype(dtype), "b": np.zeros(o, dtype)}
        for i, o in pairwise(sizes)
    ]


def mlp_loss_and_grads(params: Layers, x: Array, y: Array) -> tuple[float, Layers, int]:
    """Mean softmax cross-entropy behind layers of ReLUs, and its gradient.

    The targets are smoothed (Szegedy et al. 2016, section 7): 1 - s for the label, s in equal parts for all.
    """
    inputs = [x]  # of each layer
    for layer in params[:-1]:
        inputs.append(np.maximum(inputs[-1] @ layer["w"] + layer["b"], 0))
    z = inputs[-1] @ params[-1]["w"] + params[-1]["b"]
    n, classes = z.shape
    hits = int((z.argmax(axis=1) == y).sum())

    z -= z.max(axis=1, keepdims=True)  # leaves softmax as it is, and exp cannot overflow
    exp = np.exp(z)
    total = exp.sum(axis=1, keepdims=True)
    target = np.full_like(z, SMOOTHING / classes)
    target[np.arange(n), y] += 1 - SMOOTHING
    loss = float((target * (np.log(total) - z)).sum()) / n

    delta = (exp / total - target) / n  # of the loss, by what the layer gives before its ReLU
    grads: Layers = []
    for layer, a in zip(reversed(params), reversed(inputs), strict=True):
        grads.insert(0, {"w": a.T @ delta, "b": delta.sum(axis=0)})
        if a is not x:
            delta = (delta @ layer["w"].T) * (a > 0)
    return loss, grads, hits


MLP: Model = (mlp_init, mlp_loss_and_grads)


def split(y: Array, rng: np.random.Generator, share: float = 0.25) -> tuple[Array, Array]:
    """Indices to train on and to test on: of each class, at random, that share is for the test."""
    test = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        test[members[: round(share * len(members))]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


def train(
    loss_and_grads: LossAndGrads,
    params: Any,
    opt: Any,
    x: Array,
    y: Array,
    epochs: int,
    batch_size: int,
    rng: np.random.Generator,
    report: Report,
) -> float:
    """Train params in place; returns the seconds that went into the updates."""
    updating = 0.0
    for epoch in range(1, epochs + 1):
        losses, hits = 0.0, 0
        order = rng.permutation(len(x))
        for first in range(0, len(x), batch_size):
            batch = order[first : first + batch_size]
            loss, grads, right = loss_and_grads(params, x[batch], y[batch])
            start = time.perf_counter()
            opt.step(grads)
            updating += time.perf_counter() - start
            losses, hits = losses + loss * len(batch), hits + right
        report(epoch, losses / len(x), hits / len(x))
    return updating


@contextmanager
def progress(epochs: int) -> Iterator[Report]:
    """A bar if rich is installed and somebody watches, else five lines."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        from rich.progress import Progress

        with Progress() as bar:
            task = bar.add_task("training", total=epochs)
            yield lambda epoch, loss, share: bar.update(
                task, completed=epoch, description=f"loss {loss:.4f}, training accuracy {100 * share:.1f} %"
            )
    else:
        every = -(-epochs // 5)

        def line(epoch: int, loss: float, share: float) -> None:
            if epoch % every == 0 or epoch == epochs:
                print(f"epoch {epoch}/{epochs}: loss {loss:.4f}, training accuracy {100 * share:.1f} %", flush=True)

        yield line


def run(
    epochs: int = 40,
    batch_size: int = 32,
    lr: float | None = None,
    optimizer: str = "Adam",
    seed: int = 0,
    backend: str = "auto",
) -> int:
    """Train, test, print; returns the exit status. The seed decides split, weights and batches, so the result too."""
    try:
        from sklearn.datasets import load_digits
        from threadpoolctl import threadpool_limits  # scikit-learn needs it too
    except ImportError as error:
        print(f'fastadam demo: scikit-learn is missing ({error}): pip install "fastadam[demo]"', file=sys.stderr)
        return 1
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)  # 0, 1, ..., 16 to [0, 1]
    rng = np.random.default_rng(seed)
    learn, test = split(y, rng)
    init, loss_and_grads = MLP
    params = init(rng)
    lr = LEARNING_RATES.get(optimizer) if lr is None else lr
    # One thread: there is too little to share out, and where other work takes a core, each product and each step waits
    # for the second thread. With both of two cores kept busy, two threads took 137 s and one 1.4 s (AMD EPYC).
    # A learning rate too large ends in a loss of nan, which says enough without NumPy's warnings.
    with threadpool_limits(1, "blas"), fa.num_threads(1), np.errstate(over="ignore", invalid="ignore"):
        try:
            opt = getattr(fa, optimizer)(params, backend=backend, **({} if lr is None else {"lr": lr}))
        except (RuntimeError, ValueError) as error:  # the backend, or what $FASTADAM_BACKEND says
            print(f"fastadam demo: {error}", file=sys.stderr)
            return 1
        print(f"handwritten digits: {len(learn)} to train on, {len(test)} to test on; {optimizer} on {opt.backend}")
        start = time.perf_counter()
        with progress(epochs) as report:
            updating = train(loss_and_grads, params, opt, x[learn], y[learn], epochs, batch_size, rng, report)
        seconds = time.perf_counter() - start
        _, _, hits = loss_and_grads(params, x[test], y[test])
    print(f"update: {updating:.2f} of {seconds:.2f} s, {100 * updating / seconds:.0f} % of the time")
    print(f"test accuracy {100 * hits / len(test):.1f} %")
    return 0
