"""Saves checkpoints that are there whole or not at all, and loads no damaged byte; README.md shows their use.

May import everything up to Optimizer, and PyTorch in of_torch.py alone. What a state holds belongs to state/.
"""

from fastadam.checkpoint.background import Handle
from fastadam.checkpoint.contents import Shard
from fastadam.checkpoint.folder import Folder, load, read, save
from fastadam.checkpoint.loading import Loading
from fastadam.checkpoint.manifest import Damaged

__all__ = ["Damaged", "Folder", "Handle", "Loading", "Shard", "load", "read", "save"]
