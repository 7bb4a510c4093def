"""Trains a transformer and a CNN, both small, on handwritten digits by fastadam.torch and by torch.optim.

Their losses, and what share of a training step is opt.step(). Needs torch and scikit-learn.
"""

import time
from functools import partial

import numpy as np
import torch
from sklearn.datasets import load_digits

import fastadam.torch as fat

BATCH, RUNS = 64, 3


class Transformer(torch.nn.Module):
    """Has two encoder layers over the eight rows of an image."""

    def __init__(self):
        super().__init__()
        self.rows = torch.nn.Linear(8, 128)
        self.places = torch.nn.Parameter(torch.zeros(8, 128))
        layer = torch.nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
        self.layers, self.head = torch.nn.TransformerEncoder(layer, 2), torch.nn.Linear(128, 10)

    def forward(self, x):
        return self.head(self.layers(self.rows(x) + self.places).mean(1))


class CNN(torch.nn.Sequential):
    """Has two convolutions and two dense layers."""

    def __init__(self):
        super().__init__(
            torch.nn.Unflatten(1, (1, 8)), torch.nn.Conv2d(1, 32, 3, padding=1), torch.nn.ReLU(),
            torch.nn.Conv2d(32, 64, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(),
            torch.nn.Linear(4096, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10),
        )  # fmt: skip


MODELS = (Transformer, CNN)


def train(model, optimizer, images, digits, steps):
    """Return (losses, seconds in opt.step(), seconds in all), over batches of 64, the first tenth not timed."""
    torch.manual_seed(0)
    net = model()
    opt = optimizer(net.parameters())
    order = torch.Generator().manual_seed(1)
    losses, stepping, begin = [], 0.0, 0.0
    for t in range(steps):
        if t == steps // 10:
            stepping, begin = 0.0, time.perf_counter()
        batch = torch.randint(0, len(images), (BATCH,), generator=order)
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(images[batch]), digits[batch])
        loss.backward()
        before = time.perf_counter()
        opt.step()
        stepping += time.perf_counter() - before
        losses.append(loss.item())
    return losses, stepping, time.perf_counter() - begin


def examples(steps, threads):
    """Return {model: its size, what each optimizer's steps took and came to, how far loss curves ever are apart}.

    torch's fused is run beside ours, in turns; the median of the shares counts. torchs_apart is how far torch's fused
    and its own for-loop are, as rounding grows with training.
    """
    torch.set_num_threads(threads)
    data = load_digits()
    work = torch.tensor(data.images / 16, dtype=torch.float32), torch.tensor(data.target), steps
    fused, loop = (partial(torch.optim.AdamW, lr=1e-3, fused=on, foreach=False) for on in (True, False))
    optimizers = {"torch": fused, "fastadam": partial(fat.AdamW, lr=1e-3)}
    by_model = {}
    for model in MODELS:
        runs = {name: [] for name in optimizers}
        for _ in range(RUNS):
            for name, optimizer in optimizers.items():
                runs[name].append(train(model, optimizer, *work))
        entry = {"parameters": sum(p.numel() for p in model().parameters())}
        entry |= {name: _told(of_name, steps) for name, of_name in runs.items()}
        torchs, fastadams = (np.array(runs[name][0][0]) for name in optimizers)
        loops = np.array(train(model, loop, *work)[0])
        entry["curves_apart"] = float(np.abs(torchs - fastadams).max())
        entry["torchs_apart"] = float(np.abs(torchs - loops).max())
        by_model[model.__name__] = entry
    return by_model


def _told(runs, steps):
    """Return what is kept of one optimizer's runs."""
    losses = runs[0][0]
    return {
        "losses": losses[:: max(1, steps // 50)],
        "last": float(np.mean(losses[-20:])),
        "share": float(np.median([stepping / seconds for _, stepping, seconds in runs])),
        "us_per_step": float(np.median([1e6 * stepping / steps for _, stepping, _ in runs])),
    }
