"""A whole training step in one pass against separate passes: `python -m fastadam.benchmarks.chain --help`.

The full chain is unscale, clip by global norm, Adam, averaged weights, a bfloat16 copy, zeroed gradients; PyTorch does
it as mul_, clip_grad_norm_, Adam(fused=True), lerp_, copy_ and zero_. Both are held against the same passes in float64
before they are timed, in turns, on tensors of the same kind of pages.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's tensors on huge pages too, as NumPy's arrays are

import numpy as np

import fastadam as fa
from fastadam.benchmarks import clock, machine

SCALE, MAX_NORM, DECAY, LR = 1 / 1024, 1.0, 0.999, 1e-3
# Bytes per parameter and step. One pass: g for the norm; p, g, m, v, average read; p, m, v, average, copy, g written.
ONE_PASS = {"plain": 28, "clip": 32, "full": 4 + 20 + 16 + 2 + 4}
# Passes of its own each: g scaled 8, norm 4, g clipped 8, Adam 28, average 12, copy 6, zeros 4.
PASSES = {"plain": 28, "clip": 4 + 8 + 28, "full": 8 + 4 + 8 + 28 + 12 + 6 + 4}


class Ours:
    """fastadam on NumPy's arrays."""

    device, name = "cpu", "fastadam"

    def __init__(self, p, grads, kind):
        import ml_dtypes

        self.kind, self.p, self.sets = kind, p.copy(), [g.copy() for g in grads]
        self.start = grads
        self.copy = np.zeros(p.shape, ml_dtypes.bfloat16)
        chores = {"clip": {"max_norm": MAX_NORM}, "plain": {}}.get(kind)
        if chores is None:
            chores = {"max_norm": MAX_NORM, "ema_decay": DECAY, "copy_to": self.copy, "zero_grads": True}
        self.opt = fa.Adam(self.p, lr=LR, **chores)

    def give(self, k):
        self.g = self.sets[k % 2]
        if self.kind == "full":
            self.g[:] = self.start[k % 2]

    def step(self):
        self.opt.step(self.g, SCALE if self.kind == "full" else 1.0)

    def results(self):
        return self.p, self.opt.ema, self.copy.astype(np.float32)


class Torch:
    """PyTorch's own way: one call after the other."""

    device, name = "cpu", "torch"

    def __init__(self, p, grads, kind):
        import torch

        self.torch, self.kind = torch, kind
        self.p = torch.nn.Parameter(torch.empty(p.size).copy_(torch.from_numpy(p)))
        self.start = [torch.from_numpy(g) for g in grads]
        self.sets = [torch.empty(p.size).copy_(g) for g in self.start]
        self.ema = self.p.detach().clone()
        self.copy = torch.empty(p.size, dtype=torch.bfloat16)
        self.opt = torch.optim.Adam([self.p], lr=LR, fused=True)

    def give(self, k):
        self.p.grad = self.sets[k % 2].copy_(self.start[k % 2])

    def step(self):
        if self.kind == "full":
            self.p.grad.mul_(SCALE)
        if self.kind != "plain":
            self.torch.nn.utils.clip_grad_norm_([self.p], MAX_NORM)
        self.opt.step()
        if self.kind == "full":
            with self.torch.no_grad():
                self.ema.lerp_(self.p, 1 - DECAY)
                self.copy.copy_(self.p)
                self.p.grad.zero_()

    def results(self):
        return self.p.detach().numpy(), self.ema.numpy(), self.copy.float().numpy()


def truth(p, grads, kind):
    """Two steps as separate passes in float64: p and its average."""
    p, m, v = p.astype(np.float64), np.zeros(p.size), np.zeros(p.size)
    ema = p.copy()
    for t in (1, 2):
        g = grads[t - 1].astype(np.float64)
        if kind == "full":
            g *= SCALE
        if kind != "plain":
            g *= min(1.0, MAX_NORM / np.sqrt((g * g).sum()))
        m += (1 - 0.9) * (g - m)
        v += (1 - 0.999) * (g * g - v)
        p -= LR * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        ema += (1 - DECAY) * (p - ema)
    return p, ema


def check(one, p, grads):
    """What is wrong with a contestant after two steps, or None. A step moves p by LR, whatever the gradient's scale."""
    for k in (0, 1):
        one.give(k)
        one.step()
    exact, ema = truth(p, grads, one.kind)
    got, averaged, copy = one.results()
    worst = float(np.abs(got - exact).max())
    if not worst <= 1e-2 * LR:
        return f"p is off by {worst:.2g}"
    if one.kind == "full":
        if not float(np.abs(averaged - ema).max()) <= 1e-2 * LR:
            return "the average is off"
        if not (np.abs(copy - got) <= np.abs(got) * 2.0**-8).all():
            return "the copy is off"
    return None


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m fastadam.benchmarks.chain", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2**24, help="parameters (2^24)")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each (15)")
    parser.add_argument("--json", type=Path, help="write the result")
    args = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    threads = fa.get_num_threads()
    contestants = [Ours]
    try:
        import torch

        torch.set_num_threads(threads)
        contestants.append(Torch)
    except ImportError as error:
        print(f"torch: absent ({error}); pip install torch")
    p = rng.standard_normal(args.size, np.float32)
    grads = [rng.standard_normal(args.size, np.float32) for _ in range(2)]
    result = {
        "bench": "chain", "date": machine.date(), "commit": machine.commit(), "machine": machine.machine(),
        "versions": machine.versions(), "threads": threads, "size": args.size, "kinds": {},
    }  # fmt: skip
    print(f"{args.size:,} float32 parameters, {threads} threads, ns per parameter, median (p10-p90)")
    for kind in ONE_PASS:
        everyone, entry = [one(p, grads, kind) for one in contestants], {}
        wrong = {one.name: why for one in everyone if (why := check(one, p, grads))}
        samples = clock.race([one for one in everyone if one.name not in wrong], args.rounds, rng)
        for one in everyone:
            moved = (ONE_PASS if isinstance(one, Ours) else PASSES)[kind]
            if one.name in wrong:
                print(f"{kind:6} {one.name:9} WRONG, not timed: {wrong[one.name]}")
                continue
            low, middle, high = (x / args.size * 1e9 for x in clock.spread(samples[one.name]))
            entry[one.name] = {"ns": [low, middle, high], "bytes": moved, "gb_per_s": moved / middle}
            print(
                f"{kind:6} {one.name:9} {middle:6.3f} ({low:.3f}-{high:.3f})  {moved} bytes, {moved / middle:.1f} GB/s"
            )
        if len(entry) == 2:
            ratio = entry["torch"]["ns"][1] / entry["fastadam"]["ns"][1]
            entry["times_as_fast"] = ratio
            print(f"{kind:6} {ratio:.2f} times as fast")
        result["kinds"][kind] = entry | ({"wrong": wrong} if wrong else {})
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
