"""benchmarks/fidelity.py's result in words and as a picture; report.py puts the words into README.

A difference is the mean over seeds of a final loss less that of float32 on the same seed, over the standard deviation
of float32's losses over seeds. Above 1 a format would be told from float32's own luck.
"""

import numpy as np

OURS = "8-bit"
FORMATS = "bfloat16 to nearest", "bfloat16, v stochastic", OURS, "FlashOptim", "bitsandbytes"
COLOURS = dict(zip(FORMATS, ("#9ecae1", "#1f77b4", "#d62728", "#2ca02c", "#e6a700"), strict=True))
TITLES = {
    "mlp": "digits, dense network", "cnn": "digits, convolutions", "text": "characters, transformer",
}  # fmt: skip


def differences(entry, name):
    """Of one problem at one β2: of what was learned from and of what was held out; nan where a training diverged."""
    own, base = np.array(entry[name], float), np.array(entry["float32"], float)
    return (own - base).mean(axis=0) / base.std(axis=0, ddof=1)


def usual(betas2):
    """What is asked of: β2 up to 0.999."""
    return [beta2 for beta2 in betas2 if float(beta2) <= 0.999]


def worst(result, problem, name, betas2):
    """Of `differences` in the loss of what was learned from, the largest: one number, infinite where any diverged."""
    found = [differences(result["training"][problem][beta2], name)[0] for beta2 in betas2]
    return max(found, key=abs) if np.isfinite(found).all() else np.inf


def farthest(result, name, betas2):
    return max(kinds[name]["distance"] for beta2 in betas2 for kinds in result["synthetic"][beta2].values())


def _cell(usually, beyond, form):
    return " / ".join(form.format(x) if np.isfinite(x) else "diverged" for x in (usually, beyond))


def rows(result, names):
    """Of each format its bytes, `worst` of every problem and `farthest`: for β2 up to 0.999 / beyond."""
    betas2 = list(result["synthetic"])
    both = usual(betas2), [beta2 for beta2 in betas2 if beta2 not in usual(betas2)]
    for name in names:
        cells = [
            _cell(*(worst(result, problem, name, some) for some in both), "{:+.2f}")
            if name in result["training"][problem]["0.999"]
            else "not run"
            for problem in result["training"]
        ]
        apart = _cell(*(100 * farthest(result, name, some) for some in both), "{:.1f} %")
        yield [name, f"{result['formats'][name]:.2f}", *cells, apart]


def kept(result):
    """Whether 8 bits end within the spread of float32's seeds, learned and held out, for every β2 up to 0.999."""
    return all(
        (np.abs(differences(entry[beta2], OURS)) <= 1).all()
        for entry in result["training"].values()
        for beta2 in usual(entry)
    )


def section(result):
    """README's lines."""
    from fastadam.benchmarks.report import table

    names = list(result["training"])
    head = ["m and v", "bytes", *(TITLES[name] for name in names), "made-up gradients"]
    yield "At β2 up to 0.999 / at 0.9999, the largest difference of the final loss from float32's on the same seeds, in"
    yield f"standard deviations of float32's over {result['seeds']} seeds; and the largest distance of parameters from float32's, over how far"
    yield f"those came, after {result['steps']:,} steps of made-up gradients: drifting scales, heavy tails, sparse rows, dead units."
    yield ""
    yield from table(head, rows(result, FORMATS))
    yield ""
    yield "Other codes of 8 bits:"
    yield ""
    yield from table(head, rows(result, [name for name in result["formats"] if name not in ("float32", *FORMATS)]))


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
        axis.set(title=TITLES[problem], yscale="symlog", ylim=(-100, 100))
        for k, name in enumerate(FORMATS):
            found = np.array([differences(result["training"][problem][beta2], name)[0] for beta2 in betas2])
            lost = ~np.isfinite(found)
            spot = at + 0.09 * (k - 2)
            axis.plot(spot, np.where(lost, np.nan, found), "o", color=COLOURS[name])
            axis.plot(spot[lost], np.full(lost.sum(), 80), "x", color=COLOURS[name])
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
