"""From a recipe's structural choices to a composition of parts."""

from __future__ import annotations

from typing import cast, overload

from ahf_cli.optim.optimizer import AnyOptimizer, Optimizer
from ahf_cli.recipes.structure import AnyStructure, Structure


@overload
def compose(structure: Structure) -> Optimizer: ...


@overload
def compose(structure: AnyStructure) -> AnyOptimizer: ...


def compose(structure: AnyStructure) -> AnyOptimizer:
    """Make the optimizer of a structure: one part for each of its slots."""
    if structure.hessian_free:
        return compose_newton(cast("Structure", structure))
    (slot,) = structure.chosen
    made: AnyOptimizer = structure.part(slot)() if slot == "optimizer" else structure.part(slot)
    return made


def compose_newton(structure: Structure) -> Optimizer:
    """Make the optimizer of structural choices of Hessian-free optimization."""
    part = structure.part
    iterate = part("backtracking")
    solver = structure.parts_used["solver"].find()(
        part("cg_rules"), structure.max_iterations, structure.warm_start_decay,
        iterate.kept(structure.max_iterations),
    )  # fmt: skip
    optimizer = Optimizer(
        curvature=part("curvature"),
        independent_batch=structure.curvature_batch == "independent",
        solver=solver,
        transform=part("moments"),
        norm=part("norm"),
        step_size=part("step_size"),
        reduction_ratio=part("reduction_ratio"),
        damping_rule=part("damping_rule"),
        preconditioner=part("preconditioner"),
        iterate=iterate,
        line_search=part("line_search"),
        regularization=part("regularization"),
        clipping=part("clipping"),
        curvature_batches=structure.curvature_batches,
    )
    changed: Optimizer = part("parts")(optimizer) if structure.parts else optimizer
    return changed
