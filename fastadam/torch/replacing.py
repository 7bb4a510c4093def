"""Lets one parameter become another tensor, of more rows or fewer, and its state follow the rows."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch

from fastadam.state.averages import Averaging
from fastadam.state.resized import accept_rows, take_rows
from fastadam.torch.formats import ORDER, describe
from fastadam.torch.method import Method


class Replacing(Averaging, Method):
    """Is the part of an optimizer that puts other tensors in the place of parameters, as Gaussian splatting needs
    it."""

    _copy_to: list[Any] | None
    _walks: list[Any] | None

    def walks(self) -> Iterable[Any]:
        raise NotImplementedError

    @torch.no_grad()
    def replace(self, old: Any, new: Any, rows: Any = None, copy_to: Any = None) -> None:
        """Step `new` from now on in the place of the parameter `old`, and let the state follow the rows.

        new: a leaf tensor of old's dtype and device, and of its shape but for the first dimension.
        rows: (len(new),) integers, a tensor, an array or a list: the row of old that each row of new continues; -1, or
            an index that old has not, for one whose state begins anew, slots at what the method begins with, average
            and master at new. None: each row continues that of its own index.
        copy_to: where the optimizer has copy_to, the tensor that is new's copy from now on.
        The count stays. This is also the way to cat and prune moments of 8 bits: they are decoded, and rounded to
        nearest in new's blocks. A master or a remainder is kept where new has old's bits, and begins anew elsewhere.
        Raises IndexError, TypeError, ValueError naming what does not fit; then nothing has changed.
        """
        self.check_idle("a parameter replaced inside averaged() would be replaced by an average")
        members = list(chain.from_iterable(group["params"] for group in self.param_groups))
        at = next((k for k, p in enumerate(members) if p is old), None)
        if at is None:
            raise ValueError("old is no parameter of this optimizer")
        if not isinstance(new, torch.Tensor) or not new.is_leaf or any(p is new for p in members):
            raise TypeError(f"new is {type(new).__name__}, expected a leaf tensor that is no parameter here yet")
        if hasattr(old, "to_local") or hasattr(new, "to_local"):
            raise ValueError(f"old is {describe(old)}, new is {describe(new)}: expected no DTensors")
        alike = [(x.dtype, x.device, x.shape[1:], x.dim()) for x in (old, new)]
        if alike[0] != alike[1] or not old.dim():
            raise ValueError(
                f"new is {describe(new)}, old is {describe(old)}: expected its dtype and device, any number of its rows"
            )
        index = accept_rows("old", old, new, rows.cpu().numpy() if isinstance(rows, torch.Tensor) else rows)
        copies = self._copy_to
        if (copy_to is None) != (copies is None):
            raise ValueError(
                f"copy_to is {type(copy_to).__name__}, expected a tensor with copy_to, and None without: new's copy"
            )
        state = self._following(old, new, index)
        if copies is not None:
            self._copy_to = [*copies[:at], copy_to, *copies[at + 1 :]]
        self._swap(old, new)
        try:
            self.walks()
        except (RuntimeError, TypeError, ValueError):
            self._copy_to = copies
            self._swap(new, old)
            raise
        self.state.pop(old, None)
        if state is not None:
            self.state[new] = state

    def _swap(self, old: Any, new: Any) -> None:
        for group in self.param_groups:
            group["params"] = [new if p is old else p for p in group["params"]]
        self._walks = None

    def _following(self, old: Any, new: Any, rows: Any) -> dict[str, Any] | None:
        """Return the state of `new`, None where old has none. rows: see accept_rows."""
        if old not in self.state:
            return None
        walk, leaf = next((walk, leaf) for walk in self.walks() for leaf in walk.leaves if leaf.p is old)
        state, other, initial = dict(self.state[old]), leaf.beside(new), walk.rule_of(leaf.group).initial()
        names = {key: name for name, key in self.slots.items()}
        index = torch.from_numpy(rows).to(old.device)
        order = state[ORDER].tolist() if ORDER in state else None
        for key in leaf.slots:
            if (x := state.get(key)) is None:
                continue
            blocks = leaf.formats[key].block > 1 and x.dtype is leaf.kinds[key]
            x = leaf.decoded(key, x, order) if blocks else x
            y = torch.full_like(new, initial.get(names.get(key), 0), dtype=x.dtype)
            if leaf.begins_as_p(key):
                y.copy_(new)
            lacking = key in ("remainder", "master")
            take_rows(y, x, index, (old.view(torch.int16), new.view(torch.int16)) if lacking else None)
            state[key] = other.encoded(key, y) if blocks else y
        if ORDER in state:
            state[ORDER] = torch.tensor(other.strides, dtype=torch.int64, device="cpu")
        return state
