"""Names that bash, zsh and fish offer at the key Tab; a fault, such as a damaged study, offers none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ahf_cli.study.store import Study

Complete = Callable[[typer.Context, str], list[str]]
_KEY = "_AHF_KEY"
"""Environment variable of a completion in bash: the text up to the sign `=` before the completed value."""


def join_words() -> None:
    """Join the words that bash splits at `=`; the last keeps its value alone, which bash replaces.

    So `-o task.data=fa` comes as one word from every shell.
    """
    last = os.environ.get("COMP_CWORD", "")
    if os.environ.get("_AHF_COMPLETE") != "complete_bash" or not last.isdecimal():
        return
    joined: list[str] = []
    for word in os.environ.get("COMP_WORDS", "").split("\n")[: int(last) + 1]:
        if joined and (word == "=" or joined[-1].endswith("=")):
            joined[-1] += word
        else:
            joined.append(word)
    if "=" in joined[-1] and not joined[-1].startswith("-"):  # Typer splits --option=value itself
        key, equals, value = joined[-1].rpartition("=")
        os.environ[_KEY], joined[-1] = key + equals, value
    os.environ |= {"COMP_WORDS": "\n".join(joined), "COMP_CWORD": str(len(joined) - 1)}


def _completer(names: Callable[[typer.Context, str], Iterable[str]]) -> Complete:
    """Return a completer of names, from a function of the context and the text before `=`."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        key, equals, _ = incomplete.rpartition("=")
        before = os.environ.get(_KEY, "")
        try:
            return [key + equals + name for name in names(context, before or key + equals)]
        except Exception:  # its traceback would stand in the line that is being typed
            return []

    return complete


def _results(context: typer.Context) -> Path:
    return Path(context.params.get("results") or "results")


def _study(context: typer.Context) -> Study:
    from ahf_cli.study.find import find_study

    # After an option without its value, arguments are not yet read.
    return find_study(_results(context), context.params.get("study") or context.args[0])


@_completer
def presets(context: typer.Context, before: str) -> Iterable[str]:
    """Return the names of the presets."""
    from ahf_cli.config.shipped import presets

    return presets()


@_completer
def examples(context: typer.Context, before: str) -> Iterable[str]:
    """Return the names of the examples."""
    from ahf_cli.config.shipped import examples

    return examples()


@_completer
def recipes(context: typer.Context, before: str) -> Iterable[str]:
    """Return the names of the recipes, with those of the preset or the configuration file."""
    preset, config = context.params.get("preset"), context.params.get("config")
    if preset or config:
        from ahf_cli.config.load import load

        return load(preset, config).recipe_names
    from ahf_cli.recipes.builtin import RECIPES

    return RECIPES


@_completer
def own_studies(context: typer.Context, before: str) -> Iterable[str]:
    """Return the names of the studies of the results folder, without its reference studies."""
    from ahf_cli.study.find import study_names

    return [name for name in study_names(_results(context)) if "/" not in name]


@_completer
def studies(context: typer.Context, before: str) -> Iterable[str]:
    """Return the names of the studies, those of `reference` as well."""
    from ahf_cli.study.find import study_names

    return dict.fromkeys(name.rpartition("/")[2] for name in study_names(_results(context)))


@_completer
def kinds_and_studies(context: typer.Context, before: str) -> Iterable[str]:
    """Return the words that `ahf ls` takes."""
    from ahf_cli.study.find import study_names

    kinds = ("studies", "recipes", "parts", "models", "tasks", "losses")
    return dict.fromkeys([*kinds, *(n.rpartition("/")[2] for n in study_names(_results(context)))])


@_completer
def trials(context: typer.Context, before: str) -> Iterable[str]:
    """Return RECIPE/SLOT of each trial of the study before it; of a packed study, of each planned one."""
    found = _study(context)
    found = found.prerun if context.params.get("prerun") else found
    if found.pack is None:
        slots = {recipe: found.reader.slots(recipe) for recipe in found.recipes()}
    else:  # its tables need pyarrow, whose import takes as long as all the rest
        slots = {recipe: list(range(count)) for recipe, count in found.planned().items()}
    return [f"{recipe}/{slot:03d}" for recipe, own in slots.items() for slot in own]


@_completer
def planned_recipes(context: typer.Context, before: str) -> Iterable[str]:
    """Return the recipes of the study before it."""
    return _study(context).planned()


@_completer
def data_files(context: typer.Context, before: str) -> Iterable[str]:
    """Return the names of the data sets that have files."""
    from ahf_cli.tasks.datasets import DATA_SETS

    return [name for name, data in DATA_SETS.items() if data.files]


@_completer
def settings(context: typer.Context, before: str) -> Iterable[str]:
    """Return data sets, models and losses as `task.data=NAME`, or the names alone after `task.data=`."""
    from ahf_cli.tasks.catalogue import LOSSES, MODELS
    from ahf_cli.tasks.datasets import DATA_SETS

    known: dict[str, Iterable[str]] = {"task.data=": DATA_SETS, "task.model=": MODELS, "task.loss=": LOSSES}
    if before:
        return known.get(before, ())
    return [key + name for key, names in known.items() for name in names]
