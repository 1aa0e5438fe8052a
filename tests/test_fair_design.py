"""The fair design: independent trials, and re-runs of the best trial with new seeds."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import qmc

from ahf_cli.cli import main
from ahf_cli.config.load import load, stored
from ahf_cli.recipes.hyperparameters import Range
from ahf_cli.report.study_data import load_study
from ahf_cli.search.plan import NEW_SEEDS, Best, repeats, rerun_plan
from ahf_cli.search.sampler import sobol
from ahf_cli.search.search import Search
from ahf_cli.search.storage import open_storage, sqlite_url
from ahf_cli.study.store import Study
from ahf_cli.training.records import Start
from tests.searches import SPACES, FakePool, plan, result_of, run

TINY = [
    *["--preset", "smoke", "--design", "fair", "--recipe", "hf", "-o", "task.subset=400"],
    *["-o", "task.batch_size=64", "-o", "train.steps=2", "-q"],
]


def test_sobol_points_are_scipys_in_each_order_of_slots() -> None:
    space = {"a": Range(1e-3, 1.0, log=True), "b": Range(10.0, 30.0)}
    expected = qmc.Sobol(2, scramble=True, rng=np.random.default_rng([7, 0])).random(8)
    for slot in (5, 0, 3, 7):
        point = sobol(space, 7, 0, slot)
        unit = [math.log(point["a"] / 1e-3) / math.log(1e3), (point["b"] - 10) / 20]
        np.testing.assert_allclose(unit, expected[slot], atol=1e-12)
    assert sobol({}, 7, 0, 0) == {}


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_independent_samplers_do_not_look_at_results_nor_at_names(tmp_path: Path, sampler: str) -> None:
    """A slot's hyperparameters depend neither on results nor on the recipe's name."""
    spaces = {**SPACES, "hf_published": SPACES["hf"]}
    asked = {}
    for workers in (1, 3):
        own = replace(plan(8, workers, names=("hf", "hf_published")), sampler=sampler, spaces=spaces)
        run(study := Study(tmp_path, f"{sampler}{workers}"), own)
        for name in ("hf", "hf_published"):
            free = [{key: r.params[key] for key in SPACES["hf"]} for r in study.finished(name)]
            asked[workers, name] = free
    assert all(found == asked[1, "hf"] for found in asked.values())
    assert len({p["lr"] for p in asked[1, "hf"]}) == 8


def test_the_gaussian_process_sampler_asks_after_a_restart_what_it_had_asked(tmp_path: Path) -> None:
    own = replace(plan(14, names=("hf",)), sampler="gp")
    run(whole := Study(tmp_path, "whole"), own)
    run(cut := Study(tmp_path, "cut"), replace(own, trials=9))
    run(cut, own)
    params = [[r.params for r in study.finished("hf")] for study in (whole, cut)]
    assert params[0] == params[1] and len(params[0]) == 14


def test_the_best_trial_is_repeated_with_seeds_of_its_own(tmp_path: Path) -> None:
    study, url = Study(tmp_path, "s"), sqlite_url(tmp_path / "study.db")
    jobs = run(study, plan(6), url)
    storage = open_storage(url)
    search = Search(plan(6), study.trials, storage)
    best = search.best()
    for name, found in best.items():
        first = min(study.finished(name), key=lambda r: (r.value, r.slot))
        assert found.slot == first.slot and found.params.items() <= first.params.items()
    again = rerun_plan(plan(6, batch=4), best, 3, "rerun/")
    pool = FakePool(study.reruns, lambda job: None, 1)
    repeated = Search(again, study.reruns.trials, storage)
    assert repeated.run(lambda: pool)
    assert {start for job in jobs for start in job.starts.values()} == {Start(0)}
    assert sorted((job.recipe.name, slot) for job in pool.jobs for slot in job.params) == [
        (name, slot) for name in ("adaptive_hf", "hf") for slot in range(3)
    ]
    for job in pool.jobs:
        for slot, params in job.params.items():
            assert (job.starts[slot], params) == (Start(1 + slot), best[job.recipe.name].params)
            assert job.extra[slot] == {"search_slot": best[job.recipe.name].slot}
    assert not Search(again, study.reruns.trials, storage).unfinished
    storage.close()


def test_no_seed_of_a_rerun_is_that_of_the_search_or_too_large() -> None:
    for study in (0, 5, 2**63 - 1):
        for seeds in ("one", "draw"):
            own = replace(plan(20), seed=study, seeds=seeds)
            again = rerun_plan(own, {"hf": Best(0, {})}, 10, "")
            first = {own.start_of(k).seed for k in range(20)}
            new = {again.start_of(k).seed for k in range(10)}
            assert len(first) == (20 if seeds == "draw" else 1) and len(new) == 10
            assert not first & new and all(0 <= seed < 2**63 for seed in first | new)


def test_each_draw_has_a_seed_of_its_own_and_recipes_share_the_pairs(tmp_path: Path) -> None:
    own = replace(plan(6, batch=4), sampler="random", seeds="draw", seed=5)
    jobs = run(study := Study(tmp_path, "s"), own)
    assert all(job.starts == {slot: Start(5 + slot) for slot in job.params} for job in jobs)
    weights = replace(own, seeds="weights")
    assert [weights.start_of(k) for k in range(3)] == [Start(5 + k, order=5) for k in range(3)]
    run(grown := Study(tmp_path, "s"), replace(own, trials=9))
    assert [r.slot for r in grown.finished("hf")] == list(range(9)) and study.finished("adaptive_hf")


def test_crossed_draws_train_with_each_seed_and_grow_by_draws(tmp_path: Path) -> None:
    own = replace(plan(12, names=("hf",)), sampler="random", seeds=3, repeats=2)
    jobs = run(study := Study(tmp_path, "s"), own)
    cells: dict[tuple[float, ...], int] = {}
    for job in jobs:
        for slot, params in job.params.items():
            draw, start = job.extra[slot]["draw"], job.starts[slot]
            assert job.extra[slot]["repeat"] == start.repeat
            cells[draw, start.seed, start.repeat, params["lr"]] = slot
    draws = {draw: lr for draw, _, _, lr in cells}
    assert len(draws) == 2 and len(set(draws.values())) == 2
    assert set(cells) == {(d, s, r, lr) for d, lr in draws.items() for s in range(3) for r in range(2)}
    # A draw is the same one as in a search of other designs.
    run(fair := Study(tmp_path, "fair"), replace(plan(2, names=("hf",)), sampler="random"))
    assert [r.params["lr"] for r in fair.finished("hf")] == [draws[0], draws[1]]
    before = [r.params for r in study.finished("hf")]
    run(study, replace(own, trials=18))
    assert [r.params for r in study.finished("hf")][:12] == before and len(study.finished("hf")) == 18


def test_a_design_implies_its_keys_and_an_older_study_keeps_one_seed() -> None:
    fair, crossed = load("fair").search, load("fair", overrides=["search.design=crossed"]).search
    assert (fair.seeds, fair.repeats, fair.reruns) == ("draw", 1, 20)
    assert (crossed.seeds, crossed.repeats, crossed.sampler) == (5, 2, "random")
    assert crossed.trials == 20
    assert load("fair").identity()["search"]["seeds"] == "draw"
    old = load("fair", overrides=["search.seeds=one"])
    assert "seeds" not in old.identity()["search"]  # the identity of studies without this key
    text = "".join(line for line in old.to_yaml().splitlines(True) if "seeds:" not in line)
    assert stored(text, "config.yaml", "fair").identity() == old.identity()
    assert stored(load("fair").to_yaml(), "config.yaml", "fair").search.seeds == "draw"
    assert load("fair").for_prerun().search.seeds == "one"


def test_a_recipe_that_always_diverges_has_no_best(tmp_path: Path) -> None:
    study = Study(tmp_path, "s")
    own = plan(3, names=("hf",))
    run(study, own)
    for slot in range(3):
        trial = study.trial("hf", slot)
        result = trial.result()
        assert result is not None
        (trial.path / "result.json").unlink()
        trial.finish(replace(result, status="diverged", value=math.log(10)), [], [])
    search = Search(own, study.trials)
    assert search.best() == {}


def test_reruns_of_a_trial_that_is_no_longer_the_best_are_set_aside(tmp_path: Path) -> None:
    study = Study(tmp_path, "s")
    job = run(study, plan(1, names=("hf",)))[0]
    result = replace(result_of(job, 0), extra={"search_slot": 0.0})
    study.reruns.trial("hf", 0).finish(result, [], [])
    same, other = Best(0, job.params[0]), Best(4, job.params[0])
    assert study.reruns.trials.retire("hf", lambda r: repeats(r, same)) is None
    for n in (1, 2):
        aside = study.reruns.trials.retire("hf", lambda r: repeats(r, other))
        assert aside == tmp_path / "s" / "reruns" / f".hf-before-{n}"
        assert (aside / "000" / "result.json").exists() and study.reruns.recipes_on_disk() == []
        study.reruns.trial("hf", 0).finish(result, [], [])


@pytest.mark.long
def test_a_fair_search_repeats_its_best_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "--results", str(tmp_path), "--study", "f", "-o", "search.reruns=2"]
    assert main(["search", *words]) == 0
    assert "its best again with 2 new seeds: 2 did not train" in capsys.readouterr().out
    data = load_study(tmp_path / "f")
    assert data.design == "fair" and data.missing == []
    best = data.trials.sort_values("value").iloc[0]
    assert sorted(data.reruns["seed"]) == [NEW_SEEDS, NEW_SEEDS + 1]
    assert sorted(data.trials["seed"]) == [0, 1] and set(data.reruns["extra.search_slot"]) == {best["trial"]}
    assert (data.reruns["params.lr"] == best["params.lr"]).all()
    # Another seed: other weights, so another loss before the first step.
    first = data.rerun_curves[data.rerun_curves["step"] == 0]["train_loss"]
    started = data.curves[data.curves["step"] == 0]["train_loss"]
    assert first.nunique() == 2 and started.nunique() == 2 and not set(first) & set(started)

    assert main(["status", "--results", str(tmp_path), "--study", "f", "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)
    assert [(s["stage"], s["complete"], s["recipes"]["hf"]["ok"]) for s in stages] == [
        ("search", True, 2), ("reruns", True, 2),
    ]  # fmt: skip
    # A damaged re-run is found, and done again; the others are kept.
    (tmp_path / "f" / "reruns" / "hf" / "001" / "result.json").write_text("{")
    kept = (tmp_path / "f" / "reruns" / "hf" / "000" / "result.json").stat().st_mtime_ns
    assert main(["repair", "f", "--results", str(tmp_path), "--json", "-q"]) == 0
    (repaired,) = json.loads(capsys.readouterr().out)
    assert [repaired[key] for key in ("finished", "reruns", "indexed")] == [2, 1, 3]
    assert len(repaired["set_aside"]) == 1
    assert load_study(tmp_path / "f").missing == ["hf 1 of 2 re-runs"]
    assert main(["search", *words]) == 0
    assert load_study(tmp_path / "f").missing == []
    assert (tmp_path / "f" / "reruns" / "hf" / "000" / "result.json").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["-o", "task.split=full"],
            "search.design: must be paper where task.split is full, which has no validation set, got 'fair'",
        ),
        (
            ["-o", "search.sampler=tpe"],
            "--override: search.sampler: must be random or qmc where search.design is fair, got 'tpe'",
        ),
        (
            ["-o", "search.objective=train_loss"],
            "--override: search.objective: must be validation_loss where search.design is fair, "
            "got 'train_loss'",
        ),
        (
            ["-o", "search.seeds=3"],
            "--override: search.seeds: must be draw or one where search.design is fair, got 3",
        ),
        (
            ["-o", "search.seeds=two"],
            "--override: search.seeds: must be one, draw, weights, or an integer in [2, 10^5], got 'two'",
        ),
        (
            ["--design", "crossed", "--trials", "25"],
            "--trials: search.trials: must be draws × seeds × repeats, a multiple of 10 from 20 on, where "
            "search.design is crossed, got 25",
        ),
        (
            ["--design", "paper", "-o", "search.seeds=3"],
            "--override: search.seeds: must be one, draw or weights where search.design is paper, got 3",
        ),
        (["-o", "search.reruns=0"], "--override: search.reruns: must be an integer in [1, 10^5], got 0"),
    ],
)
def test_a_fair_design_refuses_settings_that_contradict_it(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", *TINY, *words, "--results", str(tmp_path / "r")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
