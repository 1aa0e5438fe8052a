"""Growth of a study: the requested configuration with the recipes and trials that the study has besides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ahf_cli.config.load import Config, parse


def whole(config: Config, known: Collection[str], own: Callable[[], Config]) -> Config:
    """Return the configuration of a resumed study: the requested one, and the other recipes of the study.

    Each recipe has a separate search, so that a study grows in recipes as it does in trials.

    Args:
        config: the requested configuration.
        known: names of the recipes in the study.
        own: reads the configuration of the study; called only if `config` lacks one of its recipes.

    Raises:
        InputError: the configuration of the study is needed and cannot be read.
    """
    if set(known) <= set(config.searched):
        return config
    return including(config, own())


def including(config: Config, other: Config) -> Config:
    """Return a configuration that also searches the recipes of another one; those come first.

    Its own recipes do not change: if definitions or ranges of the other would change them, the configuration
    is returned as it is.
    """
    mine, theirs, own = config.plain(), other.plain(), config.searched

    def joined(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
        return {**{name: value for name, value in theirs.items() if name not in own}, **mine}

    both = parse(
        {
            **mine,
            "train": {**mine["train"], "longer": joined(mine["train"]["longer"], theirs["train"]["longer"])},
            "search": {**mine["search"], "recipes": list(dict.fromkeys([*other.searched, *own]))},
            "recipes": joined(mine["recipes"], theirs["recipes"]),
            "spaces": joined(mine["spaces"], theirs["spaces"]),
        },
        config.study,
    )
    return both if both.searching(own).identity() == config.identity() else config


def at_least(config: Config, trials: int) -> Config:
    """Return the configuration with at least as many trials of a recipe as a study has planned."""
    if trials <= config.search.trials:
        return config
    plain = config.plain()
    return parse({**plain, "search": {**plain["search"], "trials": trials}}, config.study)
