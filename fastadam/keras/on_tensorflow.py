"""Keras's optimizers on TensorFlow: copies of its variables are stepped, and assigned.

That is correct and not faster than TensorFlow's own: an operation that writes to its variables needs a compiled library
of TensorFlow's version, and variables share memory until one is written, so nobody else may step them where they lie.
"""

from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from fastadam.arrays.host import Array
from fastadam.keras.steps import KerasStep, Stepping


class OnTensorFlow(Stepping):
    """Takes one optimizer's steps in eager code and in graphs."""

    def __call__(self, asked: KerasStep) -> None:
        """Take a step of Keras's variables, whose gradients are tensors or IndexedSlices."""
        if control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
            raise ValueError("jit_compile is True, expected False: XLA cannot call fastadam's step from TensorFlow")
        if tf.distribute.has_strategy():
            raise ValueError(f"the strategy is {tf.distribute.get_strategy()}, expected none: variables are not shared")
        stepped = [k for k, g in enumerate(asked.grads) if g is not None]
        grads, *streams = ([xs[k] for k in stepped] for xs in (asked.grads, asked.params, *asked.slots.values()))
        portions = [Portion(g, asked.by_rows) for g in grads]
        variables, n = (
            [(x.value, portion) for xs in streams for x, portion in zip(xs, portions, strict=True)],
            len(portions),
        )

        def walk(t: Any, lr: Any, carried: Array, *arrays: Array) -> list[Array]:
            values = [x.copy() for x in arrays[n:]]
            params, *slots = (values[k : k + n] for k in range(0, len(values), n))
            numbers: dict[str, Any] = {
                "grads": arrays[:n], "params": params, "slots": dict(zip(asked.slots, slots, strict=True)), "t": int(t),
                "lr": float(lr), "carried": dict(zip(asked.carried, carried, strict=True)),
            }  # fmt: skip
            super(OnTensorFlow, self).__call__(asked._replace(**numbers))
            return values

        t, lr = keras.ops.cast(asked.t, "int64"), keras.ops.cast(asked.lr, "float64")
        carried = tf.stack([keras.ops.cast(x, "float64") for x in asked.carried.values()] or tf.zeros(0, tf.float64))
        values = [portion.read(x) for x, portion in variables]
        given = [t, lr, carried, *(portion.gradient for portion in portions), *values]
        after = tf.nest.flatten(tf.numpy_function(walk, given, [x.dtype for x in values]))
        for (x, portion), value in zip(variables, after, strict=True):
            portion.write(x, value)


class Portion:
    """Says which part of a variable a step is of: all, or the rows that a sparse gradient has.

    gradient: that of this part.
    """

    def __init__(self, g: Any, by_rows: bool) -> None:
        self._rows: Any = None
        if by_rows and isinstance(g, tf.IndexedSlices):
            self._rows, row_of = tf.unique(g.indices)  # one row may come several times
            self.gradient = tf.math.unsorted_segment_sum(g.values, row_of, tf.size(self._rows))
        else:
            self.gradient = tf.convert_to_tensor(g)

    def read(self, x: Any) -> Any:
        """Return what the variable holds there."""
        return x.read_value() if self._rows is None else tf.gather(x, self._rows)

    def write(self, x: Any, value: Any) -> None:
        """Let the variable hold a value there."""
        if self._rows is None:
            value.set_shape(x.shape)
            x.assign(value)
        else:
            x.scatter_update(tf.IndexedSlices(value, self._rows))
