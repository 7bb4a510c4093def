"""Muon: one optimizer whose matrices take orthogonalised momentum, and all other parameters AdamW's steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np

from fastadam import orthogonal
from fastadam.arrays.host import Array, Memory, describe
from fastadam.arrays.tree import ByPath, Structure, Tree, named
from fastadam.backend import choose
from fastadam.checks import flag, number
from fastadam.group import Group, hyperparameters, is_grouped
from fastadam.joined import Joined
from fastadam.measuring import ACCUMULATED
from fastadam.methods import SGD, AdamW
from fastadam.plans.chores import StepInfo
from fastadam.rule import LearningRate

OF_AUX = "moments", "max_value"  # what AdamW may be told beside its hyperparameters
REFUSED = {name: "expected it in aux: momentum rests as the arithmetic is, and its matrix has no gradient's size"
           for name in OF_AUX} | dict.fromkeys(
    ("stats", "capturable", "index_offset"), "expected another optimizer: Muon has none"
)  # fmt: skip


class Muon(Joined):
    """Steps matrices by their orthogonalised momentum, and everything else by AdamW: Jordan et al. 2024.

    params: a tree of arrays as Optimizer takes it, without groups and FlatBuffers. A leaf of more than two dimensions
        counts as the matrix (first, all others).
    lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps: torch.optim.Muon's, with its defaults. lr may
        be a function of the step. Decay is decoupled.
    adjust: "original" multiplies lr by √max(1, rows/columns), "match_rms_adamw" by 0.2·√max(rows, columns), so that
        AdamW's lr and weight_decay suit.
    maximize: of all leaves, but where aux says otherwise.
    muon: which leaves of two and more dimensions are matrices: None, all; a function of (path, array); or paths, or
        beginnings of paths, as `paths` lists them. Embeddings and heads are yours to leave out.
    aux: AdamW's arguments for all other leaves: hyperparameters, `moments` and `max_value`; None: its defaults.
    backend, master, seed, max_norm, ema_decay, copy_to, zero_grads, skip_nonfinite: see Optimizer; of all leaves, so
        the norm is that of all gradients. On a device skip_nonfinite is False or "raise".

    The momentum rests in float32 (float64 beside float64). Its update and the final move are walks, the same bits on
    every backend and for any number of threads, given the same orthogonalised matrix. That matrix is BLAS's, in the
    momentum's dtype: another library, version of it or number of its threads may give other last bits.
    Shards must hold whole leaves: `sums_first` says so.

    >>> params = {"w": np.eye(3, dtype=np.float32), "bias": np.zeros(3, np.float32)}
    >>> opt = fa.Muon(params, lr=0.1, weight_decay=0.0, aux={"lr": 1e-3})
    >>> _ = opt.step({"w": np.eye(3, dtype=np.float32), "bias": np.ones(3, np.float32)})
    >>> opt.matrices, opt.t
    (["['w']"], 1)
    """

    rule: ClassVar[type[orthogonal.Muon]] = orthogonal.Muon
    sums_first = True  # steps begin with sums over whole leaves, which may not be cut

    def __init__(
        self, params: Tree, lr: LearningRate = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95,
        nesterov: bool = True, ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7, ns_steps: int = 5, adjust: str = "original", *, maximize: bool = False,
        muon: Callable[[str, Any], bool] | Iterable[str] | None = None, aux: Mapping[str, Any] | None = None,
        backend: str = "auto", master: str | None = None, seed: int = 0, max_norm: float | None = None,
        ema_decay: float | Callable[[int], float] | None = None, copy_to: Tree | None = None,
        zero_grads: bool = False, skip_nonfinite: bool | str = False, **refused: Any,
    ) -> None:  # fmt: skip
        for name, value in refused.items():
            raise TypeError(f"{name} is {value!r}, {REFUSED.get(name, 'which is no argument of Muon')}")
        if is_grouped(params):
            raise TypeError(
                "params is a list of groups, expected a tree of arrays: lr and the like are of all matrices, aux has "
                "those of all other leaves"
            )
        rule: Any = self.rule(lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust,
                              maximize=maximize)  # fmt: skip
        self._params, self._structure = params, Structure(params)
        of_aux = self._of_aux({} if aux is None else aux)
        self._home, self._copy_to = choose(backend, self._structure.leaves).home, copy_to
        self._clearing = flag("zero_grads", zero_grads)
        pairs = zip(self.paths, self._structure.leaves, strict=True)
        arrays = ByPath({path: self._home.owned(f"params{path}", leaf) for path, leaf in pairs})
        chosen = self._chosen(arrays, muon)
        offsets = dict(zip(arrays, accumulate((x.size for x in arrays.values()), initial=0), strict=False))
        copies = None
        if copy_to is not None:
            copies = dict(zip(arrays, self._structure.flatten(copy_to, "copy_to"), strict=True))
        self._check_separate(arrays, copies or {})

        def optimizer(method: Any, paths: list[str], **more: Any) -> Any:
            subtrees = ({path: each[path] for path in paths} for each in (arrays, offsets, copies or offsets))
            tree, firsts, of_copies = map(ByPath, subtrees)
            return method(
                tree, backend=backend, master=master, seed=seed, index_offset=dict(firsts), ema_decay=ema_decay,
                copy_to=None if copies is None else of_copies, **more,
            )  # fmt: skip

        limits: dict[str, Any] = {"max_norm": max_norm, "skip_nonfinite": skip_nonfinite}
        self._measuring = any(x is not None and x is not False for x in limits.values())
        self._rate = 0.0  # of matrices, at the step that is being taken
        self._moving: SGD = optimizer(SGD, chosen, lr=self._lr_of_step, weight_decay=rule.weight_decay)
        self._momenta = ByPath({path: self._zeros_like(arrays[path]) for path in chosen})
        # m - (1 - μ)·(m - g), by the walk of gradient descent: its decay is 1, its gradient -g.
        self._gathering = SGD(self._momenta, lr=1 - rule.momentum, weight_decay=1.0, backend=backend, **limits)
        group = Group(rule, "groups[0].", range(len(chosen)), {m.dtype for m in self._momenta.values()})
        group.watch(self._follow)
        others = [path for path in arrays if path not in self._momenta]
        self._aux: AdamW = optimizer(AdamW, others, zero_grads=zero_grads, **limits, **{"maximize": maximize, **of_aux})
        self.groups = group, *self._aux.groups
        if skip_nonfinite is True and self.backend == "cuda":
            raise ValueError("skip_nonfinite is True, expected False or 'raise' for arrays on a device")

    @staticmethod
    def _of_aux(aux: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return AdamW's own arguments. Raises TypeError where one is not only AdamW's."""
        if not isinstance(aux, Mapping):
            raise TypeError(f"aux is {aux!r}, expected a dict of AdamW's arguments, or None")
        expected = [*hyperparameters(AdamW.rule), *OF_AUX]
        for name, value in aux.items():
            if name not in expected:
                raise TypeError(f"aux has {name} {value!r}, expected of AdamW alone any of {', '.join(expected)}")
        return aux

    def _check_separate(self, arrays: Mapping[str, Array], copies: Mapping[str, Any]) -> None:
        """Refuse leaves and copies that share memory: each of the two parts knows of its own alone."""
        home = self._home
        written = {f"copy_to{path}": x for path, x in copies.items() if home.is_array(x)}
        written = {name: home.to_write(name, x) for name, x in written.items()}
        Memory([*((f"params{path}", x) for path, x in arrays.items()), *written.items()])

    def _chosen(self, arrays: ByPath, muon: Any) -> list[str]:
        """Return the paths of the leaves that are matrices."""
        if muon is None or callable(muon):
            return [path for path, x in arrays.items() if x.ndim >= 2 and (muon is None or muon(path, x))]
        if not isinstance(muon, Iterable):
            raise TypeError(f"muon is {muon!r}, expected a function of (path, array), paths, or None for all")
        chosen = [self.paths[k] for k in named(self.paths, muon, "muon")]
        for path in chosen:
            if arrays[path].ndim < 2:
                raise ValueError(f"muon has {path!r}, which is {describe(arrays[path])}: expected two dimensions")
        return chosen

    def _lr_of_step(self, t: int) -> float:
        return self._rate

    def step(self, grads: Tree = ACCUMULATED, grad_scale: float = 1.0, reduction: str = "mean") -> StepInfo:
        """Update params in place. grads, grad_scale, reduction: as Optimizer.step takes them.

        Returns what the chores have found out. Raises TypeError, ValueError before anything has changed.
        """
        counts = [each.counts_accumulated for each in (self._moving, self._aux)]
        before, t = [x.copy() for x in counts], self.t
        try:
            return self._step(grads, grad_scale, reduction)
        except FloatingPointError:  # uses up what was accumulated
            raise
        except BaseException:
            if self.t == t:
                for x, kept in zip(counts, before, strict=True):
                    x[:] = kept
            raise

    def _step(self, grads: Tree, grad_scale: float, reduction: str) -> StepInfo:
        scale, group = number("grad_scale", grad_scale), self.groups[0]
        if grads is ACCUMULATED:
            leaves, share = self._taken(reduction)
            scale *= share
        elif reduction != "mean":
            raise ValueError(f"reduction is {reduction!r}, expected it where step() takes what was accumulated")
        else:
            leaves = self._structure.flatten(grads, "grads")
        matrices, others = self._split(leaves)
        upwards = -scale if group.maximize else scale  # for matrices
        self._moving.check_grads(matrices)
        self._rate = group.lr_at(self.t + 1)
        self._moving.groups[0].coefficients_at(1, self._rate, 1.0)
        self._gathering.groups[0].coefficients_at(1, 1 - group.momentum, -upwards)
        clearing = [self._home.to_write(f"grads{path}", g) for path, g in matrices.items()
                    if self._clearing and g is not None]  # fmt: skip
        measured = None
        if self._measuring:
            of_all = {**self._gathering.measure(matrices), **self._aux.measure(others)}
            measured = {path: of_all[path] for path in self.paths}
        info = self._aux.step(others, scale, measured=measured)
        if not info.skipped:
            clipped: Any = self._gathering.step(matrices, -upwards, measured=measured).clip_factor
            info = self._move(matrices, upwards if clipped is None else upwards * clipped, info)
        for g in clearing:
            g[...] = 0
        return info

    def _taken(self, reduction: str) -> tuple[list[Any], float]:
        """Return the sums of what has been accumulated, which a step uses up, and what they are multiplied by."""
        batches, sums = self.accumulated
        if not batches:
            raise ValueError("step() got no grads and nothing has been accumulated: expected one of them")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is {reduction!r}, expected 'mean' or 'sum'")
        self.forget()
        return [sums.get(path) for path in self.paths], 1 / batches if reduction == "mean" else 1.0

    def _move(self, matrices: dict[str, Any], scale: float, info: StepInfo) -> StepInfo:
        """Let matrices step by their momenta; return a step's report with what this one adds."""
        moves: dict[str, Any] = dict.fromkeys(matrices)
        present = [path for path, g in matrices.items() if g is not None]
        with np.errstate(all="ignore"):
            rule: Any = self.groups[0].rule
            directions = [self._direction(self._momenta[path], matrices[path], scale) for path in present]
            for path, x in zip(present, rule.orthogonalised(directions), strict=True):
                moves[path] = x.reshape(self._momenta[path].shape)
        taken_over = [x for x in (info.taken_over, self._moving.step(moves).taken_over) if x is not None]
        return info._replace(taken_over=sum(taken_over) if taken_over else None)

    def _direction(self, m: Array, g: Array, scale: float) -> Array:
        """Return what is orthogonalised, as a matrix: the momentum, or with Nesterov the gradient's way beyond it."""
        kind, group = m.dtype.type, self.groups[0]
        if group.nesterov:
            m = kind(scale * (1 - group.momentum)) * g.astype(m.dtype, copy=False) + kind(group.momentum) * m
        return m.reshape(len(m), m.size // max(1, len(m)))

    def __repr__(self) -> str:
        return f"Muon({len(self.matrices)} matrices, t={self.t}, backend={self.backend!r}, {self.groups})"
