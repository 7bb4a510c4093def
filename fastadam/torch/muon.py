"""Muon for PyTorch: matrices step by their orthogonalised momentum, everything else by the compiled AdamW."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from fastadam.orthogonal import ADJUSTED
from fastadam.torch.methods import AdamW

KEYS = "lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn"


class Muon(torch.optim.Optimizer):
    """Steps like torch.optim.Muon, and takes the parameters that it refuses: AdamW steps those. Jordan et al. 2024.

    params: as for torch.optim.Muon. Of each group the parameters of two and more dimensions that `muon` chooses are
        matrices, of more than two (first, all others); a group with "aux": True has none. The others become groups of
        their own, with AdamW's hyperparameters and "aux": True.
    muon: a function of (name or None, parameter); None: all. Embeddings and heads are yours to leave out.
    aux: the arguments of fastadam.torch.AdamW for the others, hyperparameters and options; None: its defaults.
    The other arguments, the defaults and "momentum_buffer" in the state are torch's, whose state_dict fits if there are
    no others.

    The iteration is torch's, in bfloat16, for all matrices of one shape together. Its bits are those of torch's matrix
    products, which depend on the machine and its threads. Shards must hold whole leaves: `sums_first` says so.

    >>> model = torch.nn.Linear(4, 2)
    >>> opt = fastadam.torch.Muon(model.parameters(), lr=0.01, aux={"lr": 1e-3})
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> opt.step()
    >>> [group.get("aux", False) for group in opt.param_groups]
    [False, True]
    """

    sums_first = True  # steps begin with sums over whole leaves, which may not be cut

    def __init__(
        self, params: Any, lr: float | torch.Tensor = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95,
        nesterov: bool = True, ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7, ns_steps: int = 5, adjust_lr_fn: str | None = None, *,
        muon: Callable[[str | None, torch.Tensor], bool] | None = None, aux: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        given = lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn
        defaults: dict[str, Any] = dict(zip(KEYS, given, strict=True))
        torch.optim.Muon([torch.zeros(1, 1)], **defaults)  # refuses what torch refuses, in its words
        items = list(params)
        groups = items if items and isinstance(items[0], dict) else [{"params": items}]
        matrices: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for group in groups:
            members = group["params"]
            members = [members] if isinstance(members, torch.Tensor) else list(members)
            chosen = [not group.get("aux") and _is_matrix(x, muon) for x in members]
            if some := [x for x, is_matrix in zip(members, chosen, strict=True) if is_matrix]:
                matrices.append({**{key: x for key, x in group.items() if key != "aux"}, "params": some})
            if rest := [x for x, is_matrix in zip(members, chosen, strict=True) if not is_matrix]:
                kept = {key: x for key, x in group.items() if group.get("aux")}
                others.append({**kept, "params": rest, "aux": True})
        self._adamw = AdamW(others, **(aux or {})) if others else None
        super().__init__([*matrices, *(self._adamw.param_groups if self._adamw else ())], defaults)
        self._share()

    def _share(self) -> None:
        """Let AdamW step this optimizer's groups, with its state."""
        if self._adamw is not None:
            groups = [group for group in self.param_groups if group.get("aux")]
            self._adamw.__setstate__({"state": self.state, "param_groups": groups})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_adamw": self._adamw}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but state keeps the dtype in which it was saved."""
        super().load_state_dict(state_dict)
        for group, given in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for p, at in zip(group["params"], given["params"], strict=True):
                for name, x in state_dict["state"].get(at, {}).items():
                    if isinstance(x, torch.Tensor) and self.state[p][name].dtype is not x.dtype:
                        self.state[p][name] = x.to(self.state[p][name].device, copy=True)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform a single optimization step. closure: reevaluates the model and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._adamw is not None:
            self._adamw.step()
        for group in self.param_groups:
            if not group.get("aux"):
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        """Step the matrices of one group."""
        updates: dict[Any, list[tuple[Any, Any]]] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.is_sparse or p.is_complex():
                raise RuntimeError("Muon does not support sparse gradients or complex parameters")
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p.grad, memory_format=torch.preserve_format)
            m = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
            update = (p.grad.lerp(m, group["momentum"]) if group["nesterov"] else m).reshape(len(p), -1)
            updates.setdefault((update.shape, update.device), []).append((p, update))
        lr = float(group["lr"])
        for (shape, _), pairs in updates.items():
            adjust = group["adjust_lr_fn"] or "original"
            moves = _orthogonal(torch.stack([update.bfloat16() for _, update in pairs]), group)
            for (p, _), move in zip(pairs, moves.unbind(), strict=True):
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(move.reshape(p.shape), alpha=-lr * ADJUSTED[adjust](*shape))


def _is_matrix(member: Any, muon: Callable[..., bool] | None) -> bool:
    """Return whether a parameter, or (name, parameter), is a matrix that is meant."""
    name, p = member if isinstance(member, tuple) else (None, member)
    return p.dim() >= 2 and (muon is None or bool(muon(name, p)))


def _orthogonal(x: Any, group: Mapping[str, Any]) -> Any:
    """Return (count, rows, columns) bfloat16 matrices with their singular values moved near to 1; see torch's own."""
    a, b, c = group["ns_coefficients"]
    tall = x.shape[1] > x.shape[2]
    x = x.mT.contiguous() if tall else x
    x.div_(torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=group["eps"]))
    for _ in range(group["ns_steps"]):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
