"""The core: Hessian-free optimizers, curvature products and linear solvers, with K trials side by side.

It knows nothing of files, searches or plots.  `HessianFree` and `AdaptiveHessianFree` serve your own training
loop.  To run K trials at once, `compose` a recipe's structure and step a `State` on a `ModelObjective`.
"""

from ahf_cli.optim.any_optimizer import AnyOptimizer
from ahf_cli.optim.cg import CGResult, MartensRules, Stop, conjugate_gradient
from ahf_cli.optim.linearization import Evaluation, Linearization
from ahf_cli.optim.losses import OutputLoss, SoftmaxCrossEntropy
from ahf_cli.optim.matrices import EmpiricalFisher, GaussNewton, Hessian, Solution
from ahf_cli.optim.objective import ModelObjective, Objective
from ahf_cli.optim.operators import Operator, QuadraticModel, gauss_newton, hessian, shifted
from ahf_cli.optim.optimizer import Optimizer, compose, compose_trial
from ahf_cli.optim.rows import Layout
from ahf_cli.optim.state import State, StepInfo
from ahf_cli.optim.torch_optim import AdaptiveHessianFree, HessianFree

__all__ = [
    "AdaptiveHessianFree",
    "AnyOptimizer",
    "CGResult",
    "EmpiricalFisher",
    "Evaluation",
    "GaussNewton",
    "Hessian",
    "HessianFree",
    "Layout",
    "Linearization",
    "MartensRules",
    "ModelObjective",
    "Objective",
    "Operator",
    "Optimizer",
    "OutputLoss",
    "QuadraticModel",
    "SoftmaxCrossEntropy",
    "Solution",
    "State",
    "StepInfo",
    "Stop",
    "compose",
    "compose_trial",
    "conjugate_gradient",
    "gauss_newton",
    "hessian",
    "shifted",
]
