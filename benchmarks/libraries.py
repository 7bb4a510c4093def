"""Times the wings for scikit-learn and Keras against these libraries: `python -m fastadam.benchmarks.libraries`.

Both train the same network from the same start, and take turns in random order. A step is the optimizer's alone; an
epoch, or a step of fit, has the network's own arithmetic in it, which nobody here makes faster.
"""

import argparse
import os
import random
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

import fastadam as fa
from fastadam.tools.console import TextTable

from . import files, machine, markdown
from .summary import duration
from .targets import LIBRARIES

LAYERS = 784, 512, 512, 10
WIDE = 1024, 2048, 1024  # 4.2 million parameters


def seconds_in_turns(calls, rounds):
    """Return {name: seconds of each round} of functions that take turns; two rounds before them warm up."""
    seconds = {name: [] for name in calls}
    for k in range(rounds + 2):
        for name in random.sample(sorted(calls), len(calls)):
            start = time.perf_counter()
            calls[name]()
            if k >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def of_scikit_learn(dtype, rounds):
    """Return the cases of scikit-learn: a step of its optimizer, and an epoch of 2,000 rows in batches of 200."""
    from sklearn import neural_network
    from sklearn.neural_network._stochastic_optimizers import AdamOptimizer

    from fastadam.sklearn import MLPClassifier
    from fastadam.sklearn.stepped import SteppedAdam

    rng = np.random.default_rng(0)
    shapes = [*pairwise(LAYERS), *((n,) for n in LAYERS[1:])]
    grads = [rng.standard_normal(shape).astype(dtype) for shape in shapes]

    def stepping(kind):
        params = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
        optimizer = kind(params)
        return lambda: optimizer.update_params(params, grads)

    x, y = rng.standard_normal((2_000, LAYERS[0])).astype(dtype), rng.integers(0, LAYERS[-1], 2_000)

    def training(kind):
        model = kind(hidden_layer_sizes=LAYERS[1:-1], random_state=0)
        return lambda: model.partial_fit(x, y, classes=np.arange(LAYERS[-1]))

    name = f"scikit-learn {'-'.join(map(str, LAYERS))} {np.dtype(dtype)}"
    steps = {"fastadam.sklearn": stepping(SteppedAdam), "scikit-learn": stepping(AdamOptimizer)}
    epochs = {"fastadam.sklearn": training(MLPClassifier), "scikit-learn": training(neural_network.MLPClassifier)}
    return {f"{name}, step": seconds_in_turns(steps, rounds), f"{name}, epoch": seconds_in_turns(epochs, rounds)}


def of_keras(rounds):
    """Return the case of Keras on the backend that $KERAS_BACKEND names: a step of fit on a batch of 32."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    import fastadam.keras

    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((32, n)).astype(np.float32) for n in (WIDE[0], WIDE[-1]))

    def training(optimizer):
        dense = [keras.layers.Dense(n, activation="relu") for n in WIDE[1:]]
        model = keras.Sequential([keras.layers.Input((WIDE[0],)), *dense])
        model.compile(optimizer=optimizer, loss="mse")
        return lambda: model.train_on_batch(x, y)

    calls = {"fastadam.keras": training(fastadam.keras.Adam()), "Keras": training(keras.optimizers.Adam())}
    return {f"Keras on {keras.config.backend()}, 4.2 million parameters, step of fit": seconds_in_turns(calls, rounds)}


def rows(cases):
    """Yield for each case its name, both medians, how many times as fast we are, the spread of that, what is asked."""
    for case, seconds in cases.items():
        of_fastadam, of_library = seconds.values()
        ratios = sorted(b / a for a, b in zip(of_fastadam, of_library, strict=True))
        low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
        median, asked = statistics.median(ratios), LIBRARIES[case.rpartition(", ")[2]]
        yield [
            case, duration(statistics.median(of_fastadam)), duration(statistics.median(of_library)),
            f"{median:.2f} ({low:.2f}–{high:.2f})", f"≥ {asked:g}", "met" if median >= asked else "**missed**",
        ]  # fmt: skip


HEAD = "", "fastadam", "the library", "times as fast", "asked", ""


def section(result):
    """Yield the lines of benchmarks/README.md."""
    yield "Medians of both in turns, and in brackets the 10th and 90th percentile of the ratio. An epoch and a step of"
    yield "fit have the network's own arithmetic in them."
    yield ""
    yield from markdown.table(HEAD, rows(result["cases"]))
    yield ""
    yield markdown.taken_on(result, "scikit-learn", "keras", "torch")


def show(cases):
    """Print a table of medians, and of how many times as fast as the library each wing is."""
    table = TextTable(*HEAD)
    for row in rows(cases):
        table.add(*row)
    table.show()


def main(argv=None):
    """Measure, print a table, and write the result where that is asked."""
    parser = argparse.ArgumentParser(prog="python -m fastadam.benchmarks.libraries", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    args = parser.parse_args(argv)
    of, cases, absent = machine.machine(), {}, {}
    if machine.unquiet(of):
        print(machine.unquiet(of))
    measures = {
        "scikit-learn float32": lambda: of_scikit_learn(np.float32, args.rounds),
        "scikit-learn float64": lambda: of_scikit_learn(np.float64, args.rounds),
        "Keras": lambda: of_keras(args.rounds),
    }
    for name, measure in measures.items():
        try:
            cases |= measure()
        except ImportError as error:
            absent[name] = str(error)
    show(cases)
    for name, why in absent.items():
        print(f"absent: {name}: {why}")
    if args.json:
        result = {
            "bench": "libraries", "date": machine.date(), "commit": machine.commit(), "machine": of,
            "versions": machine.versions(), "threads": fa.get_num_threads(), "rounds": args.rounds, "absent": absent,
            "cases": cases,
        }  # fmt: skip
        files.write(args.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
