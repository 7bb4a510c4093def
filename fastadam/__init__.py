"""Runs Adam and its family at the speed of memory, on the arrays you already have.

May import its wings; importing it loads neither Numba nor CuPy nor PyTorch, and compiles nothing.
Only what users call belongs here: each wing's first lines say what may be touched there.
"""

import os.path
from typing import TYPE_CHECKING, Any

if os.path.isfile(os.path.join(os.path.dirname(__file__), "kernels")):
    raise ImportError(
        "fastadam/kernels is a text file where a symbolic link should be: clone with git clone -c core.symlinks=true"
    )

from fastadam.arrays.flat import FlatBuffer
from fastadam.arrays.tree import register_container
from fastadam.backend import backends
from fastadam.functional import (
    adabelief_step,
    adagrad_step,
    adam_step,
    adamax_step,
    ademamix_step,
    adopt_step,
    lamb_step,
    lars_step,
    lion_step,
    momentum_step,
    nadam_step,
    prodigy_step,
    rmsprop_step,
    schedulefree_step,
    stableadamw_step,
)
from fastadam.host.threads import get_num_threads, num_threads, set_num_threads
from fastadam.methods import (
    ADOPT,
    LAMB,
    LARS,
    SGD,
    AdaBelief,
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
    StableAdamW,
)
from fastadam.muon import Muon
from fastadam.optimizer import Optimizer
from fastadam.plans.chores import StepInfo
from fastadam.plans.measured import LeafSums, Measured
from fastadam.stepper import Stepper
from fastadam.tools.advise import advise
from fastadam.tools.diagnosis import info
from fastadam.version import VERSION

if TYPE_CHECKING:
    from fastadam import checkpoint, distributed, schedules

__all__ = [
    "ADOPT",
    "LAMB",
    "LARS",
    "SGD",
    "AdEMAMix",
    "AdaBelief",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "FlatBuffer",
    "LeafSums",
    "Lion",
    "Measured",
    "Muon",
    "NAdam",
    "Optimizer",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "StableAdamW",
    "StepInfo",
    "Stepper",
    "adabelief_step",
    "adagrad_step",
    "adam_step",
    "adamax_step",
    "ademamix_step",
    "adopt_step",
    "advise",
    "backends",
    "checkpoint",
    "distributed",
    "get_num_threads",
    "info",
    "lamb_step",
    "lars_step",
    "lion_step",
    "momentum_step",
    "nadam_step",
    "num_threads",
    "prodigy_step",
    "register_container",
    "rmsprop_step",
    "schedulefree_step",
    "schedules",
    "set_num_threads",
    "stableadamw_step",
]

__version__ = VERSION


def __getattr__(name: str) -> Any:
    """Load fastadam.schedules, .checkpoint or .distributed when it is first asked for."""
    if name in ("checkpoint", "distributed", "schedules"):
        import importlib

        return importlib.import_module(f"fastadam.{name}")
    raise AttributeError(f"module 'fastadam' has no attribute {name!r}")
