"""Says in one table what is asked of fastadam: how many times as fast as another it shall be, or its share of time.

The figures are for two cores (Zen 4), those of a GPU for an H100.
"""

from typing import NamedTuple

from . import summary
from .suites import (
    ALL,
    CODED,
    CUDA,
    DEEPSPEED,
    FASTADAM,
    FUSED,
    JAX,
    MOMENTS,
    MUON,
    OPTAX,
    OPTIMI,
    PLAIN,
    REMAINDER,
    SUITES,
    TORCH,
    label,
)  # fmt: skip
from .summary import duration, number


class Target(NamedTuple):
    """Holds one contestant of a case against another of the same case.

    least: times as fast; most: of the other's time; seconds: at most, where there is no other.
    noise: missed only if all processes say so. dtype: the format that the result is of, where that is asked.
    """

    suite: str
    case: str
    contestant: str
    other: str = ""
    least: float | None = None
    most: float | None = None
    seconds: float | None = None
    noise: bool = False

    @property
    def asked(self):
        """Return what is asked, in words."""
        if self.seconds:
            return f"≤ {duration(self.seconds)}"
        text = f"≥ {self.least:g} times as fast" if self.least else f"≤ {self.most:g} of its time"
        return text + " within noise" * self.noise

    @property
    def title(self):
        """Return what is compared, in words."""
        return f"{self.case}: {self.contestant}" + (f" against {self.other}" if self.other else "")

    def measured(self, result):
        """Return (median over processes, least, most, whether the target is met); None where it was not timed."""
        contestants = result["cases"].get(self.case, {}).get("contestants", {})
        entry, other = contestants.get(self.contestant), contestants.get(self.other)
        if not entry or (self.other and not other):
            return None
        if self.seconds:
            return entry["seconds"], entry["p10"], entry["p90"], entry["seconds"] <= self.seconds
        median, low, high = summary.over(entry, other) if self.least else summary.over(other, entry)
        if self.least:
            return median, low, high, (high if self.noise else median) >= self.least
        return median, low, high, median <= self.most


def core(case, other, least, noise=False):
    """Return a target of a plain step on a CPU."""
    return Target("core", case, FASTADAM, other, least=least, noise=noise)


def narrow(format, other, other_format=PLAIN, case="2^24", **asked):
    """Return a target of a step in fewer bytes."""
    return Target("narrow", case, label(FASTADAM, format, PLAIN), label(other, other_format, PLAIN), **asked)


TARGETS = (
    core("2^26", "limit", 0.97),
    core("2^26", FUSED, 1.0, noise=True),
    core("2^26", DEEPSPEED, 1.0, noise=True),
    core("2^20", FUSED, 1.3),
    core("2^20", DEEPSPEED, 1.2),
    core("2^17", FUSED, 1.3),
    core("2^17", DEEPSPEED, 1.2),
    core("2^10", FUSED, 5.0),
    core("2^10", DEEPSPEED, 2.0),
    core("mlp", FUSED, 5.0),
    core("resnet50", FUSED, 1.2),
    Target("core", "2^10", f"{CUDA}, graph", seconds=5e-6),
    Target("chain", "2^24 max_norm", FASTADAM, FUSED, least=1.3),
    Target("chain", "2^24 whole", FASTADAM, FUSED, least=1.4),
    Target("chain", "2^26 whole", CUDA, f"{FUSED} cuda", least=1.3),
    narrow(PLAIN, FUSED, least=0.97),
    narrow(MOMENTS, FASTADAM, most=0.85),
    narrow(ALL, FASTADAM, most=0.85),
    narrow(ALL, FUSED, ALL, least=1.1),
    narrow(ALL, DEEPSPEED, ALL, least=1.1),
    narrow(REMAINDER, FASTADAM, most=1.0),
    narrow(CODED, FASTADAM, most=0.9),
    narrow(CODED, "bitsandbytes 8-bit", CODED, "2^20", least=20),
    narrow(CODED, "torchao 8-bit", CODED, "2^20", least=20),
    Target("pytorch", "mlp", TORCH, FUSED, least=3.0),
    Target("pytorch", "2^20", TORCH, FUSED, least=1.3),
    Target("pytorch", "resnet50", TORCH, FUSED, least=1.2),
    Target("pytorch", "2^24 max_norm", TORCH, FUSED, least=1.3),
    Target("pytorch", "2^26", TORCH, FUSED, least=1.0),
    Target("lamb", "2^24", FASTADAM, OPTAX, least=1.8),
    Target("lamb", "resnet50", FASTADAM, OPTAX, least=3.0),
    Target("stableadamw", "2^24", FASTADAM, OPTIMI, least=1.8),
    Target("stableadamw", "resnet50", FASTADAM, OPTIMI, least=3.0),
    Target("muon", "gpt2-layer", TORCH, MUON, least=1.0, noise=True),
    Target("muon", "200-matrices", TORCH, MUON, least=1.3),
    Target("jax", "2^10", JAX, OPTAX, least=1.3),
    Target("jax", "2^20", JAX, OPTAX, least=1.5),
    Target("jax", "2^24", JAX, OPTAX, least=1.8),
    Target("jax", "resnet50", JAX, OPTAX, least=2.3),
    Target("jax", "160-leaves", JAX, OPTAX, least=1.0),
)

# What programs ask that measure something else than contestants of a case.
FIRST_USE = {"plain": (2.0, 0.8), "8-bit": (2.5, 1.2), "chores": (3.5, 1.6)}  # plain loops: a first step, each further
WARM_USE = 1.25  # times what importing Numba and one cached function take
OF_LIMIT = 0.95  # of the speed of a walk over a method's own bytes
PACKAGES = {"schedulefree": 2.0, "prodigyopt": 2.0, "bitsandbytes": 20.0}  # times as fast as a package's own method
LIBRARIES = {"step": 10, "epoch": 1.8, "step of fit": 2}  # times as fast as scikit-learn or Keras
RANKS = {"allreduce + full step": 0.85, "allreduce + full step, norm": 1.05, "torch DDP + ZeRO": 1 / 1.8}  # of its time

CORE = list(
    dict.fromkeys(
        target.case for target in reversed(TARGETS) if (target.suite, target.contestant) == ("core", FASTADAM)
    )
)


def of(result):
    """Return the targets that a result can be held against: of its suite, its kind of processor and its format."""
    gpu = "gpu" in result["machine"]
    suite = SUITES.get(result["bench"])
    usual = result["dtype"] == PLAIN and result["rule"] in ("Adam", "AdamW", suite and suite.rule)
    return [one for one in TARGETS if usual and one.suite == result["bench"] and (gpu or CUDA not in one.contestant)]


def lines(result):
    """Yield every target that was measured, and whether it is met: lines of text."""
    for target in of(result):
        if measured := target.measured(result):
            value = duration(measured[0]) if target.seconds else number(measured[0])
            yield f"{target.title}: {value}, asked {target.asked}: {'met' if measured[3] else 'missed'}"


def show(result):
    """Print a result in few lines, and what was asked of it."""
    summary.show(result)
    for line in lines(result):
        print(line)
