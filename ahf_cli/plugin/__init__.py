"""Recipes, parts, models, data, metrics and losses of the user's own, registered by decorators in a file.

    ahf search --plugin mine.py --recipe my_recipe -o task.model=my_model

A plug-in is Python code, run with the user's rights: only `--plugin` loads one, never a
configuration or a study.  A study keeps a copy of the plug-ins that it used, and their SHA-256 belong to its
identity, so that results of two versions do not mix.
"""

from ahf_cli.plugin.decorators import data_set, hyperparameter, loss, metric, model, part, recipe
from ahf_cli.plugin.loading import LOADED, ORIGIN, Plugin, load, origins, run
from ahf_cli.recipes.hyperparameters import Hyperparameter, Range

__all__ = [
    "LOADED",
    "ORIGIN",
    "Hyperparameter",
    "Plugin",
    "Range",
    "data_set",
    "hyperparameter",
    "load",
    "loss",
    "metric",
    "model",
    "origins",
    "part",
    "recipe",
    "run",
]
