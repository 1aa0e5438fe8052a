"""All finished trials of a study as tables."""

from __future__ import annotations

import io
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

from ahf_cli.experiment.records import CurveRow, StepRow, TrialResult
from ahf_cli.study.trial_folder import rows_frame, with_stops

if TYPE_CHECKING:  # slow to import, and neither workers nor `ahf status` need it
    import pandas as pd

    from ahf_cli.study.store import Study


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
    finished = [r for recipe in study.recipes() for r in study.finished(recipe)]
    return _joined(_read([(r, study.trial(r.recipe, r.slot).curve_text()) for r in finished]), CurveRow)


def steps_frame(study: Study, recipe: str) -> pd.DataFrame:
    """One row per finished trial and step: recipe, trial, status and the columns of `StepRow`."""
    texts = [(r, study.trial(recipe, r.slot).steps_text()) for r in study.finished(recipe)]
    return _joined([with_stops(frame) for frame in _read(texts)], StepRow)


def _read(texts: list[tuple[TrialResult, bytes]]) -> list[pd.DataFrame]:
    """Return the tables of trials, labelled; what has the same columns is read at once, as one table."""
    import numpy as np
    import pandas as pd

    frames: list[pd.DataFrame] = []
    for header, group in groupby(texts, key=lambda pair: pair[1].partition(b"\n")[0]):
        owners, bodies = [], []
        for result, text in group:
            owners.append(result)
            bodies.append(text.partition(b"\n")[2].removesuffix(b"\n"))
        if not header:  # a file that was left out
            continue
        counts = [body.count(b"\n") + 1 if body else 0 for body in bodies]
        frame = pd.read_csv(io.BytesIO(b"\n".join([header, *filter(None, bodies)]) + b"\n"))
        for at, name in enumerate(("recipe", "slot", "status")):
            values = np.repeat(np.array([getattr(r, name) for r in owners], object), counts)
            frame.insert(at, "trial" if name == "slot" else name, pd.Series(values).infer_objects())
        frames.append(frame)
    return frames


def _joined(frames: list[pd.DataFrame], row: type[CurveRow] | type[StepRow]) -> pd.DataFrame:
    import pandas as pd

    frames = [frame for frame in frames if len(frame)]
    if frames:
        return pd.concat(frames, ignore_index=True)
    empty = rows_frame([], row)
    return empty.assign(recipe="", trial=0, status="")[["recipe", "trial", "status", *empty.columns]]
