"""JAX: steps of its arrays on the CPU, compiled into its programs, in place, in optax's form or fused.

May import plans, state, rules, host.threads and kernels beside jax and optax: no optimizer holds these arrays.
A kernel's arithmetic belongs to kernels/, what XLA calls to kernels/cpu/xla.py, other libraries to wings of their own.
"""

from fastadam.jax.custom_calls import register
from fastadam.jax.gate import check
from fastadam.jax.transformations import Transformation, adam, adamw, lion, sgd, transform

check(transform)

__all__ = ["Transformation", "adam", "adamw", "lion", "register", "sgd", "transform"]
