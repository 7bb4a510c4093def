"""Checkpoints that are there whole or not at all, and that no damaged byte is loaded from. See README.md beside this.

folder = fastadam.checkpoint.Folder("run7", keep=3)
folder.save(opt, extra={"epoch": 3}, background=True)
extra = folder.load(opt)
"""

from fastadam.checkpoint.background import Handle
from fastadam.checkpoint.contents import Shard
from fastadam.checkpoint.folder import Folder, load, read, save
from fastadam.checkpoint.manifest import Damaged

__all__ = ["Damaged", "Folder", "Handle", "Shard", "load", "read", "save"]
