"""The content of `costs.json`: the times of a study's operations and steps, measured on one machine."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ahf_cli.errors import InputError
from ahf_cli.study.manifest import Key, Name, rule_of
from ahf_cli.study.opening import DamagedError, as_json, read
from ahf_cli.study.store import Study

FILE = "costs.json"
LIMIT = 2**20
"""Bytes that the file may have."""
Positive = Annotated[float, Field(gt=0, le=1e6)]
Amount = Annotated[float, Field(ge=0, le=1e6)]
Count = Annotated[float, Field(ge=0, le=1e12)]


class _Received(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class TimedCounts(_Received):
    """Steps that were timed, and their counted operations."""

    steps: Annotated[float, Field(ge=1, le=1e9)]
    gradients: Count
    products: Count
    losses: Count


class RecipeCosts(_Received):
    """Costs of a recipe: seconds of a step, and units of one gradient."""

    seconds: Positive
    """of one step, as measured"""
    overhead: Amount
    """seconds of one step that are no counted operation"""
    product: Amount
    """units of one curvature product"""
    setup: Amount
    """units of the set-up of the curvature, once a step"""
    counts: TimedCounts


class Costs(_Received):
    """Costs of a study's recipes, from one timing of all in turn."""

    format: Literal[1]
    gradient: Positive
    """seconds of one gradient"""
    loss: Amount
    """units of one loss evaluation"""
    products: dict[Name, Amount]
    """units of one product, by curvature"""
    recipes: dict[Name, RecipeCosts]
    rounds: Annotated[int, Field(ge=1, le=10**6)]
    task: dict[Key, str | int | float | bool | None]
    """of the study's identity"""
    measured: dict[Key, Any]
    """time, machine, versions and numerical path of the measurement"""


def read_costs(study: Study) -> Costs | None:
    """Return the measured costs of a study; None without any.

    Raises:
        DamagedError: the file does not follow the schema, or was measured for another task.
        InputError: it is of a later version.
    """
    file = study.folder / FILE
    try:
        content = as_json(file, read(file, LIMIT))
    except FileNotFoundError:
        return None
    version = content.get("format") if isinstance(content, dict) else None
    if isinstance(version, int) and version > 1:
        raise InputError(f"{file} has format {version}, and this version of ahf reads up to 1")
    try:
        found = Costs.model_validate(content)
    except ValidationError as error:
        raise DamagedError(file, rule_of(error)) from None
    task = study.manifest().get("identity", {}).get("task", {})
    for key, value in found.task.items():
        if key in task and task[key] != value:
            raise DamagedError(file, f"task.{key}: must be the study's {task[key]!r}, got {value!r}")
    return found
