"""Muon: one optimizer whose matrices take orthogonalised momentum, and all other parameters AdamW's steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastadam.arrays.host import Array, describe
from fastadam.arrays.tree import Structure, Tree, named
from fastadam.backend import choose
from fastadam.checks import flag, integer, number
from fastadam.kernels.formats import FLOATS, compute
from fastadam.methods import SGD, AdamW
from fastadam.orthogonal import Iteration
from fastadam.rule import LearningRate

ADJUSTED: dict[str, Callable[[int, int], float]] = {  # by how much lr is multiplied for a matrix of rows and columns
    "original": lambda rows, columns: math.sqrt(max(1, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
}
WHY_NOT = "steps of matrices are as long whatever their gradients are; for the others give it in aux"
REFUSED = (
    "moments", "max_norm", "max_value", "ema_decay", "copy_to", "zero_grads", "skip_nonfinite", "stats", "capturable",
    "index_offset",
)  # fmt: skip


class Times(NamedTuple):
    """Is a schedule times a number."""

    schedule: Callable[[int], float]
    ratio: float

    def __call__(self, t: int) -> float:
        return self.ratio * self.schedule(t)


class Muon:
    """Steps matrices by their orthogonalised momentum, and everything else by AdamW: Jordan et al. 2024.

    params: a tree of arrays as Optimizer takes it, without groups and FlatBuffers. A leaf of more than two dimensions
        counts as the matrix (first, all others).
    lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps: torch.optim.Muon's, with its defaults. lr may
        be a function of the step. Decay is decoupled.
    adjust: "original" multiplies lr by √max(1, rows/columns), "match_rms_adamw" by 0.2·√max(rows, columns), so that
        AdamW's lr and weight_decay suit.
    muon: which leaves of two and more dimensions are matrices: None, all; a function of (path, array); or paths, or
        beginnings of paths, as `paths` lists them. Embeddings and heads are yours to leave out.
    aux: AdamW's arguments for all other leaves, hyperparameters and chores; None: its defaults.
    backend, master, seed: see Optimizer.

    The momentum rests in float32 (float64 beside float64). Its update and the final move are walks, the same bits on
    every backend and for any number of threads, given the same orthogonalised matrix. That matrix is BLAS's, in the
    momentum's dtype, whose bits depend on the library and its threads: promise 1 ends there.
    Other chores than grad_scale are refused: see aux. Shards must hold whole leaves: `sums_first` says so. Keep
    state_dict: checkpoint folders take PyTorch's Muon, not this one.

    >>> params = {"w": np.eye(3, dtype=np.float32), "bias": np.zeros(3, np.float32)}
    >>> opt = fa.Muon(params, lr=0.1, weight_decay=0.0, aux={"lr": 1e-3})
    >>> opt.step({"w": np.eye(3, dtype=np.float32), "bias": np.ones(3, np.float32)})
    >>> opt.matrices, opt.t
    (["['w']"], 1)
    """

    sums_first = True  # steps begin with sums over whole leaves, which may not be cut

    def __init__(
        self, params: Tree, lr: LearningRate = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95,
        nesterov: bool = True, ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7, ns_steps: int = 5, adjust: str = "original", *,
        muon: Callable[[str, Any], bool] | Iterable[str] | None = None, aux: Mapping[str, Any] | None = None,
        backend: str = "auto", master: str | None = None, seed: int = 0, **refused: Any,
    ) -> None:  # fmt: skip
        if refused:
            name = min(refused)
            hint = f"expected it in aux: {WHY_NOT}" if name in REFUSED else "which is no argument of Muon"
            raise TypeError(f"{name} is {refused[name]!r}, {hint}")
        lr = lr if callable(lr) else number("lr", lr, low=0)
        decay = number("weight_decay", weight_decay, low=0)
        self._momentum = number("momentum", momentum, low=0, below=1)
        self._nesterov = flag("nesterov", nesterov)
        if not isinstance(ns_coefficients, (tuple, list)) or len(ns_coefficients) != 3:
            raise TypeError(f"ns_coefficients is {ns_coefficients!r}, expected three numbers")
        a, b, c = (number(f"ns_coefficients[{k}]", x) for k, x in enumerate(ns_coefficients))
        self._iteration = Iteration((a, b, c), integer("ns_steps", ns_steps, low=0, most=99), number("eps", eps, low=0))
        if adjust not in ADJUSTED:
            raise ValueError(f"adjust is {adjust!r}, expected {' or '.join(map(repr, ADJUSTED))}")
        self._params, self._structure = params, Structure(params)
        self._home = choose(backend, self._structure.leaves).home
        arrays = [
            self._home.owned(f"params{path}", leaf)
            for path, leaf in zip(self.paths, self._structure.leaves, strict=True)
        ]
        self._places = self._chosen(arrays, muon)
        self._ratios = [ADJUSTED[adjust](*_sides(arrays[k])) for k in self._places]
        rest = {k: x for k, x in enumerate(arrays) if k not in self._places}
        self._momenta = [np.zeros_like(arrays[k], dtype=compute(arrays[k].dtype)) for k in self._places]
        # m - (1 - μ)·(m - g), by the walk of gradient descent: its decay is 1, its gradient -g.
        self._gathering = SGD(self._momenta, lr=1 - self._momentum, weight_decay=1.0, backend=backend)
        groups = [
            {"params": [arrays[k]], "weight_decay": decay / ratio}  # of lr·ratio
            for k, ratio in zip(self._places, self._ratios, strict=True)
        ]
        options: dict[str, Any] = {"backend": backend, "master": master, "seed": seed}
        self._moving = SGD(groups or [{"params": []}], **options)
        self._aux = AdamW(rest, **{**options, **(aux or {})})
        self.lr = lr

    def _chosen(self, arrays: list[Array], muon: Any) -> list[int]:
        """Return the leaves that are matrices."""
        if muon is None or callable(muon):
            wide = [k for k, x in enumerate(arrays) if x.ndim >= 2]
            return [k for k in wide if muon is None or muon(self.paths[k], arrays[k])]
        chosen = named(self.paths, muon)
        for k in chosen:
            if arrays[k].ndim < 2:
                raise ValueError(f"muon has {self.paths[k]!r}, which is {describe(arrays[k])}: expected two dimensions")
        return chosen

    @property
    def params(self) -> Tree:
        """Return the parameters, the tree that was given."""
        return self._params

    @property
    def paths(self) -> list[str]:
        """Return each leaf's path in params as errors print it."""
        return list(self._structure.names)

    @property
    def matrices(self) -> list[str]:
        """Return the paths of the leaves that take orthogonalised momentum."""
        return [self.paths[k] for k in self._places]

    @property
    def aux(self) -> AdamW:
        """Return the optimizer of all other leaves, whose `groups` may be set between steps; its paths are numbers."""
        return self._aux

    @property
    def t(self) -> int:
        """Return the steps taken so far."""
        return max(self._moving.t, self._aux.t)

    @property
    def lr(self) -> LearningRate:
        """Return the learning rate of matrices before it is adjusted, which may be set between steps."""
        return self._lr

    @lr.setter
    def lr(self, value: LearningRate) -> None:
        self._lr = value if callable(value) else number("lr", value, low=0)
        for group, ratio in zip(self._moving.groups, self._ratios, strict=False):
            group.lr = Times(self._lr, ratio) if callable(self._lr) else self._lr * ratio

    @property
    def state_bytes(self) -> int:
        """Return the bytes of the state: momenta, masters, and AdamW's."""
        return sum(m.nbytes for m in self._momenta) + self._moving.state_bytes + self._aux.state_bytes

    def step(self, grads: Tree, grad_scale: float = 1.0) -> None:
        """Update params in place. grads, grad_scale: as Optimizer.step takes them; a leaf that is None is left alone.

        Raises TypeError, ValueError before anything has changed.
        """
        leaves, scale = self._structure.flatten(grads, "grads"), number("grad_scale", grad_scale)
        for path, p, g in zip(self.paths, self._structure.leaves, leaves, strict=True):
            if g is not None and (not self._home.is_array(g) or g.shape != p.shape or g.dtype.name not in FLOATS):
                both = f"grads{path} is {describe(g)}, params{path} is {describe(p)}"
                raise ValueError(f"{both}: expected floats of its shape, or None")
        matrices = [leaves[k] for k in self._places]
        self._aux.step({k: g for k, g in enumerate(leaves) if k not in self._places}, grad_scale=scale)
        self._gathering.step(matrices, grad_scale=-scale)
        present = [k for k, g in enumerate(matrices) if g is not None]
        with np.errstate(all="ignore"):
            orthogonal = self._iteration([self._direction(self._momenta[k], matrices[k], scale) for k in present])
        moves: list[Any] = [None] * len(matrices)
        for k, x in zip(present, orthogonal, strict=True):
            moves[k] = x.reshape(self._momenta[k].shape)
        self._moving.step([[x] for x in moves] or [[]])

    def _direction(self, m: Array, g: Array, scale: float) -> Array:
        """Return what is orthogonalised, as a matrix: the momentum, or with Nesterov the gradient's way beyond it."""
        kind = m.dtype.type
        if self._nesterov:
            m = kind(scale * (1 - self._momentum)) * g.astype(m.dtype) + kind(self._momentum) * m
        return m.reshape(len(m), -1)

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the parameters, as plain numbers and copied arrays; what load_state_dict takes."""
        momenta = {path: self._home.get(m) for path, m in zip(self.matrices, self._momenta, strict=True)}
        moving, aux = self._moving.state_dict(), self._aux.state_dict()
        return {"version": 1, "method": "Muon", "momenta": momenta, "matrices": moving, "aux": aux}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state_dict of a Muon over leaves of the same paths and shapes. Values are copied.

        Raises TypeError, ValueError naming what differs; then nothing has changed.
        """
        expected = ["version", "method", "momenta", "matrices", "aux"]
        if not isinstance(state_dict, dict) or list(state_dict) != expected or state_dict["method"] != "Muon":
            raise ValueError(
                f"state is {describe(state_dict)}, expected the state_dict of a Muon: {', '.join(expected)}"
            )
        momenta = state_dict["momenta"]
        if list(momenta) != self.matrices:
            raise ValueError(f"state['momenta'] is of {list(momenta)}, this optimizer's matrices are {self.matrices}")
        for path, m in zip(self.matrices, self._momenta, strict=True):
            if describe(momenta[path]) != describe(m):
                raise ValueError(f"state['momenta'][{path!r}] is {describe(momenta[path])}, expected {describe(m)}")
        before = self._aux.state_dict()
        self._aux.load_state_dict(state_dict["aux"])
        try:
            self._moving.load_state_dict(state_dict["matrices"])
        except BaseException:
            self._aux.load_state_dict(before)
            raise
        for path, m in zip(self.matrices, self._momenta, strict=True):
            self._home.write(m, momenta[path])

    def __repr__(self) -> str:
        return f"Muon({len(self._places)} matrices, t={self.t}, lr={self.lr!r}, aux={self._aux!r})"


def _sides(x: Array) -> tuple[int, int]:
    """Return the rows and columns of an array as a matrix."""
    return len(x), max(1, x.size // max(1, len(x)))
