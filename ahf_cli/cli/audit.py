"""`ahf audit`: the hypotheses of the paper's Theorem 1 in the steps of a study."""

from __future__ import annotations

import textwrap
from typing import Annotated, Any

import typer

from ahf_cli.cli.options import DEFAULT_RESULTS, Json, Results, emit_json, log, print_tables, say
from ahf_cli.cli.show import Prerun, StudyName
from ahf_cli.errors import IncompleteError, InputError

EachTrial = Annotated[bool, typer.Option("--trials", help="Print one row a trial, not one a recipe.")]


def audit(
    study: StudyName,
    each: EachTrial = False,
    results: Results = DEFAULT_RESULTS,
    prerun: Prerun = False,
    as_json: Json = False,
) -> None:
    """Show which hypotheses of the paper's Theorem 1 held in the steps of a study; nothing is written."""
    from ahf_cli.report import audit as report
    from ahf_cli.study.find import find_study
    from ahf_cli.study.frames import rows_frame

    found = find_study(results, study)
    found = found.prerun if prerun else found
    finished, damaged = found.read_results()
    if not finished:
        raise IncompleteError(f"no trial of {found.name} is finished yet")
    skipped = {r.recipe: why for r in finished if (why := report.unfit(r))}
    fit = [r for r in finished if r.recipe not in skipped]
    read = found.reader.steps(fit)
    steps = dict(iter(rows_frame(fit, read).groupby(["recipe", "trial"])))
    described = found.manifest().get("identity", {}).get("recipes", {})
    rows: list[dict[str, Any]] = []
    for result in fit:
        own = steps.get((result.recipe, result.slot))
        if own is not None:
            choices = described.get(result.recipe, {}).get("structure", {})
            rows.append(report.audit(result, own.sort_values("step"), choices))
    audited = {row["recipe"] for row in rows}
    skipped |= {r.recipe: "its steps are not on disk" for r in fit if r.recipe not in audited}
    lines = [f"{name} is skipped: {why}" for name, why in skipped.items()]
    if not rows:
        raise InputError([f"nothing to audit in {found.name}: {'; '.join(lines)}"])
    import pandas as pd

    table = pd.DataFrame(rows)
    by_recipe = report.recipes(table)
    if as_json:
        by_name = [dict(row) for row in by_recipe.to_dict("records")]
        emit_json({"study": found.name, "recipes": by_name, "trials": rows, "skipped": skipped})
    else:
        text = report.trials_text(table) if each else report.recipes_text(by_recipe)
        print_tables({f"{found.name}: Theorem 1 in the steps of {len(rows)} trials": text})
        say(textwrap.fill(report.NOTE, 100))
        for line in lines:
            say(line)
    for line in (*damaged, *read.problems):
        log(f"damaged: trial {line}")
