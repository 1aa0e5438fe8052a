"""Configurations: what loads, how it resolves, and the exact words for what is wrong."""

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
    assert paper == parse({"study": "paper"}, "F"), "the defaults are the paper's protocol"
    assert paper.total_steps(50_000) == 1170
    assert published.total_steps(60_000) == 1404 and published.task.split == "full"
    assert quick.searched == ("hf", "hf_ggn", "adaptive_hf", "hf_published", "adaptive_hf_published")
    assert (smoke.study, smoke.total_steps(2000), smoke.searched) == ("smoke", 6, ("hf", "adaptive_hf"))


@pytest.mark.parametrize("name", ["paper", "published", "quick", "smoke"])
def test_yaml_round_trip(name: str) -> None:
    changed = load(
        name, overrides=["spaces.hf.lr={low: 1e-5, high: 1e-5}", "recipes.x.base=hf", "study=1.5e3x"]
    )
    assert from_text(changed.to_yaml()) == changed
    assert pickle.loads(pickle.dumps(changed)) == changed


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: -1", "F: seed: must be an integer in [0, 2^63), got -1"),
        ("seed: true", "F: seed: must be an integer in [0, 2^63), got true"),
        ("sed: 1", "F: sed: unknown key; did you mean 'seed'?"),
        ("epochs: 1", "F: epochs: unknown key; did you mean 'train.epochs'?"),
        (
            "study: a/b",
            "F: study: must be a string that matches ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$, got 'a/b'",
        ),
        ("task: 3", "F: task: must be a mapping, got 3"),
        (
            "task: {split: papr}",
            "F: task.split: must be one of paper, full, got 'papr'; did you mean 'paper'?",
        ),
        ("task: {subset: 100}", "F: task.subset: must be ≥ task.batch_size (128), got 100"),
        ("train: {epochs: 0}", "F: train.epochs: must be a finite number > 0, got 0"),
        ("train: {epochs: .nan}", "F: train.epochs: must be a finite number > 0, got .nan"),
        ("train: {steps: 1.5}", "F: train.steps: must be an integer in [1, 10^9], or null, got 1.5"),
        (
            f"train: {{steps: {10**30}}}",
            f"F: train.steps: must be an integer in [1, 10^9], or null, got {10**30}",
        ),
        ("train: {steps: 1e-3}", "F: train.steps: must be an integer in [1, 10^9], or null, got 0.001"),
        ("train: [1]", "F: train: must be a mapping, got ['1']"),
        ("train:", "F: train: must be a mapping, got null"),
        ("seed: 2024-01-01", "F: seed: must be an integer in [0, 2^63), got '2024-01-01'"),
        ("seed: 1:30", "F: seed: must be an integer in [0, 2^63), got '1:30'"),
        (
            "seed: 010",
            "F: seed: must be an integer in [0, 2^63), got '010': a number has no leading zeros",
        ),
        (
            "seed: !!int 010",
            "F: seed: must be an integer in [0, 2^63), got '010': a number has no leading zeros",
        ),
        ("recipes: {x: {base: hf, lr: 010}}", "F: recipes.x.lr: lr must be a number, got '010'"),
        ("spaces: {hf: {lr: {log: yes}}}", "F: spaces.hf.lr.log: must be true, false or null, got 'yes'"),
        ("seed: =", "F: seed: must be an integer in [0, 2^63), got '='"),
        ("study: ''", f"F: study: must be a string that matches {NAME}, got ''"),
        ("run: {workers: -1}", "F: run.workers: must be an integer in [1, 10^9], or null, got -1"),
        ("run: {device: tpu:0}", "F: run.device: must be one of auto, cpu, cuda, got 'tpu:0'"),
        ("task: {a: {b: 1}}", "F: task.a: unknown key; known: data, split, model, loss, batch_size, subset"),
        ("spaces: {hf: [lr]}", "F: spaces.hf: must be a mapping, got ['lr']"),
        ("spaces: {hf: {lr: 0.1}}", "F: spaces.hf.lr: must be a mapping, got 0.1"),
        ("spaces: {hf: {damping: {low: -1}}}", "F: spaces.hf.damping.low: must be in (0, inf), got -1"),
        (
            "spaces: {adaptive_hf: {beta2: {high: 1}}}",
            "F: spaces.adaptive_hf.beta2.high: must be in [0, 1), got 1",
        ),
        ("search: {trials: 0}", "F: search.trials: must be an integer in [1, 10^5], got 0"),
        ("search: {trials: many}", "F: search.trials: must be an integer in [1, 10^5], got 'many'"),
        (
            "search: {design: far}",
            "F: search.design: must be one of paper, fair, got 'far'; did you mean 'fair'?",
        ),
        ("search: {recipes: []}", "F: search.recipes: must be a non-empty list of recipe names, got []"),
        ("search: {recipes: [hf, hf]}", "F: search.recipes: names must not repeat, got 'hf' twice"),
        ("search: {recipes: [hff]}", "F: search.recipes: unknown recipe 'hff'; did you mean 'hf'?"),
        (
            "prerun: {recipe: adaptive}",
            "F: prerun.recipe: unknown recipe 'adaptive'; did you mean 'adaptive_hf'?",
        ),
        (
            "{task: {split: full}, search: {objective: validation_loss}}",
            "F: search.objective: must be train_loss where task.split is full, which has no validation set, "
            "got 'validation_loss'",
        ),
        ("compare: {target: 1}", "F: compare.target: must be a number in (0, 1), got 1"),
        (
            "storage: postgresql://me:secret@host/db",
            "F: storage: must be null, sqlite:/// and a path, or postgresql+psycopg://user@host/database "
            "without a password, which belongs into the environment variable AHF_STORAGE",
        ),
        (
            "recipes: {hf: {base: adaptive_hf}}",
            "F: recipes.hf: is the name of a built-in recipe: choose another",
        ),
        (
            "recipes: {x: {}}",
            "F: recipes.x.base: must be the name of the recipe that this one is derived from, got nothing",
        ),
        ("recipes: {x: {base: hff}}", "F: recipes.x.base: unknown recipe 'hff'; did you mean 'hf'?"),
        ("recipes: {x: {base: x}}", "F: recipes.x.base: must not lead back to the recipe itself, got x → x"),
        (
            "recipes: {x: {base: z}, y: {base: x}, z: {base: y}}",
            "F: recipes.y.base: must not lead back to the recipe itself, got x → z → y → x",
        ),
        (
            "recipes: {x: {base: hf, curvatur: ggn}}",
            "F: recipes.x.curvatur: unknown choice 'curvatur'; did you mean 'curvature'?",
        ),
        ("recipes: {x: {base: hf, lr: -1}}", "F: recipes.x.lr: lr must be in (0, inf), got -1.0"),
        ("spaces: {hff: {}}", "F: spaces.hff: unknown recipe; did you mean 'hf'?"),
        (
            "spaces: {hf: {sigma: {}}}",
            "F: spaces.hf.sigma: hf has no such hyperparameter; known: lr, damping",
        ),
        ("spaces: {hf: {lr: {lo: 1}}}", "F: spaces.hf.lr.lo: unknown key; did you mean 'low'?"),
        ("spaces: {hf: {lr: {low: 2}}}", "F: spaces.hf.lr: low must be ≤ high, got low 2 and high 1"),
        ("spaces: {hf: {lr: {low: 0}}}", "F: spaces.hf.lr.low: must be in (0, inf), got 0"),
        (
            "spaces: {hf: {lr: {high: .inf}}}",
            "F: spaces.hf.lr.high: must be a finite number, or null, got inf",
        ),
        ("spaces: {hf: {lr: {log: 1}}}", "F: spaces.hf.lr.log: must be true, false or null, got 1"),
        (
            "spaces: {adaptive_hf: {beta2: {low: 0}}}",
            "F: spaces.adaptive_hf.beta2: low must be > 0 where log is true, got 0",
        ),
        (
            "spaces: {adaptive_hf: {mu: {low: 1}}}",
            "F: spaces.adaptive_hf.mu: needs low and high, since mu has no range to inherit",
        ),
        (
            "{recipes: {x: {base: hf, lr: 0.1}}, spaces: {x: {lr: {low: 0.1}}}}",
            "F: spaces.x.lr: is fixed at 0.1 by recipes.x: remove one",
        ),
        ("seed: 1\nseed: 2", "F:2: key 'seed' appears twice, first in line 1"),
        (
            "1: 2",
            "F: 1: unknown key; known: study, seed, task, train, search, recipes, spaces, prerun, compare, "
            "run, storage",
        ),
        ("? [1]\n: 2", "F:1: not valid YAML: found unhashable key"),
        ("- 1", "F: the top level must be a mapping of keys to values, got ['1']"),
        ("", "F: the top level must be a mapping of keys to values, got null"),
        ("seed: 1\ntask: [", "F:2: not valid YAML: expected the node content, but found '<stream end>'"),
        ("study: !!python/name:os.system", None),
        ("&a [*a]", None),
    ],
)
def test_one_error(text: str, line: str | None) -> None:
    found = errors(text)
    assert len(found) == 1 and "\n" not in found[0]
    assert line is None or found == [line]


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


def test_all_errors_at_once() -> None:
    found = errors(
        """
        seed: x
        train: {epoch: 1, steps: 0}
        recipes: {e: 3, a: {base: e}, b: {base: hf, curvature: gn, damping: 0}}
        spaces: {hf: {lr: {low: -1, high: -2}}}
        search: {recipes: [e, a, b, c]}
        """
    )
    keys = [line.split(": ")[1] for line in found]
    assert keys == [
        *("seed", "train.steps", "train.epoch", "recipes.e"),
        *("spaces.hf.lr.low", "spaces.hf.lr.high"),
        *("recipes.b.curvature", "recipes.b.damping", "search.recipes"),
    ], "and nothing about a, whose base is broken"


def test_derived_recipes_in_any_order() -> None:
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
def test_total_steps(text: str, size: int, steps: int) -> None:
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


def test_training_set_smaller_than_a_batch() -> None:
    with pytest.raises(InputError, match=r"task.batch_size: must be ≤ .* \(127\), got 128"):
        from_text("seed: 0").total_steps(127)


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
def test_identity(override: str, same: bool) -> None:
    assert (load("paper", overrides=[override]).identity() == load("paper").identity()) is same


def test_identity_follows_what_a_recipe_is() -> None:
    recipes = "recipes.x={base: hf, curvature: %s}"
    ggn, hessian = (
        load(overrides=["search.recipes=[x]", recipes % c]).identity() for c in ("ggn", "hessian")
    )
    assert ggn != hessian


def test_overrides() -> None:
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


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed", "--override must be KEY=VALUE, got 'seed'"),
        ("a..b=1", "--override must be KEY=VALUE, got 'a..b=1'"),
        ("trian.epochs=1", "--override: trian: unknown key; did you mean 'train'?"),
        ("train.epoch=1", "--override: train.epoch: unknown key; did you mean 'epochs'?"),
        ("train.epochs.x=1", "--override: train.epochs: must be a finite number > 0, got {'x': '1'}"),
        ("train=1", "--override: train: must be a mapping, got 1"),
        ("seed=[", "--override seed:1: not valid YAML: expected the node content, but found '<stream end>'"),
        ("seed=", "--override: seed: must be an integer in [0, 2^63), got null"),
        ("=1", "--override must be KEY=VALUE, got '=1'"),
        ("a.b", "--override must be KEY=VALUE, got 'a.b'"),
        (
            "a.b=",
            "--override: a: unknown key; known: study, seed, task, train, search, recipes, spaces, "
            "prerun, compare, run, storage",
        ),
        ("seed=1=2", "--override: seed: must be an integer in [0, 2^63), got '1=2'"),
        ("seed={a: 1, a: 2}", "--override seed:1: key 'a' appears twice, first in line 1"),
        ("task.batch_size=0", "--override: task.batch_size: must be an integer in [1, 10^9], got 0"),
        (Setting("--study", ("study",), ".x"), None),
    ],
)
def test_bad_override(override: str | Setting, line: str | None) -> None:
    with pytest.raises(InputError) as caught:
        load("smoke", overrides=["seed=1", override])
    assert (
        caught.value.lines == [line] if line else caught.value.lines[0].startswith("--study: study: must be")
    )


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


def test_import_is_light() -> None:
    heavy = "{'torch', 'optuna', 'pandas', 'numpy', 'matplotlib', 'typer'}"
    code = (
        "import sys, ahf_cli.config.load as c; c.load('quick');"
        f"sys.exit(str({heavy} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_recipes_may_take_more_steps_than_others() -> None:
    """As many evaluations, on the same work; without effect on recipes that are not searched."""
    config = load("equal_cost")
    plan = plan_of(config)
    assert {name: (plan.of(name).steps, plan.of(name).eval_every) for name in ("adam", "hf_stable")} == {
        "adam": (2400, 120), "hf_stable": (200, 10),
    }  # fmt: skip
    assert config.identity()["train"]["longer"] == {"adam": 12, "sgd_momentum": 12, "adahessian": 6}
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
