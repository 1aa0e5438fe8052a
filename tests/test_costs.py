"""Work and seconds from measured costs: the measurement, its file, and sums by hand."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ahf_cli.cli import main
from ahf_cli.optim import gauss_newton
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.report.comparison import Comparison
from ahf_cli.report.study_data import load_study, pool
from ahf_cli.report.work import MEASURED, cost_words, with_work
from ahf_cli.study.costs import Costs, read_costs
from ahf_cli.study.find import find_study
from ahf_cli.study.pack import pack, unpack
from ahf_cli.study.store import Study
from ahf_cli.training import timing
from ahf_cli.training.interleave import Budget, interleave
from ahf_cli.training.timing import Counts, CurvatureUse
from tests.studies import NAN, write_study
from tests.test_training import task

COUNTS = {"steps": 10, "gradients": 20, "products": 100, "losses": 10}
HF = {"seconds": 0.1, "overhead": 0.01, "product": 0.5, "setup": 0.25, "counts": COUNTS}
ADAM = {"seconds": 0.01, "overhead": 0.002, "product": 0.9, "setup": 0, "counts": COUNTS}
CONTENT: dict[str, Any] = {
    "format": 1, "gradient": 0.004, "loss": 0.2, "products": {"hessian": 0.9, "ggn": 0.5},
    "recipes": {"hf": HF, "adam": ADAM}, "rounds": 5, "task": {}, "measured": {"host": "made up"},
}  # fmt: skip
COSTS = Costs.model_validate(CONTENT)


def measured(results: Path, name: str = "s", **changes: Any) -> Study:
    """Return a study of two recipes with a `costs.json`."""
    study = write_study(results, name, {"hf": 2, "adam": 2}, {"hf": [0.5, 0.6], "adam": [0.7, 0.8]})
    (study.folder / "costs.json").write_text(json.dumps(CONTENT | changes))
    return study


def test_units_are_medians_of_ratios_in_a_round_and_the_rest_of_a_step_is_overhead() -> None:
    pace = np.array([1.0, 2.0, 4.0])  # the machine slows down
    use = CurvatureUse(gauss_newton, 2)
    samples = {
        "gradient": 0.01 * pace, "loss": 0.002 * pace, "product hessian": 0.009 * pace,
        "product ggn": 0.005 * pace,
        # a gradient, a product on two mini-batches, and 0.4 gradients besides
        "start ggn 2": (0.01 + 2 * 0.005 + 0.004) * pace,
        # two steps: 2 gradients, 12 products, 4 losses, 2 set-ups, and 0.03 s besides
        "steps hf": (0.02 + 0.06 + 0.008 + 0.008 + 0.03) * pace,
        # two gradients, the losses of two records, and 0.004 s besides
        "steps adam": (0.02 + 0.004 + 0.004) * pace,
        # ten steps: 11 gradients, the losses of ten records, and 0.05 s of statistics and inverses
        "steps kfac": (0.11 + 0.02 + 0.05) * pace,
        # two gradients, two losses, and 0.032 s for eight products that stand for factorizations
        "steps lm": (0.02 + 0.004 + 0.032) * pace,
        "steps lost": 0 * pace,
    }  # fmt: skip
    steps, plain = Counts(2, 2, 12, 4), Counts(2, 2, 0, 0)
    counts = {"hf": [steps] * 3, "adam": [plain] * 3, "lost": [Counts(0, 0, 0, 0)] * 3}
    counts |= {"kfac": [Counts(10, 11, 0, 0)] * 3, "lm": [Counts(2, 2, 8, 2)] * 3}
    uses = {"hf": use, "adam": None, "lost": None, "kfac": CurvatureUse(None, 0, renewal=10)}
    uses["lm"] = timing.setting_of(RECIPES["lm"])
    found = timing.timing({k: list(v) for k, v in samples.items()}, uses, {"ggn 2": 1}, counts)
    assert found.gradient == 0.02 and found.loss == pytest.approx(0.2) and found.rounds == 3
    assert found.products == pytest.approx({"hessian": 0.9, "ggn": 0.5}) and "lost" not in found.recipes
    hf, adam = found.recipes["hf"], found.recipes["adam"]
    assert (hf.product, hf.setup) == pytest.approx((0.5, 0.4)) and hf.counts == Counts(6, 6, 36, 12)
    # in units 1.5 gradients a step, at the pace of the median round
    assert hf.overhead == pytest.approx(1.5 * 0.02) and hf.seconds == pytest.approx(0.126)
    assert (adam.product, adam.setup, adam.overhead) == pytest.approx((0.9, 0, 0.004))
    kfac = found.recipes["kfac"]  # its statistics are work, half a gradient a step
    assert (kfac.setup, kfac.overhead) == pytest.approx((0.5, 0))
    lm = found.recipes["lm"]
    assert (lm.product, lm.setup, lm.overhead) == pytest.approx((0.4, 0, 0))


def test_a_recipe_that_renews_is_timed_over_whole_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "WARM_UP", 3)
    kfac = RECIPES["kfac"].derive("x", {"renewal": 4})
    run = timing.Run(task(), kfac, {}, 0, 1, time.process_time)
    run(), run()
    assert [c.steps for c in run.counts] == [4, 4] and [c.gradients for c in run.counts] == [5, 5]
    use = timing.setting_of(kfac)
    assert use is not None and (use.curvature, use.renewal) == (None, 4)
    measured = timing.setting_of(kfac.derive("y", {"damping_rule": "levenberg_marquardt"}))
    assert measured is not None and measured.curvature is gauss_newton


def test_cases_run_in_turn_a_first_round_warms_up_and_the_least_number_is_kept() -> None:
    ran: list[str] = []

    def case(name: str) -> Any:
        times = count(1.0)

        def run() -> float:
            ran.append(name)
            return next(times)

        return run

    spent = Budget(rounds=9, seconds=-1.0)
    assert interleave({"a": case("a"), "b": case("b")}, spent) == {"a": [2, 3, 4], "b": [2, 3, 4]}
    assert [sorted(ran[n : n + 2]) for n in range(0, 8, 2)] == [["a", "b"]] * 4 and len(ran) == 8
    assert interleave({"a": case("a")}, spent, should_stop=lambda: True) is None


def test_an_action_is_timed_for_one_of_its_trials() -> None:
    ticks: Iterator[float] = iter([1.0, 7.0])
    assert timing._timed(lambda: None, lambda: next(ticks), 3)() == 2


CURVES = pd.DataFrame(
    {
        "recipe": ["hf", "hf", "adam"], "trial": [0, 0, 0], "step": [0, 10, 30], "gradients": [0, 20, 30],
        "products": [0, 100, 0], "losses": [0.0, 12.0, NAN], "seconds": [0.0, 9.0, 9.0],
    }
)  # fmt: skip
TASK = {"batch_size": 128}
STRUCTURES = {
    "hf": {"structure": {"curvature_batch": "independent", "curvature_batches": 3}},
    "adam": {"structure": {"method": "adam"}},
}
MANIFEST = {"identity": {"task": TASK, "recipes": STRUCTURES}}


def test_work_and_seconds_are_sums_of_counts_times_units() -> None:
    found = with_work(CURVES, MANIFEST, COSTS)
    # 20 + 0.5 · 100 + 0.2 · 12 + 0.25 · 10; losses of an older record are left out
    assert found["work"].tolist() == pytest.approx([0, 74.9, 30])
    assert found["seconds"].tolist() == pytest.approx([0, 0.004 * 74.9 + 0.1, 0.004 * 30 + 0.06])
    assert found["seconds_run"].tolist() == [0, 9, 9]
    assert found["examples"].tolist() == [0, 10 * 4 * 128, 30 * 128]
    assert "older records" in cost_words(CURVES, [COSTS]).sentences
    assert cost_words(CURVES[:2], [COSTS]) == MEASURED
    assert "2 timings" in cost_words(CURVES[:2], [COSTS, COSTS]).sentences


def test_without_costs_a_product_counts_as_a_gradient() -> None:
    found = with_work(CURVES, {}, None)
    assert found["work"].tolist() == [0, 120, 30] and found["seconds"].tolist() == [0, 9, 9]
    assert found["examples"].isna().all() and "not measured" in cost_words(found, ()).sentences


def test_tables_take_measured_work_and_show_the_time_of_the_runs(tmp_path: Path) -> None:
    data = load_study(measured(tmp_path).folder)
    tables = Comparison(data).tables
    row = tables["cost"].numbers.set_index("recipe").loc["hf"]
    # 10 gradients, 10 products, unknown losses, 10 steps
    assert row["work"] == pytest.approx(10 + 5 + 2.5) and row["seconds"] == pytest.approx(0.004 * 17.5 + 0.1)
    assert row["seconds_run"] == 0.1 and (row["unit_product"], row["unit_loss"]) == (0.5, 0.2)
    for name in ("cost", "equal_cost"):
        assert "as measured" in tables[name].note and "older records" in tables[name].note
    work = tables["equal_cost"].numbers.query("cost == 'work'")
    assert work["at"].max() == pytest.approx(17.5)  # of adam 19: no set-up, and 0.9 a product


def test_studies_side_by_side_are_measured_only_if_all_are(tmp_path: Path) -> None:
    one, two = load_study(measured(tmp_path, "one").folder), load_study(measured(tmp_path, "two").folder)
    both = pool({"a": one, "b": two})
    assert both.curves["work"].max() == 19 and "2 timings" in both.cost_words.sentences
    (tmp_path / "two" / "costs.json").unlink()
    mixed = pool({"a": one, "b": load_study(tmp_path / "two")})
    assert mixed.curves["work"].max() == 20 and mixed.curves["seconds"].max() == 0.1
    assert "not measured" in mixed.cost_words.sentences


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"gradient": 0.0}, "gradient: must be greater than 0, got 0.0"),
        ({"gradient": None}, "gradient: must be a valid number, got None"),
        ({"loss": float("inf")}, "loss: must be a finite number, got inf"),
        ({"recipes": {"../hf": HF}}, "recipes.../hf.[key]: string should match"),
        ({"recipes": {"hf": HF | {"setup": -1}}}, "recipes.hf.setup: must be greater than or equal to 0"),
        ({"recipes": {"hf": HF}}, "costs.json lacks adam: `ahf timing s` measures again"),
        ({"more": 1}, "more: extra inputs are not permitted"),
        ({"format": 2}, "has format 2, and this version of ahf reads up to 1"),
    ],
)
def test_a_file_that_does_not_follow_the_schema_is_named_and_not_used(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    data = load_study(measured(tmp_path, **changes).folder)
    (problem,) = data.problems
    assert why in problem and data.curves["work"].max() == 20 and "not measured" in data.cost_words.sentences


def test_no_link_no_large_file_and_no_other_text_is_read(tmp_path: Path) -> None:
    file = measured(tmp_path).folder / "costs.json"
    for content, why in ((b"[" * 10**5, "must be JSON"), (b" " * (2**20 + 1), "at most 1048576 bytes")):
        file.write_bytes(content)
        assert why in load_study(file.parent).problems[0]
    file.unlink()
    os.symlink(tmp_path / "elsewhere", file)
    assert "links are not followed" in load_study(file.parent).problems[0]


def test_costs_of_another_task_are_refused(tmp_path: Path) -> None:
    study = measured(tmp_path, task={"model": "mlp"})
    manifest = study.manifest()
    manifest["identity"]["task"] = {"model": "lenet"}
    (study.folder / "manifest.json").write_text(json.dumps(manifest))
    assert "task.model: must be the study's 'lenet', got 'mlp'" in load_study(study.folder).problems[0]


def test_costs_travel_with_a_pack(tmp_path: Path) -> None:
    study = measured(tmp_path)
    packed = pack(study, tmp_path / "packs")
    back = unpack(find_study(tmp_path / "packs", "s"), tmp_path / "back")
    for folder in (packed, back):
        assert (folder / "costs.json").read_bytes() == (study.folder / "costs.json").read_bytes()
        assert read_costs(find_study(folder.parent, "s")) == COSTS
    pd.testing.assert_frame_equal(load_study(packed).curves, load_study(study.folder).curves)


def test_a_packed_study_is_not_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(measured(tmp_path), tmp_path / "packs")
    assert main(["timing", "s", "--results", str(tmp_path / "packs")]) == 2
    assert "is packed, and a packed study is only read" in capsys.readouterr().err


WORDS = ["--preset", "smoke", "-o", "train.steps=2", "-o", "train.eval_subset=128", "--trials", "1"]


@pytest.mark.usefixtures("one_process")
def test_a_search_measures_its_costs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a clock that counts its readings, every operation and every step takes 1 s."""
    readings = count()
    monkeypatch.setattr(timing, "clock_of", lambda device: lambda: float(next(readings)))
    words = [*WORDS, "--results", str(tmp_path), "--recipe", "hf", "--recipe", "adam"]
    assert main(["search", *words]) == 0
    assert capsys.readouterr().err.count("for costs.json") == 1
    study = Study(tmp_path, "smoke")
    costs = read_costs(study)
    assert costs is not None and costs.gradient == 1 == costs.loss == costs.products["ggn"]
    hf, adam = costs.recipes["hf"], costs.recipes["adam"]
    # an exact Hessian on a batch of its own brings a second gradient
    assert hf.counts.gradients == 2 * hf.counts.steps and hf.counts.products > 0 and adam.counts.products == 0
    assert (hf.seconds, adam.seconds, adam.setup, adam.overhead) == (1, 1, 0, 0)
    before = (study.folder / "costs.json").read_bytes()
    assert main(["search", *words]) == 0
    assert "for costs.json" not in capsys.readouterr().err
    assert (study.folder / "costs.json").read_bytes() == before
    assert main(["timing", "smoke", "--results", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gradient"] == 1
    manifest = study.manifest()
    manifest["sessions"][0]["numerics"] = "cuda"
    (study.folder / "manifest.json").write_text(json.dumps(manifest))
    assert main(["timing", "smoke", "--results", str(tmp_path)]) == 2
    (study.folder / "costs.json").unlink()
    assert main(["search", *words]) == 0  # the search is finished all the same
    said = capsys.readouterr().err
    assert "costs are not measured: " in said
    assert said.count("must be measured by the path of its trials, cuda") == 2
