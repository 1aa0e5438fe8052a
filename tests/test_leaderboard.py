"""`ahf leaderboard`: known shares, means and budgets; groups, refusals and files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ahf_cli.cli import main
from ahf_cli.report.canvas import THEMES, make
from ahf_cli.report.comparison import Comparison
from ahf_cli.report.leaderboard import Leaderboard, drawing, leaderboard
from ahf_cli.report.study_data import load_study
from ahf_cli.report.style import styles
from ahf_cli.study.find import find_study
from ahf_cli.study.pack import pack
from ahf_cli.study.store import Study
from ahf_cli.study.trial_folder import TrialFolders
from ahf_cli.training.records import CurveRow, TrialResult
from tests.studies import NAN, finals, measured, steps

DRAWS = {"hf": [0.9, 0.3, NAN, 0.9], "adam": [0.8, 0.8, 0.8, 0.8]}
"""final test accuracy of each draw; NaN diverges"""
RERUNS = {"hf": [0.88, 0.90, 0.92], "adam": [0.80, 0.82, 0.84]}
WORK, SECONDS = {"hf": 10, "adam": 6}, {"hf": 1.0, "adam": 0.4}
"""costs of a step; trials have 10 steps, and evaluations after 5 and 10"""
SMALL = {"adam": [0.8]}, {"adam": [0.99, 0.97]}
"""draws and re-runs"""
GIVEN = {"command": "made up", "device": "a CPU", "host": "here", "numerics": "pytorch", "threads": 1}


def finish(folder: Any, recipe: str, slot: int, accuracy: float, seed: int) -> None:
    """Write one trial; at its half it is 0.2 short of its end, and one that diverges stops there."""
    diverged = math.isnan(accuracy)
    course = [0.1, 0.1] if diverged else [0.1, accuracy - 0.2, accuracy]
    work, time = WORK[recipe], SECONDS[recipe]
    rows = [
        CurveRow(s, s / 10, measured(*(1 - a, a) * 3), s, s * (work - 1), s * time)
        for s, a in zip((0, 5, 10), course, strict=False)
    ]
    lost = 1 - accuracy
    result = TrialResult(
        recipe, slot, "diverged" if diverged else "ok", rows[-1].step, 10, 2.3 if diverged else lost,
        "validation_loss", {"lr": 0.1 + seed}, seed, finals(lost, lost, accuracy, lost, accuracy), 1.0,
        stalled=False, still_from=0,
    )  # fmt: skip
    folder.trial(recipe, slot).finish(result, rows, steps(1))


def write(
    results: Path,
    name: str,
    draws: Mapping[str, Sequence[float]] = DRAWS,
    reruns: Mapping[str, Sequence[float]] = RERUNS,
    sections: Mapping[str, Mapping[str, Any]] = {},  # noqa: B006
    **given: Any,
) -> Study:
    """Write a fair study of hf and adam; `sections` change its identity, `given` its manifest."""
    search = {"design": "fair", "sampler": "random", "objective": "validation_loss", "seeds": "draw"}
    identity: dict[str, Any] = {
        "seed": 0, "train": {"steps": 10, "eval_every": 5}, "search": search,
        "task": {"data": "fashion_mnist", "split": "paper", "model": "lenet", "batch_size": 128},
        "recipes": {k: {"structure": {"method": k}, "fixed": {}} for k in draws},
    }  # fmt: skip
    identity |= {key: {**identity.get(key, {}), **changes} for key, changes in sections.items()}
    plans = {key: {k: len(v) for k, v in of.items()} for key, of in (("plan", draws), ("rerun_plan", reruns))}
    with Study(results, name) as study:
        study.open_for_writing(f"study: {name}\n", identity, GIVEN | plans | given)
        for folder, ends, first in ((study, draws, 0), (TrialFolders(study.folder / "reruns"), reruns, 1000)):
            for recipe, values in ends.items():
                for slot, value in enumerate(values):
                    finish(folder, recipe, slot, value, first + slot)
    return study


def board(results: Path, *names: str, **asked: Any) -> Leaderboard:
    return leaderboard({name: find_study(results, name) for name in names}, **asked)


def wilson(met: int, n: int) -> tuple[float, float]:
    z, p = 1.959963984540054, met / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def test_shares_means_and_draws_by_hand(tmp_path: Path) -> None:
    write(tmp_path, "s")
    rows = board(tmp_path, "s").numbers
    assert list(rows["recipe"]) == ["adam", "hf"]  # at 4 s, the whole of adam, hf has no evaluation
    adam, hf = rows.to_dict("records")
    assert (hf["draws"], hf["trained"], hf["share_trained"], hf["seeds"]) == (4, 2, 0.5, 3)
    assert (hf["share_trained_low"], hf["share_trained_high"]) == pytest.approx(wilson(2, 4))
    assert (adam["draws"], adam["trained"], adam["seeds"]) == (4, 4, 3)
    half = 4.302652729911275 * 0.02 / math.sqrt(3)  # symmetric values have Student's interval
    assert (hf["end"], hf["end_low"], hf["end_high"]) == pytest.approx((0.9, 0.9 - half, 0.9 + half))
    assert hf["seconds_budget"] == 4 and math.isnan(hf["at_seconds"]) and adam["at_seconds"] == adam["end"]
    assert hf["work_budget"] == 60 and adam["at_work"] == pytest.approx(0.82)
    # at work 60 the evaluation of hf at 50 counts
    assert (hf["at_work"], hf["at_work_high"]) == pytest.approx((0.7, 0.7 + half))
    assert hf["target"] == pytest.approx(0.99 * 0.9) and (hf["met"], adam["met"]) == (2, 0)
    low, high = wilson(2, 4)
    assert (hf["attempts"], hf["attempts_low"], hf["attempts_high"]) == pytest.approx((2, 1 / high, 1 / low))
    assert (adam["attempts"], adam["attempts_high"]) == (math.inf, math.inf)
    assert adam["attempts_low"] == pytest.approx(1 / wilson(0, 4)[1])


def test_budgets_and_target_of_the_reader(tmp_path: Path) -> None:
    write(tmp_path, "s")
    found = board(tmp_path, "s", budgets={"seconds": 6.0}, target=0.8).numbers.set_index("recipe")
    assert dict(found["at_seconds"]) == pytest.approx({"adam": 0.82, "hf": 0.7})
    assert dict(found["met"]) == {"adam": 4, "hf": 2} and found["attempts"]["adam"] == 1
    last = board(tmp_path, "s", budgets={"seconds": 10.0, "work": 29.0}).numbers
    assert list(last["recipe"]) == ["hf", "adam"] and last["at_work"].isna().all()
    assert list(last["at_seconds"]) == pytest.approx([0.9, 0.82])


def test_two_clusters_have_means_without_ends(tmp_path: Path) -> None:
    write(tmp_path, "s", reruns={"hf": [0.9, 0.3, 0.9], "adam": [0.8, NAN, 0.8]})
    rows = board(tmp_path, "s").numbers.set_index("recipe")
    assert rows["end"]["adam"] == pytest.approx(1.7 / 3)  # a diverged run counts as chance
    assert rows[["end_low", "at_work_low", "at_seconds_low"]].isna().all(axis=None)


def test_numbers_are_those_of_compare(tmp_path: Path) -> None:
    """Where re-runs repeat the draws, equal cost over draws is that over re-runs."""
    ends = {"hf": [0.9, 0.7, 0.8], "adam": [0.6, 0.8, 0.7]}
    write(tmp_path, "s", ends, ends)
    rows = board(tmp_path, "s").numbers.set_index("recipe").sort_index()
    tables = {name: table.numbers for name, table in Comparison(load_study(tmp_path / "s")).tables.items()}
    cost = tables["equal_cost"]
    last = {k: own[own["at"] == own["at"].max()] for k, own in cost.groupby("cost")}
    sources = {
        "end": (tables["reruns"], "test_accuracy"), "at_work": (last["work"], "test_accuracy"),
        "share_trained": (tables["final_values"].drop_duplicates("recipe"), "share_trained"),
    }  # fmt: skip
    for name, (table, column) in sources.items():
        own = table.set_index("recipe").sort_index()
        for end in ("", "_low", "_high"):
            np.testing.assert_array_equal(rows[f"{name}{end}"], own[f"{column}{end}"])
    assert rows["at_work"].notna().all() and set(rows["work_budget"]) == set(last["work"]["at"])


def test_studies_that_differ_are_not_mixed(tmp_path: Path) -> None:
    first: dict[str, Any] = {"commit": "a" * 40, "versions": {"torch": "2"}}
    sections: list[dict[str, dict[str, Any]]] = [
        {"train": {"eval_every": 10}}, {"train": {"steps": 20}}, {"task": {"model": "mlp"}},
        {"task": {"batch_size": 64}}, {"task": {"loss": "squared_error"}}, {"task": {"split": "other"}},
        {"search": {"seeds": "one"}},
    ]  # fmt: skip
    given: list[dict[str, Any]] = [{"commit": "b" * 40}, {"versions": {"torch": "1"}}]
    given.append({"numerics": "compiled"})
    write(tmp_path, "own", SMALL[0], {"adam": [0.5, 0.6]}, **first)
    for at, changes in enumerate(sections):
        write(tmp_path, f"a{at}", *SMALL, changes, **first)
    for at, changed in enumerate(given):
        write(tmp_path, f"b{at}", *SMALL, **(first | changed))
    names = [path.name for path in sorted(tmp_path.iterdir(), reverse=True)]
    found = board(tmp_path, *names)
    assert [group.studies for group in found.groups] == [(name,) for name in names] and len(names) == 11
    (own,) = (group for group in found.groups if group.studies == ("own",))
    assert own == board(tmp_path, "own").groups[0]


def test_studies_that_agree_share_a_table(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write(tmp_path, "b", reruns={"hf": [0.5, 0.6, 0.7], "adam": [0.96, 0.95, 0.94]})
    (group,) = board(tmp_path, "a", "b").groups
    rows = [(row["study"], row["recipe"]) for row in group.rows]
    assert rows == [("b", "adam"), ("a", "adam"), ("a", "hf"), ("b", "hf")]
    assert list(group.text.columns[:2]) == ["recipe", "study"]
    assert group.rows[0]["target"] == pytest.approx(0.99 * 0.95)


def test_the_same_trials_have_one_row(tmp_path: Path) -> None:
    write(tmp_path, "a", *SMALL)
    write(tmp_path, "b", *SMALL)
    (group,) = board(tmp_path, "a", "b").groups
    assert [row["study"] for row in group.rows] == ["a"]
    assert "b/adam is the same as a/adam, trial by trial, and has no row." in group.notes


def test_seconds_of_two_machines_are_unknown_and_work_is_not(tmp_path: Path) -> None:
    write(tmp_path, "a", *SMALL)
    write(tmp_path, "b", SMALL[0], {"adam": [0.7, 0.6]}, host="there")
    (group,) = board(tmp_path, "a", "b", budgets={"seconds": 5.0}).groups
    assert all(math.isnan(row["at_seconds"]) for row in group.rows)
    assert [row["at_work"] for row in group.rows] == pytest.approx([0.98, 0.65])
    assert any("Seconds are unknown" in line and "host there" in line for line in group.notes)
    assert (group.text["at – s, 95 %"] == "unknown").all()


def test_a_study_that_does_not_fit_is_named_and_the_others_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "good", *SMALL)
    write(tmp_path, "paper", *SMALL, {"search": {"design": "paper"}})
    write(tmp_path, "by_train", *SMALL, {"search": {"objective": "train_loss"}})
    write(tmp_path, "no_reruns", SMALL[0], {})
    write(tmp_path, "short", *SMALL, plan={"adam": 9})
    (write(tmp_path, "broken", *SMALL).folder / "manifest.json").write_text("{")
    packed = pack(write(tmp_path / "elsewhere", "cut", *SMALL), tmp_path)
    (packed / "trials.parquet").write_bytes(b"PAR1")
    assert main(["leaderboard", "--results", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 6 and said.count("Test accuracy: ") == 1 and "; good" in said
    for words in (
        "paper: its design is paper, not fair",
        "by_train: it chose by train_loss, not by validation data",
        "no_reruns: it has no re-runs",
        "short: it is not finished; adam 1 of 9",
        "broken: it cannot be read: ",
        "cut: it cannot be read: ",
    ):
        assert any(line.startswith(f"left out: {words}") for line in lines), words


def test_a_run_of_ahf_train_is_left_out_in_silence_unless_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "good", *SMALL)
    write(tmp_path, "one", SMALL[0], {}, {"params": {"lr": 1.0}})
    assert main(["leaderboard", "--results", str(tmp_path)]) == 0
    assert "left out" not in capsys.readouterr().out
    assert main(["leaderboard", "good", "one", "--results", str(tmp_path)]) == 0
    assert "left out: one: it has no re-runs" in capsys.readouterr().out


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a fair study and one of another design."""
    results = tmp_path_factory.mktemp("results")
    write(results, "s", *SMALL)
    write(results, "p", *SMALL, {"search": {"design": "paper"}})
    return results


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing", "s"], ["no study 'nothing' in"]),
        (["p"], ["no finished study of the design fair", "left out: p: its design is paper"]),
        (["s", "--at-work", "-1"], ["--at-work must be a number > 0, got -1"]),
        (["s", "--at-seconds", "nan"], ["--at-seconds must be a number > 0, got nan"]),
        (["s", "--target", "inf"], ["--target must be a number > 0, got inf"]),
        (["s", "--at-seconds", "1", "--at-work", "1"], ["--at-work and --at-seconds must not both be given"]),
        (["s", "--target", "1.5"], ["--target must be in (0, 1), for test accuracy, got 1.5"]),
        (["s", "--csv", "/dev/null/x.csv"], ["cannot write to /dev/null: "]),
    ],
)
def test_bad_input_is_one_line_each(
    two: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: list[str]
) -> None:
    assert main(["leaderboard", *words, "--results", str(two)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(said) and all(part in line for part, line in zip(said, lines, strict=True))


def test_files_of_a_packed_study_from_elsewhere_and_no_other_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "results", "own")
    other = {"hf": [0.5, 0.6, 0.7], "adam": [0.96, 0.95, 0.94]}
    theirs = str(pack(write(tmp_path / "tmp", "own", reruns=other), tmp_path / "theirs"))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    words = ["leaderboard", "own", theirs, theirs, "--results", str(tmp_path / "results")]
    out, file = tmp_path / "out", tmp_path / "table.csv"
    assert main([*words, "--to", str(out), "--csv", str(file), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    made = {out / f"leaderboard.{end}" for end in ("csv", "png", "pdf", "html")}
    assert after.keys() - before.keys() == made | {file} and before.items() <= after.items()
    assert set(document["files"]) == {str(path) for path in made | {file}}
    assert [row["study"] for row in document["rows"]] == [theirs, "own", "own", theirs]
    assert document["rows"][1]["attempts"] is None and document["rows"][1]["met"] == 0
    assert after[file] == after[out / "leaderboard.csv"]
    table = pd.read_csv(file)
    assert list(table["source"].unique()) == [theirs, str(tmp_path / "results" / "own")]
    assert table["attempts"].tolist()[1] == math.inf
    page = after[out / "leaderboard.html"].decode()
    assert "0.820 [0.770, 0.870]" in page and theirs in page and "data:image/png;base64," in page
    assert 'src="http' not in page and len(page) < 500_000
    assert main(words) == 0
    assert "0.820 [0.770, 0.870]" in capsys.readouterr().out
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == after.keys()


def test_a_recipe_has_one_look_in_all_panels(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write(tmp_path, "b", {"adam": DRAWS["adam"]}, {"adam": RERUNS["adam"]}, {"train": {"steps": 20}})
    picture = make(drawing(board(tmp_path, "a", "b")), THEMES["screen"])
    look = styles(["adam", "hf"])["adam"]
    for axes in picture.figure.axes:
        height = [label.get_text() for label in axes.get_yticklabels()].index("adam")
        ys: list[Any] = [line.get_ydata() for line in axes.lines]
        drawn = zip(axes.lines, ys, strict=True)
        own = [line for line, y in drawn if len(y) and abs(y[0] - height) < 0.5]
        assert len(own) == 6 and {line.get_color() for line in own} == {look.color}
        assert {line.get_marker() for line in own} == {look.marker, "None"}
