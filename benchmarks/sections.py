"""Writes what each table of benchmarks/README.md holds: Markdown, from the newest result of its suite."""

from . import advice, checkpoints, fidelity_report, first_use, libraries, one_pass, ranks, sass
from .markdown import absent, by_format, table, taken_on, times, verdicts

PEERS = "torch", "deepspeed", "bitsandbytes", "torchao"


def section(result, about, times=times, asked=True, peers=PEERS):
    """Yield what was timed, its times, what was `asked`, what it was taken on, who was absent."""
    yield about
    yield ""
    yield from times(result)
    yield ""
    if asked:
        yield from verdicts(result)
        yield ""
    yield taken_on(result, *peers)
    yield from absent(result)


def core(result):
    """Yield the lines of a step beside all peers."""
    yield from section(
        result,
        "Float32 Adam, one step: the whole call, in brackets ns per parameter where the arrays exceed the caches.\n"
        "*limit* moves the same bytes with trivial arithmetic on the same kind of arrays.",
    )


def core_times(result):
    """Yield the same without what was asked, for README.md."""
    yield from section(
        result,
        "One step of Adam in float32: the time of the whole call, and in brackets ns per parameter where the arrays\n"
        "exceed the caches. *limit* is the time that reading and writing these bytes takes with trivial arithmetic,\n"
        "and *of limit* is that time over fastadam's.",
        asked=False,
    )


def chain(result):
    """Yield the lines of a whole training step in one pass, or a pass for each chore."""
    yield from section(
        result,
        "Float32 Adam alone, with clipping by the global norm, and the whole step: unscale, clip, Adam, averages, a\n"
        "bfloat16 copy, zeroed gradients. fastadam does it in one pass, PyTorch in one for each: `mul_`,\n"
        "`clip_grad_norm_`, `Adam(fused=True)`, `lerp_`, `copy_` and `zero_`.",
    )


def narrow(result):
    """Yield the lines of steps in fewer bytes."""
    yield from section(
        result,
        "Adam: bytes that a step of fastadam's moves and ns, per parameter; median (p10–p90).",
        by_format,
    )


def pytorch(result):
    """Yield the lines of steps under PyTorch, and of the share of a training step that they take."""
    yield from section(
        result,
        "AdamW, one whole `opt.step()` against torch's fused; with max_norm, against clip_grad_norm_ and that.",
    )
    if "examples" not in result:
        return
    yield ""
    yield "Learning digits: `opt.step()`, its share of a training step, and how far apart the two loss curves ever are,"
    yield "as rounding grows with training; beside that, how far those of torch's fused and its own for-loop are."
    yield ""
    rows = []
    for name, entry in result["examples"].items():
        shares = [f"{entry[side]['us_per_step']:.0f} µs, {entry[side]['share']:.1%}" for side in ("fastadam", "torch")]
        apart = (f"{entry[key]:.1g}" for key in ("curves_apart", "torchs_apart"))
        rows.append([f"{name}, {entry['parameters']:,} parameters", *shares, *apart])
    yield from table(["", "fastadam.torch", "torch", "apart", "torch's two"], rows)


def jax(result):
    """Yield the lines of steps under JAX."""
    yield from section(
        result,
        "Adam, one whole call of a jitted step in optax's form with parameters and state donated, against optax's.\n"
        "160-leaves: 160 parameters of 1,000 elements.",
        peers=("jax", "optax"),
    )


def lamb(result):
    """Yield the lines of LAMB, whose steps need sums first."""
    yield from section(
        result,
        "Float32 LAMB, one step: a walk that adds up two norms of each array, then the step, 44 bytes an element;\n"
        "against optax's under jit with parameters and state donated, and timm's.",
        peers=("jax", "optax", "torch", "timm"),
    )


def stableadamw(result):
    """Yield the lines of StableAdamW, whose steps need a sum first."""
    yield from section(
        result,
        "Float32 StableAdamW, one step, against optimi's, which loops over lists of PyTorch's tensors.",
        peers=("torch", "optimi"),
    )


def muon(result):
    """Yield the lines of Muon, whose iteration is matrix products."""
    yield from section(
        result,
        "Muon, one step over the matrices of one layer of GPT-2, and over 200 of 64 by 64, which fastadam.torch\n"
        "orthogonalises together: in bfloat16 as torch does; *fastadam numba* over arrays in NumPy's float32.",
        peers=("torch",),
    )


SECTIONS = {
    "core": core, "chain": chain, "narrow": narrow, "pytorch": pytorch, "jax": jax, "lamb": lamb,
    "stableadamw": stableadamw, "muon": muon, "fidelity": fidelity_report.section, "libraries": libraries.section,
    "one-pass": one_pass.section, "sass": sass.section,
}  # fmt: skip
FRONT = {
    "core times": core_times,
    "advise": advice.section,
    "ranks": ranks.section,
    "checkpoints": checkpoints.section,
    "first-use": first_use.section,
}  # other files' tables; the first word names the result
