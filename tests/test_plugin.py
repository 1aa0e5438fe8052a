"""The user's own recipes, models, data sets and losses."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ahf_cli import plugin
from ahf_cli.cli import main
from ahf_cli.config.load import load as load_config
from ahf_cli.errors import InputError
from ahf_cli.optim import compose
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.document import sentences
from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS, Hyperparameter
from ahf_cli.recipes.parts import SLOTS
from ahf_cli.recipes.recipe import single_run
from ahf_cli.recipes.structure import choices_of
from ahf_cli.study.store import Study
from ahf_cli.tasks.catalogue import make_model
from ahf_cli.tasks.datasets import DATA_SETS
from ahf_cli.tasks.metrics import metrics_of
from tests.problems import quadratic

EXAMPLE = Path(__file__).parents[1] / "examples" / "spirals.py"
pytestmark = pytest.mark.usefixtures("registries")


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    (folder / name).write_text(f"from ahf_cli import plugin\n{text}")
    return folder / name


@pytest.mark.long
def test_the_example_is_searched_compared_and_shown(tmp_path: Path) -> None:
    """Each command runs in a process of its own, and the search has two workers."""

    def ahf(*words: str) -> str:
        command = [sys.executable, "-m", "ahf_cli", *words, "--results", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    own = ["--plugin", str(EXAMPLE)]
    few = ["-o", "train.steps=20", "-o", "train.eval_every=10", "--trials", "2", "-o", "search.reruns=1"]
    few += ["--recipe", "hf_heavy_ball"]
    ahf("search", *own, "--config", str(EXAMPLE.with_suffix(".yaml")), *few, "-o", "run.workers=2", "-q")
    folder = tmp_path / "spirals"
    results = [json.loads(f.read_text()) for f in sorted(folder.glob("trials/hf_heavy_ball/*/result.json"))]
    assert [r["status"] for r in results] == ["ok", "ok"]
    assert all(0.5 <= r["params"]["momentum"] <= 0.9 for r in results)
    assert all(r["train_loss"] < 1.0986 for r in results), "below the loss of guessing among three"
    assert (folder / "plugins" / "spirals.py").read_bytes() == EXAMPLE.read_bytes()
    digest = hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()
    identity = json.loads((folder / "manifest.json").read_text())["identity"]
    names = {"data set spirals", "model tanh_net", "loss smoothed_cross_entropy", "recipe hf_heavy_ball"}
    assert identity["plugins"] == dict.fromkeys(names, digest)
    assert "hf_heavy_ball" in ahf("ls")
    ahf("compare", *own, "--study", "spirals", "-q")
    page = (folder / "report" / "report.html").read_text()
    assert "hf_heavy_ball" in page and "parts changed by a plug-in" in page
    assert "momentum" in (folder / "trials.csv").read_text()
    assert "hf_heavy_ball" in ahf("show", "spirals", "hf_heavy_ball/1", *own)


def test_what_is_registered_is_known_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin.load([EXAMPLE])
    plugin.load([EXAMPLE])  # once is enough
    task = ["task.data=spirals", "task.model=mlp"]
    config = load_config("quick", overrides=["search.recipes=[hf_heavy_ball]", *task])
    assert list(config.space("hf_heavy_ball")) == ["lr", "damping", "momentum"]
    assert type(compose(config.recipe("hf_heavy_ball").structure).transform).__name__ == "HeavyBall"  # type: ignore[attr-defined]
    assert set(config.identity()["plugins"]) == {"data set spirals", "recipe hf_heavy_ball"}
    assert "plugins" not in load_config("quick").identity()
    assert main(["config", "recipes"]) == 0
    assert "u = α m, m ← γ m + δ" in capsys.readouterr().out
    for what, name in (("recipes", "hf_heavy_ball"), ("models", "tanh_net"), ("tasks", "spirals")):
        assert main(["ls", what]) == 0
        listed = capsys.readouterr().out
        assert f"\n{name} " in listed and listed.count("\n") > 2
    assert main(["ls", "losses", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == [
        "cross_entropy", "squared_error", "least_squares", "pixel_cross_entropy", "smoothed_cross_entropy",
    ]  # fmt: skip
    derived = load_config(
        "quick",
        overrides=["recipes={x: {base: hf_heavy_ball, momentum: 0.7}}", "search.recipes=[x]"],
    )
    assert derived.recipe("x").fixed == {"momentum": 0.7} and "recipe hf_heavy_ball" in derived.plugins


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("1 +", ":2: SyntaxError: invalid syntax"),
        ("import no_such_module", ":2: ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)", ":2: SystemExit: 3"),
        ("@plugin.model('lenet')\ndef f(): ...", ":2: ValueError: there is a model 'lenet' already: choose"),
        ("\n@plugin.model('a/b')\ndef f(): ...", ":3: ValueError: the name of a model must match"),
        ("@plugin.data_set\ndef f(): ...", "TypeError: data_set() missing 2 required keyword-only arguments"),
        ("@plugin.model\ndef f(): ...", "the decorator of a model needs its name: @plugin.model('name')"),
        ("@plugin.recipe('x', base='hf', fixed={'lr': -5})\ndef f(o): ...", "lr must be in (0, inf), got -5"),
        (
            "@plugin.recipe('x', fixed={'lr': 1}, search={'lr': plugin.Range(1, 2)})\ndef f(): ...",
            "recipe 'x': lr is both searched and fixed: remove one",
        ),
        ("@plugin.recipe('x', base='hff')\ndef f(o): ...", "unknown recipe 'hff'; did you mean 'hf'?"),
        ("@plugin.recipe('x', base='adam')\ndef f(o): ...", "recipe 'x' is not Hessian-free"),
        ("@plugin.recipe('x', base='hf', curv=1)\ndef f(o): ...", "unknown choice 'curv'"),
        ("@plugin.recipe('x', curvature='ggn')\ndef f(): ...", "curvature need a base"),
        ("@plugin.recipe('x', base='hf', fixed={'eta': 1})\ndef f(o): ...", "no hyperparameter 'eta'"),
        (
            "@plugin.recipe('x', base='hf', search={'lr': plugin.Range(0, 1)})\ndef f(o): ...",
            "recipe 'x': lr must be in (0, inf), got 0",
        ),
        (
            "@plugin.data_set('d', classes=1, shape=(2,), training=9)\ndef f(): ...",
            "data set 'd': classes must be an integer ≥ 2, got 1",
        ),
    ],
)
def test_a_plugin_that_fails_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, rule: str
) -> None:
    file = write(tmp_path, text)
    assert main(["ls", "--plugin", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ahf: --plugin {file}:") and rule in line
    assert not plugin.LOADED and "x" not in RECIPES and "x" not in SLOTS["parts"]


@pytest.mark.parametrize(
    ("text", "call", "rule"),
    [
        ("@plugin.model('m')\ndef f(shape, classes):\n    return 1 / 0", "model", "mine.py:4: model m: Zero"),
        (
            "@plugin.data_set('d', classes=2, shape=(1,), training=6)\ndef f():\n    return 1 / 0",
            "data", "mine.py:4: data set d: ZeroDivisionError: division by zero",
        ),
        ("@plugin.recipe('x', base='hf')\ndef f(o):\n    pass", "recipe", "recipe x: TypeError: the"),
        ("@plugin.loss('l', chance=lambda c: c / 0)\ndef f(z, y): ...", "chance", "mine.py:2: loss l: Zero"),
    ],
)  # fmt: skip
def test_a_function_that_fails_says_where(tmp_path: Path, text: str, call: str, rule: str) -> None:
    plugin.load([write(tmp_path, text)])
    calls: dict[str, Callable[[], object]] = {
        "model": lambda: make_model("m", (1,), 2),
        "data": lambda: DATA_SETS["d"].read(tmp_path),
        "recipe": lambda: compose(RECIPES["x"].structure),
        "chance": lambda: metrics_of({"data": "mnist", "loss": "l"}),
    }
    with pytest.raises(InputError, match=re.escape(rule)):
        calls[call]()


def test_a_recipe_on_a_plugins_recipe_has_the_parts_of_both(tmp_path: Path) -> None:
    text = """
from dataclasses import replace
from ahf_cli.optim.damping import ConstantDamping

@plugin.recipe("both", base="hf_heavy_ball", max_iterations=5)
def both(optimizer):
    return replace(optimizer, damping_rule=ConstantDamping())
"""
    plugin.load([EXAMPLE, write(tmp_path, text)])
    recipe = RECIPES["both"]
    made = compose(recipe.choices)
    assert [type(part).__name__ for part in (made.transform, made.damping_rule)] == [
        "HeavyBall", "ConstantDamping",
    ]  # fmt: skip
    assert recipe.hyperparameters == ("lr", "damping", "momentum")
    assert single_run(recipe)["lr"] == pytest.approx((0.003 * 0.1) ** 0.5), (
        "its default, 1, is no value of its range"
    )


def test_processes_run_what_was_read_at_first(tmp_path: Path) -> None:
    text = "@plugin.recipe('mine', base='hf', source='first')\ndef mine(o):\n    return o\n"
    file = write(tmp_path, text)
    plugin.load([file])
    (read,) = plugin.LOADED.values()
    write(tmp_path, text.replace("first", "other"))  # of the same size, within the same second
    del RECIPES["mine"], SLOTS["parts"]["mine"]
    plugin.LOADED.clear()
    plugin.run(pickle.loads(pickle.dumps([read])))
    assert RECIPES["mine"].source == "first" and not list(tmp_path.glob("__pycache__"))


def test_what_is_no_plugin_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plugin.txt").write_text("")
    for name, rule in (("none.py", "cannot be read: No such file"), ("plugin.txt", "must be a Python file")):
        assert main(["config", "ls", "--plugin", str(tmp_path / name)]) == 2
        assert rule in capsys.readouterr().err
    with pytest.raises(InputError, match=r"plugin: unknown key"):
        load_config("quick", overrides=["plugin=mine.py"])


def test_an_optimizer_of_its_own_needs_no_base(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
from ahf_cli.optim import rows
from ahf_cli.optim.explicit import ExplicitOptimizer, Move

plugin.hyperparameter(plugin.Hyperparameter("clip", "c", "longest gradient", 1.0, 0, True))

class Clipped(ExplicitOptimizer):
    memory = ()

    def move(self, state, here):
        share = (state.hyperparameters["clip"] / rows.l2(here.gradient)).clamp(max=1)
        update = -rows.expand(state.hyperparameters["lr"] * share) * here.gradient
        return Move(state.parameters + update, update, {})

@plugin.recipe("clipped_sgd", search={"lr": plugin.Range(1e-3, 1, log=True)}, fixed={"clip": 0.5})
def clipped_sgd():
    "u = −α g min(1, c/‖g‖)."
    return Clipped()
""",
    )
    plugin.load([file])
    recipe = RECIPES["clipped_sgd"]
    assert recipe.hyperparameters == ("lr", "clip") and recipe.free == ("lr",)
    assert isinstance(HYPERPARAMETERS["clip"], Hyperparameter)
    document = load_config("quick", overrides=["search.recipes=[clipped_sgd]"]).identity()
    assert document["recipes"]["clipped_sgd"]["structure"] == {"optimizer": "clipped_sgd"}
    out = tmp_path / "results"
    words = ["train", "clipped_sgd", "--plugin", str(file), "--preset", "smoke", "-p", "lr=0.1"]
    small = ["-o", "task.subset=200", "-o", "task.batch_size=50", "-o", "train.steps=3"]
    assert main([*words, *small, "--results", str(out), "-q"]) == 0


def test_a_study_of_another_version_is_not_continued(tmp_path: Path) -> None:
    """A folder refuses a study whose plug-in file has another SHA-256."""
    text = "@plugin.recipe('mine', base='hf')\ndef mine(optimizer):\n    return optimizer\n"

    def identity(folder: str, code: str) -> dict[str, Any]:
        (tmp_path / folder).mkdir()
        plugin.load([write(tmp_path / folder, code)])
        found = load_config("quick", overrides=["search.recipes=[mine]"]).identity()
        del RECIPES["mine"], SLOTS["parts"]["mine"], plugin.ORIGIN["recipe", "mine"]
        return found

    one, same, other = identity("a", text), identity("b", text), identity("c", text + "# another\n")
    assert one == same != other
    with Study(tmp_path, "s") as study:
        study.open_for_writing("", one, {})
    with pytest.raises(InputError, match="exists with other settings") as caught:
        Study(tmp_path, "s").open_for_writing("", other, {})
    assert [line.partition(":")[0] for line in caught.value.lines[1:]] == ["plugins.recipe mine"]
    with pytest.raises(InputError, match=r"unknown recipe 'mine'; known: hf, .*, and a plug-in's with --"):
        load_config("quick", overrides=["search.recipes=[mine]"])
    with pytest.raises(InputError, match=r"got 'mine'; one of a plug-in needs --plugin FILE"):
        load_config("quick", overrides=["task.model=mine"])


@pytest.mark.parametrize("choices", ["{base: hf, curvature: fisher}", "{base: natural_gradient}"])
def test_recipes_that_need_more_of_a_loss_are_refused(choices: str) -> None:
    plugin.load([EXAMPLE])
    overrides = [f"recipes={{x: {choices}}}", "search.recipes=[x]", "task.loss=smoothed_cross_entropy"]
    with pytest.raises(InputError, match=r"task\.loss: must be the negative log-likelihood .* for recipe x"):
        load_config("quick", overrides=overrides)


PART = """
from ahf_cli.optim import rows

plugin.hyperparameter(plugin.Hyperparameter("decay", "d", "decay of the step size", 0.5, 0, True, 1))

@plugin.part("step_size", "geometric", formula="α_t = α dᵗ", sentence="a step size that falls by d",
             uses=("lr", "decay"))
def geometric(norm, values, step):
    "α_t = α dᵗ."
    return values["lr"] * values["decay"] ** step

@plugin.part("curvature", "empirical_fisher", formula="B = F̂")
def empirical_fisher(at):
    scores = at.outputs  # one call is enough to see that it is reached
    return lambda v: 0 * v
"""


def test_a_part_of_a_plugin_is_a_choice_as_a_built_in_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, PART)
    plugin.load([file])
    recipe = "{x: {base: hf, step_size: geometric, curvature: empirical_fisher}}"
    config = load_config("quick", overrides=[f"recipes={recipe}", "search.recipes=[x]"])
    assert config.recipe("x").hyperparameters == ("lr", "damping", "decay")
    assert set(config.identity()["plugins"]) == {
        "step_size geometric", "curvature empirical_fisher", "hyperparameter decay",
    }  # fmt: skip
    core = compose(config.recipe("x").choices)
    objective = quadratic(torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    values = {"lr": 0.8, "damping": 4.0, "decay": 0.5}
    state = core.init(torch.zeros(1, 2, dtype=torch.float64), values)
    for step in (1, 2):
        state, info = core.step(state, objective, objective)
        assert info.step_size.item() == pytest.approx(0.8 * 0.5**step)
    assert main(["ls", "tasks"]) == 0
    assert "10 classes; metrics: loss, accuracy" in capsys.readouterr().out
    assert main(["ls", "parts"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "step_size geometric α_t = α dᵗ; a step size that falls by d" in lines
    said = sentences({"recipes": {"x": {"structure": choices_of(config.recipe("x").structure)}}})["x"]
    assert said == "hf with curvature empirical_fisher, step_size geometric: " + (
        "the reduction ratio is taken at the full direction; a step size that falls by d."
    )


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (
            '"steps", "x"',
            "part 'x': slot must be one of curvature, reduction_ratio, ratio_rounding",
        ),
        ('"norm", "l2"', "there is a norm 'l2' already: choose another name"),
        ('"norm", "l/2"', "the name of a part must match"),
        ('"norm", "x", uses=("lrr",)', "part 'x': uses: no hyperparameter 'lrr'; did you mean"),
        ('"norm", "x", needs={"solver": "lu"}', "part 'x': needs: there is no 'lu' in slot 'solver'"),
    ],
)
def test_a_part_that_is_registered_wrongly_is_one_line(tmp_path: Path, call: str, rule: str) -> None:
    text = f"@plugin.part({call})\ndef f(layout, vectors):\n    return vectors\n"
    with pytest.raises(InputError, match=re.escape(rule)):
        plugin.load([write(tmp_path, text)])


def test_a_part_says_with_which_choices_it_works(tmp_path: Path) -> None:
    text = "@plugin.part('clipping', 'mine', needs={'curvature': 'ggn'})\ndef f(*all): ...\n"
    plugin.load([write(tmp_path, text)])
    with pytest.raises(ValueError, match="clipping: mine needs curvature ggn, got 'hessian'"):
        RECIPES["hf"].derive("x", {"clipping": "mine"})
    assert RECIPES["hf"].derive("x", {"clipping": "mine", "curvature": "ggn"}).choices.clipping == "mine"
