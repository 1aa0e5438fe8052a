"""A study grows in recipes as it does in trials: each recipe has a search of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ahf_cli.config.load import Config, parse


def whole(config: Config, known: Collection[str], own: Callable[[], Config]) -> Config:
    """Return the configuration of a study that is resumed: that asked for, with the recipes it has besides.

    Args:
        config: what is asked for.
        known: the recipes that the study has.
        own: reads the study's configuration, where some of them are not asked for.

    Raises:
        InputError: the configuration is needed and cannot be read.
    """
    if set(known) <= set(config.searched):
        return config
    return including(config, own())


def including(config: Config, other: Config) -> Config:
    """Return a configuration with the searched recipes of another one besides, which come first.

    What it says of its own recipes stays as it is; where the other's definitions or ranges would change that,
    it is returned unchanged.
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
    """Return the configuration with no fewer trials of a recipe than a study has planned before."""
    if trials <= config.search.trials:
        return config
    plain = config.plain()
    return parse({**plain, "search": {**plain["search"], "trials": trials}}, config.study)
