"""The engine over a process group of torch.distributed: gloo for arrays of the host, NCCL for those of a device."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import timedelta
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from fastadam.arrays.host import Array
from fastadam.distributed.engine import Engine, Part, Wait

FIRST = 1 << 24  # of the tags: apart from those of a program, whose messages have 0 where it says none
TAGS: WeakKeyDictionary[Any, count[int]] = WeakKeyDictionary()  # by group, those not yet taken


class ProcessGroup(Engine):
    """Serves the ranks of a process group. When one dies, the others raise gloo's RuntimeError, which names it."""

    def __init__(self, group: Any, timeout: float | None) -> None:
        import torch

        self._torch, self._group = torch, group
        self._tag = next(TAGS.setdefault(group, count(FIRST)))  # one for each optimizer: hooks may come in unlike order
        self._limit = () if timeout is None else (timedelta(seconds=timeout),)
        self.rank, self.size = group.rank(), group.size()
        self.carries = ("device",) if torch.distributed.get_backend(group) == "nccl" else ("host",)
        self._peers = torch.distributed.get_process_group_ranks(group)

    def _numbers(self, x: Part) -> Any:
        """Return the tensor that an array is, in its memory."""
        if not isinstance(x, np.ndarray):
            return self._torch.utils.dlpack.from_dlpack(x)
        with warnings.catch_warnings():  # PyTorch has no tensors that cannot be written, and none that is sent is
            warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
            return self._torch.from_numpy(x)

    def _tensor(self, x: Part) -> Any:
        """Return the tensor of an array's bytes."""
        return self._numbers(x.view(np.uint8))

    def swap(self, sends: Sequence[Part], receives: Sequence[Part]) -> Wait:
        distributed = self._torch.distributed
        operations = [
            distributed.P2POp(act, self._tensor(part), self._peers[k], self._group, self._tag)
            for act, parts in ((distributed.irecv, receives), (distributed.isend, sends))
            for k, part in enumerate(parts)
            if part is not None and part.size
        ]
        begun = distributed.batch_isend_irecv(operations) if operations else []

        def wait() -> None:
            for one in begun:
                one.wait(*self._limit)

        return wait

    def reduce(self, parts: Sequence[Part], total: Part) -> Wait:
        distributed = self._torch.distributed
        tensors = [self._numbers(x).clone() for x in parts]  # which are written, and parts are the user's gradients
        begun = [
            distributed.reduce(x, self._peers[k], group=self._group, async_op=True)
            for k, x in enumerate(tensors)
            if x.numel()
        ]

        def wait() -> None:
            for one in begun:
                one.wait(*self._limit)
            self._numbers(total).copy_(tensors[self.rank])

        return wait

    def words(self, x: Array) -> Array:
        distributed, device = self._torch.distributed, "cuda" if "device" in self.carries else "cpu"
        sent = self._torch.from_numpy(x).to(device)
        every = [self._torch.empty_like(sent) for _ in range(self.size)]
        distributed.all_gather(every, sent, group=self._group)
        return np.stack([one.cpu().numpy() for one in every])

    def everyone(self, x: Any) -> list[Any]:
        everyones: list[Any] = [None] * self.size
        self._torch.distributed.all_gather_object(everyones, x, group=self._group)
        return everyones


def engine(communicator: Any, timeout: float | None) -> ProcessGroup | None:
    """Return the engine of a process group; None for anything else."""
    import torch

    is_group = torch.distributed.is_available() and isinstance(communicator, torch.distributed.ProcessGroup)
    return ProcessGroup(communicator, timeout) if is_group else None
