"""Plug-ins: files of the user that register recipes, parts, tasks and metrics by decorators.

    ahf search --plugin mine.py --recipe my_recipe -o task.model=my_model

A plug-in is Python code that runs with the user's rights: only `--plugin` loads it, never a configuration
or a study.  A study keeps a copy of its plug-ins.  Their SHA-256 belong to its identity, so that results of
two versions do not mix.
"""

from ahf_cli.plugin.decorators import data_set, hyperparameter, loss, metric, model, part, recipe
from ahf_cli.plugin.differential import equation
from ahf_cli.plugin.loading import LOADED, ORIGIN, Plugin, load, origins, run
from ahf_cli.recipes.hyperparameters import Hyperparameter, Range

__all__ = [
    "LOADED",
    "ORIGIN",
    "Hyperparameter",
    "Plugin",
    "Range",
    "data_set",
    "equation",
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
