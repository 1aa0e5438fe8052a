"""The core: Hessian-free optimizers, curvature products and linear solvers, with K trials side by side.

It knows nothing of files, searches or plots.  For your own loop take `HessianFree` or `AdaptiveHessianFree`;
to run many trials at once, `compose` a recipe's structure and step a `State` of K rows on a `ModelObjective`.
"""

from ahf_cli.optim.cg import CGResult, MartensRules, Stop, conjugate_gradient
from ahf_cli.optim.curvature import (
    Damped,
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    QuadraticModel,
)
from ahf_cli.optim.losses import OutputLoss, SoftmaxCrossEntropy
from ahf_cli.optim.objective import Evaluation, ModelObjective, Objective
from ahf_cli.optim.optimizer import AnyOptimizer, Optimizer, State, StepInfo
from ahf_cli.optim.recipes import compose
from ahf_cli.optim.rows import Layout
from ahf_cli.optim.torch_api import AdaptiveHessianFree, HessianFree

__all__ = [
    "AdaptiveHessianFree",
    "AnyOptimizer",
    "CGResult",
    "Damped",
    "Evaluation",
    "FisherOperator",
    "GaussNewtonOperator",
    "HessianFree",
    "HessianOperator",
    "Layout",
    "MartensRules",
    "ModelObjective",
    "Objective",
    "Optimizer",
    "OutputLoss",
    "QuadraticModel",
    "SoftmaxCrossEntropy",
    "State",
    "StepInfo",
    "Stop",
    "compose",
    "conjugate_gradient",
]
