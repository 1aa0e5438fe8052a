"""Every structural choice of a recipe, declared once.

The update rules behind the names are in `ahf_cli.optim`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS

Curvature = Literal["hessian", "ggn", "fisher"]
CurvatureBatch = Literal["same", "independent"]
ReductionRatio = Literal["direction", "update", "published"]
StepSize = Literal["constant", "hyperbolic", "eq3", "eq3_repaired"]
Norm = Literal["l2", "l1", "sum_l2"]
Solver = Literal["cg", "dual"]
CGRules = Literal["martens", "published", "martens_indefinite", "published_truncated"]
DampingRule = Literal["levenberg_marquardt", "published", "constant"]
Moments = Literal["none", "adam", "published"]
Preconditioner = Literal["none", "martens"]
Backtracking = Literal["none", "martens"]
LineSearch = Literal["none", "armijo"]
Regularization = Literal["none", "l2"]
Clipping = Literal["none", "radius", "direction"]
Method = Literal["sgd_momentum", "nesterov", "adagrad", "rmsprop", "adam"]
Diagonal = Literal["adahessian"]


@dataclass(frozen=True)
class Parts:
    """Code of a plug-in that belongs to a recipe."""

    make: Callable[..., Any]
    """changes a composition, (Optimizer) → Optimizer, or makes another optimizer, () → AnyOptimizer"""
    hyperparameters: tuple[str, ...] = ()
    """names of those that it reads, beside what the structural choices use"""


PARTS: dict[str, Parts] = {}
"""The code of the plug-ins that are loaded, by the name of the recipe that was registered with it."""


@dataclass(frozen=True)
class Structure:
    """The structural choices of a recipe, equal for all trials that run side by side."""

    curvature: Curvature = "hessian"
    """the matrix B: exact Hessian, generalized Gauss-Newton, or Fisher of the model's distribution"""
    curvature_batch: CurvatureBatch = "independent"
    """batch of B: that of the gradient, or a second one of the same size"""
    reduction_ratio: ReductionRatio = "direction"
    """where the ratio ρ of actual to predicted reduction is taken"""
    step_size: StepSize = "constant"
    """rule for α"""
    norm: Norm = "l2"
    """norm of the direction in the step-size rule"""
    solver: Solver = "cg"
    """conjugate gradient over the parameters, or with the same iterates over the outputs (ggn only)"""
    cg_rules: CGRules = "martens"
    """stopping and negative curvature in CG"""
    damping_rule: DampingRule = "levenberg_marquardt"
    """rule for λ"""
    moments: Moments = "none"
    """moving averages on top of the direction"""
    max_iterations: int = 50
    """limit of CG iterations a step"""
    warm_start_decay: float = 0.95
    """CG starts at this multiple of the last direction"""
    preconditioner: Preconditioner = "none"
    """of CG: none, or the empirical Fisher's diagonal to the power ¾"""
    backtracking: Backtracking = "none"
    """whether the step may be an earlier iterate of CG, where h is lower"""
    line_search: LineSearch = "none"
    """whether α is shortened until h falls enough, and the step left out where it never does"""
    regularization: Regularization = "none"
    """whether ½ w ‖θ‖² belongs to h"""
    clipping: Clipping = "none"
    """whether an update longer than r, or than its direction, is shortened to that"""
    curvature_batches: int = 1
    """mini-batches in the curvature's batch, where that is independent"""
    parts: str = ""
    """name in `PARTS` of what changes the composition; no choice of a configuration's"""

    def __post_init__(self) -> None:
        for f in fields(self):
            allowed = get_args(get_type_hints(Structure)[f.name])
            value = getattr(self, f.name)
            if allowed and value not in allowed:
                raise ValueError(f"{f.name} must be one of {', '.join(allowed)}, got {value!r}")
        for key in ("max_iterations", "curvature_batches"):
            count = getattr(self, key)
            if isinstance(count, bool) or not (isinstance(count, int) and count >= 1):
                raise ValueError(f"{key} must be an integer ≥ 1, got {count!r}")
        if self.curvature_batches > 1 and self.curvature_batch != "independent":
            raise ValueError(
                f"curvature_batches must be 1 where curvature_batch is same, got {self.curvature_batches!r}"
            )
        decay = self.warm_start_decay
        if isinstance(decay, bool) or not (isinstance(decay, int | float) and 0 <= decay <= 1):
            raise ValueError(f"warm_start_decay must be in [0, 1], got {decay!r}")

        if self.solver == "dual" and self.curvature != "ggn":
            raise ValueError(f"solver: dual needs curvature ggn, got {self.curvature!r}")
        for key in ("preconditioner", "backtracking", "regularization"):
            if self.solver == "dual" and getattr(self, key) != "none":
                raise ValueError(f"{key} must be none where solver is dual, got {getattr(self, key)!r}")

    def hyperparameters(self) -> tuple[str, ...]:
        """Names of the hyperparameters that these choices use, in the order of `HYPERPARAMETERS`."""
        used = {"damping"}
        used |= {"lr"} if self.step_size in ("constant", "hyperbolic") else {"epsilon", "sigma", "smoothness"}
        used |= {"halving"} if self.step_size == "hyperbolic" else set()
        used |= {"radius"} if self.clipping == "radius" else set()
        if self.moments != "none":
            used |= {"beta2", "epsilon", "sigma", "mu"}
        used |= {"weight_decay"} if self.regularization == "l2" else set()
        if self.moments == "published":
            used |= {"smoothness"}  # the released code computes Eq. 3 with it, and only logs the result
        used |= set(PARTS[self.parts].hyperparameters) if self.parts in PARTS else set()
        return tuple(name for name in HYPERPARAMETERS if name in used)


CHOICES: dict[str, tuple[str, ...]] = {
    name: get_args(hint) for name, hint in get_type_hints(Structure).items() if name != "parts"
}
"""Structural choices of Hessian-free optimization and their values; () for the numeric ones."""

_METHODS: dict[str, tuple[str, ...]] = {
    "sgd_momentum": ("lr", "momentum"),
    "nesterov": ("lr", "momentum"),
    "adagrad": ("lr", "mu"),
    "rmsprop": ("lr", "beta2", "mu"),
    "adam": ("lr", "beta2", "mu", "beta1"),
    "adahessian": ("lr", "beta2", "mu", "beta1", "hessian_power"),
}
"""Hyperparameters of the methods that solve no linear system, in the order of `HYPERPARAMETERS`."""


@dataclass(frozen=True)
class FirstOrder:
    """The structure of a first-order recipe: which optimizer of `torch.optim` it is."""

    method: Method

    def hyperparameters(self) -> tuple[str, ...]:
        """Names of the hyperparameters that it uses, in the order of `HYPERPARAMETERS`."""
        return _METHODS[self.method]


@dataclass(frozen=True)
class DiagonalHessian:
    """The structure of a recipe that uses the Hessian's diagonal."""

    diagonal: Diagonal

    def hyperparameters(self) -> tuple[str, ...]:
        """Names of the hyperparameters that it uses, in the order of `HYPERPARAMETERS`."""
        return _METHODS[self.diagonal]


@dataclass(frozen=True)
class Own:
    """The structure of a plug-in's recipe that is made of no structural choices."""

    optimizer: str
    """name in `PARTS` of what makes it"""

    def hyperparameters(self) -> tuple[str, ...]:
        """Names of the hyperparameters that it uses, in the order of `HYPERPARAMETERS`."""
        own = PARTS[self.optimizer].hyperparameters if self.optimizer in PARTS else ()
        return tuple(name for name in HYPERPARAMETERS if name in own)


AnyStructure = Structure | FirstOrder | DiagonalHessian | Own
_LATER = (
    "preconditioner", "backtracking", "line_search", "regularization", "clipping", "curvature_batches",
    "parts",
)  # fmt: skip
"""Choices that studies of before did not know: as good as not there where they are at their defaults."""


def choices_of(structure: AnyStructure) -> dict[str, Any]:
    """Return a structure's choices by name, from which `structure_of` makes an equal one.

    Choices of `_LATER` at their defaults are left out, so that a study keeps its identity.
    """
    return {
        f.name: getattr(structure, f.name)
        for f in fields(structure)
        if f.name not in _LATER or getattr(structure, f.name) != f.default
    }


def structure_of(choices: Mapping[str, Any]) -> AnyStructure:
    """Return the structure with these choices by name; raises TypeError or ValueError for any other."""
    for kind in (FirstOrder, DiagonalHessian, Own):
        (key,) = (f.name for f in fields(kind))
        if key in choices:
            if kind is not Own and choices[key] not in _METHODS:
                raise ValueError(f"{key} must be one of {', '.join(_METHODS)}, got {choices[key]!r}")
            return kind(**choices)
    return Structure(**choices)
