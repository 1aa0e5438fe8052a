"""The solution of a differential equation by a trial's network, the known one, and their difference."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from ahf_cli.report import marks
from ahf_cli.report.canvas import Drawing, Theme
from ahf_cli.report.exhibits.exhibit import Exhibit
from ahf_cli.report.plotting import Figure
from ahf_cli.report.study_data import StudyData
from ahf_cli.study.store import Study
from ahf_cli.tasks.catalogue import MODELS
from ahf_cli.tasks.datasets import DATA_SETS

POINTS = 65
"""points of the grid along each of the two coordinates"""
MOST = 3
"""most recipes of one figure"""
DECADES, FLOOR = 1e3, 1e-16
"""range of the logarithmic colour scale below the largest error, and its least value"""
Trial = tuple[Study, str, int]
"""study, recipe, slot"""


def field(task: Mapping[str, Any], weights: bytes) -> pd.DataFrame:
    """Return the network's u, the solution and their absolute difference on a grid of two coordinates.

    Columns: x1, x2, u, solution, error.  Further coordinates are in the middle of the box.

    Args:
        task: section `task` of an identity, with `data` and `model`.
        weights: the file `weights.npy`.
    """
    import torch

    from ahf_cli.tasks.catalogue import make_model
    from ahf_cli.tasks.equations import find

    equation, data = find(str(task["data"])), DATA_SETS[str(task["data"])]
    net = make_model(str(task["model"]), data.shape, data.outputs).double()
    theta = torch.from_numpy(np.load(io.BytesIO(weights), allow_pickle=False))
    torch.nn.utils.vector_to_parameters(theta, net.parameters())
    along = torch.linspace(equation.low, equation.high, POINTS, dtype=torch.float64)
    x = torch.full((POINTS**2, data.shape[0]), (equation.low + equation.high) / 2, dtype=torch.float64)
    x[:, :2] = torch.cartesian_prod(along, along)
    with torch.no_grad():
        u, known = net(x)[:, 0], equation.solution(x)
    columns = {"x1": x[:, 0], "x2": x[:, 1], "u": u, "solution": known, "error": (u - known).abs()}
    return pd.DataFrame({name: values.numpy() for name, values in columns.items()})


def solution(trials: Iterable[Trial], chosen: str = "") -> Drawing | str | None:
    """Return a drawing with three panels a trial; `chosen` is a sentence on the choice of the trials.

    None for another task than an equation; a text says why an equation cannot be drawn.
    """
    frames, reason, dimension = [], None, 2
    for study, recipe, slot in trials:
        task = study.manifest().get("identity", {}).get("task", {})
        name, model = str(task.get("data")), str(task.get("model"))
        result = study.reader.inspect(recipe, slot)
        if result is None or "test_error" not in result.measured:
            continue
        if (weights := study.reader.weights(recipe, slot)) is None:
            reason = f"trial {recipe}/{slot:03d} has no weights, so that its solution is not drawn"
        elif name not in DATA_SETS or model not in MODELS:
            reason = f"the solution needs task.data {name} and task.model {model}: add --plugin FILE.py"
        elif not DATA_SETS[name].equation or (dimension := DATA_SETS[name].shape[0]) < 2:
            reason = "a solution is drawn over two coordinates or more"
        else:
            error = result.measured["test_error"]
            frames.append(field(task, weights).assign(trial=f"{recipe}/{slot:03d}", test_error=error))
    if not frames:
        return reason
    return _drawing(pd.concat(frames, ignore_index=True), dimension, chosen)


def _drawing(table: pd.DataFrame, dimension: int, chosen: str) -> Drawing:
    own = {str(name): part for name, part in table.groupby("trial", sort=False)}
    rest = " The other coordinates are in the middle of the box." if dimension > 2 else ""
    errors = ", ".join(f"{name} {part['test_error'].iloc[0]:.2e}" for name, part in own.items())
    caption = [
        f"u of the network, the solution u*, and |u − u*| on a logarithmic scale of three decades.{chosen}"
        f"{rest} The root mean square of u − u* at the test points: {errors}."
    ]

    def draw(figure: Figure, theme: Theme) -> None:
        panels = iter(marks.grid(figure, theme, 3 * len(own), 3))
        for name, part in own.items():
            shown = part.pivot(index="x2", columns="x1", values=["u", "solution", "error"])
            ends = part[["u", "solution"]].to_numpy()
            for column, label in (("u", f"u, {name}"), ("solution", "u*"), ("error", "|u − u*|")):
                axes, z, along = next(panels), shown[column].to_numpy(), np.sort(part["x1"].unique())
                scale: dict[str, Any] = {"cmap": "viridis", "vmin": ends.min(), "vmax": ends.max()}
                if column == "error":  # a logarithmic scale has no 0
                    z = z.clip(max(z.max() / DECADES, FLOOR))
                    scale = {"cmap": "magma", "norm": "log"}
                colors = axes.pcolormesh(along, along, z, shading="nearest", rasterized=True, **scale)
                axes.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
                axes.set_title(label, fontsize="medium")
                axes.grid(visible=False)
                figure.colorbar(colors, ax=axes, shrink=0.82)

    stem = next(iter(own)).replace("/", "_")
    name = "solution" if chosen else f"solution_{stem}"
    return Drawing(
        name,
        "Solution of the equation",
        table,
        caption,
        draw,
        panels=3 * len(own),
        height=0.75,
        across=3,
        colored=True,
    )


def _figure(data: StudyData) -> Drawing | str | None:
    trials = []
    for prefix, study in data.sources:
        for recipe, row in data.best.iterrows():
            bare = str(recipe).removeprefix(prefix)
            if str(recipe).startswith(prefix) and bare in study.recipes():
                trials.append((study, bare, int(row["trial"])))
    kept = [(s, r, n) for s, r, n in trials if s.reader.weights(r, n) is not None][:MOST]
    return solution(kept, f" The trial with the least {data.minimized.label} of each recipe.")


EXHIBIT = Exhibit(11, figures={"solution": lambda data, _: _figure(data)})
