"""Recipes as declarations: structures, their written form, their sentences and docs/recipes.md."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pandas as pd
import pytest

from ahf_cli.optim import compose
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.classes import recipe_of
from ahf_cli.recipes.document import rule, sentence, sentences
from ahf_cli.recipes.structure import Structure, choices_of, structure_of
from ahf_cli.report import marks


def test_a_structure_is_read_from_what_is_written_of_it() -> None:
    for recipe in RECIPES.values():
        assert structure_of(recipe.structure.chosen) == recipe.structure
    for wrong in ({"method": "adamx"}, {"diagonal": "x"}, {"curvature": "none"}):
        with pytest.raises(ValueError, match="must be one of"):
            structure_of(wrong)
    with pytest.raises(ValueError, match="recipe 'adam' is not Hessian-free"):
        _ = RECIPES["adam"].choices
    with pytest.raises(ValueError, match="unknown choice 'curvature'"):
        RECIPES["adam"].derive("x", {"curvature": "ggn"})
    assert RECIPES["adam"].derive("x", {"beta1": 0.5}).fixed["beta1"] == 0.5


def test_the_page_of_recipes_is_what_the_declarations_say(capsys: pytest.CaptureFixture[str]) -> None:
    """`make docs` writes the page; each recipe names its hyperparameters and the place of its code."""
    from pathlib import Path

    from ahf_cli.cli import main

    root = Path(__file__).parents[1]
    recipe_of("x", "torch.optim.NAdam", {}, ())  # classes that were read are no part of it
    assert main(["config", "recipes", "--markdown"]) == 0
    assert capsys.readouterr().out == (root / "docs" / "recipes.md").read_text(), "run `make docs`"
    assert main(["config", "recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [recipe["name"] for recipe in listed] == list(RECIPES)
    for recipe in listed:
        assert recipe["rule"] and recipe["source"] and recipe["code"]
        assert [h["name"] for h in recipe["hyperparameters"]] == list(RECIPES[recipe["name"]].hyperparameters)
        for place in recipe["code"]:
            file, name = place.split(":")
            name = name.rpartition(".")[2]
            assert re.search(rf"(class|def) {name}\b|^{name} = ", (root / file).read_text(), re.M), place
        rates = [h["search"] for h in recipe["hyperparameters"] if h["name"] == "lr" and h["search"]]
        if "lr" in RECIPES[recipe["name"]].hyperparameters and not RECIPES[recipe["name"]].hessian_free:
            assert [log and high / low >= 1000 for low, high, log in rates] == [True], "three decades of α"


def test_choices_at_their_defaults_are_left_out_of_an_identity() -> None:
    """The other choices give the structure back."""
    assert "preconditioner" not in choices_of(RECIPES["hf"].structure)
    assert choices_of(RECIPES["hf_martens"].choices)["preconditioner"] == "martens"
    for recipe in RECIPES.values():
        assert structure_of(choices_of(recipe.structure)) == recipe.structure


def test_recipes_are_explained_by_their_structure_and_by_what_was_seen() -> None:
    derived = RECIPES["hf"].derive("x", {"reduction_ratio": "update", "curvature": "ggn"}).structure
    described = {"recipes": {"x": {"structure": {**vars(derived)}}, "y": {"structure": {"unknown": 1}}}}
    said = sentences(described)
    assert set(said) == {*RECIPES, "x"}
    assert "the damping grows without end" in said["hf_published"]
    assert "Eq. 3 is computed but never used" in said["adaptive_hf_published"]
    assert "direction's sign" in said["adaptive_hf"] and "α/μ times" in said["adaptive_hf_stable"]
    assert said["x"].startswith("hf with curvature ggn, reduction_ratio update: generalized Gauss-Newton")
    trials = pd.DataFrame(
        {"status": ["ok", "ok", "diverged", "failed"]}
        | {"outcome": ["did not train", "trained", "diverged", "failed"]}
    )
    assert marks.observed(trials) == "Of 3 trials, 1 trained, 1 did not train, 1 diverged."
    assert marks.observed(trials[1:2]) == "1 trained."
    assert marks.observed(trials[3:]) == "No trial is finished."


def test_curvature_batches_need_a_batch_of_their_own() -> None:
    assert compose(replace(RECIPES["hf"].choices, curvature_batches=4)).curvature_batches == 4
    with pytest.raises(ValueError, match="curvature_batches must be 1 where curvature_batch is same, got 2"):
        Structure(curvature_batch="same", curvature_batches=2)
    with pytest.raises(ValueError, match="curvature_batches must be an integer ≥ 1, got 0"):
        replace(RECIPES["hf"].choices, curvature_batches=0)


@pytest.mark.parametrize("name", ["hf", "adam"])
def test_batch_growth_is_a_number_of_every_recipe(name: str) -> None:
    grown = RECIPES[name].derive("grown", {"batch_growth": 4})
    assert structure_of(choices_of(grown.structure)) == grown.structure
    assert "batch_growth" not in choices_of(RECIPES[name].structure)
    assert rule(grown).endswith("batches grow to 4 mini-batches")
    assert "batches grow to 4 mini-batches" in sentence("grown", grown.structure)
    with pytest.raises(ValueError, match="batch_growth must be an integer ≥ 1, got 1.5"):
        RECIPES[name].derive("grown", {"batch_growth": 1.5})
