"""`report.html`: a comparison as one file for a browser, without network and without JavaScript."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from bokeh.document import Document
from bokeh.embed import components
from bokeh.resources import Resources
from jinja2 import Environment, FunctionLoader, Template
from markupsafe import Markup

import ahf_cli
from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS
from ahf_cli.report.canvas import Picture
from ahf_cli.report.comparison import Comparison
from ahf_cli.report.conditions import conditions
from ahf_cli.report.leaderboard import Leaderboard
from ahf_cli.report.page.interactive import figures
from ahf_cli.report.study_data import StudyData
from ahf_cli.report.text import number
from ahf_cli.study.files import atomic_write

PARTLY = ("damping",)
"""static figures that show more than their interactive form, and are shown beside it"""
_UNIQUE = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def save_page(comparison: Comparison, out: Path) -> Path:
    """Write `report.html` under `out`, and return its path."""
    path = out / "report.html"
    atomic_write(path, page(comparison).encode())
    return path


def page(comparison: Comparison) -> str:
    """Return the page; every text from a study is escaped."""
    data, verdict = comparison.data, comparison.verdict
    live = {name: plots for name, plots in figures(data, comparison.choices.band).items() if plots}
    script, divs = _embedded([plot for plots in live.values() for plot in plots])
    own = iter(divs)
    by_name = {name: [Markup(next(own)) for _ in plots] for name, plots in live.items()}
    library = Resources(mode="inline", components=["bokeh"]).render_js()
    return _template("page.html").render(
        title=f"{', '.join(data.names)}: comparison of {len(data.recipes)} recipes",
        condition=conditions(data), verdict=verdict.lines(), forced=bool(verdict.stamp),
        missing=data.missing, problems=data.problems, explanations=_explanations(data),
        overview=comparison.overview(), not_drawn=comparison.drawn[1], tables=comparison.tables.values(),
        figures=[_figure(p, by_name.get(p.drawing.name, [])) for p in comparison.pictures],
        trials=_trials(data), space=_space(data), environment=_environment(data),
        commands=_commands(data), version=ahf_cli.__version__, partly=PARTLY,
        css=Markup(_resource("page.css")), js=Markup(_resource("sort.js") + _resource("page.js")),
        scripts=Markup(library + script),
    )  # fmt: skip


def board_page(board: Leaderboard, picture: Picture) -> str:
    """Return a leaderboard as a page; every text from a study is escaped."""
    return _template("leaderboard.html").render(
        title=board.title, groups=board.groups, notes=board.notes, left_out=board.left_out,
        figure=_figure(picture, []), version=ahf_cli.__version__,
        css=Markup(_resource("page.css")), js=Markup(_resource("sort.js")),
    )  # fmt: skip


def _template(name: str) -> Template:
    environment = Environment(loader=FunctionLoader(_resource), autoescape=True, trim_blocks=True)
    environment.globals["table"] = _table
    return environment.get_template(name)


def _embedded(plots: Sequence[Any]) -> tuple[str, list[str]]:
    """Return a script that draws interactive figures, and the element of each."""
    document = Document()
    with document.models.freeze():  # else Bokeh visits all figures again at each added figure
        for plot in plots:
            document.add_root(plot)
    return _renamed(*components(plots))


def _renamed(script: str, divs: Sequence[str]) -> tuple[str, list[str]]:
    """Return script and elements with counted names instead of Bokeh's random names, for equal pages."""
    names: dict[str, str] = {}

    def name(found: re.Match[str]) -> str:
        return names.setdefault(found[0], f"ahf-plot-{len(names)}")

    return _UNIQUE.sub(name, script), [_UNIQUE.sub(name, div) for div in divs]


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _figure(picture: Picture, divs: list[Markup]) -> dict[str, Any]:
    """Return the parts of a figure by name, with its caption as text."""
    drawing = picture.drawing
    image = base64.b64encode(picture.small()).decode()
    return {
        "name": drawing.name, "title": drawing.title, "divs": divs, "caption": "\n".join(drawing.caption),
        "image": f"data:image/png;base64,{image}", "colored": drawing.colored,
    }  # fmt: skip


def _table(title: str, table: pd.DataFrame) -> Markup:
    """Return a table of text as sortable HTML."""
    head = Markup("").join(Markup("<th scope='col'>{}</th>").format(name) for name in table.columns)
    rows = [
        Markup("<tr>{}</tr>\n").format(Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row))
        for row in table.itertuples(index=False)
    ]
    return Markup(
        "<div class='scroll'><table class='sortable'><caption>{}</caption><thead><tr>{}</tr></thead>"
        "<tbody>{}</tbody></table></div>"
    ).format(title, head, Markup("").join(rows))


def _explanations(data: StudyData) -> dict[str, str]:
    known = data.explanations
    return {name: known[name] for name in data.recipes if name in known}


def _trials(data: StudyData) -> pd.DataFrame:
    """One row a trial, as text: name, outcome, hyperparameters, final values."""
    trials = data.trials
    name = trials["recipe"].astype(str) + "/" + trials["trial"].map("{:03d}".format)
    columns = {
        "trial": name,
        "outcome": trials["outcome"].astype(str),
        "steps": trials["steps"].astype(str),
    }
    for key, declared in HYPERPARAMETERS.items():
        if f"params.{key}" in trials:
            values = trials[f"params.{key}"].astype(float)
            columns[declared.symbol] = values.map(lambda v: "" if pd.isna(v) else f"{v:.4g}")
    metrics = data.metrics
    columns_shown = [m.column for m in metrics.shown] + [f"validation_{metrics.all[0].name}", "test_loss"]
    for column in dict.fromkeys(columns_shown):
        columns[column.replace("_", " ")] = trials[column].astype(float).map(number)
    columns["seconds"] = trials["seconds"].map("{:.1f}".format)
    return pd.DataFrame(columns)


def _space(data: StudyData) -> pd.DataFrame:
    rows = []
    for prefix, identity in data.identities:
        for recipe, space in identity.get("spaces", {}).items():
            described = identity.get("recipes", {}).get(recipe, {})
            ranges = [
                f"{key} [{r.get('low'):g}, {r.get('high'):g}]{' log' if r.get('log') else ''}"
                for key, r in space.items()
            ]
            rows.append(
                {"recipe": prefix + recipe, "searched": ", ".join(ranges)}
                | {
                    "fixed": _pairs(described.get("fixed", {})),
                    "structure": _pairs(described.get("structure", {})),
                }
            )
    return pd.DataFrame(rows, columns=["recipe", "searched", "fixed", "structure"])


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _environment(data: StudyData) -> pd.DataFrame:
    rows = []
    for name, manifest in data.manifests.items():
        for key in ("commit", "dirty", "device", "cores", "threads", "workers"):
            if manifest.get(key) is not None:
                rows.append((name, key, str(manifest[key])))
        for group in ("versions", "seeds", "data"):
            rows += [(name, f"{group}: {key}", str(value)) for key, value in manifest.get(group, {}).items()]
    return pd.DataFrame(rows, columns=["study", "what", "value"])


def _commands(data: StudyData) -> list[str]:
    sessions = [s for m in data.manifests.values() for s in (*m.get("sessions", []), m)]
    compare = f"ahf compare {' '.join(f'--study {name}' for name in data.names)}"
    return list(dict.fromkeys([str(s["command"]) for s in sessions if s.get("command")] + [compare]))
