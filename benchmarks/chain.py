"""A whole training step in one pass against separate passes: `python -m fastadam.benchmarks.chain --help`.

The full chain is unscale, clip by global norm, Adam, averaged weights, a bfloat16 copy, zeroed gradients; PyTorch does
it as mul_, clip_grad_norm_, Adam(fused=True), lerp_, copy_ and zero_. Both are held against the same passes in float64
before they are timed, in turns, on tensors of the same kind of pages; on a GPU with --device cuda.
"""

import argparse
import os
import sys
from collections.abc import Callable

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's tensors on huge pages too, as NumPy's arrays are

import numpy as np

import fastadam as fa
from fastadam.benchmarks import cases, clock, files, machine, options
from fastadam.benchmarks.ours_cuda import on_gpu

SCALE, MAX_NORM, DECAY, LR = 1 / 1024, 1.0, 0.999, 1e-3
# Bytes per parameter and step. One pass: g for the norm; p, g, m, v, average read; p, m, v, average, copy, g written.
ONE_PASS = {"plain": 28, "clip": 32, "full": 4 + 20 + 16 + 2 + 4}
# Passes of its own each: g scaled 8, norm 4, g clipped 8, Adam 28, average 12, copy 6, zeros 4.
PASSES = {"plain": 28, "clip": 4 + 8 + 28, "full": 8 + 4 + 8 + 28 + 12 + 6 + 4}
TELLING = 1 << 17  # parameters
GPU_TARGETS = {"full": 1.3}  # times as fast as PyTorch's passes
NEEDS = 140  # bytes of memory per parameter, both contestants and the float64 passes together


class Ours:
    """fastadam on NumPy's arrays."""

    device, name, needs_wall = "cpu", "fastadam", False
    put: Callable = staticmethod(np.copy)
    get: Callable = staticmethod(np.asarray)

    def __init__(self, p, grads, kind):
        import ml_dtypes

        self.kind, self.p = kind, self.put(p)
        self.start, self.sets = [[self.put(g) for g in grads] for _ in range(2)]
        self.copy = self.put(np.zeros(p.shape, ml_dtypes.bfloat16))
        chores = {"clip": {"max_norm": MAX_NORM}, "plain": {}}.get(kind)
        if chores is None:
            chores = {"max_norm": MAX_NORM, "ema_decay": DECAY, "copy_to": self.copy, "zero_grads": True}
        self.opt = fa.Adam(self.p, lr=LR, **chores)

    def give(self, k):
        self.g = self.sets[k % 2]
        if self.kind == "full":
            self.g[...] = self.start[k % 2]

    def step(self):
        self.opt.step(self.g, SCALE if self.kind == "full" else 1.0)

    def results(self):
        ema = self.opt.ema if self.kind == "full" else self.p
        return self.get(self.p), self.get(ema), self.get(self.copy).astype(np.float32)


class OursCuda(Ours):
    """fastadam on CuPy's arrays."""

    device = "cuda"
    put: Callable = staticmethod(on_gpu)

    @staticmethod
    def get(array):
        return array.get()


class Torch:
    """PyTorch's own way: one call after the other."""

    device, name, needs_wall = "cpu", "torch", False

    def __init__(self, p, grads, kind):
        import torch

        def put(array):
            return torch.empty(p.size, device=self.device).copy_(torch.from_numpy(array))

        self.torch, self.kind = torch, kind
        self.p = torch.nn.Parameter(put(p))
        # On the host what the sets start from may stay where it is; a GPU would wait for it.
        self.start = [torch.from_numpy(g) if self.device == "cpu" else put(g) for g in grads]
        self.sets = [put(g) for g in grads]
        self.ema = self.p.detach().clone()
        self.copy = torch.empty(p.size, dtype=torch.bfloat16, device=self.device)
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
        return [x.detach().float().cpu().numpy() for x in (self.p, self.ema, self.copy)]


class TorchCuda(Torch):
    device = "cuda"


CONTESTANTS = {"cpu": (Ours, Torch), "cuda": (OursCuda, TorchCuda)}


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
    args = parsed(argv)
    threads, of = fa.get_num_threads(), machine.machine()
    contestants = list(CONTESTANTS[args.device])
    try:
        import torch

        torch.set_num_threads(threads)
    except Exception as error:  # not installed, or broken in a way of its own
        contestants.pop()
        print(f"torch: absent ({error}); pip install torch")
    if args.device == "cuda":
        of["gpu"] = machine.gpu()
    result = {
        "bench": "chain", "date": machine.date(), "commit": machine.commit(), "machine": of,
        "versions": machine.versions(), "threads": threads, "device": args.device, "size": args.size,
        "rounds": args.rounds, "kinds": {},
    }  # fmt: skip
    if machine.unquiet(of):
        print(machine.unquiet(of))
    print(f"{args.size:,} float32 parameters, {threads} threads, ns per parameter, median (p10-p90)", flush=True)
    if args.size < TELLING:
        print(f"below {cases.flat(TELLING)} parameters this is what calls cost, not memory")
    status = 0
    try:
        measure(contestants, args, result)
    except KeyboardInterrupt:
        print("interrupted")
        result["partial"], status = "interrupted", 130
    if args.json and result["kinds"]:
        files.write(args.json, result)
    return status or int(any("fastadam" in entry.get("wrong", {}) for entry in result["kinds"].values()))


def parsed(argv):
    parser = argparse.ArgumentParser(prog="python -m fastadam.benchmarks.chain", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=options.size, default=2**24, metavar="N", help="parameters (2^24)")
    parser.add_argument("--rounds", type=options.count, default=15, metavar="N", help="turns of each (15)")
    parser.add_argument("--device", choices=CONTESTANTS, default="cpu", help="where (cpu)")
    parser.add_argument("--json", type=options.target, metavar="FILE", help="write the result")
    args = parser.parse_args(argv)
    if args.device == "cuda" and fa.backends()["cuda"] != "ready":
        parser.error(f"argument --device: cuda: {fa.backends()['cuda']}")
    options.need(parser, args.size, NEEDS)
    return args


def measure(contestants, args, result):
    """Check and time everyone on every kind of step; print each."""
    rng = np.random.default_rng(0)
    p, *grads = [rng.standard_normal(args.size, np.float32) for _ in range(3)]
    for kind in ONE_PASS:
        everyone, entry = [one(p, grads, kind) for one in contestants], {}
        wrong = {one.name: why for one in everyone if (why := check(one, p, grads))}
        for name, why in wrong.items():
            print(f"{kind:6} {name:9} WRONG, not timed: {why}", flush=True)
        samples = clock.race([one for one in everyone if one.name not in wrong], args.rounds, rng)
        for name, times in samples.items():
            moved = (ONE_PASS if name == Ours.name else PASSES)[kind]
            low, middle, high = (x / args.size * 1e9 for x in clock.spread(times))
            entry[name] = {"ns": [low, middle, high], "bytes": moved, "gb_per_s": moved / middle}
        if len(entry) == 2:
            entry["times_as_fast"] = entry["torch"]["ns"][1] / entry["fastadam"]["ns"][1]
        result["kinds"][kind] = entry | ({"wrong": wrong} if wrong else {})
        print("\n".join(lines(kind, entry)), flush=True)


def lines(kind, entry):
    """What is printed of one kind of step."""
    for name in (Ours.name, Torch.name):
        if name in entry:
            (low, middle, high), moved = entry[name]["ns"], entry[name]["bytes"]
            speed = f"{moved} bytes, {entry[name]['gb_per_s']:.1f} GB/s"
            yield f"{kind:6} {name:9} {middle:6.3f} ({low:.3f}-{high:.3f})  {speed}"
    if "times_as_fast" in entry:
        yield f"{kind:6} {entry['times_as_fast']:.2f} times as fast"


def show(result):
    """Print a result."""
    where = result["machine"].get("gpu", {}).get("name") or f"{result['threads']} threads"
    print(f"a whole step, {result['size']:,} float32 parameters, {where}: ns per parameter, median (p10-p90)")
    for kind, entry in result["kinds"].items():
        for line in lines(kind, entry):
            print(line)
        if "gpu" in result["machine"] and kind in GPU_TARGETS and "times_as_fast" in entry:
            verdict = "met" if entry["times_as_fast"] >= GPU_TARGETS[kind] else "missed"
            print(f"{kind:6} asked ≥ {GPU_TARGETS[kind]:g} at 2^26 on an H100: {verdict}")
        for name, why in entry.get("wrong", {}).items():
            print(f"{kind:6} {name:9} WRONG: {why}")


if __name__ == "__main__":
    sys.exit(main())
