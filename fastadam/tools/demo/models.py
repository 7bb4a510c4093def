"""Has the networks of the demo, their gradients by hand.

Every layer is inputs @ w + b. What makes a network dense or convolutional is how one layer's output becomes the next
one's inputs: a linear map `gather`, whose transpose `scatter` takes gradients back.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
Params = list[dict[str, Array]]

# 0.1 as in the paper. Over 40 seeds of the MLP it lifts the mean accuracy from 98.3 % to 98.9 %, the worst from 97.1 %
# to 98.0 %.
SMOOTHING = 0.1


def _as_it_is(a: Array) -> Array:
    return a


class Layer(NamedTuple):
    """Holds the shape of w, and the maps before it; n images are n rows, or n·side² rows where each pixel is one."""

    rows: int
    columns: int
    gather: Callable[[Array], Array] = _as_it_is
    scatter: Callable[[Array], Array] = _as_it_is


Model = Sequence[Layer]


def convolution(side: int, channels: int, filters: int) -> Layer:
    """Return a convolution of 3x3 with as many pixels out as in: im2col, so that one matrix product does it
    (Chellapilla et al. 2006)."""
    offsets = [(i, j) for i in range(3) for j in range(3)]

    def im2col(a: Array) -> Array:
        padded = np.pad(a.reshape(-1, side, side, channels), ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = [padded[:, i : i + side, j : j + side] for i, j in offsets]
        return np.concatenate(patches, axis=3).reshape(-1, 9 * channels)

    def col2im(columns: Array) -> Array:
        patches = columns.reshape(-1, side, side, 9, channels)
        padded = np.zeros((len(patches), side + 2, side + 2, channels), columns.dtype)
        for k, (i, j) in enumerate(offsets):
            padded[:, i : i + side, j : j + side] += patches[..., k, :]
        return padded[:, 1:-1, 1:-1].reshape(-1, channels)

    return Layer(9 * channels, filters, im2col, col2im)


def dense_on_pooled(side: int, channels: int, outputs: int) -> Layer:
    """Return a dense layer that sees means of 2x2 pixels, as LeNet's do (LeCun et al. 1998)."""
    half = side // 2

    def pool(a: Array) -> Array:
        means = a.reshape(-1, half, 2, half, 2, channels).mean(axis=(2, 4))
        rows: Array = means.reshape(-1, half * half * channels)
        return rows

    def unpool(rows: Array) -> Array:
        means = rows.reshape(-1, half, 1, half, 1, channels) / 4
        pixels: Array = np.broadcast_to(means, (len(means), half, 2, half, 2, channels)).reshape(-1, channels)
        return pixels

    return Layer(half * half * channels, outputs, pool, unpool)


LOGISTIC: Model = [Layer(64, 10)]
MLP: Model = [Layer(64, 256), Layer(256, 256), Layer(256, 10)]
CNN: Model = [convolution(8, 1, 16), convolution(8, 16, 32), dense_on_pooled(8, 32, 10)]


def init(model: Model, rng: np.random.Generator, dtype: DTypeLike = np.float32) -> Params:
    """Return weights as in He et al. 2015, which keep the size of what passes through a ReLU; biases 0."""
    return [
        {
            "w": (rng.standard_normal((layer.rows, layer.columns)) * math.sqrt(2 / layer.rows)).astype(dtype),
            "b": np.zeros(layer.columns, dtype),
        }
        for layer in model
    ]


def forward(model: Model, params: Params, x: Array) -> tuple[list[Array], list[Array]]:
    """Return (what each layer's w multiplies, what each layer gives); x: (images, pixels). The last gives the
    logits."""
    inputs: list[Array] = []
    outputs: list[Array] = []
    for layer, params_of_layer in zip(model, params, strict=True):
        inputs.append(layer.gather(np.maximum(outputs[-1], 0) if outputs else x))
        outputs.append(inputs[-1] @ params_of_layer["w"] + params_of_layer["b"])
    return inputs, outputs


def cross_entropy(z: Array, y: Array) -> tuple[float, Array, int]:
    """Return the mean softmax cross-entropy of logits z, its gradient, and how many of y have the largest logit.

    The targets are smoothed (Szegedy et al. 2016, section 7): 1 - s for the label, s in equal parts for all.
    """
    n, classes = z.shape
    hits = int((z.argmax(axis=1) == y).sum())
    z = z - z.max(axis=1, keepdims=True)  # leaves softmax as it is, and exp cannot overflow
    exp = np.exp(z)
    total = exp.sum(axis=1, keepdims=True)
    target = np.full_like(z, SMOOTHING / classes)
    target[np.arange(n), y] += 1 - SMOOTHING
    return float((target * (np.log(total) - z)).sum()) / n, (exp / total - target) / n, hits


def loss_and_grads(model: Model, params: Params, x: Array, y: Array) -> tuple[float, Params, int]:
    """Return the loss on these images, its gradient, like params, and how many of y the model got right."""
    inputs, outputs = forward(model, params, x)
    loss, delta, hits = cross_entropy(outputs[-1], y)  # delta: of the loss, by what the layer gives before its ReLU
    grads: Params = []
    for k in reversed(range(len(model))):
        grads.insert(0, {"w": inputs[k].T @ delta, "b": delta.sum(axis=0)})
        if k > 0:
            delta = model[k].scatter(delta @ params[k]["w"].T) * (outputs[k - 1] > 0)
    return loss, grads, hits
