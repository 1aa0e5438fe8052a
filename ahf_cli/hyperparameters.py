"""Every hyperparameter, structural choice and recipe, declared once.

Imports nothing heavy: help texts, configuration files and tables read their names, bounds and symbols here
without waiting for torch.  The update rules behind the names are in `ahf_cli.optim`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_type_hints

Curvature = Literal["hessian", "ggn", "fisher"]
CurvatureBatch = Literal["same", "independent"]
ReductionRatio = Literal["direction", "update", "published"]
StepSize = Literal["constant", "hyperbolic", "eq3", "eq3_repaired"]
Norm = Literal["l2", "l1", "sum_l2"]
Solver = Literal["cg", "dual"]
CGRules = Literal["martens", "published"]
DampingRule = Literal["levenberg_marquardt", "published", "constant"]
Moments = Literal["none", "adam", "published"]
Preconditioner = Literal["none", "martens"]
Backtracking = Literal["none", "martens"]
LineSearch = Literal["none", "armijo"]
Regularization = Literal["none", "l2"]
Clipping = Literal["none", "radius", "direction"]
Method = Literal["sgd_momentum", "nesterov", "adagrad", "rmsprop", "adam"]
Diagonal = Literal["adahessian"]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest known name, or the list of all known names."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


@dataclass(frozen=True)
class Range:
    """A search interval [low, high], uniform or log-uniform."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Hyperparameter:
    """One hyperparameter: its symbol in the paper, default, range of validity and Appendix B search range."""

    name: str
    symbol: str
    help: str
    default: float
    low: float
    """smallest valid value; excluded where `open_low`"""
    open_low: bool
    high: float = math.inf
    """upper end of the valid values; always excluded"""
    search: Range | None = None
    """range of the paper's Appendix B.2; None where the paper fixes the value"""

    def rule(self) -> str:
        """Say which values are valid, as an interval."""
        return f"{'(' if self.open_low else '['}{self.low:g}, {self.high:g})"

    def accepts(self, value: float) -> bool:
        """Tell whether a value is finite and inside the interval of `rule`."""
        above = value > self.low if self.open_low else value >= self.low
        return math.isfinite(value) and above and value < self.high

    def check(self, value: float, where: str | None = None) -> float:
        """Return the value, or raise ValueError naming the rule, the hyperparameter and the value."""
        if not self.accepts(value):
            raise ValueError(f"{where or self.name} must be in {self.rule()}, got {value!r}")
        return value


HYPERPARAMETERS: dict[str, Hyperparameter] = {
    h.name: h
    for h in (
        Hyperparameter("lr", "α", "step size", 1.0, 0, True, search=Range(1e-3, 1, log=True)),
        Hyperparameter("damping", "λ₀", "initial damping", 10.0, 0, True, search=Range(1, 30)),
        Hyperparameter(
            "beta2", "β₂", "decay of the second moment", 1e-5, 0, False, 1, Range(1e-10, 1e-4, log=True)
        ),
        Hyperparameter(
            "epsilon", "ε", "target size of the direction", 1e-2, 0, True, search=Range(1e-5, 0.1, log=True)
        ),
        Hyperparameter("sigma", "σ", "bound on the direction's norm", 50.0, 0, True, search=Range(30, 100)),
        Hyperparameter("smoothness", "L", "conjugate smoothness", 100.0, 0, True, search=Range(50, 300)),
        Hyperparameter("mu", "μ", "added to the root of the second moment", 1e-8, 0, True),
        Hyperparameter(
            "halving", "τ", "steps after which α is half", 200.0, 0, True, search=Range(20, 2000, log=True)
        ),
        Hyperparameter("radius", "r", "longest update", 0.3, 0, True, search=Range(0.03, 3, log=True)),
        Hyperparameter("weight_decay", "w", "weight of ½ ‖θ‖² in the loss", 2e-5, 0, False),
        Hyperparameter("momentum", "γ", "decay of the sum of gradients", 0.9, 0, False, 1),
        Hyperparameter("beta1", "β₁", "decay of the first moment", 0.9, 0, False, 1),
        Hyperparameter("hessian_power", "k", "power of the Hessian's diagonal", 1.0, 0, True, 2),
    )
}


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
        return tuple(name for name in HYPERPARAMETERS if name in used)


CHOICES: dict[str, tuple[str, ...]] = {
    name: get_args(hint) for name, hint in get_type_hints(Structure).items()
}
"""Structural choices of Hessian-free optimization and their values; () for the two numeric ones."""

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


AnyStructure = Structure | FirstOrder | DiagonalHessian
_LATER = (
    "preconditioner", "backtracking", "line_search", "regularization", "clipping", "curvature_batches",
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
    for kind in (FirstOrder, DiagonalHessian):
        (key,) = (f.name for f in fields(kind))
        if key in choices:
            if choices[key] not in _METHODS:
                raise ValueError(f"{key} must be one of {', '.join(_METHODS)}, got {choices[key]!r}")
            return kind(**choices)
    return Structure(**choices)


@dataclass(frozen=True)
class Recipe:
    """A named optimizer: a structure, and the hyperparameters that it keeps fixed."""

    name: str
    structure: AnyStructure
    fixed: Mapping[str, float] = field(default_factory=dict)
    lineage: tuple[str, ...] = ()
    """names of the recipes that this one is derived from, nearest first"""
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """search ranges of its own, where those of `HYPERPARAMETERS` are not for it"""
    source: str = ""
    """where the update rule comes from"""

    @property
    def hessian_free(self) -> bool:
        """Whether it is a recipe of Hessian-free optimization, made of structural choices."""
        return isinstance(self.structure, Structure)

    @property
    def choices(self) -> Structure:
        """Its structural choices; raises ValueError where it has none, being no Hessian-free recipe."""
        if not isinstance(self.structure, Structure):
            raise ValueError(f"recipe {self.name!r} is not Hessian-free: it solves no linear system")
        return self.structure

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """Names of all hyperparameters, free and fixed."""
        return self.structure.hyperparameters()

    @property
    def free(self) -> tuple[str, ...]:
        """Names of the hyperparameters that a trial chooses."""
        return tuple(name for name in self.hyperparameters if name not in self.fixed)

    def complete(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return all hyperparameters: the given values, else the fixed ones, else the defaults.

        Raises ValueError for a name that the recipe does not have, or a value outside its interval.
        """
        for name, value in values.items():
            if name not in self.hyperparameters:
                raise ValueError(
                    f"{self.name} has no hyperparameter {name!r}{nearest(name, self.hyperparameters)}"
                )
            HYPERPARAMETERS[name].check(value)
        return {
            name: float(values.get(name, self.fixed.get(name, HYPERPARAMETERS[name].default)))
            for name in self.hyperparameters
        }

    def derive(self, name: str, changes: Mapping[str, object]) -> Recipe:
        """Return this recipe under a new name with some choices or fixed hyperparameters changed.

        Raises ValueError naming the first change that is unknown, invalid or without effect in the result.
        """
        structure: dict[str, Any] = {}
        fixed: dict[str, float] = {}
        choices = tuple(CHOICES) if self.hessian_free else ()
        for key, value in changes.items():
            if key in choices:
                structure[key] = value
            elif key in HYPERPARAMETERS:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ValueError(f"{key} must be a number, got {value!r}")
                fixed[key] = HYPERPARAMETERS[key].check(float(value))
            else:
                raise ValueError(f"unknown choice {key!r}{nearest(key, [*choices, *HYPERPARAMETERS])}")
        own = replace(self.structure, **structure)
        result = Recipe(name, own, {}, (self.name, *self.lineage), self.ranges, self.source)
        for key in fixed:
            if key not in result.hyperparameters:
                raise ValueError(f"{key} has no effect in {name!r}{nearest(key, result.hyperparameters)}")
        kept = {k: v for k, v in {**self.fixed, **fixed}.items() if k in result.hyperparameters}
        if self.hessian_free and "mu" in result.hyperparameters:
            kept.setdefault("mu", HYPERPARAMETERS["mu"].default)
        return replace(result, fixed=kept)


_PUBLISHED = Structure(
    curvature_batch="same", reduction_ratio="published", cg_rules="published", damping_rule="published"
)

_PAPER = "Motokawa and Tezuka 2020"
_LR = {"lr": Range(1e-4, 1, log=True)}

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("hf", Structure(), source=_PAPER),
        Recipe("adaptive_hf", Structure(step_size="eq3", moments="adam"), {"mu": 1e-8}, source=_PAPER),
        Recipe("hf_published", _PUBLISHED, source=f"{_PAPER}, released code"),
        Recipe(
            "adaptive_hf_published", replace(_PUBLISHED, moments="published"), {"lr": 1e-3, "mu": 1e-8},
            source=f"{_PAPER}, released code",
        ),
        Recipe(
            "hf_martens",
            Structure(
                curvature="ggn", curvature_batch="same", reduction_ratio="update", max_iterations=250,
                preconditioner="martens", backtracking="martens", line_search="armijo", regularization="l2",
            ),
            {"lr": 1.0, "weight_decay": 2e-5},
            ranges={"damping": Range(1e-2, 100, log=True)},
            source="Martens 2010; Martens and Sutskever 2012",
        ),
        Recipe(
            "natural_gradient",
            Structure(curvature="fisher", curvature_batch="same", damping_rule="constant"),
            ranges={"lr": Range(1e-3, 1, log=True), "damping": Range(1e-3, 10, log=True)},
            source="Amari 1998",
        ),
        Recipe(
            "sgd_momentum", FirstOrder("sgd_momentum"), ranges={**_LR, "momentum": Range(0.5, 0.99)},
            source="Polyak 1964; torch.optim.SGD",
        ),
        Recipe(
            "nesterov", FirstOrder("nesterov"), ranges={**_LR, "momentum": Range(0.5, 0.99)},
            source="Nesterov 1983; torch.optim.SGD",
        ),
        Recipe(
            "adagrad", FirstOrder("adagrad"), {"mu": 1e-10}, ranges=_LR,
            source="Duchi et al. 2011; torch.optim.Adagrad",
        ),
        Recipe(
            "rmsprop", FirstOrder("rmsprop"), {"beta2": 0.99, "mu": 1e-8},
            ranges={"lr": Range(1e-5, 0.1, log=True)}, source="Tieleman and Hinton 2012; torch.optim.RMSprop",
        ),
        Recipe(
            "adam", FirstOrder("adam"), {"beta1": 0.9, "beta2": 0.999, "mu": 1e-8},
            ranges={"lr": Range(1e-5, 0.1, log=True)}, source="Kingma and Ba 2015; torch.optim.Adam",
        ),
        Recipe(
            "adahessian", DiagonalHessian("adahessian"),
            {"beta1": 0.9, "beta2": 0.999, "mu": 1e-4, "hessian_power": 1.0}, ranges=_LR,
            source="Yao et al. 2021",
        ),
    )
}  # fmt: skip
"""The built-in recipes."""


def find_recipe(name: str, recipes: Mapping[str, Recipe] = RECIPES) -> Recipe:
    """Return the recipe of that name, or raise ValueError with the nearest known name."""
    if name not in recipes:
        raise ValueError(f"unknown recipe {name!r}{nearest(name, recipes)}")
    return recipes[name]


def search_range(recipe: Recipe, name: str) -> Range | None:
    """Return the search range of a hyperparameter: the recipe's own, else Appendix B's; None where fixed."""
    return None if name in recipe.fixed else recipe.ranges.get(name) or HYPERPARAMETERS[name].search


MILD = {"lr": 0.01, "damping": 30.0}
"""α and λ₀ of a single run of a recipe that larger steps send off: see `single_run`"""


def single_run(recipe: Recipe) -> dict[str, float]:
    """Return all hyperparameters of a run for which nobody chose any.

    They are the defaults, but for a constant step with the exact Hessian of a second batch.  On LeNet that
    ends near or above the loss of chance, or diverges, for α ≥ 0.1 within 60 steps and for α = 0.03 within
    150; α = 0.01 with λ₀ = 30 had a loss of 1.57 after 300.
    """
    if not recipe.hessian_free or recipe.choices.damping_rule == "constant":
        ranges = {name: found for name in recipe.free if (found := search_range(recipe, name))}
        return recipe.complete({name: middle(found) for name, found in ranges.items()})
    s = recipe.choices
    mild = s.curvature == "hessian" and s.curvature_batch == "independent" and "lr" in recipe.free
    return recipe.complete({k: v for k, v in MILD.items() if mild and k in recipe.free})


def middle(found: Range) -> float:
    """Return the middle of a range, the geometric one where the range is logarithmic."""
    return math.sqrt(found.low * found.high) if found.log else (found.low + found.high) / 2
