"""Has drop-in optimizers for PyTorch: torch.optim's classes with one compiled walk as their step; see README.md.

May import the layers below the array optimizers, and PyTorch, which nothing else of the library imports at its top.
What arrays need too, such as tables, judges, averages and memory checks, belongs to plans and state, not here.
"""

from fastadam.torch.conversion import convert, load_state_from, to_torch_state
from fastadam.torch.methods import (
    ADOPT,
    LAMB,
    LARS,
    SGD,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    AdEMAMix,
    Lion,
    NAdam,
    Prodigy,
    RAdam,
    RMSprop,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    SparseAdam,
    StableAdamW,
)
from fastadam.torch.muon import Muon

__all__ = [
    "ADOPT",
    "LAMB",
    "LARS",
    "SGD",
    "AdEMAMix",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "Muon",
    "NAdam",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "SparseAdam",
    "StableAdamW",
    "convert",
    "load_state_from",
    "to_torch_state",
]
