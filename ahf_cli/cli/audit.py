"""`ahf audit`: the hypotheses of the paper's Theorem 1 in the steps of a study."""

from __future__ import annotations

import textwrap
from typing import Annotated

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

    found = find_study(results, study)
    found = found.prerun if prerun else found
    finished, damaged = found.read_results()
    if not finished:
        raise IncompleteError(f"no trial of {found.name} is finished yet")
    table, skipped, faults = report.of_study(found, finished)
    lines = [f"{name} is skipped: {why}" for name, why in skipped.items()]
    if not len(table):
        raise InputError([f"nothing to audit in {found.name}: {'; '.join(lines)}"])
    by_recipe = report.recipes(table)
    if as_json:
        by_name = [dict(row) for row in by_recipe.to_dict("records")]
        emit_json(
            {"study": found.name, "recipes": by_name, "trials": table.to_dict("records"), "skipped": skipped}
        )
    else:
        text = report.trials_text(table) if each else report.recipes_text(by_recipe)
        print_tables({f"{found.name}: Theorem 1 in the steps of {len(table)} trials": text})
        say(textwrap.fill(report.NOTE, 100))
        for line in lines:
            say(line)
    for line in (*damaged, *faults):
        log(f"damaged: trial {line}")
