"""Trains small models for python -m fastadam demo, their gradients by hand in NumPy, and says how well they learn.

models.py and texts.py hold the models, learning.py the tasks and the loop, sweep.py the methods side by side.
May import all of fastadam, and scikit-learn and Matplotlib when it runs; nothing that a user builds on belongs here.
"""

import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import fastadam as fa
from fastadam.rule import LearningRate
from fastadam.schedules import (
    Cosine,
    CosineRestarts,
    Exponential,
    InverseSqrt,
    MultiStep,
    OneCycle,
    Polynomial,
    Step,
    Warmup,
)
from fastadam.tools.console import TextTable
from fastadam.tools.demo import models, picture
from fastadam.tools.demo.learning import WAYS, Task, digits, one_thread, text, train

Report = Callable[[int, float, float], None]  # epoch, loss, share of hits


class Entry(NamedTuple):
    """Names a model of the demo, and what suits it: how many epochs, and lr where the class's own default falls
    short."""

    task: Callable[[np.random.Generator], Task]
    epochs: int
    lr: dict[str, float]


_ALIKE = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "AdaBelief", "ADOPT")

MODELS = {
    "logistic": Entry(
        partial(digits, models.LOGISTIC),
        40,
        {**dict.fromkeys(_ALIKE, 1e-2), "Lion": 3e-3, "SGD": 0.1, "RMSprop": 3e-3, "Adagrad": 0.1},
    ),
    "mlp": Entry(partial(digits, models.MLP), 40, {"SGD": 0.5, "RMSprop": 1e-3}),
    "cnn": Entry(
        partial(digits, models.CNN),
        12,
        {**dict.fromkeys(_ALIKE, 3e-3), "Lion": 1e-3, "SGD": 0.1, "RMSprop": 1e-3},
    ),
    "text": Entry(text, 2, {**dict.fromkeys(_ALIKE, 1e-2), "Lion": 1e-2, "SGD": 1.0, "Adagrad": 0.1}),
}

# A learning rate from the largest one and the number of steps.
SCHEDULES: dict[str, Callable[[float, int], LearningRate]] = {
    "constant": lambda lr, n: lr,
    "step": lambda lr, n: Step(lr, every=-(-n // 3)),
    "multi-step": lambda lr, n: MultiStep(lr, tuple(sorted({-(-n // 2), -(-3 * n // 4)}))),
    "exponential": lambda lr, n: Exponential(lr, gamma=0.01, every=n),
    "polynomial": Polynomial,
    "cosine": Cosine,
    "restarts": lambda lr, n: CosineRestarts(lr, -(-n // 7), factor=2),
    "inverse-sqrt": lambda lr, n: InverseSqrt(lr, warmup=-(-n // 10)),
    "one-cycle": OneCycle,
}


def learning_rate(schedule: str, lr: float, steps: int) -> LearningRate:
    """Return a schedule by its name, or by "warmup-" and its name: then a tenth of the steps is linear warm-up."""
    if not schedule.startswith("warmup-"):
        return SCHEDULES[schedule](lr, steps)
    warmup = -(-steps // 10)
    return Warmup(warmup, SCHEDULES[schedule.removeprefix("warmup-")](lr, max(1, steps - warmup)))


BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 60  # characters of a curve


def curve(losses: Sequence[float]) -> str:
    """Return the losses of a run as a line of blocks on a logarithmic scale, followed by the first and the last."""
    finite = [loss for loss in losses if 0 < loss < math.inf]
    if not finite:
        return ""
    low, high = math.log(min(finite)), math.log(max(finite))
    shown = [finite[k * len(finite) // min(WIDTH, len(finite))] for k in range(min(WIDTH, len(finite)))]
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    blocks = "".join(BLOCKS[round((math.log(loss) - low) * scale)] for loss in shown)
    return f"{blocks}  {finite[0]:.3g} to {finite[-1]:.3g}"


@contextmanager
def progress(epochs: int) -> Iterator[Report]:
    """Show the curve of losses above a bar if rich is installed and somebody watches, else five lines."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        from rich.console import Group
        from rich.live import Live
        from rich.progress import Progress
        from rich.text import Text

        bar, losses = Progress(), list[float]()
        task = bar.add_task("training", total=epochs)

        def draw(epoch: int, loss: float, share: float) -> None:
            losses.append(loss)
            said = f"loss {loss:.4f}, training accuracy {100 * share:.1f} %"
            bar.update(task, completed=epoch, description=said)
            live.update(Group(Text(curve(losses)), bar))

        with Live(bar) as live:
            yield draw
    else:
        every = -(-epochs // 5)

        def line(epoch: int, loss: float, share: float) -> None:
            if epoch % every == 0 or epoch == epochs:
                print(f"epoch {epoch}/{epochs}: loss {loss:.4f}, training accuracy {100 * share:.1f} %", flush=True)

        yield line


class Learned(NamedTuple):
    """Tells of a training: the seconds of its updates, of these what went into spreading gradients out; losses by
    epoch."""

    updating: float
    spreading: float
    losses: list[float]


def learn(task: Task, opt: Any, params: Any, epochs: int, batch_size: int, rng: np.random.Generator) -> Learned:
    """Train, and report each epoch."""
    updating, spreading, loss, hits, examples = 0.0, 0.0, 0.0, 0, 0
    losses = list[float]()
    with progress(epochs) as report:
        for step in train(task, params, opt, epochs, batch_size, rng):
            loss, hits, examples = loss + step.loss * step.examples, hits + step.hits, examples + step.examples
            updating, spreading = updating + step.seconds, spreading + step.spreading
            if examples == len(task.learn):
                losses.append(loss / examples)
                report(step.epoch, losses[-1], hits / examples)
                loss, hits, examples = 0.0, 0, 0
    return Learned(updating, spreading, losses)


def run(
    model: str = "mlp",
    epochs: int | None = None,
    batch_size: int = 32,
    *,
    lr: float | None = None,
    optimizer: str = "Adam",
    schedule: str = "constant",
    seed: int = 0,
    backend: str = "auto",
    out: str | None = None,
) -> int:
    """Train, test, print, draw; returns the exit status. The seed decides split, weights and batches, so the result
    too. out: the picture, fastadam-MODEL.png by default; without Matplotlib only that default is left out, aloud."""
    place = out or f"fastadam-{model}.png"
    if (blocked := picture.impossible(place)) and out is not None:
        print(f"fastadam demo: {blocked}", file=sys.stderr)
        return 1
    curves = dict[str, list[float]]()
    entry, method = MODELS[model], getattr(fa, optimizer)
    epochs = entry.epochs if epochs is None else epochs
    lr = entry.lr.get(optimizer, method.rule.lr) if lr is None else lr
    ways: list[Callable[[np.random.Generator], Task]]
    ways = [partial(text, way=way) for way in WAYS] if model == "text" else [entry.task]
    compared = TextTable("update", "ms a step", "of it to spread the gradient out", "test accuracy")
    for number, make in enumerate(ways):
        rng = np.random.default_rng(seed)
        try:
            task = make(rng)
        except ImportError as error:
            print(f'fastadam demo: scikit-learn is missing ({error}): pip install "fastadam[demo]"', file=sys.stderr)
            return 1
        params = task.init(rng)
        steps = epochs * -(-len(task.learn) // batch_size)
        with one_thread():
            try:
                opt = method(params, lr=learning_rate(schedule, lr, steps), backend=backend)
            except (RuntimeError, ValueError) as error:  # the backend, or what $FASTADAM_BACKEND says
                print(f"fastadam demo: {error}", file=sys.stderr)
                return 1
            if number == 0:
                about = f"{task.about}; {optimizer} on {opt.backend}, lr {opt.groups[0].lr}"
                print(about)
            if model == "text" and WAYS[number] != "dense" and opt.sums_first:
                compared.add(f"step_rows, {WAYS[number]}", "left out:", "", f"{optimizer} sums over whole arrays")
                continue
            if model == "text" and WAYS[number] == "exact" and opt.backend == "numpy":
                compared.add("step_rows, exact", "left out:", "", "NumPy takes minutes over the steps that rows missed")
                continue
            start = time.perf_counter()
            updating, spreading, losses = learn(task, opt, params, epochs, batch_size, rng)
            seconds = time.perf_counter() - start
            accuracy = task.accuracy(params, opt)
        curves[f"rows: {WAYS[number]}" if model == "text" else optimizer] = losses
        if model == "text":
            name = "dense: step" if WAYS[number] == "dense" else f"step_rows, {WAYS[number]}"
            spread = f"{1000 * spreading / steps:.3f}" if WAYS[number] == "dense" else ""
            compared.add(name, f"{1000 * updating / steps:.3f}", spread, f"{100 * accuracy:.1f} %")
    if model == "text":
        compared.show()
        print(f"commonest class {100 * task.majority():.1f} %")
    else:
        print(f"update: {updating:.2f} of {seconds:.2f} s, {100 * updating / seconds:.0f} % of the time")
    if blocked:
        print(f"no picture: {blocked}")
    else:
        picture.write(picture.losses(curves, about), place)
    print(f"test accuracy {100 * accuracy:.1f} %")
    return 0
