"""Loads in two parts: all is read and checked, then the optimizer changes. Between them ranks agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastadam.checkpoint import matching
from fastadam.checkpoint.contents import Kept, Shards
from fastadam.checkpoint.reading import Opened
from fastadam.checks import flag


def is_torch(opt: Any) -> bool:
    """Return whether an optimizer is one for PyTorch. Raises TypeError where it is no optimizer at all."""
    if not (torch := hasattr(opt, "param_groups")) and (isinstance(opt, type) or not isinstance(opt, Kept)):
        raise TypeError(
            f"opt is {type(opt).__name__}, expected an optimizer of fastadam, fastadam.torch or torch.optim"
        )
    return torch


class Loading:
    """Holds a checkpoint that has been read for an optimizer, which changes once `take` is called.

    path: of the checkpoint. extra: what was saved with it. t: the steps that had been taken then.

    >>> opt, folder = fa.Adam(np.ones(3, np.float32)), fa.checkpoint.Folder("run7")
    >>> _ = opt.step(np.ones(3, np.float32)), folder.save(opt, extra={"epoch": 1})
    >>> loading = folder.prepared(fa.Adam(np.zeros(3, np.float32)))
    >>> loading.t, loading.take()
    (1, {'epoch': 1})
    """

    def __init__(self, saved: Opened, opt: Any, shards: Shards, strict: bool) -> None:
        flag("strict", strict)
        if is_torch(opt):
            from fastadam.checkpoint import of_torch

            match: Any = of_torch.TorchMatch(opt, saved, shards)
        else:
            match = matching.Match(opt, saved, shards)
        if strict and match.differences:
            raise ValueError(f"{saved.path}: {match.differences[0]}")
        if not shards:
            saved.check_all()
        self.path, self.extra, self.t = saved.path, saved.content["extra"], saved.content["optimizer"].get("t")
        self._strict, self._differences = strict, match.differences
        self._take: Callable[[], None] = match.read()

    def take(self) -> Any:
        """Change the optimizer as it is now; return what Folder.load does.

        What the checkpoint has not, strict being False, stays as steps have left it since. Raises ValueError where
        leaves have become arrays of other shapes or moments rest otherwise, RuntimeError where params hold averages;
        then nothing has changed.
        """
        self._take()
        return self.extra if self._strict else (self.extra, self._differences)
