"""From a recipe's structural choices to a composition of parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import overload

from ahf_cli.optim.adahessian import AdaHessian
from ahf_cli.optim.backtracking import kept_iterates
from ahf_cli.optim.cg import MartensRules, Rules
from ahf_cli.optim.curvature import CurvatureOperator, FisherOperator, GaussNewtonOperator, HessianOperator
from ahf_cli.optim.damping import (
    ConstantDamping,
    DampingRule,
    LevenbergMarquardt,
    RatioAtDirection,
    RatioAtUpdate,
    ReductionRatio,
)
from ahf_cli.optim.descent import LinearSolver, TruncatedNewton
from ahf_cli.optim.dual import DualNewton
from ahf_cli.optim.first_order import FirstOrderOptimizer
from ahf_cli.optim.objective import Evaluation
from ahf_cli.optim.optimizer import AnyOptimizer, Optimizer
from ahf_cli.optim.preconditioner import MartensPreconditioner
from ahf_cli.optim.published import (
    IndefiniteMartensRules,
    PublishedDamping,
    PublishedMoments,
    PublishedRatio,
    PublishedRules,
    TruncatedPublishedRules,
)
from ahf_cli.optim.step_size import (
    ConjugateSmoothnessStep,
    ConstantStep,
    HyperbolicStep,
    RepairedConjugateSmoothnessStep,
    StepSize,
)
from ahf_cli.optim.transform import Identity, ScaleByAdam, Transform
from ahf_cli.recipes.structure import PARTS, AnyStructure, DiagonalHessian, FirstOrder, Own, Structure

CURVATURE: Mapping[str, Callable[[Evaluation], CurvatureOperator]] = {
    "hessian": HessianOperator,
    "ggn": GaussNewtonOperator,
    "fisher": FisherOperator,
}
CG_RULES: Mapping[str, Callable[[], Rules]] = {
    "martens": MartensRules,
    "published": PublishedRules,
    "martens_indefinite": IndefiniteMartensRules,
    "published_truncated": TruncatedPublishedRules,
}
MOMENTS: Mapping[str, Callable[[], Transform]] = {
    "none": Identity,
    "adam": ScaleByAdam,
    "published": PublishedMoments,
}
STEP_SIZE: Mapping[str, Callable[[], StepSize]] = {
    "constant": ConstantStep,
    "hyperbolic": HyperbolicStep,
    "eq3": ConjugateSmoothnessStep,
    "eq3_repaired": RepairedConjugateSmoothnessStep,
}
REDUCTION_RATIO: Mapping[str, Callable[[], ReductionRatio]] = {
    "direction": RatioAtDirection,
    "update": RatioAtUpdate,
    "published": PublishedRatio,
}
DAMPING_RULE: Mapping[str, Callable[[], DampingRule]] = {
    "levenberg_marquardt": LevenbergMarquardt,
    "published": PublishedDamping,
    "constant": ConstantDamping,
}


@overload
def compose(structure: Structure) -> Optimizer: ...


@overload
def compose(structure: AnyStructure) -> AnyOptimizer: ...


def compose(structure: AnyStructure) -> AnyOptimizer:
    """Make the optimizer that the choices name: one part for each of its slots."""
    if isinstance(structure, FirstOrder):
        return FirstOrderOptimizer(structure.method)
    if isinstance(structure, DiagonalHessian):
        return AdaHessian()
    if isinstance(structure, Own):
        own: AnyOptimizer = PARTS[structure.optimizer].make()
        return own
    keep = kept_iterates(structure.max_iterations) if structure.backtracking == "martens" else ()
    optimizer = Optimizer(
        curvature=CURVATURE[structure.curvature],
        independent_batch=structure.curvature_batch == "independent",
        solver=_solver(structure, keep),
        transform=MOMENTS[structure.moments](),
        norm=structure.norm,
        step_size=STEP_SIZE[structure.step_size](),
        reduction_ratio=REDUCTION_RATIO[structure.reduction_ratio](),
        damping_rule=DAMPING_RULE[structure.damping_rule](),
        preconditioner=MartensPreconditioner() if structure.preconditioner == "martens" else None,
        backtracking=structure.backtracking == "martens",
        line_search=structure.line_search == "armijo",
        regularized=structure.regularization == "l2",
        clipping=structure.clipping,
        curvature_batches=structure.curvature_batches,
    )
    changed: Optimizer = PARTS[structure.parts].make(optimizer) if structure.parts else optimizer
    return changed


def _solver(structure: Structure, keep: Collection[int]) -> LinearSolver:
    rules = CG_RULES[structure.cg_rules]()
    if structure.solver == "dual":
        return DualNewton(rules, structure.max_iterations, structure.warm_start_decay)
    return TruncatedNewton(rules, structure.max_iterations, structure.warm_start_decay, keep)
