"""Says what is measured: suites, which are lists of races, and who takes part in each.

core: a step of every backend beside all peers. chain: a whole training step in one pass against PyTorch's passes.
narrow: steps in fewer bytes, once more on fewer parameters beside peers whose 8-bit moments are slow on a CPU.
pytorch: fastadam.torch against torch.optim. jax: fastadam.jax against optax.
lamb, stableadamw: methods whose steps need sums over whole arrays first. muon: matrices, against torch.optim.Muon.
"""

from collections.abc import Callable
from typing import NamedTuple

from . import cases

FASTADAM, CUDA, TORCH, FUSED, DEEPSPEED, JAX, OPTAX, TIMM, OPTIMI, MUON = (
    "fastadam numba", "fastadam cuda", "fastadam.torch", "torch fused", "DeepSpeedCPUAdam", "fastadam.jax", "optax",
    "timm", "optimi", "torch Muon",
)  # fmt: skip
PLAIN, MOMENTS, ALL, REMAINDER, CODED, SHORT_CODED, WIDE_STATE = (
    "float32", "float32:moments=bfloat16", "bfloat16:moments=bfloat16", "bfloat16:moments=bfloat16:master=remainder",
    "float32:moments=8bit", "bfloat16:moments=8bit", "bfloat16",
)  # fmt: skip
NARROW = (
    *((FASTADAM, format) for format in (PLAIN, MOMENTS, ALL, REMAINDER, CODED, SHORT_CODED)),
    *((FUSED, format) for format in (PLAIN, ALL)),
    *((DEEPSPEED, format) for format in (PLAIN, WIDE_STATE, ALL)),
)
SLOW = ((FASTADAM, CODED), ("bitsandbytes 8-bit", CODED), ("torchao 8-bit", CODED))
SLOW_SIZE = 2**20  # parameters


class Race(NamedTuple):
    """Names a case and who steps it in turns: pairs of a contestant's name and a format's; None: everyone who can."""

    case: str
    entrants: tuple[tuple[str, str], ...] | None


class Suite(NamedTuple):
    """Says what a suite does unless it is told otherwise; races: those of one workload, for these backends."""

    races: Callable[[str, list[str]], list[Race]]
    workloads: tuple[str, ...]
    rule: str = "Adam"
    rounds: int | None = None  # turns of each contestant; None: what time allows
    needs: int = 0  # bytes of memory per parameter that everyone takes together; 0: who has no room stays out
    compared: bool = True  # by compare.py without --rows: every commit can step it, over arrays or under PyTorch


def core(workload, backends):
    """Return one race of everyone."""
    return [Race(workload, None)]


def chain(workload, backends):
    """Return a race for each kind of chores, on each processor."""
    cpu, cuda = ((FASTADAM, PLAIN), (FUSED, PLAIN)), ((CUDA, PLAIN), (f"{FUSED} cuda", PLAIN))
    entrants = cpu * ("numba" in backends) + cuda * ("cuda" in backends)
    return [Race(f"{workload} {name}".strip(), entrants) for name in cases.CHORES]


def narrow(workload, backends):
    """Return a race of all formats, and one of the slow."""
    slow = cases.flat(min(cases.size(cases.shapes(workload)), SLOW_SIZE))
    return [Race(workload, NARROW), Race(slow, SLOW)] if slow != workload else [Race(workload, NARROW + SLOW[1:])]


def pytorch(workload, backends):
    """Return a race of two optimizers under PyTorch."""
    return [Race(workload, ((TORCH, PLAIN), (FUSED, PLAIN)))]


def jax(workload, backends):
    """Return a race of two optimizers under JAX."""
    return [Race(workload, ((JAX, PLAIN), (OPTAX, PLAIN)))]


def lamb(workload, backends):
    """Return a race of LAMB against who has it."""
    return [Race(workload, ((FASTADAM, PLAIN), (OPTAX, PLAIN), (TIMM, PLAIN)))]


def stableadamw(workload, backends):
    """Return a race of StableAdamW against who has it."""
    return [Race(workload, ((FASTADAM, PLAIN), (OPTIMI, PLAIN)))]


def muon(workload, backends):
    """Return a race of Muon under PyTorch, and over arrays, whose products are of float32."""
    return [Race(workload, ((TORCH, PLAIN), (MUON, PLAIN), (FASTADAM, PLAIN)))]


SUITES = {
    "core": Suite(core, tuple(cases.flat(n) for n in cases.SIZES)),
    "chain": Suite(chain, ("2^24",), rounds=15, needs=140),
    "narrow": Suite(narrow, ("2^24",), rounds=41, needs=140),
    "pytorch": Suite(pytorch, ("mlp", "2^20", "resnet50", "2^24 max_norm", "2^26"), "AdamW", rounds=25),
    "jax": Suite(jax, ("2^10", "2^20", "2^24", "resnet50", "160-leaves"), rounds=25, compared=False),
    "lamb": Suite(lamb, ("resnet50", "2^24"), "LAMB-bias_correction", rounds=25, compared=False),
    "stableadamw": Suite(stableadamw, ("resnet50", "2^24"), "StableAdamW", rounds=25, compared=False),
    "muon": Suite(muon, ("gpt2-layer", "200-matrices"), "Muon", rounds=15, compared=False),
}


def label(name, format, usual):
    """Name a contestant in a format where most are in the usual one."""
    return name if format == usual else f"{name} {format}"
