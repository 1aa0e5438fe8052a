"""Configurations: presets, YAML files and overrides, checked as a whole."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from ahf_cli.config.paths import key_path, merged, with_value
from ahf_cli.config.rules import Resolved, cross_problems, resolve_recipes
from ahf_cli.config.schema import (
    KeyPath,
    Problem,
    SearchSection,
    Settings,
    TaskSection,
    schema_problems,
    show,
    stored_names,
    without,
)
from ahf_cli.config.shipped import presets as presets
from ahf_cli.config.strict_yaml import dump_yaml, parse_value, parse_yaml, read_file
from ahf_cli.errors import InputError
from ahf_cli.plugin import origins
from ahf_cli.recipes.classes import add_classes, is_path, reading
from ahf_cli.recipes.hyperparameters import Range, nearest
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.recipes.structure import WHOLE, choices_of
from ahf_cli.tasks.metrics import Metrics, metrics_of


class Config(Settings):
    """A checked configuration; made by `load` or `parse`."""

    @cached_property
    def _resolved(self) -> dict[str, Resolved | None]:
        return resolve_recipes(self.recipes, self.spaces)[0]

    def _searching(self, **changes: object) -> Config:
        plain = self.plain()
        search = {**plain["search"], **changes}
        return parse(_with_contrasts_left({**plain, "search": search}), self.study)

    def _find(self, name: str) -> Resolved:
        found = self._resolved.get(name)
        if found is None:
            raise InputError(f"unknown recipe {name!r}{nearest(name, self.recipe_names, pluggable=True)}")
        return found

    @property
    def recipe_names(self) -> tuple[str, ...]:
        """Names of all known recipes, built-in and derived."""
        return tuple(self._resolved)

    @property
    def searched(self) -> tuple[str, ...]:
        """Names of the recipes to search, in the order of the configuration."""
        return self.search.recipes

    @property
    def metrics(self) -> Metrics:
        """The metrics of the configuration's task."""
        return metrics_of(self.task.model_dump())

    def recipe(self, name: str) -> Recipe:
        """Return a built-in or derived recipe; hyperparameters with a range in `spaces` are not fixed."""
        return self._find(name).recipe

    def space(self, recipe_name: str) -> dict[str, Range]:
        """Return the search ranges of a recipe's free hyperparameters, in the order of `HYPERPARAMETERS`.

        A free hyperparameter without any range is left out, and keeps its default.
        """
        return self._find(recipe_name).space

    def steps_per_epoch(self, train_size: int) -> int:
        """Return the number of whole batches in a training set of that size."""
        if train_size < self.task.batch_size:
            raise InputError(
                f"task.batch_size: must be ≤ the size of the training set ({train_size}),"
                f" got {self.task.batch_size}"
            )
        return train_size // self.task.batch_size

    def total_steps(self, train_size: int) -> int:
        """Return the steps of a trial: `train.steps`, else the steps of `train.epochs`, at least 1."""
        per_epoch = self.steps_per_epoch(train_size)
        return self.train.steps or max(1, round(self.train.epochs * per_epoch))

    def identity(self) -> dict[str, Any]:
        """Return everything that defines the results of a study, as plain data; different ones never mix."""
        resolved = {name: self._find(name) for name in self.searched}
        return {
            "seed": self.seed,
            "task": self.task.model_dump(
                exclude={k for k in ("loss", "dtype") if getattr(self.task, k) == getattr(TaskSection(), k)}
            ),
            "train": self._train_identity(),
            "search": {key: getattr(self.search, key) for key in ("design", "sampler", "objective")}
            | self.search.model_dump(include={"seeds", "repeats"}, exclude_defaults=True),
            "recipes": {
                name: {"structure": choices_of(r.recipe.structure), "fixed": dict(r.recipe.fixed)}
                for name, r in resolved.items()
            },
            "spaces": {
                name: {key: asdict(found) for key, found in r.space.items()} for name, r in resolved.items()
            },
            **({"plugins": self.plugins} if self.plugins else {}),
            **({"contrasts": [list(c) for c in self.compare.contrasts]} if self.compare.contrasts else {}),
        }

    @property
    def warnings(self) -> list[str]:
        """Lines on allowed choices that lose accuracy."""
        from ahf_cli.tasks.datasets import DATA_SETS

        data = DATA_SETS.get(self.task.data)
        if data is None or not data.equation or self.task.dtype == "float64":
            return []
        return [
            "task.dtype: float32 rounds at 6e-08 of a number; 300 steps of lm_geodesic on poisson2d_sin "
            "ended at an error of 1.7e-05, and at 9.2e-08 in float64"
        ]

    def _train_identity(self) -> dict[str, Any]:
        """Return the part of the section `train` that defines the results of the searched recipes."""
        longer = {k: n for k, n in self.train.longer.items() if k in self.searched and n > 1}
        own = self.train.model_dump(exclude={"longer", *(("epochs",) if self.train.steps else ())})
        return own | ({"longer": longer} if longer else {})

    @cached_property
    def plugins(self) -> dict[str, str]:
        """SHA-256 of the plug-ins behind the searched recipes and the task, by kind and name."""
        of_task = [("data set", self.task.data), ("model", self.task.model), ("loss", self.task.loss)]
        recipes = [self._find(name).recipe for name in self.searched]
        names = dict.fromkeys(name for r in recipes for name in (r.name, *r.lineage))
        used = dict.fromkeys(key for r in recipes for key in r.hyperparameters)
        chosen = (item for r in recipes for item in r.structure.chosen.items())
        parts = dict.fromkeys((slot, name) for slot, name in chosen if isinstance(name, str))
        return origins(
            [
                *of_task,
                *(("recipe", name) for name in names),
                *(("hyperparameter", key) for key in used),
                *((slot, str(name)) for slot, name in parts if slot not in WHOLE),
            ]
        )

    def plain(self) -> dict[str, Any]:
        """Return all keys with their values as plain data; `parse` makes an equal configuration of it."""
        data = self.model_dump(mode="json")
        spaces = self.model_dump(mode="json", include={"spaces"}, exclude_none=True)["spaces"]
        return {**data, "spaces": spaces}

    def to_yaml(self) -> str:
        """Return YAML of an equal configuration with all keys; comments give the resolved spaces."""
        lines = [dump_yaml(self.plain()).rstrip("\n"), "", "# The spaces of the searched recipes, resolved:"]
        for name in self.searched:
            ranges = [
                f"{key} [{found.low:g}, {found.high:g}]{' log' if found.log else ''}"
                for key, found in self.space(name).items()
            ]
            fixed = [f"{key} = {value:g}" for key, value in self.recipe(name).fixed.items()]
            lines.append(f"#   {name}: {', '.join(ranges + fixed)}")
        return "\n".join(lines) + "\n"

    def for_prerun(self) -> Config:
        """Return the configuration of the pre-run: a Bayesian search of its one recipe on training loss."""
        own = self.search if self.search.design == "paper" else SearchSection()
        return self._searching(
            recipes=[self.prerun.recipe], trials=self.prerun.trials, objective="train_loss", design="paper",
            sampler=own.sampler, seeds=own.seeds, repeats=1,
        )  # fmt: skip

    def searching(self, names: Sequence[str]) -> Config:
        """Return the configuration that searches these recipes instead."""
        return self._searching(recipes=list(names))

    def with_class(self, name: str) -> Config:
        """Return this configuration; if the name is an optimizer class's, with a recipe of this name."""
        if not is_path(name) or name in self.recipe_names:
            return self
        return parse({**self.plain(), "recipes": {**self.recipes, name: {"optimizer": name}}}, name)

    def with_ranges(self, ranges: Mapping[str, Any], source: str = "ranges") -> Config:
        """Return this configuration with other search ranges.

        `ranges` is {recipe: {hyperparameter: {low, high, log}}}, alone or under a key `spaces`; ranges that
        it does not name do not change.  `source` is the name of the file in error messages.
        """
        if set(ranges) == {"spaces"} and isinstance(ranges["spaces"], Mapping):
            ranges = ranges["spaces"]
        return parse({**self.plain(), "spaces": merged(self.plain()["spaces"], ranges)}, source)


@dataclass(frozen=True)
class Setting:
    """One value from outside the file: an override or a command-line option."""

    option: str
    """its name in error messages, such as `--study`"""
    path: KeyPath
    value: Any


def load(
    preset: str | None = None,
    file: pathlib.Path | None = None,
    overrides: Sequence[str | Setting] = (),
) -> Config:
    """Read a preset or a file, apply overrides `a.b=value`, and check all keys; default: the preset `paper`.

    Raises InputError with one line for each error.
    """
    if preset is not None and file is not None:
        raise InputError("--preset and --config exclude each other: give one")
    if file is not None:
        return from_text(read_file(file), str(file), file.stem, overrides)
    stem = "paper" if preset is None else preset
    known = presets()
    if stem not in known:
        raise InputError(f"--preset: unknown preset {show(stem)}{nearest(stem, known)}")
    return from_text(known[stem].read_bytes(), f"preset {stem}", stem, overrides)


def from_text(
    content: str | bytes, source: str, stem: str, overrides: Sequence[str | Setting] = ()
) -> Config:
    """Check the content of a configuration file; `stem` is the default name of the study.

    Raises InputError with one line for each error.
    """
    return _parsed(parse_yaml(content, source), source, stem, overrides)


def stored(
    content: str | bytes,
    source: str,
    stem: str,
    overrides: Sequence[str | Setting] = (),
    with_classes: bool = False,
) -> Config:
    """Check the configuration that a study has stored; arguments and errors as in `from_text`.

    A fair study without the key `search.seeds` is older than it, and has one training seed for all draws.
    Optimizer classes are left alone, unless `with_classes`: their defaults are then unknown.
    """
    with stored_names(), nullcontext() if with_classes else reading():
        return _parsed(with_seeds(parse_yaml(content, source)), source, stem, overrides)


def with_seeds(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a stored configuration with `search.seeds`, which older ones lack."""
    search = data.get("search")
    old = isinstance(search, Mapping) and search.get("design") == "fair"
    return {**data, "search": {"seeds": "one", **search}} if old and search else dict(data)


def _parsed(data: Mapping[str, Any], source: str, stem: str, overrides: Sequence[str | Setting]) -> Config:
    settings = _read_overrides(overrides)
    for setting in settings:
        data = with_value(data, setting.path, setting.value)
    if _sets(settings, "search", "recipes") and not _sets(settings, "compare", "contrasts"):
        data = _with_contrasts_left(data)
    if data.get("study") is None:
        data = {**data, "study": stem}
        of_file = f"{source}: the file's name names the study, unless --study NAME or the key study does"
        settings = [Setting(of_file, ("study",), stem), *settings]
    return parse(data, source, settings)


def parse(data: Mapping[str, Any], source: str, settings: Sequence[Setting] = ()) -> Config:
    """Check nested plain data; `settings` are the values in it from outside of `source`.

    Raises InputError with one line for each error.
    """
    problems: list[Problem] = []
    data = add_classes(data)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        problems = schema_problems(error)
        # Without the wrong values the remaining rules can be checked as well.
        config = Config.model_validate(without(data, (path[:3] for path, _ in problems)))
    problems += cross_problems(config, {path for path, _ in problems})
    if problems:
        raise InputError(_line(path, message, source, settings) for path, message in problems)
    return config


def _line(path: KeyPath, message: str, source: str, settings: Sequence[Setting]) -> str:
    """Return one error as a line: source of the value, key, and broken rule."""
    for setting in reversed(settings):
        common = min(len(path), len(setting.path))
        if path[:common] == setting.path[:common]:
            source = setting.option
            break
    return f"{source}: {'.'.join(path)}: {message}"


def _read_overrides(overrides: Iterable[str | Setting]) -> list[Setting]:
    """Parse overrides `a.b=value`; raises InputError for all malformed ones at once."""
    settings: list[Setting] = []
    errors: list[str] = []
    for text in overrides:
        if isinstance(text, Setting):
            settings.append(text)
            continue
        key, equals, value = text.partition("=")
        try:
            if not equals or not all(part.strip() for part in key.split(".")):
                raise InputError(f"--override must be KEY=VALUE, got {text!r}")
            parsed = parse_value(value, f"--override {key.strip()}")
            settings.append(Setting("--override", key_path(key.strip(), parsed), parsed))
        except InputError as error:
            errors += error.lines
    if errors:
        raise InputError(errors)
    return settings


def _sets(settings: Sequence[Setting], section: str, key: str) -> bool:
    """Return whether some setting gives a key of a section, alone or within the whole section."""
    for setting in settings:
        whole = setting.path == (section,) and isinstance(setting.value, Mapping) and key in setting.value
        if whole or setting.path[:2] == (section, key):
            return True
    return False


def _with_contrasts_left(data: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the data of a configuration without the contrasts of recipes that it does not search."""
    compare, names = data.get("compare"), data["search"]["recipes"]
    contrasts = compare.get("contrasts") if isinstance(compare, Mapping) else None
    if not isinstance(contrasts, list) or not isinstance(names, list):
        return dict(data)
    left = [c for c in contrasts if not isinstance(c, list) or all(name in names for name in c)]
    return with_value(data, ("compare", "contrasts"), left)
