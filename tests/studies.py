"""Studies with chosen final losses, and the records of one small trial."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from ahf_cli.study.store import Study
from ahf_cli.tasks.metrics import TEN_CLASSES
from ahf_cli.training.records import CurveRow, Status, StepRow, TrialResult

NAN = math.nan
GRID = (0, 5, 10)


def measured(*values: float) -> dict[str, float]:
    """Return loss and accuracy on the training, validation and test sets."""
    return dict(zip(TEN_CLASSES.curve_columns, values, strict=True))


def finals(*values: float) -> dict[str, float]:
    """Return the training loss, loss and accuracy on the test set, and both on the validation set."""
    return dict(zip(TEN_CLASSES.result_columns, values, strict=True))


def curve(final: float, last: int = 10) -> list[CurveRow]:
    losses = {0: 2.3, 5: (2.3 + final) / 2, 10: final}
    return [
        CurveRow(
            s,
            s / 10,
            measured(losses[s], 1 - losses[s] / 2.6, NAN, NAN, losses[s], 1 - losses[s] / 2.6),
            s,
            s,
            0.1,
        )  # fmt: skip
        for s in GRID
        if s <= last
    ]


def steps(sign: float) -> list[StepRow]:
    return [
        StepRow(t, 2, 1.9, 0.1 / t, 5 / t, 1 / t, 1e-3 / t, 1e-4 / t**3, 1e-4, 10, 0.5, -1, 9, "progress",
                1.0, sign * 100 * t)
        for t in range(1, 11)
    ]  # fmt: skip


def write_study(results: Path, name: str, plan: dict[str, int], ends: dict[str, list[float]]) -> Study:
    """Write a study whose trials end at the given training losses; NaN diverges after step 5."""
    with Study(results, name) as study:
        study.open_for_writing(f"study: {name}\n", {"seed": 0}, {"command": "made up", "plan": plan})
        for recipe, losses in ends.items():
            for slot, final in enumerate(losses):
                diverged = math.isnan(final)
                status: Status = "diverged" if diverged else "ok"
                rows = curve(1.0 if diverged else final, 5 if diverged else 10)
                result = TrialResult(
                    recipe, slot, status, 7 if diverged else 10, 10, min(final, 2.3) if not diverged else 2.3,
                    "train_loss", {"lr": 0.1}, 0,
                    finals(final, final, NAN if diverged else rows[-1].measured["test_accuracy"], NAN, NAN),
                    1.0, stalled=final > 0.95 * 2.3, still_from=0,
                )  # fmt: skip
                study.trial(recipe, slot).finish(result, rows, steps(1 if slot % 2 else -1))
    return study


RESULT = TrialResult(
    recipe="hf", slot=0, status="ok", steps=2, planned_steps=2, value=0.1 + 0.2, objective="train_loss",
    params={"lr": 0.1, "damping": 10.0}, seed=3, seconds=1.5,
    measured=finals(0.1 + 0.2, 0.4, 0.8, NAN, NAN), extra={"peak": NAN},
)  # fmt: skip
CURVE = [
    CurveRow(s, s / 390, measured(2.3 - s / 3, 0.1, NAN, NAN, 2.3, 0.1), 20 * s, s, s / 7) for s in (0, 1, 2)
]
STEPS = [
    StepRow(s, 2.3, 2.2, 0.05, 5.0, 0.1, 0.005, 0.1, -1e-7, 10.0, 0.5, -0.1, 12, "progress", 1.0, -13.0)
    for s in (1, 2)
]


def train_losses(results: Path) -> list[float]:
    """Return the training losses at the evaluations of the one trial in a results folder."""
    (curve,) = results.rglob("curve.csv")
    return [float(loss) for loss in pd.read_csv(curve)["train_loss"]]
