"""Studies what moments of few bytes cost in fidelity: `python -m fastadam.benchmarks.fidelity --help`.

Adam in float32 but for what its moments are stored in, at several β2: on made-up gradients, how far parameters end from
float32's; in training, the final loss over several seeds. Formats are the models of codings.py, or, with --library,
the library itself where it has them.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np

import fastadam as fa

from . import bench, fidelity_report, files, options, problems
from .codings import EVERY, FORMATS
from .problems import KINDS, PROBLEMS, RATES

f32 = np.float32
BETAS2 = (0.95, 0.99, 0.999, 0.9999)
BETA1, EPS = 0.9, 1e-8
STEPS, LR = 3000, 1e-3  # of the made-up gradients
# For the processes that do the work: one thread each, and arrays from kept memory (anew each time: 4 times as slow).
WORKER = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
WORKER |= dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**30))


class Modelled:
    """Is Adam (Kingma & Ba 2015) in float32; between steps its moments are what their codings make of them."""

    def __init__(self, p, shapes, name, beta2, lr, seed):
        self.p, self.format, self.beta2, self.lr, self.t = p, EVERY[name], beta2, lr, 0
        self.m, self.v, self.rng = np.zeros_like(p), np.zeros_like(p), np.random.default_rng([seed, 8])

    def step(self, g):
        """Take one step; return what was taken from p."""
        self.t += 1
        m = f32(BETA1) * self.m + f32(1 - BETA1) * g
        v = f32(self.beta2) * self.v + f32(1 - self.beta2) * (g * g)
        step_size, rsqrt_bias2 = self.lr / (1 - BETA1**self.t), (1 - self.beta2**self.t) ** -0.5
        change = f32(step_size) * m / (np.sqrt(v) * f32(rsqrt_bias2) + f32(EPS))
        self.p -= change
        self.m, self.v = self.format.m(m, self.rng), self.format.v(v, self.rng)
        return change


class Library:
    """Is the same by the library."""

    def __init__(self, p, shapes, name, beta2, lr, seed):
        self.p, self.shapes = p, shapes
        moments = {"moments": EVERY[name].library, "seed": seed} if name != "float32" else {}
        self.opt = fa.Adam(problems.views(p, shapes), lr=lr, betas=(BETA1, beta2), eps=EPS, **moments)

    def step(self, g):
        before = self.p.copy()
        self.opt.step(problems.views(g, self.shapes))
        return before - self.p

    @property
    def v(self):
        flat = problems.room(self.shapes)
        for view, moments in zip(problems.views(flat, self.shapes), self.opt.moments().values(), strict=True):
            view[:] = moments["v"]
        return flat


def optimizer(library, p, shapes, name, beta2, lr, seed):
    """Return the library's Adam in a format, where it is asked for and has it, or else the model."""
    kind = Library if library and EVERY[name].library else Modelled
    return kind(p, shapes, name, beta2, lr, seed)


def fidelity(job):
    """Run every format on the same made-up gradients.

    Of each kind: distance, from float32's parameters over how far those came; root, the 1 %, 50 % and 99 % quantiles of
    √(v/float32's v) where that is above eps²; step, the longest of any parameter over lr.
    """
    beta2, names, library, steps = job
    shapes = [(problems.SIZE,)] * len(KINDS)
    everyone = {name: optimizer(library, problems.room(shapes), shapes, name, beta2, LR, 0) for name in names}
    longest = {name: np.zeros(len(KINDS)) for name in names}
    with np.errstate(all="ignore"):
        for g in problems.synthetic(steps, seed=1):
            for name, opt in everyone.items():
                longest[name] = np.maximum(longest[name], np.abs(opt.step(g)).reshape(len(KINDS), -1).max(axis=1) / LR)
    p, v = (a.reshape(len(KINDS), -1).astype(np.float64) for a in (everyone["float32"].p, everyone["float32"].v))
    by_kind = {}
    for name, opt in everyone.items():
        their_p, their_v = (a.reshape(len(KINDS), -1) for a in (opt.p, opt.v))
        for k, kind in enumerate(KINDS):
            live = v[k] > EPS**2
            by_kind.setdefault(kind, {})[name] = {
                "distance": float(np.linalg.norm(their_p[k] - p[k]) / np.linalg.norm(p[k])),
                "root": np.quantile(np.sqrt(their_v[k][live] / v[k][live]), [0.01, 0.5, 0.99]).tolist(),
                "step": float(longest[name][k]),
            }
    return by_kind


def train(job):
    """Return the final losses of one training, of what was learned from and what was held out; None if not finite."""
    problem, name, beta2, library, seed = job
    task = PROBLEMS[problem](seed)
    opt = optimizer(library, task.p, task.shapes, name, beta2, RATES[problem], seed)
    with np.errstate(all="ignore"):  # a format that diverges says so by its loss
        for _ in task.gradients():
            opt.step(task.g)
        return [loss if np.isfinite(loss) else None for loss in task.losses()]


def measure(args):
    """Run the whole study: every format on made-up gradients and in training, over processes."""
    wanted = [name for name in PROBLEMS if name != "text" or find_spec("torch")]
    absent = {} if "text" in wanted else {"text": "torch is not installed"}
    result = bench.head("fidelity", "Adam", "float32", args.jobs) | {
        "library": args.library, "seeds": args.seeds, "steps": args.steps, "absent": absent,
        "formats": {name: EVERY[name].bytes for name in EVERY}, "synthetic": {}, "training": {},
    }  # fmt: skip
    jobs = [
        (problem, name, beta2, args.library, seed)
        for problem in wanted
        for beta2 in BETAS2
        for name in (EVERY if problem == "mlp" else FORMATS)
        for seed in range(args.seeds)
    ]
    os.environ.update(WORKER)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        invented = [pool.submit(fidelity, (beta2, list(EVERY), args.library, args.steps)) for beta2 in BETAS2]
        trained = pool.map(train, jobs, chunksize=2)
        for beta2, future in zip(BETAS2, invented, strict=True):
            result["synthetic"][str(beta2)] = future.result()
            print(f"made-up gradients, β2 {beta2}: {result['synthetic'][str(beta2)]}", flush=True)
        for (problem, name, beta2, _, seed), losses in zip(jobs, trained, strict=True):
            entry = result["training"].setdefault(problem, {}).setdefault(str(beta2), {})
            entry.setdefault(name, []).append(losses)
            print(f"{problem}, β2 {beta2}, {name}, seed {seed}: {losses}", flush=True)
    return result


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m fastadam.benchmarks.fidelity", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=options.count, default=5, help="of every training (5)")
    parser.add_argument("--steps", type=options.count, default=STEPS, help=f"of the made-up gradients ({STEPS})")
    parser.add_argument("--jobs", type=options.count, default=fa.get_num_threads(), help="processes (as many as cores)")
    parser.add_argument("--library", action="store_true", help="the library's formats by the library, not their models")
    parser.add_argument("--json", type=options.target, metavar="FILE.json", help="write the result")
    parser.add_argument("--read", type=Path, metavar="FILE.json", help="take this result, run nothing")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the result (needs matplotlib)")
    args = parser.parse_args(argv)
    if args.seeds < 2:
        parser.error("argument --seeds: 1, expected at least 2: one has no spread")
    try:
        result = files.read(args.read, "fidelity") if args.read else measure(args)
    except files.Unusable as unusable:
        print(f"fidelity: {unusable}", file=sys.stderr)
        return 2
    if args.json:
        files.write(args.json, result)
    print("\n".join(fidelity_report.section(result)))
    if args.plot:
        fidelity_report.draw(result, args.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
