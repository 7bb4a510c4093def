"""What is measured: suites, which are lists of races, and who takes part in each.

core: a step of every backend beside all peers. chain: a whole training step in one pass against PyTorch's passes.
narrow: steps in fewer bytes. pytorch: fastadam.torch against torch.optim.
"""

from typing import NamedTuple

from . import cases

OURS, TORCH, FUSED, DEEPSPEED = "fastadam numba", "fastadam.torch", "torch fused", "DeepSpeedCPUAdam"
PLAIN, MOMENTS, ALL, REMAINDER, CODED, SHORT_CODED, WIDE_STATE = (
    "float32", "float32:moments=bfloat16", "bfloat16:moments=bfloat16", "bfloat16:moments=bfloat16:master=remainder",
    "float32:moments=8bit", "bfloat16:moments=8bit", "bfloat16",
)  # fmt: skip


class Race(NamedTuple):
    """One case and who steps it in turns: pairs of a contestant's name and a format's."""

    case: str
    entrants: tuple[tuple[str, str], ...]


class Suite(NamedTuple):
    """Races of one rule. About so many bytes of memory per parameter are needed by everyone together."""

    rule: str
    races: tuple[Race, ...]
    rounds: int = 11
    needs: int = 140


CORE = ("2^10", "2^17", "2^20", "2^26", "mlp", "resnet50")
PYTORCH = ("mlp", "2^20", "resnet50", "2^24 max_norm", "2^26")
SUITES = {
    "core": Suite("Adam", tuple(Race(case, ((OURS, PLAIN),)) for case in CORE)),
    "chain": Suite(
        "Adam", tuple(Race(f"2^24 {name}".strip(), ((OURS, PLAIN), (FUSED, PLAIN))) for name in cases.CHORES), rounds=15
    ),
    "narrow": Suite(
        "Adam",
        (
            Race(
                "2^24",
                (
                    *((OURS, format) for format in (PLAIN, MOMENTS, ALL, REMAINDER, CODED, SHORT_CODED)),
                    *((FUSED, format) for format in (PLAIN, ALL)),
                    *((DEEPSPEED, format) for format in (PLAIN, WIDE_STATE, ALL)),
                ),
            ),
            # Peers whose 8-bit moments are slow on a CPU, on fewer parameters, beside ours once more.
            Race("2^20", ((OURS, CODED), ("bitsandbytes 8-bit", CODED), ("torchao 8-bit", CODED))),
        ),
        rounds=41,
    ),
    "pytorch": Suite("AdamW", tuple(Race(case, ((TORCH, PLAIN), (FUSED, PLAIN))) for case in PYTORCH), rounds=25),
}
