"""The structure of a recipe: its choices, one part in each slot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS
from ahf_cli.recipes.parts import SLOTS, Part


class AnyStructure:
    """Choices by slot; a subclass says which slots there are."""

    hessian_free = False
    """whether it solves a linear system (B + λI) δ = −g"""

    @property
    def chosen(self) -> Mapping[str, Any]:
        """All choices by slot, those of numbers included."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]

    @property
    def parts_used(self) -> dict[str, Part]:
        """The declarations of the chosen parts by slot."""
        return {slot: SLOTS[slot][name] for slot, name in self.chosen.items() if name in SLOTS.get(slot, ())}

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
    """diagonal preconditioner of CG"""
    backtracking: str = "none"
    """iterate of CG that becomes the direction"""
    line_search: str = "none"
    """rule that shortens α until h falls enough"""
    regularization: str = "none"
    """term that is added to h"""
    clipping: str = "none"
    """limit of an update's length"""
    curvature_batches: int = 1
    """mini-batches in the curvature's batch, where that is independent"""
    parts: str = ""
    """a plug-in's change of the composition; no choice of a configuration's"""

    hessian_free = True

    def __post_init__(self) -> None:
        for slot in (f.name for f in fields(self) if f.name in SLOTS and f.name != "parts"):
            value = getattr(self, slot)
            if value not in tuple(SLOTS[slot]):
                raise ValueError(f"{slot} must be one of {', '.join(SLOTS[slot])}, got {value!r}")
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
        for slot, part in self.parts_used.items():
            for other, allowed in part.needs.items():
                if (value := getattr(self, other)) not in allowed:
                    name = getattr(self, slot)
                    raise ValueError(f"{slot}: {name} needs {other} {' or '.join(allowed)}, got {value!r}")


@dataclass(frozen=True)
class Whole(AnyStructure):
    """The structure of a recipe that is one part: an optimizer that solves no linear system."""

    slot: str
    name: str

    @property
    def chosen(self) -> Mapping[str, Any]:
        """The one choice."""
        return {self.slot: self.name}

    def __post_init__(self) -> None:
        if self.name not in SLOTS[self.slot] and self.slot != "optimizer":  # a plug-in may not be loaded
            raise ValueError(f"{self.slot} must be one of {', '.join(SLOTS[self.slot])}, got {self.name!r}")


WHOLE = ("method", "diagonal", "optimizer")
"""Slots of which a part is an optimizer as a whole."""
CHOICES = tuple(f.name for f in fields(Structure) if f.name != "parts")
"""Names of the choices of Hessian-free optimization."""
_LATER = (
    "preconditioner", "backtracking", "line_search", "regularization", "clipping", "curvature_batches",
    "parts",
)  # fmt: skip
"""Choices that earlier studies did not know; at their defaults they are not written."""


def choices_of(structure: AnyStructure) -> dict[str, Any]:
    """Return a structure's choices by name, from which `structure_of` makes an equal one.

    Choices of `_LATER` at their defaults are left out, so that a study keeps its identity.
    """
    return {
        key: value
        for key, value in structure.chosen.items()
        if key not in _LATER or value != getattr(Structure, key)
    }


def structure_of(choices: Mapping[str, Any]) -> AnyStructure:
    """Return the structure with these choices by name; raises TypeError or ValueError for any other."""
    for slot in WHOLE:
        if slot in choices:
            if len(choices) > 1:
                raise TypeError(f"{slot} is the only choice of a recipe, got {', '.join(choices)}")
            return Whole(slot, str(choices[slot]))
    return Structure(**choices)


def all_parts() -> Iterator[tuple[str, str, Part]]:
    """Yield slot, name and declaration of every part."""
    for slot, parts in SLOTS.items():
        for name, part in parts.items():
            yield slot, name, part
