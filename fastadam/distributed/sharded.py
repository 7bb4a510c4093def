"""Sharded: one optimizer over several processes, each of which keeps the state of its own pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastadam.arrays.device import HOST
from fastadam.arrays.tree import Structure, Tree, named
from fastadam.checks import integer, number
from fastadam.distributed.agreement import agree, shown, together
from fastadam.distributed.arriving import Arriving
from fastadam.distributed.asked import check, described, sums_over_leaves
from fastadam.distributed.buffers import Buffers
from fastadam.distributed.collective import Collective
from fastadam.distributed.engines import engine_of
from fastadam.distributed.exchange import Exchange, Item
from fastadam.distributed.pieces import Pieces
from fastadam.group import is_grouped
from fastadam.kernels.chores import in_pairs
from fastadam.optimizer import Optimizer
from fastadam.plans.chores import StepInfo
from fastadam.plans.judge import statistics
from fastadam.plans.measured import Measured
from fastadam.state.totals import share
from fastadam.version import VERSION


class Sharded(Collective):
    """Takes a method's steps over several processes: parameters on all, state for a rank's own pieces alone.

    method: the class of the optimizer, such as fastadam.AdamW.
    params: as Optimizer takes them, the same on all ranks. What one group has of one dtype is stepped as one flat
        array: where it is one array in C order or one FlatBuffer, where it lies; else it is copied into one, and the
        dicts and lists given hold views of that from then on. Containers of other kinds keep the old arrays, which no
        longer change: see `params`.
    communicator: an mpi4py communicator, a torch.distributed process group, NCCL through CuPy, or None for one process.
    copies: "bfloat16" or "float16": the parameters that ranks hold are rounded to it, and only a piece's owner keeps
        float32. init: the float32 values to begin with, a tree like params; without it those of params.
    reproducible: "ranks": gradients are added in the order of the ranks, so that bits depend on their number alone;
        "micro": in the order of the numbers that `accumulate` is given, so that they do not depend even on that; False:
        as is fastest for the engine.
    bucket: the most elements that are exchanged at once, rounded up to a multiple of 1,024 for each rank.
    timeout: seconds, where the communicator has such a thing: process groups.
    options: hyperparameters and options of the method by name. Not index_offset, capturable. zero_grads zeroes
        this rank's gradients; stats="tensor" reports each of the flat arrays; the arrays of copy_to lie as params do,
        whole on all ranks.

    A step has the bits of one process over one FlatBuffer per group and dtype, whose step gets the ranks' gradients as
    `streams`, whatever the number of ranks: parameters, state, norms and what is skipped. A method with sums over whole
    leaves (LAMB, LARS, StableAdamW, cautious=True), on the host alone, has those of one process over the tree: each
    leaf is exchanged for itself then, and each rank's sums with it.

    Bytes per parameter on N ranks, see bytes_per_parameter: p for the parameters; (N - 1)/N·g to receive gradients of g
    bytes into; g where several arrays' are put end to end; s/N for the state, s being one process's; 4/N with copies
    for the float32 parameters; 2 with copy_to; what is accumulated: 4, of float64 8, with "micro" g each. An N-th is of
    blocks of 1,024 elements, one more or less. The program's gradients are beside them: by `bucket` two buckets alone.

    A rank whose checking of its arguments fails makes all raise before anything has changed. What fails later, or a
    rank that dies, ends as the engine ends it: MPI ends the job, gloo's ranks raise RuntimeError.

    Raises TypeError, ValueError as the method does, and ValueError on all ranks that names the first difference between
    them: trees, shapes, dtypes, values, options, version.

    >>> params = {"w": np.ones(3, np.float32)}
    >>> opt = fa.distributed.Sharded(fa.SGD, params, None, lr=0.5, max_norm=1.0)
    >>> opt.step({"w": np.array([2, 0, 0], np.float32)}).clip_factor
    0.5
    >>> params["w"].tolist()
    [0.5, 1.0, 1.0]
    """

    def __init__(
        self, method: type[Optimizer], params: Tree, communicator: Any = None, *, init: Tree = None,
        copies: str | None = None, reproducible: str | bool = "ranks", bucket: int = 1 << 24,
        timeout: float | None = None, **options: Any,
    ) -> None:  # fmt: skip
        self._engine, self._clearing = engine_of(communicator, timeout), options.pop("zero_grads", False)
        copy_to = options.pop("copy_to", None)
        undo: list[Callable[[], None]] = []

        def build() -> list[tuple[str, Any]]:
            check(method, options, reproducible, copies, init, copy_to)
            groups = [{**item, "params": []} for item in params] if is_grouped(params) else []
            sums_first = sums_over_leaves(method, groups, options)
            self._buffers = Buffers(params, apart=sums_first)
            undo.append(self._buffers.undo)
            where, carries = "host" if self._buffers.home is HOST else "device", self._engine.carries
            if where not in carries:
                difference = f"params lie on the {where}, communicator carries arrays of the {' and '.join(carries)}"
                raise TypeError(f"{difference}: expected them there")
            size = integer("bucket", bucket, low=1, most=2**31)
            self._pieces = Pieces(self._buffers, self._engine, size, copies, init, copy_to)
            self._opt = method(
                self._pieces.params, index_offset=self._pieces.offsets, copy_to=self._pieces.copies, **options
            )
            if sums_first:
                self._opt.join_sums(self._pieces.wholes, self._pieces.starts)
            said: list[tuple[str, Any]] = [("fastadam", VERSION), ("the method", method.__name__)]
            said += [("copies", copies), ("reproducible", reproducible), ("bucket", bucket)]
            said += [(name, shown(x)) for name, x in sorted(options.items())]
            return [*said, *self._buffers.described, *self._pieces.described]

        try:
            agree(together(self._engine, build))
        except BaseException:
            for each in undo:
                each()
            raise
        self._tree = self._buffers.show()
        if copy_to is not None:
            self._pieces.spread()
        self._reproducible = reproducible
        self._exchange = Exchange(self._engine, self._buffers, self._pieces.cuts, reproducible)
        self._arriving: Arriving | None = None
        limits = [options.get("max_norm"), *(group.max_norm for group in self._opt.groups)]
        self._measuring = bool(options.get("skip_nonfinite")) or any(limit is not None for limit in limits)
        self._stats, self._ema_decay = options.get("stats"), options.get("ema_decay")

    @property
    def params(self) -> Tree:
        """Return the parameters, the same on all ranks: a tree like the one given, of views of the flat arrays."""
        return self._tree

    @property
    def paths(self) -> list[str]:
        """Return each leaf's path in params as errors print it."""
        return list(self._buffers.structure.names)

    @property
    def groups(self) -> Any:
        """Return the groups, whose hyperparameters may be set between steps: on all ranks alike."""
        return self._opt.groups

    @property
    def t(self) -> int:
        """Return the steps taken so far."""
        return self._opt.t

    @property
    def skipped(self) -> int:
        """Return the steps left out by skip_nonfinite, on all ranks alike."""
        return self._opt.skipped

    @property
    def state_bytes(self) -> int:
        """Return the bytes of this rank's state: slots, averages, masters, and with copies the float32 parameters."""
        return self._opt.state_bytes + self._pieces.nbytes

    @property
    def bytes_per_parameter(self) -> float:
        """Return this rank's bytes for each parameter so far: parameters and copies, state, room for gradients."""
        of_gradients = self._exchange.nbytes + (0 if self._arriving is None else self._arriving.nbytes)
        total: int = sum(x.nbytes for x in (*self._buffers, *self._pieces.beside)) + self.state_bytes + of_gradients
        return total / max(1, sum(buffer.n for buffer in self._buffers))

    def accumulate(self, grads: Tree, index: int | None = None) -> None:
        """Keep one micro-batch's gradients for the next `step()`; nothing is exchanged before.

        index: with reproducible="micro" its number among the micro-batches of all ranks, in whose order they are added.
            This rank keeps each; else it keeps their sum.
        """
        self._exchange.add(grads, index)
        self._clear(grads)

    def bucket(self, path: str) -> Callable[[Tree], None]:
        """Return a function that takes the gradients of the leaves at a path, or below it, as soon as they are there.

        For programs that make gradients layer by layer, the last layer's first: a bucket's exchange begins once it is
        full, and its memory is given up once it has been sent. Every leaf's is handed in once before each `step()`,
        which takes them. What a hook refuses has not been agreed on: end the job then.
        Raises ValueError naming a path that there is not. With reproducible="ranks" alone.

        >>> opt = fa.distributed.Sharded(fa.SGD, {"w": np.ones(3, np.float32), "b": np.ones(2, np.float32)}, lr=0.5)
        >>> hooks = [opt.bucket(path) for path in ("['w']", "['b']")]
        >>> hooks[1](np.ones(2, np.float32)), hooks[0](np.ones(3, np.float32)), opt.step().skipped
        (None, None, False)
        """
        if self._reproducible != "ranks":
            raise ValueError(f"reproducible is {self._reproducible!r}, expected 'ranks' for gradients by bucket")
        chosen = [self.paths[k] for k in named(self.paths, [path], "path")]

        def take(grads: Tree) -> None:
            leaves = Structure(grads).leaves
            if len(leaves) != len(chosen):
                raise ValueError(f"{len(leaves)} gradients are given, expected those of {', '.join(chosen)}")
            if self._arriving is None:
                self._arriving = Arriving(self._buffers, self._exchange, self._pieces.cuts, self._engine)
            for each, g in zip(chosen, leaves, strict=True):
                self._arriving.take(each, g)

        return take

    def forget(self) -> None:
        """Drop what has been accumulated, or handed in: on all ranks."""
        self._exchange.forget()
        if self._reproducible == "ranks":  # what some have begun to send, all finish
            arriving = self._arriving or Arriving(self._buffers, self._exchange, self._pieces.cuts, self._engine)
            arriving.drop(self._engine.everyone(arriving.begun))
        self._arriving = None

    def step(self, grads: Tree = None, grad_scale: float = 1.0, reduction: str = "mean") -> StepInfo:
        """Update params on all ranks; every rank calls it. Returns what one process would return, on all.

        grads: this rank's gradients, a tree like params, or one flat array where there is one flat array of parameters;
            without them what has been accumulated. All leaves of one group and dtype have a gradient or none has, on
            all ranks alike: those are left alone. Without reproducible=False any width of floats goes.
        grad_scale: multiplies grads first; the same on all ranks.
        reduction: the "mean" over all ranks' micro-batches, or their "sum".
        Raises TypeError, ValueError, on the other ranks RuntimeError, before anything has changed.
        """

        def check() -> Any:
            number("grad_scale", grad_scale)
            if reduction not in ("mean", "sum"):
                raise ValueError(f"reduction is {reduction!r}, expected 'mean' or 'sum'")
            said = [("grad_scale", grad_scale), ("reduction", reduction), ("t", self.t)]
            said += described(self.groups, self._ema_decay, self.t)
            said += [("gradients by bucket", self._arriving is not None)]
            if self._arriving is not None:
                if grads is not None:
                    raise ValueError("grads are given, and some were handed in by bucket: expected step(), or forget()")
                return [], said, self._arriving.kinds
            items[:] = self._exchange.take(grads)
            for item in items:
                self._opt.check_grads(self._as_tree(self._pieces.owned_of(item.flats)))
            return [(item.order, item.batches) for item in items], said, self._exchange.kinds(items)

        items: list[Item] = []
        everyone = together(self._engine, check)
        numbers, said, kinds = zip(*everyone, strict=True)
        agree(said)
        agree(given := [kind for kind in kinds if kind is not None])
        if not given:
            raise ValueError("step() got no grads and no rank has accumulated any: expected some")
        streams = self._arriving.arrived() if self._arriving else self._exchange.swap(items, numbers, given[0])
        try:
            info = self._take(streams, grad_scale, reduction)
        finally:
            self._exchange.forget()
            self._arriving = None
        if not info.skipped:
            self._pieces.spread()
        if grads is not None:
            self._clear(grads)
        return info

    def _take(self, streams: Sequence[tuple[int, Any]], scale: float, reduction: str) -> StepInfo:
        """Step this rank's pieces by (micro-batches, their gradients) of all ranks."""
        trees = [self._as_tree(pieces) for _, pieces in streams]
        scale *= share(sum(batches for batches, _ in streams), reduction)
        measured: dict[str, Measured] = {}
        if self._measuring:
            measures = list(self._opt.measure(streams=trees, starts=self._pieces.starts).values())
            measured = self._pieces.joined(measures)
        info = self._opt.step(streams=trees, grad_scale=scale, reduction="sum", measured=measured)
        return info if self._stats is None or info.skipped else self._reported(info, scale)

    def _reported(self, info: StepInfo, scale: float) -> StepInfo:
        """Return what all ranks together have found out of a step that was taken."""
        noted = self._opt.noted(self._pieces.starts).values()
        columns = [self._pieces.joined([of_piece[j] for of_piece in noted]) for j in range(3)]
        wholes = list(zip(*(column.values() for column in columns), strict=True))
        sums = np.array([[*(one.squares for one in of), of[2].largest] for of in wholes]).reshape(-1, 4)
        pieces = {f"params{name}": [k] for k, name in enumerate(columns[0])}
        if self._stats == "group":
            groups = [buffer.group for buffer in self._buffers]
            pieces = {f"groups[{k}]": [j for j, x in enumerate(groups) if x == k] for k in range(len(self.groups))}
        norm = abs(scale) * math.sqrt(in_pairs(sums[:, 0].tolist())) if info.clip_factor is None else info.grad_norm
        return info._replace(grad_norm=norm, stats=statistics(sums, pieces, scale))

    def _as_tree(self, pieces: Sequence[Any]) -> Any:
        """Return gradients of this rank's pieces, as its optimizer takes them."""
        buckets = map(len, self._pieces.cuts)
        return self._buffers.by_group([[None] * n if x is None else x for x, n in zip(pieces, buckets, strict=True)])

    def _clear(self, grads: Tree) -> None:
        """Zero a tree of gradients, where that is asked for."""
        for x in Structure(grads).leaves if self._clearing else ():
            if x is not None:
                getattr(x, "array", x)[...] = 0

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let params hold the averaged weights inside `with opt.averaged():`, which all ranks enter; then their own."""
        try:
            with self._opt.averaged():
                self._pieces.refresh()
                self._pieces.spread()
                yield
        finally:
            self._pieces.refresh()
            self._pieces.spread()

    def __repr__(self) -> str:
        return f"Sharded({self._opt!r}, rank {self._engine.rank} of {self._engine.size})"
