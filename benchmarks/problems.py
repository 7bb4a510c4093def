"""Makes what Adam is run on in benchmarks/fidelity.py: made-up gradients, digits, text.

A problem has flat float32 arrays p and g. gradients() yields after each gradient that it put into g; whoever listens
then updates p. losses() gives what is learned from and what was held out.
"""

import math
import sysconfig
import tokenize
from functools import cache
from pathlib import Path

import numpy as np

from fastadam.tools.demo import learning, models

f32 = np.float32
ALIGN = 256  # every leaf begins a group, of whatever size up to this


def views(flat, shapes):
    """View arrays of these shapes, one after the other in a flat array, each from a multiple of ALIGN on."""
    starts = np.cumsum([0] + [-(-math.prod(shape) // ALIGN) * ALIGN for shape in shapes])
    return [flat[a : a + math.prod(shape)].reshape(shape) for a, shape in zip(starts, shapes, strict=False)]


def room(shapes):
    """Return a flat array of zeros that holds these shapes."""
    return np.zeros(sum(-(-math.prod(shape) // ALIGN) * ALIGN for shape in shapes), f32)


KINDS = "drift", "tails", "sparse", "dead"
SIZE = 2048  # elements of each kind
ROW = 48  # no divisor of a group


def synthetic(steps, seed):
    """Yield gradients of all kinds, one after the other: 0.1 ± 1 standard deviation, of scales as exp(normal).

    Drift shrinks 3-fold after a third of the steps and 10-fold after two. Tails are Student's t of 2.5 degrees of
    freedom. Sparse are rows of 48, present at every step to one in 300. Dead have scales as exp(2·normal); a quarter
    never has a gradient, an eighth loses it after a sixth of the steps, and so does another, but after two thirds has
    it again.
    """
    rng = np.random.default_rng(seed)
    scale = 1e-3 * np.exp(rng.standard_normal((4, SIZE)) * [[1], [1], [1], [2]])
    towards = rng.choice([-0.1, 0.1], (4, SIZE))
    row = np.arange(SIZE) // ROW
    share = np.exp(rng.uniform(np.log(1 / 300), 0, row[-1] + 1))
    fate = rng.integers(0, 8, SIZE)
    for t in range(steps):
        g = rng.standard_normal((4, SIZE))
        g[1] = rng.standard_t(2.5, SIZE)
        g = (g + towards) * scale
        g[0] /= 30 if 3 * t >= 2 * steps else 3 if 3 * t >= steps else 1
        g[2] *= (rng.random(len(share)) < share)[row]
        off = 6 * t >= steps
        g[3] *= ~((fate < 2) | (off & (fate == 2)) | (off & (fate == 3) & (3 * t < 2 * steps)))
        yield g.astype(f32).ravel()


class Digits:
    """Trains the demo's networks on handwritten digits."""

    def __init__(self, model, epochs, seed):
        self.rng, self.epochs = np.random.default_rng(seed), epochs
        self.task = learning.digits(model, self.rng)
        start = self.task.init(self.rng)
        self.shapes = [leaf.shape for layer in start for leaf in layer.values()]
        self.p, self.g = room(self.shapes), room(self.shapes)
        leaves = iter(views(self.p, self.shapes))
        self.params = [{name: next(leaves) for name in layer} for layer in start]
        for layer, first in zip(self.params, start, strict=True):
            for name in layer:
                layer[name][:] = first[name]

    def _at(self, which):
        return self.task.loss_and_grads(self.params, self.task.x[which], self.task.y[which])

    def gradients(self):
        into = views(self.g, self.shapes)
        for _ in range(self.epochs):
            order = self.rng.permutation(self.task.learn)
            for first in range(0, len(order), 32):
                _, grads, _ = self._at(order[first : first + 32])
                for view, leaf in zip(into, (leaf for layer in grads for leaf in layer.values()), strict=True):
                    view[:] = leaf
                yield

    def losses(self):
        return self._at(self.task.learn)[0], self._at(self.task.test)[0]


@cache
def characters():
    """Read the modules of Python's library, one after the other; what is not ASCII is a question mark."""
    texts = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        with tokenize.open(path) as opened:
            texts.append(opened.read())
    return np.frombuffer("".join(texts).encode("ascii", "replace"), np.uint8).astype(np.int64)


class Characters:
    """Trains a transformer of two layers (pre-norm, 4 heads of 12) to foretell the next character; needs torch.

    The last tenth of the modules, by name, is held out. Its losses are means over the same windows for every seed.
    """

    WIDTH, WINDOW, BATCH = 48, 64, 8

    def __init__(self, steps, seed):
        import torch
        from torch import nn

        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.torch, self.steps, self.rng = torch, steps, np.random.default_rng(seed)
        layer = nn.TransformerEncoderLayer(
            self.WIDTH, 4, 4 * self.WIDTH, dropout=0, activation="gelu", batch_first=True, norm_first=True
        )
        self.net = nn.ModuleDict(
            {
                "character": nn.Embedding(128, self.WIDTH),
                "place": nn.Embedding(self.WINDOW, self.WIDTH),
                "layers": nn.TransformerEncoder(layer, 2, nn.LayerNorm(self.WIDTH), enable_nested_tensor=False),
                "next": nn.Linear(self.WIDTH, 128),
            }
        )
        self.mask = nn.Transformer.generate_square_subsequent_mask(self.WINDOW)
        self.shapes = [tuple(leaf.shape) for leaf in self.net.parameters()]
        self.p, self.g = room(self.shapes), room(self.shapes)
        pairs = zip(views(self.p, self.shapes), views(self.g, self.shapes), strict=True)
        for leaf, (p, g) in zip(self.net.parameters(), pairs, strict=True):
            p[:] = leaf.detach().numpy()
            leaf.data, leaf.grad = torch.from_numpy(p), torch.from_numpy(g)
        held = len(characters()) // 10
        self.learn, self.test = characters()[:-held], characters()[-held:]

    def _loss(self, text, starts):
        windows = self.torch.from_numpy(text[starts[:, None] + np.arange(self.WINDOW + 1)])
        x = self.net["character"](windows[:, :-1]) + self.net["place"].weight
        z = self.net["next"](self.net["layers"](x, self.mask, is_causal=True))
        return self.torch.nn.functional.cross_entropy(z.flatten(0, 1), windows[:, 1:].flatten())

    def gradients(self):
        for _ in range(self.steps):
            self.g[:] = 0
            self._loss(self.learn, self.rng.integers(0, len(self.learn) - self.WINDOW, self.BATCH)).backward()
            yield

    def losses(self):
        rng = np.random.default_rng(0)
        with self.torch.no_grad():
            both_losses = (
                self._loss(text, rng.integers(0, len(text) - self.WINDOW, 256)) for text in (self.learn, self.test)
            )
            return tuple(map(float, both_losses))


PROBLEMS = {
    "mlp": lambda seed: Digits(models.MLP, 8, seed),
    "cnn": lambda seed: Digits(models.CNN, 4, seed),
    "text": lambda seed: Characters(300, seed),
}
RATES = {"mlp": 1e-3, "cnn": 3e-3, "text": 3e-3}
