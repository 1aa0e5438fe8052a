"""The figure of the torch optimizers at their defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLUMNS = 4
FLOOR = 1e-14
"""Losses below it are drawn on it: a logarithmic axis has no 0."""


def classes(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw the loss against forward passes, one panel a problem."""
    import matplotlib as mpl  # heavy, and only this figure needs it
    from matplotlib.figure import Figure

    problems = list(dict.fromkeys(r["problem"] for r in rows))
    lines = -(-len(problems) // COLUMNS)
    # Equal bytes for equal numbers, in each environment of the user.
    with mpl.rc_context(
        {**mpl.rcParamsDefault, "svg.hashsalt": "ahf", "svg.fonttype": "none", "font.size": 8}
    ):
        figure = Figure(figsize=(2.6 * COLUMNS, 2.2 * lines), layout="constrained")
        panels = figure.subplots(lines, COLUMNS, squeeze=False).flatten()
        for panel, problem in zip(panels, problems, strict=False):
            for r in (r for r in rows if r["problem"] == problem):
                passes, losses = zip(*r["curve"], strict=True)
                panel.plot(passes, [max(loss, FLOOR) for loss in losses], lw=1, label=r["optimizer"])
            panel.set(xlabel="forward passes", ylabel="loss", yscale="log")
            panel.set_title(problem, fontsize=7.5)
        for panel in panels[len(problems) :]:
            panel.axis("off")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="lower right")
        figure.savefig(file, metadata={"Date": None})
