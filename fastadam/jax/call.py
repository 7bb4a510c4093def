"""Call: one step of a whole tree as one custom call of XLA's, in place where its operands are donated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from fastadam.jax import custom_calls
from fastadam.jax.layout import StateLayout, structs
from fastadam.jax.programs import Program, least
from fastadam.kernels.chores import Flags
from fastadam.kernels.cpu.call_memory import Head
from fastadam.plans.plan import CHUNK


class Outputs(NamedTuple):
    """Holds what a program works out, as Values of it: each row of coefficients, and what each stands for.

    rows: None in a row is the key of random bits. carried: what the rule carries on. scale: what gradients are
    multiplied by. limit: their largest norm, or None.
    """

    program: Program
    rows: Sequence[Sequence[Any]]
    carried: Sequence[Any]
    scale: Any
    limit: Any


class Call:
    """Is a step of some parameters as JAX traces it: a function of operands in the order of kernels/cpu/xla.py.

    row_of: per leaf, which of the rows it takes. g: per leaf, its gradient's dtype. seed, offset: of random bits.
    """

    def __init__(
        self, layout: StateLayout, numbers: Outputs, row_of: Sequence[int], g: Sequence[Any], flags: Flags,
        seed: int, offset: int,
    ) -> None:  # fmt: skip
        program = numbers.program
        self._layout, self._inputs = layout, len(program.given) - 1 - len(numbers.carried)
        self._carried, self._limited = len(numbers.carried), numbers.limit is not None
        self._streams = [(stream, k) for stream, lies in layout.arrays.items() for k in range(len(lies))]
        self._first_p = self._inputs + 1 + self._carried
        self._first_stream = self._first_p + len(layout.leaves)
        self._first_g = self._first_stream + len(self._streams)
        texts, rows, at = [], [], offset
        for leaf, size in enumerate(layout.sizes):
            text = custom_calls.text_of(layout.kernel, layout.formats_of(leaf, g[leaf]), flags)
            if text not in texts:
                texts.append(text)
            homes = self._homes(leaf)
            rows.append([texts.index(text), row_of[leaf], at, *(k for k, _ in homes), *(first for _, first in homes)])
            at += size
        if self._limited:
            custom_calls.decides()  # of a tree without leaves, too
        for text in texts:
            for measures in (False, True)[: 1 + self._limited]:
                custom_calls.piece(text, measures)
        largest = program.value(least([x.compute for x in layout.formats] or [np.float32]))
        values = [x if x is None else program.value(x) for row in numbers.rows for x in row]  # all constants, first
        head = Head(
            self._inputs, self._carried, len(layout.leaves), len(homes) if rows else 0, len(numbers.rows),
            len(numbers.rows[0]), len(program.constants), len(program.operations), program.register(numbers.scale),
            program.register(numbers.limit) if self._limited else -1,
            program.register(largest),
            int(np.uint64(seed).astype(np.int64)), CHUNK, int(self._limited),
        )  # fmt: skip
        outputs = [-1 if x is None else program.register(x) for x in values]
        carried = [program.register(x) for x in numbers.carried]
        keys = [custom_calls.key_of(text, measures) for text in texts for measures in (False, True)]
        self._attributes = {
            "forms": ";".join(texts), "keys": np.array(keys or [0], np.int64),
            "layout": np.array(rows or [[0]], np.int64).reshape(-1), "numbers": np.array(program.constants, np.float64),
            "program": np.array([*head, *outputs, *carried, *program.words()], np.int64),
        }  # fmt: skip
        self._function = self._without_derivative(self._one_by_one(self._partitioned()))

    def __call__(self, *operands: Any) -> list[Any]:
        """Return the count, what is carried, the parameters and the state's arrays after the step; then the norm."""
        mesh = jax.sharding.get_abstract_mesh()
        if not mesh.explicit_axes:
            return list(self._function(*operands))
        # Types say where arrays lie under jax.set_mesh, and a custom call's results would be whole by theirs.
        written = operands[self._inputs : self._first_g]
        lie = [*(jax.typeof(x).sharding for x in written), *[NamedSharding(mesh, PartitionSpec())] * self._limited]
        return list(jax.sharding.auto_axes(self._function, axes=mesh.explicit_axes, out_sharding=lie)(*operands))

    def _homes(self, leaf: int) -> list[tuple[int, int]]:
        """Return (operand, first byte) of each of a leaf's columns, (-1, 0) for those that it has not."""
        places, layout = self._layout.places[leaf], self._layout
        homes = {
            stream: (self._first_stream + self._streams.index((stream, place.array)), place.first)
            for stream, place in places.items()
        }
        p = (self._first_p + leaf, 0)
        columns = [homes.get("master", p), (self._first_g + leaf, 0)]
        columns += [homes.get(slot.name, (-1, 0)) for slot in layout.kernel.slots]
        nothing = (-1, 0)
        columns += [homes.get("ema", nothing), nothing, homes.get("remainder", nothing)]
        return [*columns, p if "master" in homes else nothing]

    def _plain(self, *operands: Any) -> list[Any]:
        """Return what the custom call gives; XLA copies what is not donated to the program."""
        written = operands[self._inputs : self._first_g]
        results = structs(written) + [jax.ShapeDtypeStruct((), jnp.float32)] * self._limited
        aliases = {self._inputs + k: k for k in range(len(written))}
        call = jax.ffi.ffi_call(
            custom_calls.register(), results, input_output_aliases=aliases, vmap_method="sequential"
        )
        return list(call(*operands, **self._attributes))

    def _partitioned(self) -> Any:
        """Return the call such that each device steps its part of sharded parameters, and nothing is gathered."""
        if jax.device_count() == 1:
            return self._plain
        whole_call = custom_partitioning(lambda *operands: self._plain(*operands))
        whole_call.def_partition(
            partition=self._partition, infer_sharding_from_operands=self._inferred, sharding_rule=self._sharding_rule()
        )
        return whole_call

    def _shardings(self, mesh: Any, of_params: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Return the shardings of all operands, and of all results, from those of the parameters."""
        replicated, layout = NamedSharding(mesh, PartitionSpec()), self._layout
        specs = [NamedSharding(mesh, x.spec) for x in of_params]
        for leaf, places in enumerate(layout.places):
            if specs[leaf].is_fully_replicated:
                continue
            if self._limited:
                raise NotImplementedError(
                    "max_norm of sharded parameters is not built: optax.clip_by_global_norm before"
                )
            if any(place.format.block > 1 for place in places.values()):
                raise NotImplementedError("moments of 8 bits of sharded parameters are not built: expected others")
            if any(place.pooled for place in places.values()):
                specs[leaf] = replicated  # small, and its state lies beside that of others
        lies = [layout.arrays[stream][k] for stream, k in self._streams]
        streams = [replicated if lie.leaf is None else specs[lie.leaf] for lie in lies]
        written = [replicated] * (1 + self._carried) + specs + streams
        return [replicated] * self._inputs + written + specs, written + [replicated] * self._limited

    def _partition(self, mesh: Any, operands: Sequence[Any], results: Sequence[Any]) -> Any:
        of_params = [x.sharding for x in operands[self._first_p : self._first_stream]]
        arguments, outcomes = self._shardings(mesh, of_params)
        return mesh, self._plain, outcomes, tuple(arguments)

    def _inferred(self, mesh: Any, operands: Sequence[Any], results: Sequence[Any]) -> Any:
        return self._shardings(mesh, [x.sharding for x in operands[self._first_p : self._first_stream]])[1]

    def _sharding_rule(self) -> str:
        """Return which axes lie alike, for Shardy: those of a parameter, its gradient and its own state."""
        axes = [
            " ".join(f"l{leaf}d{axis}" for axis in range(len(shape))) for leaf, shape in enumerate(self._layout.shapes)
        ]
        streams: list[str] = []
        for stream, k in self._streams:
            lie = self._layout.arrays[stream][k]
            same = lie.leaf is not None and lie.shape == self._layout.shapes[lie.leaf]
            streams.append(axes[lie.leaf] if same and lie.leaf is not None else f"s{len(streams)}")
        written = [""] * (1 + self._carried) + axes + streams
        return ", ".join([""] * self._inputs + written + axes) + " -> " + ", ".join(written + [""] * self._limited)

    @staticmethod
    def _one_by_one(function: Any) -> Any:
        """Return a function that vmap takes one after the other."""
        return jax.custom_batching.sequential_vmap(lambda *operands: function(*operands))

    @staticmethod
    def _without_derivative(function: Any) -> Any:
        """Return a function of which JAX is told that it has no derivative."""
        stepped = jax.custom_jvp(lambda *operands: function(*operands))

        @stepped.defjvp
        def refuse(primals: Any, tangents: Any) -> Any:
            raise TypeError(
                "a step of fastadam.jax has no derivative, expected it outside what jax.grad differentiates"
            )

        return stepped
