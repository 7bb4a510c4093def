"""Says what is learned, and has the loop that learns it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import fastadam as fa
from fastadam.tools.demo import models, texts

Array = NDArray[Any]


@dataclass(frozen=True)
class Task:
    """Holds a model, its data, and which of them are to be learned from.

    loss_and_grads(params, x, y) -> loss, grads, hits: grads as spread takes them; hits: how many are right.
    prepare(opt, x): what comes before parameters are read for examples x. spread(grads): grads as update takes them.
    """

    about: str
    init: Callable[[np.random.Generator], Any]
    loss_and_grads: Callable[[Any, Any, Array], tuple[float, Any, int]]
    x: Any
    y: Array
    learn: Array
    test: Array
    rows: int = 0  # of params["embedding"], where there is one
    update: Callable[[Any, Any], None] = lambda opt, grads: opt.step(grads)
    prepare: Callable[[Any, Any], None] = lambda opt, x: None
    spread: Callable[[Any], Any] = lambda grads: grads

    def accuracy(self, params: Any, opt: Any) -> float:
        """Return the share of the held-out examples that the parameters get right."""
        self.prepare(opt, self.x[self.test])
        return self.loss_and_grads(params, self.x[self.test], self.y[self.test])[2] / len(self.test)

    def majority(self) -> float:
        """Return the accuracy of always naming the commonest class."""
        return float(np.bincount(self.y[self.test]).max() / len(self.test))


def split(y: Array, rng: np.random.Generator, share: float = 0.25) -> tuple[Array, Array]:
    """Return indices to train on and to test on: of each class, at random, that share is for the test."""
    test = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        test[members[: round(share * len(members))]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


def digits(model: models.Model, rng: np.random.Generator) -> Task:
    """Return handwritten digits, 8x8 pixels of 0 to 1. Raises ImportError without scikit-learn, which has them."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    learn, test = split(y, rng)
    return Task(
        f"handwritten digits: {len(learn)} to train on, {len(test)} to test on",
        partial(models.init, model),
        partial(models.loss_and_grads, model),
        (x / 16).astype(np.float32),
        y,
        learn,
        test,
    )


def text(rng: np.random.Generator, way: str = "lazy") -> Task:
    """Return passages of the standard library, a quarter of its modules held out. way: one of WAYS."""
    kinds = np.array([passage.kind for passage in texts.passages()])
    modules = texts.passages()[-1].file + 1
    bags, rows, held = texts.bags_without(frozenset(rng.permutation(modules)[: modules // 4].tolist()))
    learn, test = np.flatnonzero(~held), np.flatnonzero(held)

    def init(rng: np.random.Generator) -> Any:
        shape = rows, len(texts.KINDS)
        return {"embedding": np.zeros(shape, np.float32), "bias": np.zeros(shape[1], np.float32)}

    def update(opt: Any, grads: Any) -> None:
        if way == "dense":
            opt.step(grads)
        elif opt.sums_first:  # and so over all rows
            opt.step(texts.densely(grads, rows))
        else:
            opt.step_rows(grads, semantics=way)

    def prepare(opt: Any, bags: list[Array]) -> None:
        if way == "exact" and not opt.sums_first:
            opt.catch_up({"embedding": np.concatenate(bags)})

    def spread(grads: Any) -> Any:
        return texts.densely(grads, rows) if way == "dense" else grads

    about = (
        f"{modules} modules of the standard library: {len(learn)} passages to train on, {len(test)} of other modules"
    )
    about += f" to test on; {rows} rows"
    return Task(about, init, texts.loss_and_grads, bags, kinds, learn, test, rows, update, prepare, spread)


WAYS = "lazy", "exact", "dense"  # Optimizer.step_rows with either semantics, and Optimizer.step


class Progress(NamedTuple):
    epoch: int  # from 1
    examples: int
    loss: float
    hits: int
    seconds: float  # of the update, loss and gradient left out
    spreading: float  # of these, what spreading the gradient out took: it comes as rows, and the dense step wants all


def train(
    task: Task, params: Any, opt: Any, epochs: int, batch_size: int, rng: np.random.Generator
) -> Iterator[Progress]:
    """Train params in place, a step at a time."""
    for epoch in range(1, epochs + 1):
        order = rng.permutation(len(task.learn))
        for first in range(0, len(order), batch_size):
            batch = task.learn[order[first : first + batch_size]]
            x, start = task.x[batch], time.perf_counter()
            task.prepare(opt, x)
            seconds = time.perf_counter() - start
            loss, grads, hits = task.loss_and_grads(params, x, task.y[batch])
            start = time.perf_counter()
            grads = task.spread(grads)
            spreading = time.perf_counter() - start
            task.update(opt, grads)
            yield Progress(epoch, len(batch), loss, hits, seconds + time.perf_counter() - start, spreading)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let everything run on one thread: there is too little to share out, and where other work takes a core, all wait
    for the second thread.

    With both of two cores kept busy, two threads took 137 s and one 1.4 s (AMD EPYC). A learning rate too large ends in
    a loss of nan, which says enough without NumPy's warnings.
    """
    try:
        from threadpoolctl import threadpool_limits  # scikit-learn needs it too
    except ImportError:
        blas: Any = nullcontext()
    else:
        blas = threadpool_limits(1, "blas")
    with blas, fa.num_threads(1), np.errstate(over="ignore", invalid="ignore"):
        yield
