"""Benchmarks: order of measurements, kept results and tables."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from ahf_cli.errors import InputError
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.training.interleave import Budget
from benchmarks import command, document, recipes
from benchmarks.record import merge
from benchmarks.tables import render
from benchmarks.timing import Bench, interleave

ROOT = Path(__file__).parents[1]


def test_tables_replace_tables_and_leave_prose() -> None:
    text = "# Title\n\nprose\n\n<!-- begin: cpu -->\nold\n<!-- end: cpu -->\n\nmore\n"
    new = document.replace(text, "cpu", "| new |")
    assert new == "# Title\n\nprose\n\n<!-- begin: cpu -->\n\n| new |\n\n<!-- end: cpu -->\n\nmore\n"
    assert document.replace(new, "cpu", "| new |") == new
    assert "## cuda\n\n<!-- begin: cuda -->" in document.replace(new, "cuda", "x")
    with pytest.raises(InputError, match="once each"):
        document.replace("<!-- begin: cpu -->", "cpu", "x")


def test_new_tables_join_old_ones_of_the_same_machine() -> None:
    old = {"machine": {"processor": "p"}, "sections": {"steps": 1, "growth": 1}}
    new = {"machine": {"processor": "p"}, "sections": {"growth": 2}}
    assert merge(old, new)["sections"] == {"steps": 1, "growth": 2}
    assert merge({**old, "machine": {"processor": "q"}}, new) == new
    assert merge(None, new) == new


def test_verdicts_and_what_is_not_installed_are_drawn() -> None:
    def made_up(value: float) -> dict[str, float]:
        return {"median": value, "low": value, "high": value, "repeats": 3}

    stamp: dict[str, object] = {
        "date": "2020-01-01",
        "commit": None,
        "dirty": None,
        "quick": False,
        "load_before": 0.1,
    }
    stamp["versions"] = {"torch": "2.9"}
    product = {"threads": 1, "curvature": "hessian", "curvature_batch": "same", "iterations": 15}
    timed = {"threads": 1, "quantity": "gradient", "ms": made_up(20.0), "ratio": made_up(1.0)}
    timed["plain_ratio"] = made_up(1.4)
    missing = {"threads": 1, "by": "some-package", "absent": True}
    tables = {"products": [timed, {**product, "plain_ratio": made_up(1.5), "ratio": made_up(1.1)}]}
    tables["others"] = [missing]
    machine = {"gpu": None, "processor": "made up", "cores": 2, "memory_gb": 8, "system": "Linux"}
    sections = {name: {**stamp, "rows": rows} for name, rows in tables.items()}
    text = render({"machine": machine, **stamp, "sections": sections})
    assert "≤ 0.45: missed by 1.05" in text
    assert "not installed: pip install some-package" in text


def test_a_section_that_fails_loses_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spread = {"median": 1.0, "low": 1.0, "high": 1.0, "repeats": 3}

    def spawn(device: str, threads: int, quick: bool, name: str) -> dict[str, object]:
        if name == "growth":
            raise command.SectionError("growth failed")
        rows = [{"threads": threads, "chunk": 100, "images": 10_000, "ms": spread}]
        return {"gpu": None, "packages": [], "rows": rows}

    monkeypatch.setattr(command, "_spawn", spawn)
    words = ["--only", "growth", "evaluation", "--threads", "1", "--out", str(tmp_path)]
    assert command.main(words) == 1
    assert "growth failed" in capsys.readouterr().err
    assert set(json.loads((tmp_path / "cpu.json").read_text())["sections"]) == {"evaluation"}


def test_cases_are_measured_in_turn_in_changing_order() -> None:
    calls: list[str] = []
    cases = {name: partial(calls.append, name) for name in "abcd"}
    samples = interleave(cases, Budget(rounds=20, seconds=60))
    assert {len(values) for values in samples.values()} == {20}
    rounds = ["".join(calls[n : n + 4]) for n in range(4, 84, 4)]  # the first one warms up
    assert all(sorted(r) == ["a", "b", "c", "d"] for r in rounds)
    before_a = {calls[n - 1] for n in range(5, 84) if calls[n] == "a"}
    assert {"b", "c", "d"} <= before_a
    assert len(interleave(cases, Budget(rounds=20, seconds=0))["a"]) == 3


def test_a_quick_run_gives_numbers_with_nothing_but_torch(tmp_path: Path) -> None:
    words = ["--quick", "--only", "products", "--threads", "1", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "cpu.json").read_text())
    rows = content["sections"]["products"]["rows"]
    assert {r["curvature"] for r in rows if "curvature" in r} == {"hessian", "ggn"}
    assert all(r["ms"]["median"] > 0 for r in rows if r.get("quantity") in ("gradient", "Hessian product"))
    assert not {"optuna", "typer", "pandas", "matplotlib"} & set(content["sections"]["products"]["packages"])
    assert "| Hessian" in done.stdout and "target" in done.stdout


def test_every_recipe_but_stateful_ones_and_sums_of_squares_is_timed() -> None:
    """A step by explicit layers and one by automatic differentiation agree for each."""
    names = recipes.recipes_timed()
    assert set(RECIPES) - set(names) == {"lbfgs", "lm", "lm_geodesic"}
    for name in names:
        made = recipes._steps(Bench(torch.device("cpu")), name)
        assert recipes._same(name, made[True], made[False]) <= recipes.ITERATIONS
