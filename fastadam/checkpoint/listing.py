"""Prints, for python -m fastadam checkpoint, what is in a folder of checkpoints, and whether every byte is as it was
written."""

import os
import sys
from math import prod
from typing import Any

from fastadam.checkpoint.folder import opened_all
from fastadam.checkpoint.reading import Opened
from fastadam.checkpoint.tensors import itemsize


def run(path: str) -> int:
    """Print a line for each checkpoint, the oldest first, and the newest one's tensors; 0 if all of them are whole."""
    path = os.path.abspath(path)
    paths, content, status = list(opened_all(path)), dict[str, Any](), 0
    if not paths:
        print(f"{path} holds no checkpoint", file=sys.stderr)
        return 1
    for each in paths:
        print(os.path.basename(each), end="  ", flush=True)
        try:
            with Opened(each, mapped=True) as saved:
                content = saved.content
                print(_summary(content), end="  ", flush=True)
                saved.check_all()
            print("whole", flush=True)
        except (OSError, ValueError, ImportError) as error:
            print(error, flush=True)
            status = 1
    for name, tensor in content.get("tensors", {}).items():
        n = prod(tensor["shape"])
        print(f"  {name}  {tensor['dtype']}{tuple(tensor['shape'])}  {n * itemsize(tensor['dtype']):,} bytes")
    return status


def _summary(content: dict[str, Any]) -> str:
    optimizer, size = content["optimizer"], sum(file["bytes"] for file in content["files"])
    files = len(content["files"])
    return (
        f"{optimizer.get('method')}  step {optimizer.get('t')}  {len(content['tensors'])} tensors  {size:,} bytes in "
        f"{files} file{'s' * (files > 1)}  {content['saved']}"
    )
