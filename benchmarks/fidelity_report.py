"""Tells benchmarks/fidelity.py's result in words and as a picture; report.py puts the words into README.md.

A difference is the mean over seeds of a final loss less that of float32 on the same seed, over the standard deviation
of float32's losses over seeds. Above 1 a format would be told from float32's own luck.
"""

import numpy as np

from . import codings
from .codings import EIGHT_BITS, M8, V8
from .markdown import table

FORMATS = [name for name in codings.FORMATS if name != "float32"]
COLOURS = dict(zip(FORMATS, ("#9ecae1", "#1f77b4", "#d62728", "#2ca02c", "#e6a700"), strict=True))
TITLES = {"mlp": "digits, dense network", "cnn": "digits, convolutions", "text": "characters, transformer"}


def differences(entry, name):
    """Return the differences of one problem at one β2, learned and held out; nan where a training diverged."""
    losses, base = np.array(entry[name], float), np.array(entry["float32"], float)
    return (losses - base).mean(axis=0) / base.std(axis=0, ddof=1)


def usual(betas2):
    """Return those that something is asked of: β2 up to 0.999."""
    return [beta2 for beta2 in betas2 if float(beta2) <= 0.999]


def worst(result, problem, name, betas2):
    """Return the largest of `differences` in the loss of what was learned from; infinite where any diverged."""
    learned = [differences(result["training"][problem][beta2], name)[0] for beta2 in betas2]
    return max(learned, key=abs) if np.isfinite(learned).all() else np.inf


def farthest(result, name, betas2):
    """Return the largest distance on any kind of made-up gradients, for any of these β2."""
    return max(kinds[name]["distance"] for beta2 in betas2 for kinds in result["synthetic"][beta2].values())


def _cell(usually, beyond, form):
    return " / ".join(form.format(x) if np.isfinite(x) else "diverged" for x in (usually, beyond))


def rows(result, names, problems):
    """Yield of each format its bytes, `worst` of these problems and `farthest`: for β2 up to 0.999 / beyond."""
    betas2 = list(result["synthetic"])
    rates = usual(betas2), [beta2 for beta2 in betas2 if beta2 not in usual(betas2)]
    for name in names:
        cells = [_cell(*(worst(result, problem, name, chosen) for chosen in rates), "{:+.2f}") for problem in problems]
        apart = _cell(*(farthest(result, name, chosen) for chosen in rates), "{:.3f}")
        yield [name, f"{result['formats'][name]:.2f}", *cells, apart]


def kept(result):
    """Say whether 8 bits end within the spread of float32's seeds, learned and held out, for β2 up to 0.999."""
    return all(
        (np.abs(differences(entry[beta2], EIGHT_BITS)) <= 1).all()
        for entry in result["training"].values()
        for beta2 in usual(entry)
    )


def _losses(result):
    """Yield float32's own losses at β2 = 0.999."""
    for problem, entry in result["training"].items():
        base = np.array(entry["0.999"]["float32"], float)[:, 0]
        yield f"{TITLES[problem]} {base.mean():.3f} ± {base.std(ddof=1):.3f}"


def _lost(result):
    """Yield what did worse, and by how much; all at β2 = 0.999."""
    of = result["synthetic"]["0.999"]

    def apart(name, kind):
        return f"{of[kind][name]['distance']:.3f}"

    nearest, stochastic = (of["drift"][name]["root"][1] for name in FORMATS[:2])
    yield (
        f"- **v to nearest.** In bfloat16 √v cannot follow gradients that shrink: it ends {nearest:.2f} times "
        f"float32's (median), stochastically rounded {stochastic:.2f} times. In 8 bits it comes to rest too low under "
        f"heavy tails: a distance of {apart('v to nearest', 'tails')}, stochastically {apart(EIGHT_BITS, 'tails')}."
    )
    yield (
        f"- **Finer codes of less range.** v of 4 + 4 bits is nearer where scales are alike "
        f"({apart('v 4 + 4 bits', 'drift')}, 5 + 3 bits {apart(EIGHT_BITS, 'drift')}), but not where those of one "
        f"group lie far apart ({apart('v 4 + 4 bits', 'dead')}, {apart(EIGHT_BITS, 'dead')}); likewise m of 3 + 4 bits "
        f"({apart('m 3 + 4 bits', 'dead')}). The size of the group hardly matters then "
        f"(256: {apart('groups of 256', 'dead')}), nor does a draw for m help ({apart('m stochastic', 'dead')})."
    )
    yield (
        "- **A code for v = 0.** Published formulas have one, and where m is not 0 too, the next step is m/eps: models "
        "of FlashOptim and of bitsandbytes' CUDA kernels diverge on the digits, whose pixels are often blank, and do "
        "not once v cannot be read as 0 (lower table). bitsandbytes' search on CPUs is another, which never reaches 0."
    )


def section(result):
    """Yield the lines of benchmarks/README.md."""
    all_run = list(result["training"])
    others = [name for name in result["formats"] if name not in ("float32", *FORMATS)]
    few_run = [problem for problem, of in result["training"].items() if set(others) <= set(of["0.999"])]

    def told(names, problems):
        head = ["m and v", "bytes", *(TITLES[problem] for problem in problems), "distance, made-up gradients"]
        return table(head, rows(result, names, problems))

    yield (
        "What moments in fewer bytes do to training, for β2 = 0.95, 0.99, 0.999 (the worst of these) / 0.9999: the "
        "final training loss less float32's on the same seed, in standard deviations of float32's losses over "
        f"{result['seeds']} seeds; and how far parameters end from float32's, over the way that those went, in "
        f"{result['steps']:,} steps of the worst of four kinds of gradients: drifting scales, heavy tails, sparse "
        "rows, dead units."
    )
    yield ""
    yield from told(FORMATS, all_run)
    yield ""
    yield (
        f"float32 itself ends at: {'; '.join(_losses(result))} (β2 = 0.999). 8-bit moments within float32's spread, "
        "training and held-out loss, for every β2 up to 0.999: " + ("met." if kept(result) else "**missed**.")
    )
    yield ""
    yield (
        f"8-bit: m as a sign, {M8.exponent} exponent and {M8.mantissa} mantissa bits, to nearest; v as {V8.exponent} "
        f"and {V8.mantissa} bits, stochastically rounded, never 0; groups of {M8.group} with a float32 scale each. "
        "What else was tried, and what lost (distances on made-up gradients, β2 = 0.999):"
    )
    yield ""
    yield from _lost(result)
    yield ""
    yield from told(others, few_run)
    yield ""
    for problem, why in result["absent"].items():
        yield f"Not run: {TITLES[problem]} ({why})."
    machine = result["machine"]
    yield (
        f"`python -m fastadam.benchmarks.fidelity{' --library' * result['library']} --json FILE`; {machine['cpu']}, "
        f"commit {result['commit']}, {result['date'][:10]}; "
        + (
            "formats that the library has run by it, the others as models in NumPy (benchmarks/codings.py). "
            "Here zero is half of the smallest step by a maximum; the library adds an offset, which is cheaper and "
            "costs 8 bits what lies between its distance and those of other groups"
            if result["library"]
            else "all formats as NumPy models (benchmarks/codings.py)"
        )
        + "."
    )


def draw(result, path):
    """Write a PNG: every problem's differences over β2 beside float32's own spread; distances on made-up gradients."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    betas2, problems = list(result["synthetic"]), list(result["training"])
    at = np.arange(len(betas2))
    figure, axes = plt.subplots(1, len(problems) + 1, figsize=(4 * (len(problems) + 1), 4.2), layout="constrained")
    for axis, problem in zip(axes, problems, strict=False):
        axis.axhspan(-1, 1, color="0.9", zorder=0)
        axis.set(title=TITLES[problem], yscale="symlog", ylim=(-1000, 1000))
        for k, name in enumerate(FORMATS):
            learned = np.array([differences(result["training"][problem][beta2], name)[0] for beta2 in betas2])
            lost = ~np.isfinite(learned)
            spot = at + 0.09 * (k - 2)
            axis.plot(spot, np.where(lost, np.nan, learned), "o", color=COLOURS[name])
            axis.plot(spot[lost], np.full(lost.sum(), 700), "x", color=COLOURS[name])
    axes[0].set_ylabel("final training loss less float32's,\nin its standard deviations over seeds; ×: diverged")
    for name in FORMATS:
        axes[-1].plot(at, [farthest(result, name, [beta2]) for beta2 in betas2], "o-", color=COLOURS[name], label=name)
    axes[-1].set(
        title="made-up gradients, worst kind", yscale="log", ylabel="distance from float32's path / its length"
    )
    for axis in axes:
        axis.set_xticks(at, betas2)
        axis.set_xlabel("β2")
    figure.legend(loc="outside lower center", ncols=len(FORMATS), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
