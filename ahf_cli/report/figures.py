"""Figures, drawn from tables alone; each is saved with the table that it shows."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ahf_cli.experiment.records import CHANCE_ACCURACY, CHANCE_LOSS
from ahf_cli.experiment.statistics import BANDS, Band
from ahf_cli.report.files import atomic_write, csv_bytes
from ahf_cli.report.style import STALLED, Style, observed, styles
from ahf_cli.report.style import explanations as built_in
from ahf_cli.report.tables import METRICS, curve_table, recipe_names, step_table

DPI = 150
CAPTION_SIZE = 8.0
LOSS_TOP = 1.5 * CHANCE_LOSS
"""Top of the panel of the loss: one runaway mean would flatten every other curve."""
LINE_HEIGHT = CAPTION_SIZE * 1.32 / 72  # inches
CHARACTERS_PER_INCH = 16.5
NORMS = {
    "l2": ("direction_l2", r"$\|g_t\|_2$"),
    "l1": ("direction_l1", r"$\|g_t\|_1$"),
    "sum_l2": ("direction_sum_l2", r"$\sum_l \|g_{t,l}\|_2$"),
}
"""The norms of the direction: column, and symbol with the paper's name g for it."""


def figure_2(
    trials: pd.DataFrame,
    curves: pd.DataFrame,
    planned: Mapping[str, int],
    band: Band,
    out: Path,
    explanations: Mapping[str, str] | None = None,
) -> list[Path]:
    """Draw the paper's Figure 2: training loss and test accuracy against step, one line per recipe.

    Writes `figures/figure2.png`, `.pdf` and `data/figure2.csv` under `out`, and returns their paths.
    """
    table = pd.concat([curve_table(curves, m, band) for m in METRICS], ignore_index=True)
    looks = styles(recipe_names(trials, planned))
    known = built_in({}) if explanations is None else explanations
    caption = [_band_sentence(table, trials, band), *_cut_off(table)]
    for name in recipe_names(trials, planned):
        own = trials[trials["recipe"] == name]
        said = known.get(name, "")
        caption.append(
            f"{name} ({_n_of(own, planned.get(name, len(own)))}): {f'{said} ' if said else ''}{observed(own)}"
        )
    figure = _figure(caption, 10, 4.4)
    for at, metric in enumerate(METRICS.values()):
        axes = figure.add_subplot(1, 2, at + 1)
        own = table[table["metric"] == metric.column]
        for name in own["recipe"].unique():
            lines = own[own["recipe"] == name]
            done = trials[trials["recipe"] == name]
            label = f"{name}, {_n_of(done, planned.get(name, len(done)))}"
            _line(axes, lines, looks[name], label if at == 0 else None)
        axes.axhline(metric.chance, color="0.45", linewidth=0.8, linestyle=(0, (1, 3)), zorder=1)
        axes.annotate(
            "chance", (1, metric.chance), xycoords=("axes fraction", "data"), xytext=(-3, 2), ha="right",
            textcoords="offset points", fontsize=7, color="0.35",
        )  # fmt: skip
        unit = "mean cross-entropy, nats" if metric.column == "train_loss" else "fraction correct"
        axes.set(xlabel="step (one mini-batch each)", ylabel=f"{metric.label} ({unit})")
        _limits(axes, own, metric.column)
    if len(table):
        figure.legend(loc="outside upper center", ncols=2, frameon=False, handlelength=4)
    return save(figure, table, out, "figure2")


def prerun_figures(steps: pd.DataFrame, norm: str, out: Path) -> list[Path]:
    """Draw the paper's Figure 1 for the pre-run, and the smoothness of Eq. 2 against the size of the update.

    `steps` has the column trial and those of `StepRow`; `norm` is a key of `NORMS`.  Writes under `out`
    figures/prerun_steps.*, figures/prerun_smoothness.* and the tables of the same names in data/.
    """
    return [*_prerun_steps(steps, norm, out), *_prerun_smoothness(steps, out)]


def save(figure: Figure, table: pd.DataFrame, out: Path, name: str) -> list[Path]:
    """Save a figure as PNG and PDF with its table as CSV; the bytes depend on nothing but the table."""
    paths = [out / "data" / f"{name}.csv"]
    atomic_write(paths[0], csv_bytes(table))
    undated: dict[str, dict[str, None]] = {"png": {"Software": None}, "pdf": {"CreationDate": None}}
    for kind, metadata in undated.items():
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=DPI, metadata=metadata)
        paths.append(out / "figures" / f"{name}.{kind}")
        atomic_write(paths[-1], content.getvalue())
    return paths


def _prerun_steps(steps: pd.DataFrame, norm: str, out: Path) -> list[Path]:
    column, symbol = NORMS[norm]
    table = step_table(steps, [column, "step_size"], "se")
    n = steps["trial"].nunique()
    fewer = table["n"].min() < n
    caption = [
        f"{_band_words('se', n == 1)}, n = {n}"
        + (" at the start, fewer where trials have ended (column n of the table)" if fewer else "")
        + ". Left: norm of the CG direction g_t; right: step size as used, 0 where Eq. 3 is negative."
    ]
    figure = _figure(caption, 10, 3.8)
    labels = {column: f"norm of the direction {symbol}", "step_size": r"step size $\alpha_t$"}
    for at, (quantity, label) in enumerate(labels.items()):
        axes = figure.add_subplot(1, 2, at + 1)
        own = table[table["quantity"] == quantity]
        _line(axes, own, styles(["adaptive_hf"])["adaptive_hf"], None, solid=True)
        axes.set(xlabel="step (one mini-batch each)", ylabel=f"{label} (dimensionless)")
        positive = own["centre"][own["centre"] > 0]
        if len(positive) and positive.max() > 50 * positive.min():
            axes.set_yscale("log", nonpositive="clip")
            axes.set_ylim(positive.min() / 2, own[["centre", "high"]].max().max() * 1.5)
        else:
            axes.set_ylim(bottom=0)
    return save(figure, table, out, "prerun_steps")


def _prerun_smoothness(steps: pd.DataFrame, out: Path) -> list[Path]:
    columns = {
        "smoothness_gradient": (r"$g = \nabla h$", "#0072B2", "o"),
        "smoothness_direction": (r"$g = -\delta$ (the proof's sign)", "#D55E00", "^"),
    }
    table = steps[["trial", "step", "update_l2", *columns]]
    caption = [
        f"Conjugate smoothness of Eq. 2 along each update, n = {steps['trial'].nunique()} trials, one point "
        "a step, with g the gradient of the batch loss and with g = −δ, δ the CG direction; the axis is "
        "linear between −1 and 1 (grey) and logarithmic beyond."
    ]
    figure = _figure(caption, 8, 4.6)
    axes = figure.add_subplot()
    for column, (label, color, marker) in columns.items():
        keep = table[np.isfinite(table[column]) & (table["update_l2"] > 0)]
        negative = int((keep[column] < 0).sum())
        axes.scatter(
            keep["update_l2"], keep[column], s=7, marker=marker, color=color, alpha=0.35, linewidths=0,
            rasterized=True, label=f"{label}: {len(keep) - negative} positive, {negative} negative",
        )  # fmt: skip
    axes.axhspan(-1, 1, color="0.92", zorder=0)
    axes.axhline(0, color="0.45", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=1)
    if (table["update_l2"] > 0).any():
        axes.set_xscale("log")
    axes.set(
        xlabel=r"length of the update $\|y - x\|_2$ (dimensionless)",
        ylabel=r"smoothness $\hat{L}$ (loss per squared length)",
    )
    legend = figure.legend(loc="outside upper center", ncols=2, frameon=False, markerscale=2)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    return save(figure, table, out, "prerun_smoothness")


def _figure(caption: Sequence[str], width: float, height: float) -> Figure:
    """Make an empty figure with a caption below the panels, which it never covers."""
    characters = int(width * CHARACTERS_PER_INCH)
    lines = [line for text in caption for line in textwrap.wrap(text, characters, subsequent_indent=" " * 4)]
    below = len(lines) * LINE_HEIGHT + 0.15
    figure = Figure(figsize=(width, height + below), layout="constrained")
    figure.text(
        0.1 / width, 0.08 / (height + below), "\n".join(lines), fontsize=CAPTION_SIZE, va="bottom",
        linespacing=1.3, parse_math=False,
    )  # fmt: skip
    engine = figure.get_layout_engine()
    assert engine is not None
    share = below / (height + below)
    engine.set(rect=(0, share, 1, 1 - share))  # type: ignore[call-arg]  # constrained layout has it
    return figure


def _line(axes: Axes, lines: pd.DataFrame, style: Style, label: str | None, *, solid: bool = False) -> None:
    """Draw a centre line with its band; where the band is missing (n = 1) there is none."""
    step = lines["step"].to_numpy(dtype=float)
    low, centre, high = (lines[k].to_numpy(dtype=float) for k in ("low", "centre", "high"))
    axes.fill_between(step, low, high, color=style.color, alpha=0.2, linewidth=0, zorder=2)
    axes.plot(
        step, centre, color=style.color, linestyle="-" if solid else style.line, linewidth=1.6, label=label,
        marker=None if solid else style.marker, markersize=4, markevery=max(1, len(step) // 9), zorder=3,
    )  # fmt: skip


def _limits(axes: Axes, table: pd.DataFrame, metric: str) -> None:
    """Fix the y axis: accuracies from 0 to 1, losses from 0 to `LOSS_TOP`, above which they are cut off."""
    top = float(table["centre"].max()) if len(table) else CHANCE_LOSS
    if metric == "test_accuracy":
        axes.set_ylim(0, 1)
        axes.set_yticks(np.arange(0, 1.01, CHANCE_ACCURACY * 2))
    else:
        axes.set_ylim(0, min(max(top, CHANCE_LOSS) * 1.12, LOSS_TOP))


def _cut_off(table: pd.DataFrame) -> list[str]:
    """Say which curves leave the panel of the loss, and how far they go."""
    losses = table[table["metric"] == "train_loss"]
    above = losses[losses["centre"] > LOSS_TOP]
    if not len(above):
        return []
    peaks = above.loc[above.groupby("recipe")["centre"].idxmax()]
    said = [f"{row.recipe} reaches {row.centre:.3g} at step {row.step}" for row in peaks.itertuples()]
    return [f"The loss is cut off above {LOSS_TOP:.3g}: {'; '.join(said)}."]


def _n_of(trials: pd.DataFrame, planned: int) -> str:
    """Write the number of trials drawn, and of how many where some are missing."""
    n = int((trials["status"] != "failed").sum())
    return f"n = {n}" if n == planned else f"n = {n} of {planned}"


def _band_words(band: Band, alone: bool) -> str:
    words = BANDS[band][0].upper() + BANDS[band][1:]
    return f"One trial, which has no band ({BANDS[band]} needs two)" if alone else words


def _band_sentence(table: pd.DataFrame, trials: pd.DataFrame, band: Band) -> str:
    most = int(table["n"].max()) if len(table) else 0
    text = f"{_band_words(band, most == 1)}."
    if most > 1 and (table["n"] == 1).any():
        text += " A line without a band is a single trial."
    if (trials["status"] == "diverged").any():
        text += (
            f" Diverged trials are carried forward at chance (loss {CHANCE_LOSS:.3f}, "
            f"accuracy {CHANCE_ACCURACY:g})."
        )
    if len(trials) and trials["stalled"].any():
        text += f" Stood still: final training loss above {STALLED:g} of the initial one."
    return text
