"""Keras's optimizers on JAX: steps compiled into Keras's training step, in place where that donates its variables."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fastadam.jax.fused import Fused, FusedOptions, FusedState
from fastadam.keras.steps import KerasStep, Stepping


def widened(x: Any) -> Any:
    """Return a float32 that is not subnormal as a float64's bits, (2,) uint32, low ones first: JAX may lack float64."""
    bits = jax.lax.bitcast_convert_type(jnp.asarray(x, jnp.float32), jnp.uint32)
    sign, exponent, fraction = bits >> 31, (bits >> 23) & 0xFF, bits & 0x7FFFFF
    high = (sign << 31) | ((exponent + (1023 - 127)) << 20) | (fraction >> 3)
    zero = jnp.uint32(0)
    return jnp.where(exponent == 0, jnp.stack([zero, zero]), jnp.stack([fraction << 29, high]))


class OnJax(Stepping):
    """Takes one optimizer's steps over JAX's arrays, under jit and without."""

    def __init__(self) -> None:
        super().__init__()
        self._fused: dict[Any, Fused] = {}  # for each dtype, of the rule that was planned for

    def __call__(self, asked: KerasStep) -> None:
        """Take a step of Keras's variables, whose gradients are arrays."""
        if self._planned != asked.rule:
            self._planned, self._fused = asked.rule, {}
        kinds: dict[Any, list[int]] = {}
        for k, g in enumerate(asked.grads):
            if g is not None:
                kinds.setdefault(asked.params[k].value.dtype.name, []).append(k)
        for dtype, leaves in kinds.items():
            self._step(asked, dtype, leaves)

    def _step(self, asked: KerasStep, dtype: str, leaves: Sequence[int]) -> None:
        if dtype not in self._fused:
            options = FusedOptions(moments=dict.fromkeys(asked.slots, dtype), pool_below=0)
            self._fused[dtype] = Fused(asked.rule, options)
        params = [asked.params[k] for k in leaves]
        slots = {name: [xs[k] for k in leaves] for name, xs in asked.slots.items()}
        carried = {name: widened(x) for name, x in asked.carried.items()}
        streams = {name: [x.value for x in xs] for name, xs in slots.items()}
        count = jnp.asarray(asked.t, jnp.int32) - 1
        before, grads = FusedState(count, carried, streams), [asked.grads[k] for k in leaves]
        lr = jnp.asarray(asked.lr, jnp.float32)
        stepped, state = self._fused[dtype].step([x.value for x in params], before, grads, lr=lr)
        for variables, arrays in [(params, stepped), *((xs, state.streams[name]) for name, xs in slots.items())]:
            for x, array in zip(variables, arrays, strict=True):
                x.assign(array)
