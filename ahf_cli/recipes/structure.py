"""The structure of a recipe: a part in each slot, and the numbers that are equal in all trials."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS, declare
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
    batch_growth: int
    """mini-batches in the batch of the last step: their number rises from 1 along a line"""

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

    @property
    def squares(self) -> bool:
        """Whether the loss must be a sum of squares."""
        return any(part.squares for part in self.parts_used.values())

    def check_slots(self, slots: Iterable[str]) -> None:
        """Raise ValueError for the first of these slots with an unknown part."""
        for slot in slots:
            value = getattr(self, slot)
            if value not in tuple(SLOTS[slot]):
                raise ValueError(f"{slot} must be one of {', '.join(SLOTS[slot])}, got {value!r}")

    def check_counts(self, names: Iterable[str]) -> None:
        """Raise ValueError for the first of these numbers that is no integer ≥ 1."""
        for name in names:
            count = getattr(self, name)
            if isinstance(count, bool) or not (isinstance(count, int) and count >= 1):
                raise ValueError(f"{name} must be an integer ≥ 1, got {count!r}")

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
    damping_matrix: str = "identity"
    """damping beside λI"""
    curvature_batches: int = 1
    """mini-batches in an independent batch of the curvature"""
    schedule: str = "constant"
    warmup: str = "none"
    average: str = "none"
    batch_growth: int = 1
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
        self.check_counts(("max_iterations", "curvature_batches", "renewal", "rank", "batch_growth"))
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
    batch_growth: int = 1
    gradient_clipping: str = "none"
    """limit of the gradient's length, of a first-order recipe"""

    @property
    def is_class(self) -> bool:
        """Whether it is an optimizer class of an installed package."""
        part = SLOTS[self.slot].get(self.name)
        return part is not None and part.where == CLASS

    def hyperparameters(self) -> tuple[str, ...]:
        """Names of the hyperparameters; a class has its own first, in the order of its signature."""
        known = super().hyperparameters()
        if not self.is_class:
            return known
        # The order of `HYPERPARAMETERS` would depend on the classes that this process read before.
        outer = {name for slot in OUTER if slot in SLOTS for name in self.parts_used[slot].uses}
        return tuple(dict.fromkeys((*self.uses, *(name for name in known if name in outer))))

    @property
    def chosen(self) -> Mapping[str, Any]:
        """The part, and the choices of every recipe."""
        own: dict[str, Any] = {self.slot: self.name}
        arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in self.arguments}
        own |= {"arguments": arguments} if arguments else {}
        return own | {slot: getattr(self, slot) for slot in ALONE}

    def __post_init__(self) -> None:
        self.check_slots(slot for slot in ALONE if slot in SLOTS)
        self.check_counts(("batch_growth",))
        if self.gradient_clipping != "none" and self.slot != "method":
            raise ValueError(
                f"gradient_clipping must be none for {self.slot} {self.name}, got {self.gradient_clipping!r}"
            )
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
        known = SLOTS[self.slot].get(self.name)
        if self.slot != "optimizer" or "." not in self.name or (known and known.where != CLASS):
            return
        declare(self.uses)
        uses = dict.fromkeys((*(known.uses if known else ()), *self.uses))
        SLOTS[self.slot][self.name] = Part(CLASS, f"u by {self.name}", f"the class {self.name}", tuple(uses))


CLASS = "foreign:Foreign"
"""Place of the code that runs a class of another package."""
OUTER = ("schedule", "warmup", "average", "batch_growth")
"""Choices of every recipe, Hessian-free or not."""
ALONE = (*OUTER, "gradient_clipping")
"""Choices of a recipe that is one part."""
WHOLE = ("method", "diagonal", "least_squares", "optimizer")
"""Slots whose parts are whole optimizers."""
CHOICES = tuple(f.name for f in fields(Structure) if f.name != "parts")
"""Names of the choices of Hessian-free optimization."""
_LATER = (
    "ratio_rounding", "preconditioner", "renewal", "rank", "backtracking", "line_search", "regularization",
    "clipping", "curvature_batches", "damping_matrix", *ALONE, "parts",
)  # fmt: skip
"""Choices that are younger than the first committed studies; their defaults are not written."""


def choices_of(structure: AnyStructure) -> dict[str, Any]:
    """Return a structure's choices by name; `structure_of` makes an equal structure from them.

    Choices of `_LATER` at their defaults are left out, so that a study keeps its identity.
    """
    return {
        key: value
        for key, value in structure.chosen.items()
        if key not in _LATER or value != getattr(type(structure), key)
    }


def structure_of(choices: Mapping[str, Any]) -> AnyStructure:
    """Return the structure with these choices; raises TypeError or ValueError for wrong choices."""
    for slot in WHOLE:
        if slot in choices:
            if foreign := [key for key in choices if key not in (slot, "arguments", *ALONE)]:
                raise TypeError(f"{slot} goes with {', '.join(ALONE)} alone, got {', '.join(foreign)}")
            arguments = {
                k: tuple(v) if isinstance(v, list) else v for k, v in choices.get("arguments", {}).items()
            }
            outer = {k: v for k, v in choices.items() if k in ALONE}
            return Whole(slot, str(choices[slot]), tuple(arguments.items()), **outer)
    return Structure(**choices)


def all_parts() -> Iterator[tuple[str, str, Part]]:
    """Yield slot, name and declaration of every part; optimizer classes that were read are left out."""
    for slot, parts in SLOTS.items():
        for name, part in parts.items():
            if part.where != CLASS:
                yield slot, name, part
