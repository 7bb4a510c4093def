"""Muon for PyTorch: matrices step by their orthogonalised momentum, everything else by the compiled AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from fastadam import orthogonal
from fastadam.checks import SEEDS, integer
from fastadam.orthogonal import ADJUSTED
from fastadam.torch.formats import describe
from fastadam.torch.group import plain
from fastadam.torch.method import drop_state, group_on_trial, holds
from fastadam.torch.methods import SGD, AdamW
from fastadam.torch.of_muon import (
    arguments_of,
    check_added,
    check_asked,
    check_matrices,
    check_separate,
    members_of,
    orthogonalised,
    parted,
    tensor_of,
)

KEYS = "lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn"


class Muon(torch.optim.Optimizer):
    """Steps like torch.optim.Muon, and takes the parameters that it refuses: AdamW steps those. Jordan et al. 2024.

    params: as for torch.optim.Muon. Of each group the parameters of two and more dimensions that `muon` chooses are
        matrices, of more than two (first, all others); a group with "aux": True has none. The others become groups of
        their own, with AdamW's hyperparameters and "aux": True.
    muon: a function of (name or None, parameter); None: all. Embeddings and heads are yours to leave out.
    aux: the arguments of fastadam.torch.AdamW for the others, hyperparameters and options; None: its defaults.
    master, seed, ema_decay: of all parameters; see AdamW. Its other options are no options of matrices.
    The other arguments, the defaults and "momentum_buffer" in the state are torch's, whose state_dict fits if there are
    no others. The buffer is float32 beside parameters of 16 bits.

    The momentum's update and the final move are walks, the same bits for any number of threads, given the same
    orthogonalised matrix. The iteration is torch's, in bfloat16, for all matrices of one shape together: its bits are
    those of torch's matrix products, so another machine or number of threads may give other last bits. Shards must
    hold whole leaves: `sums_first` says so.

    >>> model = torch.nn.Linear(4, 2)
    >>> opt = fastadam.torch.Muon(model.parameters(), lr=0.01, aux={"lr": 1e-3})
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> opt.step()
    >>> [group.get("aux", False) for group in opt.param_groups]
    [False, True]
    """

    _adamw: AdamW | None

    sums_first = True  # steps begin with sums over whole leaves, which may not be cut

    def __init__(
        self, params: Any, lr: float | torch.Tensor = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95,
        nesterov: bool = True, ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7, ns_steps: int = 5, adjust_lr_fn: str | None = None, *,
        muon: Callable[[str | None, torch.Tensor], bool] | None = None, aux: Mapping[str, Any] | None = None,
        master: str | None = None, seed: int = 0, ema_decay: float | Callable[[int], float] | None = None,
        **refused: Any,
    ) -> None:  # fmt: skip
        check_asked(refused, muon, aux)
        self._choose(master=master, seed=seed, ema_decay=ema_decay)
        given = lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn
        defaults: dict[str, Any] = dict(zip(KEYS, given, strict=True))
        torch.optim.Muon([torch.zeros(1, 1)], **defaults)  # refuses what torch refuses, in its words
        matrices, others = parted(params, muon)
        self._of_aux = arguments_of(aux)
        self._check_separate([*matrices, *others])
        self._adamw = AdamW(others, **self._shared, **self._of_aux) if others else None
        super().__init__([*matrices, *(self._adamw.param_groups if self._adamw else ())], defaults)
        self._check_groups()
        self._share()

    def _choose(self, **options: Any) -> None:
        """Take our own options."""
        check_asked(options, None, None)
        self._shared: dict[str, Any] = {**options, "seed": integer("seed", options.get("seed", 0), **SEEDS)}
        self._adamw, self._of_aux = None, dict[str, Any]()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of matrices as torch does, or with "aux": True one of AdamW's parameters.

        Raises ValueError where a parameter is neither. Where anything is raised, groups and steps stay as they were.
        """
        if "_moved" not in self.__dict__ or not isinstance(param_group, dict):  # under construction; torch refuses it
            super().add_param_group(param_group)
            return
        self.check_idle("a group added inside averaged() would not hold its average")
        group, adamw = {**param_group, "params": members_of(param_group)}, self._adamw
        if group.get("aux"):
            check_added(group, self._of_aux.get("copy_to") if adamw else None)
        elif flat := [x for x in map(tensor_of, group["params"]) if isinstance(x, torch.Tensor) and x.dim() < 2]:
            raise ValueError(f"params has {describe(flat[0])}, expected two dimensions, or a group with 'aux': True")
        else:
            check_matrices(f"param_groups[{len(self.param_groups)}]", group)
        self._check_separate([*self.param_groups, group])
        if group.get("aux"):
            adamw = adamw or AdamW(group["params"], **self._shared, **self._of_aux)
            group = {**adamw.defaults, **group}
        with group_on_trial(self, self._share):
            super().add_param_group(group)
            self._adamw = adamw
            self._check_groups()
            self._share()
            if self._adamw is not None:
                self._adamw.check_options()

    def check_options(self) -> None:
        """Do nothing: the walks have refused what does not fit."""

    @staticmethod
    def check_group(group: dict[str, Any]) -> None:
        """Do nothing: torch's groups may ask for nothing that no step here can do."""

    def _check_separate(self, groups: list[dict[str, Any]]) -> None:
        """Refuse parameters of these groups, and copies of aux, that share memory."""
        check_separate(groups, self._of_aux.get("copy_to") or ())

    def _share(self) -> None:
        """Let AdamW step its groups, and a walk move the matrices, with this optimizer's state."""
        if not (groups := [group for group in self.param_groups if group.get("aux")]):
            self._adamw = None
        if self._adamw is not None:
            self._adamw.__setstate__({"state": self.state, "param_groups": groups})
        # p - lr·ratio·(x + (λ / ratio)·p): matrices of one ratio are a group.
        self._moved: dict[tuple[int, float], dict[str, Any]] = {}
        self._adjusted = [group["adjust_lr_fn"] for _, group in self._of_matrices()]
        self._moving: SGD | None = None
        self._gathering: SGD | None = None
        self._momenta: list[Any] = []
        for k, group in self._of_matrices():
            for p in group["params"]:
                ratio = ADJUSTED[group["adjust_lr_fn"] or "original"](len(p), p.numel() // max(1, len(p)))
                self._moved.setdefault((k, ratio), {"params": []})["params"].append(p)
        if self._moved:
            self._moving = SGD(list(self._moved.values()), **self._shared)
            self._moving.state = self.state
            self._moved = dict(zip(self._moved, self._moving.param_groups, strict=True))

    def _check_groups(self) -> None:
        """Refuse hyperparameters of matrices that no step takes."""
        for k, group in self._of_matrices():
            given = {"adjust" if key == "adjust_lr_fn" else key: plain(group[key]) for key in KEYS}
            try:
                orthogonal.Muon(**given | {"adjust": given["adjust"] or "original"})
            except (TypeError, ValueError) as error:
                raise type(error)(f"param_groups[{k}]: {error}") from None

    def _of_matrices(self) -> list[tuple[int, dict[str, Any]]]:
        """Return the groups of matrices, numbered."""
        return [(k, group) for k, group in enumerate(self.param_groups) if not group.get("aux")]

    def _walked(self) -> list[Any]:
        """Return the optimizers that step parts of this one's parameters."""
        return [each for each in (self._moving, self._adamw) if each is not None]

    def check_idle(self, what: str) -> None:
        """Raise RuntimeError within `averaged`."""
        for each in self._walked():
            each.check_idle(what)

    def __getstate__(self) -> dict[str, Any]:
        self.check_idle("a copy inside averaged() would keep no parameters of its own")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in ("_adamw", "_shared", "_of_aux")}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state_dict, with AdamW's groups and state among the others."""
        self.check_idle("a state_dict inside averaged() would stand beside averages")
        return dict(super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state_dict as torch's optimizer does, but state keeps the dtype in which it was saved."""
        self.check_idle("a state loaded inside averaged() would lose its parameters at the end")
        given, kept = ([bool(group.get("aux")) for group in x["param_groups"]] for x in (state_dict, vars(self)))
        if given != kept:
            raise ValueError(f"state_dict's groups have aux={given}, expected {kept}, as this optimizer's groups")
        super().load_state_dict(state_dict)
        for group, given in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for p, at in zip(group["params"], given["params"], strict=True):
                for name, x in state_dict["state"].get(at, {}).items():
                    if isinstance(x, torch.Tensor) and self.state[p][name].dtype is not x.dtype:
                        self.state[p][name] = x.to(self.state[p][name].device, copy=True)
        self._share()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within `with opt.averaged():` parameters hold their averages, and get their own bits back afterwards."""
        with ExitStack() as contexts:
            for each in self._walked():
                contexts.enter_context(each.averaged())
            yield

    @property
    def averaging(self) -> bool:
        """Return whether parameters hold the averaged weights: within `averaged`."""
        return any(each.averaging for each in self._walked())

    def rests(self, p: Any) -> dict[str, str | None]:
        """Return what a parameter's tensors rest in; see AdamW.rests."""
        return next(each.rests(p) for each in self._walked() if holds(each, p))

    def reset(self, params: Iterable[Any] | None = None) -> None:
        """Let the state of some parameters be as new, of all where None; see AdamW.reset."""
        self.check_idle("reset inside averaged() would lose what they were before")
        drop_state(self, None if params is None else list(params))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform a single optimization step. closure: reevaluates the model and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.check_idle("a step inside averaged() would be lost")
        self._check_groups()
        if [group["adjust_lr_fn"] for _, group in self._of_matrices()] != self._adjusted:
            self._share()
        present = [(group, p) for _, group in self._of_matrices() for p in group["params"] if p.grad is not None]
        for _, p in present:
            if p.grad.layout is not torch.strided or p.is_complex():
                raise RuntimeError("Muon does not support sparse gradients or complex parameters")
        if self._adamw is not None:
            self._adamw.step_unwatched()
        if present:
            self._gather(present)
            self._move(present)
        return loss

    def _gather(self, present: list[tuple[dict[str, Any], Any]]) -> None:
        """Let the momenta m take up the gradients: m - (1 - μ)·(m - g), a step of gradient descent."""
        momenta = [self._momentum(p) for _, p in present]
        groups = {id(group): group for group, _ in present}
        if [id(m) for m in momenta] != [id(m) for m in self._momenta]:
            members = {at: [m for (group, _), m in zip(present, momenta, strict=True) if id(group) == at]
                       for at in groups}  # fmt: skip
            params = [{"params": of_group} for of_group in members.values()]
            self._gathering, self._momenta = SGD(params, weight_decay=1.0, maximize=True), momenta
        assert self._gathering is not None
        for group, of_momenta in zip(groups.values(), self._gathering.param_groups, strict=True):
            of_momenta["lr"] = 1 - group["momentum"]
        for (_, p), m in zip(present, momenta, strict=True):
            m.grad = p.grad.to(m.dtype)
        try:
            self._gathering.step_unwatched()
        finally:
            for m in momenta:
                m.grad = None

    def _momentum(self, p: Any) -> Any:
        """Return the momentum of a parameter, as wide as the arithmetic."""
        wide, state = torch.promote_types(p.dtype, torch.float32), self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p, dtype=wide, memory_format=torch.preserve_format)
        if state["momentum_buffer"].dtype is not wide:  # as torch's own optimizer keeps it
            state["momentum_buffer"] = state["momentum_buffer"].to(wide)
        return state["momentum_buffer"]

    def _move(self, present: list[tuple[dict[str, Any], Any]]) -> None:
        """Orthogonalise what the gradients and momenta say, and let the parameters move."""
        alike: dict[Any, list[int]] = {}
        for k, (group, p) in enumerate(present):
            iteration = group["nesterov"], *(group[key] for key in ("ns_coefficients", "eps", "ns_steps", "momentum"))
            alike.setdefault((len(p), p.numel(), p.dtype, p.device, iteration), []).append(k)
        moves: list[Any] = [None] * len(present)
        for places in alike.values():
            group = present[places[0]][0]
            x: Any = [self._momenta[k] for k in places]
            if group["nesterov"]:
                x = torch._foreach_lerp(
                    [present[k][1].grad.to(m.dtype) for k, m in zip(places, x, strict=True)], x, group["momentum"]
                )
            x = torch.stack([each.reshape(len(each), each.numel() // max(1, len(each))).bfloat16() for each in x])
            for k, move in zip(places, orthogonalised(x, group, present[places[0]][1].dtype).unbind(), strict=True):
                moves[k] = move
        given = [p.grad for _, p in present]
        try:
            for (_, p), move in zip(present, moves, strict=True):
                p.grad = move.reshape(p.shape)
            assert self._moving is not None
            for (k, ratio), of_p in self._moved.items():
                group = self.param_groups[k]
                of_p["lr"], of_p["weight_decay"] = group["lr"] * ratio, group["weight_decay"] / ratio
            self._moving.step_unwatched()
        finally:
            for (_, p), g in zip(present, given, strict=True):
                p.grad = g
