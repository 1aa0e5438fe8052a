"""All finished trials of a study as tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from ahf_cli.experiment.records import CurveRow, StepRow, TrialResult
from ahf_cli.report.trial_folder import rows_frame

if TYPE_CHECKING:  # slow to import, and neither workers nor `ahf status` need it
    import pandas as pd

    from ahf_cli.report.store import Study


def trials_frame(study: Study) -> pd.DataFrame:
    """One row per finished trial: the fields of `TrialResult`, with `params.*` and `extra.*` spread."""
    import pandas as pd

    rows = []
    for result in (r for recipe in study.recipes() for r in study.finished(recipe)):
        row = {"recipe": result.recipe, "trial": result.slot, **asdict(result)}
        del row["slot"]
        for key in ("params", "extra"):
            row |= {f"{key}.{k}": v for k, v in row.pop(key).items()}
        rows.append(row)
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["recipe", "trial", "status"])


def curves_frame(study: Study) -> pd.DataFrame:
    """One row per finished trial and evaluation: recipe, trial, status and the columns of `CurveRow`."""
    frames = []
    for result in (r for recipe in study.recipes() for r in study.finished(recipe)):
        frames.append(_labelled(study.trial(result.recipe, result.slot).curve(), result))
    return _joined(frames, CurveRow)


def steps_frame(study: Study, recipe: str) -> pd.DataFrame:
    """One row per finished trial and step: recipe, trial, status and the columns of `StepRow`."""
    frames = [_labelled(study.trial(recipe, r.slot).steps(), r) for r in study.finished(recipe)]
    return _joined(frames, StepRow)


def _labelled(frame: pd.DataFrame, result: TrialResult) -> pd.DataFrame:
    frame.insert(0, "recipe", result.recipe)
    frame.insert(1, "trial", result.slot)
    frame.insert(2, "status", result.status)
    return frame


def _joined(frames: list[pd.DataFrame], row: type[CurveRow] | type[StepRow]) -> pd.DataFrame:
    import pandas as pd

    frames = [frame for frame in frames if len(frame)]
    if frames:
        return pd.concat(frames, ignore_index=True)
    empty = rows_frame([], row)
    return empty.assign(recipe="", trial=0, status="")[["recipe", "trial", "status", *empty.columns]]
