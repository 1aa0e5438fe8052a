"""All finished trials of a study as pandas tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ahf_cli.study.columns import as_frame
from ahf_cli.study.files import write_csv
from ahf_cli.study.store import Study
from ahf_cli.study.trials import Labelled
from ahf_cli.training.records import TrialResult

if TYPE_CHECKING:  # slow to import, and neither workers nor `ahf status` need it
    import pandas as pd


def trials_frame(study: Study) -> pd.DataFrame:
    """Return one row per finished trial: fields of `TrialResult`, with `params.*` and `extra.*` spread."""
    return results_frame(study.read_results()[0])


def curves_frame(study: Study) -> pd.DataFrame:
    """Return one row per finished trial and evaluation: recipe, trial, status and fields of `CurveRow`."""
    results = study.read_results()[0]
    return rows_frame(results, study.reader.curves(results))


def steps_frame(study: Study, recipe: str) -> pd.DataFrame:
    """Return one row per finished trial and step: recipe, trial, status and the columns of `StepRow`."""
    results = study.finished(recipe)
    return rows_frame(results, study.reader.steps(results))


def results_frame(results: Sequence[TrialResult]) -> pd.DataFrame:
    """Return results as a table."""
    import pandas as pd

    rows = []
    for result in results:
        row = {"recipe": result.recipe, "trial": result.slot, **result.plain()}
        del row["slot"]
        for key in ("params", "extra"):
            row |= {f"{key}.{k}": v for k, v in row.pop(key).items()}
        rows.append(row)
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["recipe", "trial", "status"])


def rows_frame(results: Sequence[TrialResult], read: Labelled) -> pd.DataFrame:
    """Return rows of trials as a table that has the status of each row's trial as well."""
    import pandas as pd

    keys = ["recipe", "trial"]
    labels = pd.DataFrame([(r.recipe, r.slot, r.status) for r in results], columns=[*keys, "status"])
    labels = labels.astype({"recipe": "str", "trial": "int64", "status": "str"})
    rows = as_frame(read.rows)
    found = rows[keys].merge(labels, how="left", on=keys)["status"]
    rows.insert(2, "status", found)
    return rows


def write_tables(study: Study) -> None:
    """Write `trials.csv`, `curves.csv` and, of a study with re-runs, `reruns.csv`."""
    write_csv(study.folder / "trials.csv", trials_frame(study))
    write_csv(study.folder / "curves.csv", curves_frame(study))
    if study.reruns.recipes_on_disk():
        write_csv(study.folder / "reruns.csv", trials_frame(study.reruns))
