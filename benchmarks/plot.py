"""Draws a result: GB/s over size below the limit's line, and how many times as fast fastadam is."""

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from . import cases, machine, summary

COLOURS = {
    "fastadam numba": "#d62728", "fastadam cuda": "#d62728", "fastadam numpy": "#ff9896", "limit": "black",
    "torch fused": "#1f77b4", "torch foreach": "#6baed6", "torch for-loop": "#9ecae1", "DeepSpeedCPUAdam": "#2ca02c",
    "optax": "#9467bd", "Thinc": "#8c564b", "bitsandbytes": "#e6a700", "bitsandbytes 8-bit": "#f2cf5b",
    "torchao 8-bit": "#e377c2", "plain NumPy": "#7f7f7f",
}  # fmt: skip
MARKS = "osv^D<>Pp*hX"


def colour(name):
    """Return the colour of a contestant, the same on either processor."""
    return COLOURS.get(name) or COLOURS.get(name.removesuffix(" cuda"), "#17becf")


def draw(result, path):
    """Write a PNG: sizes as a roofline, workloads (or else sizes) as bars."""
    timed = {name: case for name, case in result["cases"].items() if case.get("contestants")}
    flats = dict(sorted(((k, c) for k, c in timed.items() if k not in cases.MODELS), key=lambda item: item[1]["n"]))
    models = {name: case for name, case in timed.items() if name in cases.MODELS}
    bars = models or flats
    panels = [(_roofline, flats)] * (len(flats) > 1) + [(_ratios, bars)] * bool(bars)
    heights = [5.2 if panel is _roofline else 1.2 + 0.16 * sum(len(c["contestants"]) for c in cases_.values())
               for panel, cases_ in panels]  # fmt: skip
    if not panels:
        raise ValueError("nothing was timed, so there is nothing to draw")
    figure, axes = plt.subplots(
        len(panels), figsize=(10, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for (panel, selected), (axis,) in zip(panels, axes, strict=True):
        panel(axis, selected, result)
    of = result["machine"]
    who = of.get("gpu", {}).get("name") or f"{of['cpu']}, {result['threads']} threads"
    figure.suptitle(f"{result.get('rule', 'Adam')}, {result.get('dtype', 'float32')}: {who}", fontsize=13)
    figure.supxlabel(f"commit {result['commit']}, {result['date'][:10]}", fontsize=8, color="0.4")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_speeds(result, path, label):
    """Write a PNG with a bar for each contestant's GB/s in each case that lies in memory. label: kept in the file."""
    shown = {name: case for name, case in result["cases"].items() if case.get("in") == "memory"}
    figure, axes = plt.subplots(1, len(shown), figsize=(10, 2.6), squeeze=False, layout="constrained")
    for axis, (name, case) in zip(axes[0], shown.items(), strict=True):
        speeds = sorted(((of["gb_per_s"], one) for one, of in case["contestants"].items()), key=lambda pair: pair[0])
        bars = axis.barh([one for _, one in speeds], [speed for speed, _ in speeds])
        for bar, (_, one) in zip(bars, speeds, strict=True):
            bar.set_color("0.6" if one == "limit" else colour(one))
        axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        axis.margins(x=0.15)
        axis.set_title(f"{name}: {case['n']:,} parameters", fontsize=10)
        axis.set_xlabel("GB/s (bytes of a step / its time)", fontsize=8)
        axis.tick_params(labelsize=8)
    of = f"{result['machine']['cpu']}, {result['threads']} threads"
    figure.suptitle(f"One step of Adam in float32: {of}", fontsize=11)
    figure.savefig(path, dpi=120, metadata={"Description": label})
    plt.close(figure)


def _roofline(axis, flats, result):
    """Draw GB/s over the number of parameters, the limit as a line, the caches' sizes marked."""
    names = dict.fromkeys(name for case in flats.values() for name in case["contestants"])
    for k, name in enumerate(names):
        rows = [(case["n"], case["contestants"][name]) for case in flats.values() if name in case["contestants"]]
        sizes, speeds = [n for n, _ in rows], [of["gb_per_s"] for _, of in rows]
        is_limit, is_fastadam = name.startswith("limit"), name.startswith("fastadam")
        style = {"color": colour(name), "label": name, "marker": "" if is_limit else MARKS[k % len(MARKS)]}
        style |= {
            "linewidth": 2.4 if is_limit or is_fastadam else 1.2,
            "zorder": 3 if is_fastadam else 2,
            "markersize": 5,
        }
        axis.plot(sizes, speeds, "--" if is_limit else "-", **style)
        if is_limit or is_fastadam:
            low, high = ([of.get("bytes", 28) * n / of[p] * 1e-9 for n, of in rows] for p in ("p90", "p10"))
            axis.fill_between(sizes, low, high, color=colour(name), alpha=0.12, linewidth=0)
    axis.set(xscale="log", yscale="log", xlabel="parameters in one array", ylabel="GB/s (bytes moved / time of a step)")
    axis.set_xscale("log", base=2)
    axis.grid(alpha=0.3)
    moved = max(of.get("bytes", 28) for case in flats.values() for of in case["contestants"].values())
    low, high = axis.get_xlim()
    for level, size in _caches(result):
        n = size / (moved / 2)
        if low < n < high:
            axis.axvline(n, color="0.5", linewidth=0.8, linestyle=":")
            axis.text(n, 1.0, f" {level}", transform=axis.get_xaxis_transform(), va="bottom", ha="center", fontsize=8)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def _caches(result):
    """Yield (label, bytes) of each data cache of the machine, and of the GPU's."""
    of = result["machine"]
    for name, text in of["caches"].items():
        if "instruction" not in name and machine.in_bytes(text):
            yield f"{name.split()[0]} {_short(machine.in_bytes(text))}", machine.in_bytes(text)
    if gpu := of.get("gpu"):
        yield f"GPU L2 {_short(gpu['l2'])}", gpu["l2"]


def _short(size):
    return f"{size / 2**20:g} MiB" if size >= 2**20 else f"{size / 2**10:g} KiB"


def _ratios(axis, bars, result):
    """Draw how many times as fast fastadam is as each other, a group of bars for each workload."""
    at, ticks, labels = 0, [], []
    for name, case in bars.items():
        main = summary.main_contestant(case)
        over = case["contestants"][main]["times_faster_than"] if main else {}
        first = at
        for other, (median, low, high) in over.items():
            error = [[max(0.0, median - low)], [max(0.0, high - median)]]
            axis.barh(at, median, color=colour(other), height=0.85)
            axis.errorbar(median, at, xerr=error, color="0.25", linewidth=0.8)
            axis.text(max(median, high), at, f"  {summary.number(median)}  {other}", va="center", fontsize=7.5)
            at += 1
        ticks.append((first + at - 1) / 2)
        labels.append(f"{name}\n{case['n']:,}")
        at += 1
    axis.axvline(1, color="black", linewidth=1)
    axis.set_xscale("log")
    axis.set_yticks(ticks, labels, fontsize=8)
    axis.margins(y=0.01)
    axis.invert_yaxis()
    left, right = axis.get_xlim()
    axis.set_xlim(min(left, 0.7), right * 3)
    main = next((summary.main_contestant(case) for case in bars.values() if summary.main_contestant(case)), "fastadam")
    axis.set_xlabel(f"{main} is so many times as fast as")
    axis.grid(axis="x", alpha=0.3)
