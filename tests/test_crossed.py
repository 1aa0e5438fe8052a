"""The table of variance components of crossed draws and seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ahf_cli.errors import InputError
from ahf_cli.report.comparison import Comparison
from ahf_cli.report.exhibits.crossed import components_table
from ahf_cli.report.statistics.components import crossed
from ahf_cli.report.study_data import StudyData, load_study
from tests.simulated_studies import simulate_study

D, S, R = 4, 3, 2


@pytest.fixture
def data(tmp_path: Path) -> StudyData:
    """Trials of a fair study, given as draws, seeds and repeats."""
    study = simulate_study(
        tmp_path, "s", trials=D * S * R, points=3, reruns=0, recipes=("hf",), design="crossed"
    )
    found = load_study(study.folder)
    slot = found.trials["trial"].to_numpy()
    rng = np.random.default_rng(0)
    own = found.trials.assign(
        seed=slot // R % S, status="ok", outcome="trained", train_loss=0.5,
        test_accuracy=0.7 + 0.05 * rng.normal(size=len(slot)),
        **{"extra.draw": (slot // (S * R)).astype(float), "extra.repeat": (slot % R).astype(float)},
    )  # fmt: skip
    return replace(found, trials=own.sample(frac=1, random_state=1))


def test_the_table_has_the_components_of_its_cells_in_any_order(data: StudyData) -> None:
    row = Comparison(data).tables["components"].numbers.set_index("metric").loc["test accuracy"]
    cube = data.trials.sort_values("trial")["test_accuracy"].to_numpy().reshape(D, S, R)
    expected = crossed(cube)
    assert (row["draws"], row["seeds"], row["repeats"]) == (D, S, R)
    assert row["mean"] == pytest.approx(expected.mean.estimate)
    for name, component in expected.components.items():
        assert row[name] == pytest.approx(component.deviation.estimate, abs=1e-12)
        assert row[f"{name}_high"] == pytest.approx(component.deviation.high)
    once = data.trials[data.trials["extra.repeat"] == 0]
    single = components_table(replace(data, trials=once)).numbers
    assert "rest" in single and "retraining" not in single


def test_an_unfinished_table_names_the_cell(data: StudyData) -> None:
    gone = data.trials[~data.trials["trial"].isin([8, 9])]
    with pytest.raises(InputError, match="hf: crossed needs a value in every cell; draw 1, seed 1 lacks one"):
        components_table(replace(data, trials=gone))
    other = gone.assign(recipe="adam")
    both = replace(data, trials=pd.concat([data.trials, other]))
    table = components_table(both)
    assert set(table.numbers["recipe"]) == {"hf"} and "Left out: adam: crossed needs" in table.note


def test_a_study_of_another_design_is_refused(tmp_path: Path) -> None:
    study = simulate_study(tmp_path, "s", trials=2, points=3, reruns=0, recipes=("hf",))
    data = load_study(study.folder)
    assert "components" not in Comparison(data).tables
    with pytest.raises(InputError, match="has the design fair with one seed for all draws: variance"):
        components_table(data)
