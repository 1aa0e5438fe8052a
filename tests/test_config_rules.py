"""Wrong configurations: each error is one line with the key, the rule and the value."""

from __future__ import annotations

import pytest

from ahf_cli.config.load import Config, Setting, load, parse, stored
from ahf_cli.config.schema import NAME
from ahf_cli.config.strict_yaml import parse_yaml
from ahf_cli.errors import InputError


def from_text(text: str) -> Config:
    return parse(parse_yaml(text, "F"), "F")


def errors(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        from_text(text)
    return caught.value.lines


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
        (
            "task: {a: {b: 1}}",
            "F: task.a: unknown key; known: data, split, model, loss, dtype, batch_size, subset",
        ),
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
            "F: search.design: must be one of paper, fair, crossed, got 'far'; did you mean 'fair'?",
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
        (
            "{recipes: {x: {base: adam, batch_growth: 400}}, task: {batch_size: 128}}",
            "F: recipes.x.batch_growth: must be ≤ 390, the mini-batches of an epoch, got 400",
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
def test_an_error_is_one_line_with_key_rule_and_value(text: str, line: str | None) -> None:
    found = errors(text)
    assert len(found) == 1 and "\n" not in found[0]
    assert line is None or found == [line]


def test_all_errors_are_named_at_once() -> None:
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


def test_a_training_set_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(InputError, match=r"task.batch_size: must be ≤ .* \(127\), got 128"):
        from_text("seed: 0").total_steps(127)


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
def test_a_wrong_override_is_one_line(override: str | Setting, line: str | None) -> None:
    with pytest.raises(InputError) as caught:
        load("smoke", overrides=["seed=1", override])
    assert (
        caught.value.lines == [line] if line else caught.value.lines[0].startswith("--study: study: must be")
    )


def test_a_study_keeps_its_own_recipe_where_a_built_in_one_has_taken_the_name() -> None:
    text = """
    recipes: {adam: {base: hf, max_iterations: 3}, shorter: {base: adam, max_iterations: 2}}
    search: {recipes: [adam, shorter]}
    """
    found = stored(text, "config.yaml", "config")
    assert [found.recipe(name).choices.max_iterations for name in ("adam", "shorter")] == [3, 2]
    assert found.recipe("shorter").lineage == ("adam", "hf")
