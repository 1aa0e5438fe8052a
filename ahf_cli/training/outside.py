"""Optimizer classes of other packages, tried out before a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ahf_cli.optim.foreign import try_out
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.recipes.structure import Whole


def fault(recipe: Recipe, values: Sequence[Mapping[str, float]], model: nn.Module) -> str:
    """Return the reason for which a class cannot train a model; "" without one.

    Args:
        recipe: of a class.
        values: hyperparameters by name, the others have their fixed values; the first ones take steps, and
            the constructor must accept the others.
        model: gives the number of axes of the parameters.
    """
    structure = recipe.structure
    assert isinstance(structure, Whole)
    shapes = [p.shape for p in model.parameters()]
    first, *others = (recipe.complete(own) for own in values)
    try:
        try_out(structure.name, dict(structure.arguments), first, shapes, others)
    except ValueError as error:
        return str(error)
    return ""
