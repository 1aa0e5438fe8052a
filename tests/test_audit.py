"""`ahf audit`: Theorem 1 in recorded steps, against counts by hand, and a run with all hypotheses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ahf_cli.cli import main
from ahf_cli.report.audit import audit
from ahf_cli.study.columns import rows_frame
from ahf_cli.study.pack import pack
from ahf_cli.study.store import Study
from ahf_cli.training.records import StepRow
from tests.simulated_studies import simulate_study
from tests.studies import CURVE, RESULT, STEPS

PARAMS = {"damping": 1.0, "beta2": 0.5, "epsilon": 0.5, "sigma": 2.0, "smoothness": 10.0, "mu": 4.0}
CHOICES = {"step_size": "eq3_repaired", "moments": "adam", "norm": "l2"}
# ‖δ‖₂, ‖δ‖₁, ‖u‖, α, Eq. 3, L̂(∇h), L̂(−δ), h, h after
BY_HAND: Sequence[tuple[float, ...]] = [
    (3.0, 4.0, 0.5, 0.3, 0.4, 9.0, 11.0, 2.0, 1.9),
    (1.5, 2.5, 0.5, 0.2, 0.3, 12.0, 9.0, 1.9, 1.8),  # L̂(∇h) > L
    (1.0, 1.9, 0.0, 0.0, 0.1, math.nan, math.nan, 1.8, 1.8),  # α = 0 for the repaired Eq. 3 alone
    (0.8, 1.2, 1e-4, 0.1, 0.1, 200.0, 9.0, 1.7, 1.7),  # another h; L̂(∇h) is rounding
    (0.4, 0.6, 0.1, 0.0, -0.1, 1.0, 2.0, 1.7, 1.6),  # below ε
]


def steps(rows: Sequence[tuple[float, ...]] = BY_HAND) -> list[StepRow]:
    return [
        replace(
            STEPS[0], step=t, direction_l2=l2, direction_l1=l1, update_l2=u, step_size=alpha,
            eq3_step_size=eq3, smoothness_gradient=gradient, smoothness_direction=direction,
            loss=loss, loss_after=after,
        )
        for t, (l2, l1, u, alpha, eq3, gradient, direction, loss, after) in enumerate(rows, start=1)
    ]  # fmt: skip


def audited(
    rows: Sequence[tuple[float, ...]] = BY_HAND, choices: Mapping[str, str] = CHOICES, **params: float
) -> dict[str, Any]:
    result = replace(RESULT, recipe="theorem", params={**PARAMS, **params})
    return audit(result, rows_frame(steps(rows), StepRow), choices)


def test_shares_by_hand() -> None:
    found = audited()
    assert found == {
        "recipe": "theorem", "trial": 0, "steps": 5, "eq3_used": 1.0, "same_loss": 3 / 4,
        "sigma_chosen": 4 / 5, "sigma_l2": 4 / 5, "smooth_gradient": 4 / 5, "smooth_direction": 4 / 5,
        "beta1": 1.0, "xi": 1.0,
        "positive": 3 / 4, "all_hold": False, "first": 5.0,
        "bound": pytest.approx(18 * 10 * 4.5**2 * 2 / 0.5**4), "conclusion": "held",
    }  # fmt: skip
    printed = audited(choices={**CHOICES, "step_size": "eq3"})
    assert printed["positive"] == 1.0
    assert printed["bound"] == pytest.approx(4.5 * 10 * 4.5**2 * 2 / 0.5**4)
    assert audited(choices={**CHOICES, "norm": "l1"})["sigma_chosen"] == 3 / 5


def test_all_hold_where_each_one_does() -> None:
    good = [BY_HAND[1][:5] + (9.0, 9.0, 1.9, 1.8), BY_HAND[4][:7] + (1.8, 1.7)]
    assert audited(good)["all_hold"] and audited(good)["conclusion"] == "held"
    for choices in ({"moments": "none"}, {"norm": "l1"}, {"clipping": "radius"}, {"step_size": "constant"}):
        assert not audited(good, {**CHOICES, **choices})["all_hold"]
    for name, value in (("mu", 2.0), ("sigma", 1.4), ("smoothness", 8.0)):
        assert not audited(good, CHOICES, **{name: value})["all_hold"]
    assert math.isnan(audited(good, mu=5.0)["bound"])  # ξ > σ, but not 2σ


def test_the_conclusion_is_open_until_the_bound_and_then_fails() -> None:
    never = [(1.5, 2.5, 0.5, 0.2, 0.3, 1.0, 1.0, 2.0, 2.0)] * 5
    assert audited(never)["conclusion"] == "open" and math.isnan(audited(never)["first"])
    assert audited(never, smoothness=1e-4)["bound"] == pytest.approx(1.1664)
    assert audited(never, smoothness=1e-4)["conclusion"] == "failed"
    below = [(*row[:7], -1.0, -1.0) for row in never]  # no lower bound of h is known
    assert audited(below)["conclusion"] == ""


def test_values_that_are_not_finite_hold_nothing() -> None:
    nan = math.nan
    found = audited([(nan, nan, nan, nan, nan, nan, nan, 2.0, nan)] * 2)
    shares = ("same_loss", "sigma_l2", "smooth_gradient", "smooth_direction", "positive")
    assert [found[name] for name in shares] == [0.0] * 5


def write(results: Path, recipe: str = "theorem", params: dict[str, float] = PARAMS) -> Study:
    identity = {"recipes": {recipe: {"structure": CHOICES, "fixed": {}}}}
    with Study(results, "s") as study:
        study.open_for_writing("study: s\n", identity, {"command": "made up", "plan": {recipe: 2}})
        for slot in (0, 1):
            result = replace(RESULT, recipe=recipe, slot=slot, steps=5, planned_steps=5, params=params)
            study.trial(recipe, slot).finish(result, CURVE, steps(BY_HAND[: 5 - slot]))
    return study


def test_a_table_by_recipe_or_trial_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert main(["audit", "s", "--results", str(tmp_path)]) == 0
    head, row = capsys.readouterr().out.splitlines()[1:3]
    assert "σ ≥ G" not in head and "L ≥ L̂(−δ)" in head
    cells = ["theorem", "2", "100 %", "70.8 %", "77.5 %", "77.5 %", "77.5 %", "100 %", "100 %", "75.0 %"]
    cells += ["0 of 2", "1 of 2", "5", "1.17e+05", "1 held, 1 open"]
    assert row.split() == " ".join(cells).split()
    assert main(["audit", str(study.folder), "--trials"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:4]
    assert [r.split()[0] for r in rows] == ["theorem/000", "theorem/001"]
    assert rows[0].split()[-4:] == ["no", "5", "1.17e+05", "held"]
    assert rows[1].split()[-4:] == ["no", "–", "1.17e+05", "open"]
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_packed_and_in_folders_alike_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write(tmp_path / "own")
    pack(study, tmp_path / "packs")
    documents = []
    for results in ("own", "packs"):
        assert main(["audit", "s", "--results", str(tmp_path / results), "--json"]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0] == documents[1] and documents[0]["skipped"] == {}
    first, second = documents[0]["trials"]
    assert (first["first"], second["first"], second["conclusion"]) == (5, None, "open")
    (recipe,) = documents[0]["recipes"]
    assert recipe["positive"] == pytest.approx((3 / 4 + 3 / 4) / 2) and recipe["reached"] == 1


def test_a_simulated_study_against_its_own_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = simulate_study(tmp_path, "s", trials=3, points=4, reruns=1, recipes=("hf", "adaptive_hf"))
    assert main(["audit", "s", "--results", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["skipped"] == {"hf": "has no ε, σ, L"}
    for row in document["trials"]:
        frame = study.trial("adaptive_hf", row["trial"]).steps()
        result = study.trial("adaptive_hf", row["trial"]).result()
        assert result is not None and row["steps"] == len(frame)
        small = frame["step"][frame["direction_l2"] <= result.params["epsilon"]]
        assert row["first"] == (small.iloc[0] if len(small) else None)
        assert row["sigma_l2"] == (frame["direction_l2"] <= result.params["sigma"]).mean() == 1
        assert row["smooth_gradient"] == (frame["smoothness_gradient"] <= result.params["smoothness"]).mean()
        assert (row["beta1"], row["all_hold"], row["bound"]) == (1, False, None)
        assert row["same_loss"] == 0  # each simulated step goes from 2 to 1.9


def test_refusals_are_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "hf", "hf", {"lr": 1.0, "damping": 1.0})
    study = write(tmp_path / "own")
    pack(study, tmp_path / "packs", without_steps=["theorem"])
    with Study(tmp_path / "own", "empty") as empty:
        empty.open_for_writing("study: empty\n", {}, {"command": "made up", "plan": {"theorem": 1}})
    for words, code, error in (
        (["s", "--results", str(tmp_path / "hf")], 2, "nothing to audit in s: hf is skipped: has no ε, σ, L"),
        (["s", "--results", str(tmp_path / "packs")], 2, "theorem is skipped: its steps are not on disk"),
        (["empty", "--results", str(tmp_path / "own")], 3, "no trial of empty is finished yet"),
        (["t", "--results", str(tmp_path / "own")], 2, "no study 't' in"),
    ):
        assert main(["audit", *words]) == code
        captured = capsys.readouterr()
        assert error in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_a_committed_study_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    results = Path(__file__).parents[1] / "results"
    assert main(["audit", "quick", "--results", str(results), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["trials"]
    used = {row["recipe"]: row["eq3_used"] for row in rows}
    assert used == {"adaptive_hf": 1, "adaptive_hf_published": 0} and len(rows) == 8
    assert not any(row["xi"] or row["all_hold"] for row in rows)  # μ = 1e-8


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["theorem", "theorem_printed"])
def test_a_run_with_all_hypotheses_reaches_epsilon_within_the_bound(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--preset", "theorem", "--study", "s", "--results", str(tmp_path), "-q"]
    assert main(["train", recipe, *words]) == 0
    capsys.readouterr()
    assert main(["audit", "s", "--results", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["trials"]
    assert row["all_hold"] and row["conclusion"] == "held" and row["steps"] == 100
    assert 10 < row["first"] < 100 and row["bound"] > 1000
