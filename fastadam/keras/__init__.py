"""Keras 3's optimizers, each with a Stepper in place of its update step; README.md shows their use.

May import everything up to Stepper, and Keras; on_torch, on_jax and on_tensorflow alone their backend, and what the
wings for PyTorch and JAX know of it. What surrounds a step, from schedules and clipping to averages and files, belongs
to Keras. On TensorFlow copies are stepped, which is correct and not faster.
"""

from fastadam.keras.optimizers import SGD, Adagrad, Adam, Adamax, AdamW, Lion, Nadam, RMSprop

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Adamax", "Lion", "Nadam", "RMSprop"]
