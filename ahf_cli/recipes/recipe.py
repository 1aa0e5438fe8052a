"""A recipe: its structure, one choice of a part in each slot, and its hyperparameters, fixed or searched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS, Range, middle, nearest, of_class
from ahf_cli.recipes.part import Part
from ahf_cli.recipes.parts import SLOTS


class AnyStructure:
    """Choices by slot; a subclass declares the slots."""

    hessian_free = False
    """whether it solves a linear system (B + λI) δ = −g"""

    schedule: str
    """shape of α over the steps of a trial"""
    warmup: str
    """rise of α at the start of a trial"""
    average: str
    """average of the iterates that is evaluated"""

    @property
    def scheduled(self) -> bool:
        """Whether α follows a schedule or a warm-up."""
        return self.schedule != "constant" or self.warmup != "none"

    @property
    def chosen(self) -> Mapping[str, Any]:
        """All choices by slot, and all numbers such as `max_iterations`."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]

    @property
    def parts_used(self) -> dict[str, Part]:
        """Declarations of the chosen parts by slot."""
        known = ((slot, name) for slot, name in self.chosen.items() if slot in SLOTS)
        return {slot: SLOTS[slot][name] for slot, name in known if name in SLOTS[slot]}

    def check_slots(self, slots: Iterable[str]) -> None:
        """Raise ValueError for the first of these slots with an unknown part."""
        for slot in slots:
            value = getattr(self, slot)
            if value not in tuple(SLOTS[slot]):
                raise ValueError(f"{slot} must be one of {', '.join(SLOTS[slot])}, got {value!r}")

    def hyperparameters(self) -> tuple[str, ...]:
        """Names of the hyperparameters that the parts read, in the order of `HYPERPARAMETERS`."""
        used = {name for part in self.parts_used.values() for name in part.uses}
        return tuple(name for name in HYPERPARAMETERS if name in used)

    def part(self, slot: str) -> Any:
        """Return the chosen part of a slot: an instance or a function."""
        return self.parts_used[slot].make()


@dataclass(frozen=True)
class Structure(AnyStructure):
    """The choices of Hessian-free optimization, equal for all trials that run side by side."""

    curvature: str = "hessian"
    """the matrix B"""
    curvature_batch: str = "independent"
    """batch of B: the gradient's, or a second one of the same size"""
    reduction_ratio: str = "direction"
    """point of the ratio ρ of actual to predicted reduction"""
    ratio_rounding: str = "usual"
    """treatment of a ratio ρ of two rounding errors"""
    step_size: str = "constant"
    """rule for α"""
    norm: str = "l2"
    """norm of the direction in the step-size rule"""
    solver: str = "cg"
    """method for the linear system"""
    cg_rules: str = "martens"
    """stopping and negative curvature in CG"""
    damping_rule: str = "levenberg_marquardt"
    """rule for λ"""
    moments: str = "none"
    """moving averages on top of the direction"""
    max_iterations: int = 50
    """limit of CG iterations a step"""
    warm_start_decay: float = 0.95
    """CG starts at this multiple of the last direction"""
    preconditioner: str = "none"
    """preconditioner of CG"""
    renewal: int = 10
    """steps between two renewals of K-FAC's factors, or of a low-rank estimate"""
    rank: int = 10
    """rank of a low-rank estimate of B"""
    backtracking: str = "none"
    """iterate of CG that becomes the direction"""
    line_search: str = "none"
    """rule that shortens α until h falls enough"""
    regularization: str = "none"
    """term that is added to h"""
    clipping: str = "none"
    """limit of an update's length"""
    curvature_batches: int = 1
    """mini-batches in an independent batch of the curvature"""
    schedule: str = "constant"
    warmup: str = "none"
    average: str = "none"
    parts: str = ""
    """a plug-in's change of the composition; not a choice of configurations"""

    hessian_free = True

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the numbers that solver and preconditioner read."""
        return tuple(name for slot in ("solver", "preconditioner") for name in self.parts_used[slot].settings)

    @property
    def renews(self) -> bool:
        """Whether a preconditioner is renewed every `renewal` steps."""
        return "renewal" in self.settings

    def renewed(self, slot: str) -> Any:
        """Return the preconditioner of a slot, made from the numbers that it reads."""
        settings = self.parts_used[slot].settings
        found = self.part(slot) if not settings else self.parts_used[slot].find()
        return found(**{name: getattr(self, name) for name in settings}) if settings else found

    def __post_init__(self) -> None:
        self.check_slots(f.name for f in fields(self) if f.name in SLOTS and f.name != "parts")
        for key in ("max_iterations", "curvature_batches", "renewal", "rank"):
            count = getattr(self, key)
            if isinstance(count, bool) or not (isinstance(count, int) and count >= 1):
                raise ValueError(f"{key} must be an integer ≥ 1, got {count!r}")
        for key in ("renewal", "rank"):
            if key not in self.settings and getattr(self, key) != getattr(Structure, key):
                raise ValueError(
                    f"{key} has no effect with solver {self.solver} and preconditioner {self.preconditioner}"
                )
        if self.curvature_batches > 1 and self.curvature_batch != "independent":
            raise ValueError(
                f"curvature_batches must be 1 where curvature_batch is same, got {self.curvature_batches!r}"
            )
        decay = self.warm_start_decay
        if isinstance(decay, bool) or not (isinstance(decay, int | float) and 0 <= decay <= 1):
            raise ValueError(f"warm_start_decay must be in [0, 1], got {decay!r}")
        if self.solver not in ("cg", "spring") and decay != Structure.warm_start_decay:
            raise ValueError(f"warm_start_decay has no effect with solver {self.solver}, which starts at 0")
        for slot, part in self.parts_used.items():
            for other, allowed in part.needs.items():
                if (value := getattr(self, other)) not in allowed:
                    name = getattr(self, slot)
                    raise ValueError(f"{slot}: {name} needs {other} {' or '.join(allowed)}, got {value!r}")


@dataclass(frozen=True)
class Whole(AnyStructure):
    """The structure of a recipe that is one part: a whole optimizer without a linear system."""

    slot: str
    name: str
    arguments: tuple[tuple[str, Any], ...] = ()
    """arguments of a class that are no real numbers, by name"""
    uses: tuple[str, ...] = ()
    """arguments of a class that are real numbers, its hyperparameters"""
    schedule: str = "constant"
    warmup: str = "none"
    average: str = "none"

    @property
    def is_class(self) -> bool:
        """Whether it is an optimizer class of an installed package."""
        part = SLOTS[self.slot].get(self.name)
        return part is not None and part.where == CLASS

    @property
    def chosen(self) -> Mapping[str, Any]:
        """The part, and the choices of every recipe."""
        own: dict[str, Any] = {self.slot: self.name}
        arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in self.arguments}
        own |= {"arguments": arguments} if arguments else {}
        return own | {slot: getattr(self, slot) for slot in OUTER}

    def __post_init__(self) -> None:
        self.check_slots(OUTER)
        self._register()
        # A study may name an optimizer whose plug-in is not loaded.
        if self.name not in SLOTS[self.slot] and self.slot != "optimizer":
            raise ValueError(f"{self.slot} must be one of {', '.join(SLOTS[self.slot])}, got {self.name!r}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over the fields in another process, which has not read the configuration."""
        self.__dict__.update(state)
        self._register()

    def _register(self) -> None:
        """Enter a class and its arguments among the parts and hyperparameters."""
        if not self.uses:
            return
        for key in self.uses:
            HYPERPARAMETERS.setdefault(key, of_class(key))
        known = SLOTS[self.slot].get(self.name)
        uses = dict.fromkeys((*(known.uses if known else ()), *self.uses))
        SLOTS[self.slot][self.name] = Part(CLASS, f"u by {self.name}", f"the class {self.name}", tuple(uses))


CLASS = "foreign:Foreign"
"""Place of the code that runs a class of another package."""
OUTER = ("schedule", "warmup", "average")
"""Choices of every recipe, Hessian-free or not."""
WHOLE = ("method", "diagonal", "optimizer")
"""Slots whose parts are whole optimizers."""
CHOICES = tuple(f.name for f in fields(Structure) if f.name != "parts")
"""Names of the choices of Hessian-free optimization."""
_LATER = (
    "ratio_rounding", "preconditioner", "renewal", "rank", "backtracking", "line_search", "regularization",
    "clipping", "curvature_batches", *OUTER, "parts",
)  # fmt: skip
"""Choices that are younger than the first committed studies; their defaults are not written."""


def choices_of(structure: AnyStructure) -> dict[str, Any]:
    """Return a structure's choices by name; `structure_of` makes an equal structure from them.

    Choices of `_LATER` at their defaults are left out, so that a study keeps its identity.
    """
    return {
        key: value
        for key, value in structure.chosen.items()
        if key not in _LATER or value != getattr(Structure, key)
    }


def structure_of(choices: Mapping[str, Any]) -> AnyStructure:
    """Return the structure with these choices; raises TypeError or ValueError for wrong choices."""
    for slot in WHOLE:
        if slot in choices:
            if foreign := [key for key in choices if key not in (slot, "arguments", *OUTER)]:
                raise TypeError(f"{slot} goes with {', '.join(OUTER)} alone, got {', '.join(foreign)}")
            arguments = {
                k: tuple(v) if isinstance(v, list) else v for k, v in choices.get("arguments", {}).items()
            }
            outer = {k: v for k, v in choices.items() if k in OUTER}
            return Whole(slot, str(choices[slot]), tuple(arguments.items()), **outer)
    return Structure(**choices)


def all_parts() -> Iterator[tuple[str, str, Part]]:
    """Yield slot, name and declaration of every part."""
    for slot, parts in SLOTS.items():
        for name, part in parts.items():
            yield slot, name, part


@dataclass(frozen=True)
class Recipe:
    """A named optimizer: a structure, and the values of its fixed hyperparameters."""

    name: str
    structure: AnyStructure
    fixed: Mapping[str, float] = field(default_factory=dict)
    lineage: tuple[str, ...] = ()
    """names of the recipes from which this one is derived, nearest first"""
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """search ranges that replace the ranges of `HYPERPARAMETERS`"""
    source: str = ""
    """source of the update rule"""

    @property
    def hessian_free(self) -> bool:
        """Whether the recipe is Hessian-free, and so made of structural choices."""
        return self.structure.hessian_free

    @property
    def choices(self) -> Structure:
        """Structural choices; raises ValueError for a recipe that is not Hessian-free."""
        if not isinstance(self.structure, Structure):
            raise ValueError(f"recipe {self.name!r} is not Hessian-free: it solves no linear system")
        return self.structure

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """Names of all hyperparameters, free and fixed."""
        return self.structure.hyperparameters()

    @property
    def free(self) -> tuple[str, ...]:
        """Names of the hyperparameters that each trial chooses."""
        return tuple(name for name in self.hyperparameters if name not in self.fixed)

    def complete(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return all hyperparameters: the given value, else the fixed value, else the default.

        Raises ValueError for a name that is not in the recipe, or a value outside its interval.
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
        choices = CHOICES if self.hessian_free else OUTER
        for key, value in changes.items():
            if key in choices:
                structure[key] = value
            elif key in HYPERPARAMETERS:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ValueError(f"{key} must be a number, got {value!r}")
                fixed[key] = HYPERPARAMETERS[key].check(float(value))
            else:
                raise ValueError(f"unknown choice {key!r}{nearest(key, [*choices, *HYPERPARAMETERS])}")
        own = replace(self.structure, **structure)  # type: ignore[type-var]
        result = Recipe(name, own, {}, (self.name, *self.lineage), self.ranges, self.source)
        if own.scheduled and not self.hessian_free and "lr" not in result.hyperparameters:
            raise ValueError(f"schedule and warmup have no effect in {name!r}, which has no lr")
        for key in fixed:
            if key not in result.hyperparameters:
                raise ValueError(f"{key} has no effect in {name!r}{nearest(key, result.hyperparameters)}")
        kept = {k: v for k, v in {**self.fixed, **fixed}.items() if k in result.hyperparameters}
        if self.hessian_free and "mu" in result.hyperparameters:
            # The paper fixes μ and never searches it: so do all derived recipes.
            kept.setdefault("mu", HYPERPARAMETERS["mu"].default)
        return replace(result, fixed=kept)


def search_range(recipe: Recipe, name: str) -> Range | None:
    """Return the search range of a hyperparameter: the recipe's, else Appendix B's; None if it is fixed."""
    return None if name in recipe.fixed else recipe.ranges.get(name) or HYPERPARAMETERS[name].search


MILD = {"lr": 0.01, "damping": 30.0}
"""α and λ₀ of a single run of a recipe that diverges with larger steps: see `single_run`."""


def single_run(recipe: Recipe) -> dict[str, float]:
    """Return all hyperparameters of a single run whose user gave none.

    They are the defaults.  If a search range of the recipe excludes the default, its middle replaces it.  A
    recipe that is not Hessian-free, or has constant damping, takes the middle of every range.

    A constant step size with the exact Hessian of a second batch takes `MILD` instead.  On LeNet that recipe
    ends near the loss of guessing, or diverges: for α ≥ 0.1 within 60 steps, for α = 0.03 within 150.  With α
    = 0.01 and λ₀ = 30 its loss was 1.57 after 300 steps.
    """
    if not recipe.hessian_free or recipe.choices.damping_rule == "constant":
        ranges = {name: found for name in recipe.free if (found := search_range(recipe, name))}
        return recipe.complete({name: middle(found) for name, found in ranges.items()})
    s = recipe.choices
    mild = s.curvature == "hessian" and s.curvature_batch == "independent" and "lr" in recipe.free
    own = {
        name: middle(found)
        for name, found in recipe.ranges.items()
        if name in recipe.free and not found.low <= HYPERPARAMETERS[name].default <= found.high
    }
    return recipe.complete(own | {k: v for k, v in MILD.items() if mild and k in recipe.free})
