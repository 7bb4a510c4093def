"""fastadam.torch against torch.optim: `python -m fastadam.benchmarks.pytorch --help`.

First whole calls of opt.step(), AdamW against AdamW(fused=True), in turns, on the workloads of cases.py, each checked
against the other before it is timed; with max_norm against clip_grad_norm_ and the fused step. Then a transformer and a
CNN, both small, learn handwritten digits by either: their losses, and what share of a training step is opt.step().
"""

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

import fastadam as fa
import fastadam.torch as fat
from fastadam.benchmarks import cases, clock, files, machine

MAX_NORM, CLIPPED = 1.0, "2^24 max_norm"
WORKLOADS = ("mlp", "2^20", "resnet50", CLIPPED, "2^26")
TARGETS = {"mlp": 3.0, "2^20": 1.3, "resnet50": 1.2, CLIPPED: 1.3, "2^26": 1.0}  # what this was built for


class Contestant:
    """One optimizer over parameters of its own; gradients are new tensors at every call, as backward makes them."""

    device = "cpu"

    def __init__(self, name, params, sets, make, clip=False):
        self.name, self.params, self.sets = name, [torch.nn.Parameter(p.clone()) for p in params], sets
        self.opt, self.clip = make(self.params), clip

    def give(self, k):
        for p, g in zip(self.params, self.sets[k % 2], strict=True):
            p.grad = g.detach()

    def step(self):
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.params, MAX_NORM)
        self.opt.step()


def contestants(workload):
    """torch's and ours, over the same numbers."""
    torch.manual_seed(0)
    clipped = workload == CLIPPED
    shapes = cases.shapes(workload.partition(" ")[0])
    params = [torch.randn(shape) for shape in shapes]
    sets = [[torch.randn(shape) for shape in shapes] for _ in range(2)]
    others = [[g.clone() for g in own] for own in sets]  # clip_grad_norm_ writes into them
    return [
        Contestant("torch", params, others, lambda p: torch.optim.AdamW(p, fused=True), clipped),
        Contestant("fastadam", params, sets, lambda p: fat.AdamW(p, max_norm=MAX_NORM if clipped else None)),
    ]


def check(both):
    """Two steps by both end in the same place: 1e-3 of what one step moves a parameter."""
    for one in both:
        for k in (0, 1):
            one.give(k)
            one.step()
    far = max(float((p - q).detach().abs().max()) for p, q in zip(*(one.params for one in both), strict=True))
    if not far <= 1e-3 * 1e-3:
        raise AssertionError(f"the results differ by {far:.3g}")


def race(workload, rounds, rng):
    both = contestants(workload)
    check(both)
    samples = clock.race(both, rounds, rng)
    (low, torchs, high), (our_low, ours, our_high) = (clock.spread(samples[one.name]) for one in both)
    print(
        f"{workload:14} torch {torchs * 1e6:10.1f} us ({low * 1e6:.1f}-{high * 1e6:.1f})   "
        f"fastadam {ours * 1e6:10.1f} us ({our_low * 1e6:.1f}-{our_high * 1e6:.1f})   "
        f"{torchs / ours:.2f} times as fast, wanted {TARGETS[workload]}",
        flush=True,
    )
    return {
        "torch_us": [x * 1e6 for x in (low, torchs, high)], "fastadam_us": [x * 1e6 for x in (our_low, ours, our_high)],
        "times_as_fast": torchs / ours, "wanted": TARGETS[workload],
    }  # fmt: skip


class Transformer(torch.nn.Module):
    """Two encoder layers over the eight rows of an image."""

    def __init__(self):
        super().__init__()
        self.rows = torch.nn.Linear(8, 128)
        self.places = torch.nn.Parameter(torch.zeros(8, 128))
        layer = torch.nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
        self.layers, self.head = torch.nn.TransformerEncoder(layer, 2), torch.nn.Linear(128, 10)

    def forward(self, x):
        return self.head(self.layers(self.rows(x) + self.places).mean(1))


class CNN(torch.nn.Sequential):
    """Two convolutions and two dense layers."""

    def __init__(self):
        super().__init__(
            torch.nn.Unflatten(1, (1, 8)), torch.nn.Conv2d(1, 32, 3, padding=1), torch.nn.ReLU(),
            torch.nn.Conv2d(32, 64, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(),
            torch.nn.Linear(4096, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10),
        )  # fmt: skip


def train(model, make, images, digits, steps):
    """(losses, seconds in opt.step(), seconds in all), over batches of 64, the first tenth not timed."""
    torch.manual_seed(0)
    net = model()
    opt = make(net.parameters())
    order = torch.Generator().manual_seed(1)
    losses, stepping, begin = [], 0.0, 0.0
    for t in range(steps):
        if t == steps // 10:
            stepping, begin = 0.0, time.perf_counter()
        pick = torch.randint(0, len(images), (64,), generator=order)
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(images[pick]), digits[pick])
        loss.backward()
        before = time.perf_counter()
        opt.step()
        stepping += time.perf_counter() - before
        losses.append(loss.item())
    return losses, stepping, time.perf_counter() - begin


def examples(steps):
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)
    digits = torch.tensor(data.target)
    fused, loop = (partial(torch.optim.AdamW, lr=1e-3, fused=on, foreach=False) for on in (True, False))
    ours, found = partial(fat.AdamW, lr=1e-3), {}
    for model in (Transformer, CNN):
        entry = {"parameters": sum(p.numel() for p in model().parameters())}
        runs = {"torch": [], "fastadam": []}
        for _ in range(3):  # in turns; the median of the shares counts
            for name, make in (("torch", fused), ("fastadam", ours)):
                runs[name].append(train(model, make, images, digits, steps))
        for name, own in runs.items():
            losses = own[0][0]
            share, us = (float(np.median(x)) for x in zip(*((s / a, 1e6 * s / steps) for _, s, a in own), strict=True))
            entry[name] = {"losses": losses[:: max(1, steps // 50)], "last": float(np.mean(losses[-20:]))}
            entry[name] |= {"share": share, "us_per_step": us}
            print(f"{model.__name__:12} {name:9} loss {entry[name]['last']:.4f}, opt.step() {us:.0f} us, {share:.1%}")
        a, b = (np.array(runs[name][0][0]) for name in ("torch", "fastadam"))
        c = np.array(train(model, loop, images, digits, steps)[0])
        entry["curves_apart"], entry["torchs_apart"] = float(np.abs(a - b).max()), float(np.abs(a - c).max())
        print(f"{model.__name__:12} the two curves are at most {entry['curves_apart']:.2g} apart, ", end="")
        print(f"torch's fused and its own for-loop {entry['torchs_apart']:.2g}")
        found[model.__name__] = entry
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m fastadam.benchmarks.pytorch", description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default=",".join(WORKLOADS), help="some of the workloads; empty for none")
    parser.add_argument("--rounds", type=int, default=25, help="turns of each (25)")
    parser.add_argument("--steps", type=int, default=300, help="training steps of the examples, 0 for none (300)")
    parser.add_argument("--json", type=Path, help="write the result")
    args = parser.parse_args(argv)
    threads = fa.get_num_threads()
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    result = {
        "bench": "pytorch", "date": machine.date(), "commit": machine.commit(), "machine": machine.machine(),
        "versions": machine.versions(), "threads": threads,
    }  # fmt: skip
    result["steps"] = {workload: race(workload, args.rounds, rng) for workload in args.workload.split(",") if workload}
    if args.steps:
        result["examples"] = examples(args.steps)
    if args.json:
        files.write(args.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
