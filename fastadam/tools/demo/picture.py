"""Draws what a run of the demo learned, and writes pictures where files can be written."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def impossible(out: str) -> str | None:
    """Return why no picture can be written to a file, with the way out, or None; what is there stays."""
    if find_spec("matplotlib") is None:
        return 'matplotlib is missing: pip install "fastadam[demo]"'
    path = Path(out)
    new = not path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        return f"--out is {out!r}, expected a file that can be written: {error.strerror}"
    if new:
        path.unlink()
    return None


def write(figure: "Figure", out: str) -> None:
    """Write a figure as a PNG and print where."""
    figure.savefig(out, format="png", dpi=90, pil_kwargs={"optimize": True})
    print(f"picture: {out}")


def losses(curves: Mapping[str, Sequence[float]], about: str) -> "Figure":
    """Draw the mean loss of each epoch, a curve for each way in which a model was trained."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for label, curve in curves.items():
        axes.plot(range(1, len(curve) + 1), curve, marker="." if len(curve) < 20 else None, label=label)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="training loss: mean cross-entropy, nats")
    axes.set_title(about, fontsize="small")
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(frameon=False)
    return figure
