"""Compares the methods side by side on one model, several seeds of each: python -m fastadam demo --compare."""

import math
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import fastadam as fa
from fastadam.tools import composed, cover
from fastadam.tools.console import TextTable, track
from fastadam.tools.demo import MODELS, picture
from fastadam.tools.demo.learning import one_thread, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{method.__name__: (method, {}) for method in (*cover.METHODS, *composed.COMPOSED)},
    "AMSGrad": (fa.Adam, {"amsgrad": True}),
    "cautious AdamW": (fa.AdamW, {"cautious": True}),
    "momentum": (fa.SGD, {"momentum": 0.9}),
}
SWEEP = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


class Trial(NamedTuple):
    """Says how the methods are compared on one model: within minutes on two cores."""

    about: str
    epochs: int
    points: int  # of a curve
    goal: float  # the test accuracy to which steps are counted
    seeds: int  # of the sweep


TRIALS = {
    "logistic": Trial("Logistic regression on handwritten digits", 20, 60, 0.93, 3),
    "mlp": Trial("A dense network of three layers on handwritten digits", 12, 60, 0.95, 3),
    "cnn": Trial("A convolutional network on handwritten digits", 3, 20, 0.9, 1),
    "text": Trial("Logistic regression on bags of words", 1, 12, 0.8, 1),
}


class Run(NamedTuple):
    """Holds what one training gave. loss: mean of the batches since the point before; accuracy: of the held-out
    examples."""

    step: NDArray[np.int64]
    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    examples: NDArray[np.int64]  # how many each loss is the mean of
    update: float  # seconds per step, in the update alone

    @property
    def end(self) -> float:
        """Return the loss at the end: of the last tenth, because batches differ; inf where training failed."""
        last = slice(-max(1, len(self.loss) // 10), None)
        loss = float(np.average(self.loss[last], weights=self.examples[last]))
        return loss if math.isfinite(loss) else math.inf

    def steps_to(self, goal: float) -> float:
        """Return the first point at which the held-out accuracy is at least `goal`; inf if it never is."""
        reached = np.flatnonzero(self.accuracy >= goal)
        return float(self.step[reached[0]]) if reached.size else math.inf


class Training(NamedTuple):
    model: str
    method: str
    lr: float
    seed: int
    epochs: int
    batch_size: int


def ends(steps: int, most: int) -> NDArray[np.int64]:
    """Return the last step of each point of a curve: at most `most` points, of the same number of steps or one more."""
    points = max(1, min(steps, most))
    return np.arange(1, points + 1) * steps // points


def work(job: Training) -> Run:
    """Train once, in whatever process, and return what it gave."""
    method, named = METHODS[job.method]
    rng = np.random.default_rng(job.seed)
    task = MODELS[job.model].task(rng)
    params = task.init(rng)
    steps = job.epochs * -(-len(task.learn) // job.batch_size)
    # At least two batches a point, because an epoch's last may be of few examples; for every seed as many points,
    # though modules that are held out differ in size.
    most = min(TRIALS[job.model].points, job.epochs * len(task.y) // job.batch_size // 4)
    at = ends(steps, most)
    points: list[tuple[float, float, int]] = []
    with one_thread():
        opt = method(params, lr=job.lr, **named)
        loss, examples, seconds = 0.0, 0, []
        for number, step in enumerate(train(task, params, opt, job.epochs, job.batch_size, rng), start=1):
            loss, examples = loss + step.loss * step.examples, examples + step.examples
            seconds.append(step.seconds)
            if number == at[len(points)]:
                points.append((loss / examples, task.accuracy(params, opt), examples))
                loss, examples = 0.0, 0
    losses, accuracies, counts = map(np.array, zip(*points, strict=True))
    return Run(at, losses, accuracies, counts, float(np.median(seconds)))


class Row(NamedTuple):
    """Holds one method at one learning rate: a run per seed."""

    lr: float
    runs: list[Run]

    def accuracy(self) -> str:
        shares = [100 * run.accuracy[-1] for run in self.runs]
        return f"{np.mean(shares):.1f} ± {np.std(shares):.1f} %"

    def steps_to(self, goal: float) -> str:
        steps = float(np.median([run.steps_to(goal) for run in self.runs]))
        return f"{steps:.0f}" if math.isfinite(steps) else "never"

    def update(self) -> str:
        return f"{1e6 * np.median([run.update for run in self.runs]):.0f} µs"


def measure(model: str, epochs: int, batch_size: int, seeds: int) -> dict[str, tuple[Row, Row]]:
    """Run every method at its usual default and at the best of SWEEP, where the training loss ends lowest on average.

    The held-out examples have no say in that choice.
    """
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        run_of: dict[Training, Run] = {}

        def do(jobs: Sequence[Training], what: str) -> None:
            new = [job for job in dict.fromkeys(jobs) if job not in run_of]
            futures = [pool.submit(work, job) for job in new]
            for job, future in zip(new, track(futures, what), strict=True):
                run_of[job] = future.result()

        def job(method: str, lr: float, seed: int) -> Training:
            return Training(model, method, lr, seed, epochs, batch_size)

        default = {name: float(method.rule().lr) for name, (method, _) in METHODS.items()}  # type: ignore[attr-defined]
        few = range(min(seeds, TRIALS[model].seeds))
        do([job(name, lr, seed) for name in METHODS for lr in SWEEP for seed in few], "sweep of learning rates")
        best = {
            name: min(SWEEP, key=lambda lr: np.mean([run_of[job(name, lr, seed)].end for seed in few]))
            for name in METHODS
        }
        do(
            [job(name, lr[name], seed) for name in METHODS for lr in (default, best) for seed in range(seeds)],
            "default and best",
        )

    def row(method: str, lr: float) -> Row:
        return Row(lr, [run_of[job(method, lr, seed)] for seed in range(seeds)])

    return {name: (row(name, default[name]), row(name, best[name])) for name in METHODS}


def show(compared: dict[str, tuple[Row, Row]], goal: float) -> None:
    """Print one line a method: its rate, what it reaches and how soon."""
    to = f"to {100 * goal:.0f} %"
    table = TextTable("method", "usual lr", "test accuracy", to, "best lr", "test accuracy", to, "update")
    edges = min(SWEEP), max(SWEEP)
    for name, (default, best) in compared.items():
        cells = [(f"{row.lr:g}", row.accuracy(), row.steps_to(goal)) for row in (default, best)]
        lr = cells[1][0] + "*" * (best.lr in edges)
        table.add(name, *cells[0], lr, *cells[1][1:], best.update())
    table.show()
    if any(best.lr in edges for _, best in compared.values()):
        print(f"* the edge of the sweep, {edges[0]:g} to {edges[1]:g}: a better one may lie beyond")


def draw(compared: dict[str, tuple[Row, Row]], about: str) -> "Figure":
    """Draw a panel for each method: the loss at both learning rates, and Adam's for comparison."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    high, wide = -(-len(compared) // 4), min(len(compared), 4)
    figure = Figure(figsize=(3 * wide, 2.6 * high), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(high, wide, sharex=True, sharey=True, squeeze=False)
    reference = compared["Adam"][1]
    start = max(float(row.runs[0].loss[0]) for row in compared["Adam"])
    for ax, (name, rows) in zip(axes.flat, compared.items(), strict=False):
        ax.set_title(name)
        ax.plot(
            reference.runs[0].step, np.median([run.loss for run in reference.runs], axis=0), color="0.6", lw=1, ls="--"
        )
        for row, color, what in zip(rows, ("tab:blue", "tab:orange"), ("usual", "best"), strict=True):
            losses = np.array([run.loss for run in row.runs])
            ax.fill_between(row.runs[0].step, losses.min(axis=0), losses.max(axis=0), color=color, alpha=0.25, lw=0)
            ax.plot(row.runs[0].step, np.median(losses, axis=0), color=color, label=f"{what} lr {row.lr:g}")
        ax.legend(
            loc="lower center", ncols=2, fontsize="small", frameon=False, handlelength=1, columnspacing=1
        )  # no loss gets down to there
        ax.grid(alpha=0.3)
        ax.set_xscale("log")
        # Over little more than a decade its powers alone are too few, and Matplotlib then labels every minor tick.
        few = reference.runs[0].step[-1] < 25 * reference.runs[0].step[0]
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1, 3)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_ylim(0, 1.35 * start)
    for k in range(len(compared), high * wide):  # no panel: the one above has the numbers
        axes.flat[k].set_visible(False)
        if k >= wide:
            axes.flat[k - wide].tick_params(labelbottom=True)
    figure.supxlabel("steps (logarithmic)")
    figure.supylabel("training loss: mean cross-entropy, nats")
    seeds = f"median and range of {len(reference.runs)} seeds"
    figure.suptitle(f"{about}\n{seeds}; dashed: Adam at its best learning rate")
    return figure


def run(model: str, epochs: int | None, batch_size: int, seeds: int = 5, out: str | None = None) -> int:
    """Compare, print the table, draw; returns the exit status."""
    trial, out = TRIALS[model], out or f"fastadam-{model}.png"
    why = picture.impossible(out)
    if model != "text" and find_spec("sklearn") is None:
        why = 'sklearn is missing: pip install "fastadam[demo]"'
    if why:
        print(f"fastadam demo: {why}", file=sys.stderr)
        return 1
    epochs = trial.epochs if epochs is None else epochs
    compared = measure(model, epochs, batch_size, seeds)
    show(compared, trial.goal)
    picture.write(draw(compared, f"{trial.about}, batches of {batch_size}"), out)
    print(f"test accuracy {100 * np.mean([run.accuracy[-1] for run in compared['Adam'][1].runs]):.1f} %")
    return 0
