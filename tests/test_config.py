"""Configurations: names, recipes, ranges, steps, overrides and identity."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import ahf_cli
from ahf_cli.config.load import Config, Setting, load, parse, presets
from ahf_cli.config.schema import NAME
from ahf_cli.config.strict_yaml import parse_yaml, read_yaml
from ahf_cli.errors import InputError
from ahf_cli.recipes.hyperparameters import Range
from ahf_cli.recipes.recipe import single_run
from ahf_cli.search.machine import plan_of

ROOT = Path(ahf_cli.__file__).parents[1]


def from_text(text: str) -> Config:
    return parse(parse_yaml(text, "F"), "F")


def errors(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        from_text(text)
    return caught.value.lines


def test_presets_are_as_described() -> None:
    files = (Path(__file__).parents[1] / "configs").glob("*.yaml")
    assert list(presets()) == sorted(file.stem for file in files)
    paper, published, quick, smoke = map(load, ("paper", "published", "quick", "smoke"))
    beside = {"hf": "motokawa_2020.csv/HF", "adaptive_hf": "motokawa_2020.csv/Adaptive HF"}
    assert paper == parse({"study": "paper", "compare": {"published": beside}}, "F"), "the paper's protocol"
    assert paper.total_steps(50_000) == 1170
    assert published.total_steps(60_000) == 1404 and published.task.split == "full"
    assert quick.searched == ("hf", "hf_ggn", "adaptive_hf", "hf_published", "adaptive_hf_published")
    assert (smoke.study, smoke.total_steps(2000), smoke.searched) == ("smoke", 6, ("hf", "adaptive_hf"))


@pytest.mark.parametrize("name", ["paper", "published", "quick", "smoke"])
def test_a_configuration_comes_back_from_its_yaml(name: str) -> None:
    changed = load(
        name, overrides=["spaces.hf.lr={low: 1e-5, high: 1e-5}", "recipes.x.base=hf", "study=1.5e3x"]
    )
    assert from_text(changed.to_yaml()) == changed
    assert pickle.loads(pickle.dumps(changed)) == changed


@pytest.mark.parametrize("name", ["007", "7", "1e1", "1.0", "2024-01-05", "2024-13-01", "0x1F", "on", "no"])
def test_a_name_is_taken_as_it_is_written(name: str) -> None:
    config = from_text(f"study: {name}\nrecipes: {{{name}: {{base: hf}}, x: {{base: {name}, lr: 1e-3}}}}")
    assert config.study == name and config.recipe("x").lineage == (name, "hf")
    assert from_text(config.to_yaml()) == config
    assert load("smoke", overrides=[f"study={name}"]).study == name


@pytest.mark.parametrize("text", ["10", "1e1", "10.0", "+10", "'10'"])
def test_an_integer_may_be_written_in_any_way_that_is_one(text: str) -> None:
    assert from_text(f"train: {{steps: {text}}}").train.steps == 10
    assert load("smoke", overrides=[f"train.steps={text}"]).train.steps == 10


def test_null_and_booleans_are_what_the_schema_wants() -> None:
    config = from_text("task: {subset: ~}\ntrain: {steps: }\nspaces: {hf: {lr: {log: False, low: null}}}")
    assert (config.task.subset, config.train.steps, config.space("hf")["lr"].log) == (None, None, False)


def test_derived_recipes_may_come_in_any_order() -> None:
    config = from_text(
        """
        recipes:
          c: {base: b, norm: l1}
          b: {base: adaptive_hf, curvature: ggn, epsilon: 1e-3}
        """
    )
    assert config.recipe_names[-2:] == ("c", "b")
    c = config.recipe("c")
    assert c.lineage == ("b", "adaptive_hf")
    assert (c.choices.curvature, c.choices.norm) == ("ggn", "l1")
    assert c.fixed == {"epsilon": 1e-3, "mu": 1e-8}
    assert list(config.space("c")) == ["damping", "beta2", "sigma", "smoothness"]
    with pytest.raises(InputError, match="unknown recipe 'd'"):
        config.recipe("d")


def test_spaces_are_partial_inherited_and_make_free() -> None:
    config = from_text(
        """
        recipes:
          slow: {base: hf, curvature: ggn}
          fixed: {base: slow, lr: 0.5}
          freed: {base: fixed}
          adaptive: {base: adaptive_hf, norm: l1}
        spaces:
          hf: {lr: {high: 1e-1}, damping: {low: 5, high: 5}}
          slow: {lr: {low: 0.01, log: false}}
          freed: {lr: {low: 0.2}}
          adaptive_hf: {mu: {low: 0.1, high: 1}}
          adaptive_hf_published: {lr: {}}
        """
    )
    assert config.space("hf") == {"lr": Range(1e-3, 0.1, log=True), "damping": Range(5, 5)}
    assert config.space("slow") == {"lr": Range(0.01, 0.1), "damping": Range(5, 5)}
    assert config.space("fixed") == {"damping": Range(5, 5)}
    assert config.recipe("fixed").fixed == {"lr": 0.5}
    assert config.space("freed")["lr"] == Range(0.2, 1, log=True)
    for name in ("adaptive_hf", "adaptive"):
        assert config.space(name)["mu"] == Range(0.1, 1)
        assert config.recipe(name).fixed == {} and config.recipe(name).free[-1] == "mu"
    published = config.recipe("adaptive_hf_published")
    assert config.space(published.name)["lr"] == Range(1e-3, 1, log=True) and published.fixed == {"mu": 1e-8}


@pytest.mark.parametrize(
    ("text", "size", "steps"),
    [
        ("train: {epochs: 3}", 50_000, 1170),
        ("train: {epochs: 0.0001}", 50_000, 1),
        ("train: {epochs: 3, steps: 7}", 50_000, 7),
        ("train: {epochs: 1.5}", 128, 2),
    ],
)
def test_the_number_of_steps_follows_from_epochs_unless_it_is_given(text: str, size: int, steps: int) -> None:
    assert from_text(text).total_steps(size) == steps


@pytest.mark.parametrize(
    ("name", "lr", "damping"),
    [
        ("hf", 0.01, 30),
        ("hf_ggn", 1, 10),
        ("hf_published", 1, 10),
        ("adaptive_hf_published", 0.001, 10),
        ("half", 0.5, 10),
        ("stiff", 0.01, 5),
    ],
)
def test_a_single_run_has_a_mild_step_where_larger_ones_run_away(
    name: str, lr: float, damping: float
) -> None:
    recipes = ["recipes.half={base: hf, lr: 0.5}", "recipes.stiff={base: hf, damping: 5}"]
    recipe = load("quick", overrides=recipes).recipe(name)
    assert single_run(recipe) == {**recipe.complete({}), "lr": lr, "damping": damping}


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("search.trials=3", True),
        ("run.workers=2", True),
        ("run.checkpoint_every=9", True),
        ("storage=sqlite:///x.db", True),
        ("storage=postgresql+psycopg://me@host:5432/db", True),
        ("compare.band=sd", True),
        ("spaces.adaptive_hf_published.lr.low=0.5", True),
        ("spaces.hf.lr.low=0.5", False),
        ("seed=1", False),
        ("search.sampler=random", False),
        ("search.recipes=[hf]", False),
        ("train.eval_every=10", False),
        ("train.steps=1170", False),
    ],
)
def test_the_identity_changes_with_the_experiment_alone(override: str, same: bool) -> None:
    assert (load("paper", overrides=[override]).identity() == load("paper").identity()) is same


def test_the_identity_holds_the_structure_of_a_derived_recipe() -> None:
    recipes = "recipes.x={base: hf, curvature: %s}"
    ggn, hessian = (
        load(overrides=["search.recipes=[x]", recipes % c]).identity() for c in ("ggn", "hessian")
    )
    assert ggn != hessian


def test_overrides_change_nested_keys_and_the_last_one_wins() -> None:
    config = load(
        overrides=[
            *(
                "train.epochs=1e-1",
                "task.subset=null",
                "search.recipes=[hf, my.hf]",
                "study=a",
            ),
            *("recipes.my.hf.base=hf", "recipes.my.hf.curvature=ggn", "spaces.my.hf.lr.low=0.5"),
            *("recipes.other={base: hf}", "spaces.my.hf.damping={low: 2}", "train.epochs=0.2"),
        ]
    )
    assert (config.train.epochs, config.study) == (0.2, "a")
    assert config.recipe("my.hf").choices.curvature == "ggn"
    assert config.space("my.hf") == {"lr": Range(0.5, 1, log=True), "damping": Range(2, 30)}


def test_study_is_named_after_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.v2.yaml"
    file.write_text("seed: 3\n", encoding="utf-8")
    assert load(file=file).study == "mine.v2"
    spaced = file.rename(tmp_path / "my study.yaml")
    rule = f"study: must be a string that matches {NAME}, got 'my study'"
    why = "the file's name names the study, unless --study NAME or the key study does"
    with pytest.raises(InputError) as caught:
        load(file=spaced)
    assert caught.value.lines == [f"{spaced}: {why}: {rule}"]
    assert load(file=spaced, overrides=[Setting("--study", ("study",), "mine")]).study == "mine"


def test_ranges_replace_spaces(tmp_path: Path) -> None:
    config = load("quick", overrides=["spaces.hf.damping.low=2"])
    ranges = {"hf": {"lr": {"low": 0.1, "high": 0.2, "log": False}}}
    for given in (ranges, {"spaces": ranges}):
        changed = config.with_ranges(given)
        assert changed.space("hf") == {"lr": Range(0.1, 0.2), "damping": Range(2, 30)}
        assert changed.space("hf_ggn") == changed.space("hf")
    assert config.space("hf")["lr"] == Range(1e-3, 1, log=True), "the configuration itself is unchanged"
    with pytest.raises(
        InputError, match=r"^r.yaml: spaces.hf.lrr: hf has no such hyperparameter; did you mean"
    ):
        config.with_ranges({"hf": {"lrr": {"low": 1}}}, "r.yaml")
    with pytest.raises(InputError, match="nothing.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "nothing.yaml")


def test_loading_a_configuration_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'optuna', 'pandas', 'numpy', 'matplotlib', 'typer'}"
    code = (
        "import sys, ahf_cli.config.load as c; c.load('quick');"
        f"sys.exit(str({heavy} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_recipes_may_take_more_steps_than_others() -> None:
    """Such recipes have as many evaluations; recipes that are not searched change no identity."""
    config = load("fair", None, ["train.longer={adam: 12, hf: 3}"])
    plan = plan_of(config)
    found = [(plan.of(name).steps, plan.of(name).eval_every) for name in ("adam", "hf", "hf_stable")]
    assert found == [(2400, 300), (600, 75), (200, 25)]
    assert config.identity()["train"]["longer"] == {"adam": 12, "hf": 3}
    quick = load("quick")
    assert load("quick", overrides=["train.longer={adam: 3, hf: 1}"]).identity() == quick.identity()
    assert plan_of(quick).of("hf") == plan_of(quick)
    for value, rule in (
        ("{adm: 2}", "train.longer.adm: unknown recipe; did you mean 'adam'?"),
        ("{adam: 0}", "train.longer.adam: must be an integer in [1, 10^9], got 0"),
    ):
        with pytest.raises(InputError) as caught:
            load("quick", overrides=[f"train.longer={value}"])
        assert caught.value.lines == [f"--override: {rule}"]


def test_a_search_of_some_recipes_keeps_the_contrasts_between_them() -> None:
    overrides = ["search.recipes=[hf, adam, nesterov]", "compare.contrasts=[[hf, adam], [adam, nesterov]]"]
    config = load("fair", None, overrides)
    assert config.searching(["hf", "adam"]).compare.contrasts == (("hf", "adam"),)
    assert config.searching(["hf"]).compare.contrasts == ()
    assert config.searching(config.searched).identity() == config.identity()


@pytest.mark.parametrize(
    ("overrides", "left"),
    [
        (["search.recipes=[hf_structural, hf_plain]"], (("hf_structural", "hf_plain"),)),
        (["search.recipes=[adam_clipped]"], ()),
        (["search={recipes: [adam_clipped]}"], ()),
        (["search.recipes=[adam, hf]", "compare.contrasts=[[hf, adam]]"], (("hf", "adam"),)),
    ],
)
def test_other_recipes_leave_the_contrasts_of_the_preset_between_them(
    overrides: list[str], left: tuple[tuple[str, str], ...]
) -> None:
    assert load("rnn", overrides=overrides).compare.contrasts == left


@pytest.mark.parametrize("key", ["compare.contrasts=", "compare={contrasts: "])
def test_contrasts_of_the_command_line_must_be_of_its_recipes(key: str) -> None:
    given = f"{key}[[hf, adam_clipped]]{'}' if '{' in key else ''}"
    with pytest.raises(InputError, match="compare.contrasts: must be pairs of two recipes"):
        load("rnn", overrides=["search.recipes=[hf]", given])
