"""A study as a reproducibility report in LaTeX, in the sections of the ML Reproducibility Challenge."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS
from ahf_cli.report.canvas import THEMES, make
from ahf_cli.report.comparison import Comparison
from ahf_cli.report.conditions import conditions
from ahf_cli.report.study_data import StudyData
from ahf_cli.report.text import as_latex, tex
from ahf_cli.study.files import atomic_write

TABLES = ("final_values", "reruns", "equal_cost", "cost")
FIGURES = ("figure2", "reruns", "equal_cost", "sensitivity")


def save_reproduction(comparison: Comparison, out: Path) -> list[Path]:
    """Write `reproduction.tex` and its figures as PDFs under `out`; `pdflatex` compiles it there.

    Every number is one of the study's.  Scope, claims, ease and difficulty are those that its data show.
    """
    files, figures = [], []
    for drawing in comparison.drawn[0]:
        if drawing.name in FIGURES:
            made = make(drawing, THEMES["paper"], comparison.verdict.stamp)
            file = out / f"{drawing.name}.pdf"
            atomic_write(file, made.written("pdf"))
            files.append(file)
            figures.append({"file": file.name, "caption": " ".join([f"{drawing.title}.", *drawing.caption])})
    path = out / "reproduction.tex"
    atomic_write(path, _text(comparison, figures).encode())
    return [path, *files]


def _text(comparison: Comparison, figures: list[dict[str, str]]) -> str:
    environment = Environment(
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>", trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined, autoescape=False,
    )  # fmt: skip
    source = resources.files("ahf_cli.report.page").joinpath("reproduction.tex").read_text("utf-8")
    data = comparison.data
    manifest = next(iter(data.manifests.values()))
    verdict = comparison.verdict.lines()
    return environment.from_string(source).render(
        tex=tex, name=", ".join(data.names), date=str(manifest.get("created", ""))[:10],
        metric=data.metrics.headline.label, claims=_claims(data),
        condition=f"The condition is: {conditions(data)}",
        results=[line for line in verdict if not line.startswith("Condition:")],
        recipes={k: f"{v.rstrip('.')}." for k, v in data.explanations.items() if k in data.recipes},
        task=_task(data),
        searched=_searched(data), spaces=as_latex(_spaces(data), "ranges"), machine=_machine(data, manifest),
        command=manifest.get("command", ""), commit=str(manifest.get("commit", ""))[:12],
        dirty=bool(manifest.get("dirty")), easy=_easy(data), difficult=_difficult(data),
        tables=list(_tables(comparison)), figures=figures,
    )  # fmt: skip


def _claims(data: StudyData) -> list[str]:
    """Return one sentence for each pair of recipes that was named before the run."""
    label = data.metrics.headline.label
    return [f"{first} and {second} differ in {label}." for first, second in data.contrasts]


def _tables(comparison: Comparison) -> Iterator[dict[str, str]]:
    for name in TABLES:
        table = comparison.tables.get(name)
        for title, part in table.texts.items() if table else ():
            yield {"title": title, "note": table.note if table else "", "body": as_latex(part, title)}


def _task(data: StudyData) -> str:
    task = data.identity.get("task", {})
    seen = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in task.items() if value is not None)
    return f"The task has {seen}."


def _searched(data: StudyData) -> str:
    search = data.identity.get("search", {})
    trials = len(data.trials)
    text = f"The search drew {trials} trials and minimized the {data.minimized.label}."
    if len(data.reruns):
        seeds = data.reruns.groupby("recipe").size().max()
        text += f" The best of each recipe ran again with {seeds} new seeds."
    return text + (f" The sampler was {search['sampler']}." if search.get("sampler") else "")


def _spaces(data: StudyData) -> pd.DataFrame:
    rows = [
        {
            "recipe": recipe, "hyperparameter": key,
            "symbol": HYPERPARAMETERS[key].symbol if key in HYPERPARAMETERS else "–",
            "lowest": f"{found['low']:g}", "highest": f"{found['high']:g}",
            "scale": "logarithmic" if found.get("log") else "linear",
        }
        for recipe, space in data.of_recipes("spaces").items()
        for key, found in space.items()
        if "low" in found
    ]  # fmt: skip
    columns = ["recipe", "hyperparameter", "symbol", "lowest", "highest", "scale"]
    return pd.DataFrame(rows, columns=columns)


def _machine(data: StudyData, manifest: Any) -> str:
    spent = pd.concat([data.trials["seconds"], data.reruns["seconds"]]).sum() / 3600
    versions = ", ".join(f"{k} {v}" for k, v in manifest.get("versions", {}).items())
    device = manifest.get("device", "an unknown device")
    return (
        f"All {len(data.trials) + len(data.reruns)} runs together took {spent:.1f} hours of one worker "
        f"on {device}. Versions: {versions}."
    )


def _counts(data: StudyData) -> dict[str, dict[str, int]]:
    found = {str(name): own["outcome"].value_counts() for name, own in data.trials.groupby("recipe")}
    return {name: {str(k): int(n) for k, n in own.items()} for name, own in found.items()}


def _easy(data: StudyData) -> str:
    whole = [name for name, own in _counts(data).items() if set(own) == {"trained"}]
    return f"Every trial trained with {', '.join(whole)}." if whole else "No recipe trained in every trial."


def _difficult(data: StudyData) -> str:
    others = {name: own for name, own in _counts(data).items() if set(own) != {"trained"}}
    if not others:
        return "Every trial of every recipe trained."
    told = (f"{name}: {', '.join(f'{n} {k}' for k, n in own.items())}" for name, own in others.items())
    return f"Trials by outcome, where not all trained: {'; '.join(told)}."
