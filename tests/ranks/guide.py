"""A rank that runs the block of fastadam/torch's README on several processes, then DDP with PyTorch's own optimizer."""

import re
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fastadam.torch as fat


def main(guide):
    text = Path(guide).read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(import os\n.*?)```", text, re.S)
    block, end = block.split("dist.barrier()")
    names = {"torch": torch, "fat": fat}
    exec(block, names)
    theirs = DistributedDataParallel(names["network"]())
    expected = names["learned"](theirs, torch.optim.AdamW(theirs.parameters(), lr=1e-2, foreach=False))
    for ours in (names["data_parallel"].parameters(), names["fully_sharded"].parameters()):
        for p, q in zip(ours, expected, strict=True):
            torch.testing.assert_close(p.full_tensor() if hasattr(p, "full_tensor") else p.detach(), q)
    print("alike on", dist.get_world_size())
    exec("dist.barrier()" + end, names)


if __name__ == "__main__":
    main(sys.argv[1])
