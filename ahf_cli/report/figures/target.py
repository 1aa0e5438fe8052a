"""F5: how many trials have met the target, by steps, work and seconds."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.figures import marks
from ahf_cli.report.plotting import Figure
from ahf_cli.report.statistics import empirical_distribution
from ahf_cli.report.style import styles
from ahf_cli.report.tables.target import COSTS, crossing_table
from ahf_cli.tasks.metrics import Column


def time_to_target(
    curves: pd.DataFrame, names: list[str], target: float | None, metric: Column
) -> Drawing | str:
    """Draw the share of trials that have met the target of the headline against each cost."""
    if target is None:
        return f"no target of {metric.label} is given: --target X"
    crossings = crossing_table(curves, names, target, metric)
    if not np.isfinite(crossings["step"].to_numpy(float)).any():
        return f"no trial met {metric.label} {target:g}"
    frames = []
    for cost in COSTS:
        for name in crossings["recipe"].unique():
            own = crossings[crossings["recipe"] == name][cost]
            found = empirical_distribution(own.to_numpy(float))
            frames.append(pd.DataFrame({"cost": cost, "recipe": name, "n": len(own), **found._asdict()}))
    table = pd.concat([frame for frame in frames if len(frame)], ignore_index=True)
    looks = styles(names)
    sign = f"{metric.label.partition(' ')[2]} {'≥' if metric.better == 'higher' else '≤'}"
    met = crossings[np.isfinite(crossings["step"].to_numpy(float))]["recipe"].value_counts()
    never = [name for name in crossings["recipe"].unique() if name not in met]
    unmet = f" Not drawn, since none of its trials met it: {', '.join(never)}." if never else ""
    caption = [
        f"Share of all trials whose {metric.label} has reached {target:g}, against what they had spent, with "
        f"a simultaneous 95 % band (Dvoretzky-Kiefer-Wolfowitz; drawn from n = {marks.FEW} on). Misses never "
        "cross. Met by: "
        f"{', '.join(f'{k} {met[k]} of {(crossings.recipe == k).sum()}' for k in met.index)}.{unmet}"
    ]
    ends = {cost: float(curves[curves["status"] != "failed"][cost].max()) for cost in COSTS}

    def draw(figure: Figure, theme: Theme) -> None:
        for at, (axes, (cost, label)) in enumerate(
            zip(marks.grid(figure, theme, 3, 3), COSTS.items(), strict=True)
        ):
            lines = table[table["cost"] == cost]
            for name in lines["recipe"].unique():
                own = lines[lines["recipe"] == name]
                marks.stairs(axes, own, looks[name], name if at == 0 else None, 0, ends[cost])
            axes.set(
                xlabel=label, ylabel=f"share at {sign} {target:g}" if at == 0 or not theme.caption else ""
            )
            axes.set_ylim(0, 1)
            axes.set_xlim(0, max(ends[cost], 1e-9))
        marks.legend(figure, theme)

    return Drawing(
        "time_to_target",
        f"Time to {metric.label} {target:g}",
        table,
        caption,
        draw,
        panels=3,
        height=0.9,
        across=3,
    )
