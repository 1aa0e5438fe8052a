"""Keys, types, defaults and rules of a configuration, and the messages for broken rules."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ahf_cli.recipes.hyperparameters import nearest

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Pattern of the names of studies and recipes: they become names of folders, so they are no paths."""

KeyPath = tuple[str, ...]
"""A path of keys, such as ("train", "epochs")."""
Problem = tuple[KeyPath, str]
"""A path of keys, and its broken rule."""
STORED: ContextVar[bool] = ContextVar("stored", default=False)


@contextmanager
def stored_names() -> Iterator[None]:
    """Let a study's own recipes hide built-in ones within the block: a name may be younger than the study."""
    token = STORED.set(True)
    try:
        yield
    finally:
        STORED.reset(token)


# YAML 1.1 reads 010 as 8 and 1:30 as 90; here a leading zero or a colon makes no number.
_DECIMAL = re.compile(r"[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
_NOT_FINITE = re.compile(r"([-+]?)\.(inf|nan)", re.IGNORECASE)


def read_number(text: str) -> int | float | None:
    """Return the number in a text of YAML; None for another text.

    Raises:
        ValueError: more digits than Python converts.
    """
    if found := _NOT_FINITE.fullmatch(text):
        return float(found[1] + found[2])
    if not _DECIMAL.fullmatch(text):
        return None
    return int(text) if text.lstrip("+-").isdecimal() else float(text)


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a boolean is not a number")
    if not isinstance(value, str):
        return value
    number = read_number(value)
    if number is None:  # pydantic would take 010 and 1_000
        raise ValueError("a text that is not a number")
    return number


def _seeds(value: object) -> object:
    return value if value in ("one", "draw", "weights") else _number(value)


def _choice(value: object) -> object:
    """Return a value of a recipe; a text that is a number becomes one, also within a list."""
    if isinstance(value, list):
        return [_choice(own) for own in value]
    number = read_number(value) if isinstance(value, str) else None
    return value if number is None else number


def _changes(recipe: object) -> object:
    """Return the changes of a recipe with their numbers read; the name `base` does not change."""
    if not isinstance(recipe, Mapping):
        return recipe
    read = {key: value if key == "base" else _choice(value) for key, value in recipe.items()}
    if isinstance(own := read.get("fixed"), Mapping):  # the arguments of a class
        read["fixed"] = {key: _choice(value) for key, value in own.items()}
    return read


_NUMBER = BeforeValidator(_number)

# The description is the rule that an error message prints after "must be".
Name = Annotated[str, Field(pattern=NAME, description=f"a string that matches {NAME}")]
Count = Annotated[int, _NUMBER, Field(ge=1, le=10**9, description="an integer in [1, 10^9]")]
OptionalCount = Annotated[
    Annotated[int, Field(ge=1, le=10**9)] | None,
    _NUMBER,
    Field(description="an integer in [1, 10^9], or null"),
]
Trials = Annotated[int, _NUMBER, Field(ge=1, le=10**5, description="an integer in [1, 10^5]")]
Seeds = Annotated[
    Literal["one", "draw", "weights"] | Annotated[int, Field(ge=2, le=10**5)],
    BeforeValidator(_seeds),
    Field(description="one, draw, weights, or an integer in [2, 10^5]"),
]
Seed = Annotated[int, _NUMBER, Field(ge=0, lt=2**63, description="an integer in [0, 2^63)")]
Positive = Annotated[float, _NUMBER, Field(gt=0, allow_inf_nan=False, description="a finite number > 0")]
Bound = Annotated[
    Annotated[float, Field(allow_inf_nan=False)] | None,
    _NUMBER,
    Field(description="a finite number, or null"),
]
Storage = Annotated[
    Annotated[str, Field(pattern=r"^(sqlite:///.+|postgresql(\+psycopg)?://([^:/@?]+@)?[^@?]+)$")] | None,
    Field(
        description="null, sqlite:/// and a path, or postgresql+psycopg://user@host/database without a "
        "password, which belongs into the environment variable AHF_STORAGE"
    ),
]


_INDEPENDENT = {"sampler": "random", "objective": "validation_loss"}
IMPLIED: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "fair": {**_INDEPENDENT, "seeds": "draw", "reruns": 20},
    "crossed": {**_INDEPENDENT, "seeds": 5, "repeats": 2},
}
"""Defaults by design."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskSection(_Section):
    """The section `task`: data, model and loss."""

    data: Annotated[str, Field(description="the name of a data set")] = "fashion_mnist"
    split: Literal["paper", "full"] = "paper"
    model: Annotated[str, Field(description="the name of a model")] = "lenet"
    loss: Annotated[str, Field(description="the name of a loss")] = "cross_entropy"
    dtype: Literal["float32", "float64"] = "float32"
    batch_size: Count = 128
    subset: OptionalCount = None


class TrainSection(_Section):
    """The section `train`: length of a trial, and times of its evaluation."""

    epochs: Positive = 3.0
    steps: OptionalCount = None
    """number of steps, which replaces `epochs`"""
    eval_every: Count = 30
    eval_subset: OptionalCount = None
    """number of training images for the training metrics, the first ones; None: all"""
    longer: dict[str, Count] = {}
    """recipe → factor of its steps, and of the steps between two evaluations"""


class SearchSection(_Section):
    """The section `search`: choice of the hyperparameters of the searched recipes."""

    design: Literal["paper", "fair", "crossed"] = "paper"
    """paper: one search by training loss, with one training seed.  fair: independent draws by validation
    loss, each with a seed of its own; the best configuration runs again with new seeds.  crossed: each draw
    trains with each seed, twice, for the variance between draws, between seeds and of retraining"""
    trials: Trials = 70
    """trials of each recipe; in the design crossed draws × seeds × repeats"""
    sampler: Literal["tpe", "random", "qmc", "gp"] = "tpe"
    """default of fair and crossed: random"""
    objective: Literal["train_loss", "validation_loss"] = "train_loss"
    """default of fair and crossed: validation_loss"""
    seeds: Seeds = "one"
    """training seeds: one for all draws; `draw`: one per draw; `weights`: one per draw for its initial
    weights, and one for all mini-batches (paper); or the number of seeds of each draw (crossed)"""
    repeats: Trials = 1
    """runs of each draw and seed; later ones start from weights changed in their last digits (crossed)"""
    reruns: Trials = 10
    """number of new seeds for the best configuration of each recipe (fair); default there: 20"""
    recipes: Annotated[
        tuple[str, ...], Field(min_length=1, description="a non-empty list of recipe names")
    ] = ("hf", "adaptive_hf")

    @model_validator(mode="before")
    @classmethod
    def _of_design(cls, data: Any) -> Any:
        """Add the absent keys that the design implies."""
        design = data.get("design") if isinstance(data, Mapping) else None
        return {**IMPLIED.get(str(design), {}), **data} if design is not None else data


class Bounds(_Section):
    """A search range in `spaces`; None is inherited from the base."""

    low: Bound = None
    high: Bound = None
    log: Annotated[bool | None, Field(strict=True, description="true, false or null")] = None


class PrerunSection(_Section):
    """The section `prerun`: the runs that give the search ranges."""

    trials: Trials = 15
    recipe: Annotated[str, Field(description="the name of a recipe")] = "adaptive_hf"


class CompareSection(_Section):
    """The section `compare`: summary and figures of results."""

    band: Literal["se", "sd", "ci", "iqr"] = "se"
    target: float | None = None
    references: Annotated[dict[str, Positive], Field(description="a mapping of names to numbers > 0")] = {}
    """published values of the headline, drawn as dotted lines"""
    published: Annotated[
        dict[str, Annotated[str, Field(pattern=r"^.+/[^/]+$")]],
        Field(description="a mapping of recipes to FILE.csv/CURVE"),
    ] = {}
    """published curve of each recipe, and of the pre-run (`prerun`), in a CSV file: yours or the package's"""
    contrasts: Annotated[
        tuple[tuple[str, str], ...], Field(description="a list of pairs of recipes that the search has")
    ] = ()
    """pairs of recipes whose differences are tested, named before the run; none: all pairs"""


class RunSection(_Section):
    """The section `run`: device and processes; nothing here changes a result beyond rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: OptionalCount = None
    """number of processes; None: one per core on a CPU, 1 on a GPU"""
    batch: OptionalCount = None
    """number of trials side by side in one process; None: chosen by the device"""
    checkpoint_every: Count = 50
    """number of steps between two checkpoints; later up to 2 % of the steps so far, if these are more"""
    mix_numerics: bool = False
    """let a study go on by another numerical path, which rounds differently"""


class Settings(_Section):
    """A configuration with all keys, given or default."""

    study: Name = "study"
    seed: Seed = 0
    task: TaskSection = TaskSection()
    train: TrainSection = TrainSection()
    search: SearchSection = SearchSection()
    recipes: dict[str, Annotated[dict[str, Any], BeforeValidator(_changes)]] = {}
    spaces: dict[str, dict[str, Bounds]] = {}
    prerun: PrerunSection = PrerunSection()
    compare: CompareSection = CompareSection()
    run: RunSection = RunSection()
    storage: Storage = None


def schema_problems(error: ValidationError) -> list[Problem]:
    """List the broken types and bounds, one problem a key."""
    problems: dict[KeyPath, str] = {}
    for item in error.errors(include_url=False, include_context=False):
        path = tuple(str(key) for key in item["loc"] if isinstance(key, str))
        if item["type"] == "extra_forbidden":
            message = f"unknown key{_nearest_key(path)}"
        elif path == ("storage",):
            message = _rule(path)  # the URL may hold a password: never printed
        else:
            message = f"{_rule(path)}, got {show(item['input'])}{_hint(path, item['input'])}"
        problems.setdefault(path, message)
    return list(problems.items())


def show(value: object) -> str:
    """Return a value as YAML writes it, shortened to 80 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    shown = short.repr(value)
    number = isinstance(value, str) and (_DECIMAL.fullmatch(value) or _NOT_FINITE.fullmatch(value))
    return shown.strip("'") if number else shown


def without(data: Mapping[str, Any], paths: Iterable[KeyPath]) -> dict[str, Any]:
    """Copy nested mappings without the values at some paths."""
    dropped = {path for path in paths if path}
    copy = {key: value for key, value in data.items() if (key,) not in dropped}
    for first in {path[0] for path in dropped if len(path) > 1} & copy.keys():
        if isinstance(copy[first], Mapping):
            copy[first] = without(copy[first], (path[1:] for path in dropped if path[0] == first))
    return copy


def _model(path: KeyPath) -> type[BaseModel] | None:
    """Return the model of the mapping at a path; None for a mapping with free names as keys."""
    if path == ():
        return Settings
    if len(path) == 3 and path[0] == "spaces":
        return Bounds
    field = Settings.model_fields.get(path[0]) if len(path) == 1 else None
    kind = field.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _allowed(path: KeyPath) -> tuple[str, ...]:
    """Return the allowed values of a key; () for a key without a list of values."""
    model = _model(path[:-1])
    kind = model.model_fields[path[-1]].annotation if model else None
    return get_args(kind) if get_origin(kind) is Literal else ()


def _rule(path: KeyPath) -> str:
    if len(path) == 3 and path[:2] == ("train", "longer"):
        return "must be an integer in [1, 10^9]"
    model = _model(path[:-1]) if path else None
    if model is None and (section := _model(path[:-2])) and path[-2] in section.model_fields:
        return _rule(path[:-1])  # of the mapping that has the value
    if model is None or _model(path):
        return "must be a mapping"
    if allowed := _allowed(path):
        return f"must be one of {', '.join(allowed)}"
    return f"must be {model.model_fields[path[-1]].description or 'a mapping'}"


def _hint(path: KeyPath, value: object) -> str:
    """Return the probable intention behind a wrong value as text; "" if unknown."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?0\d+(\.\d*)?", value, re.ASCII):
        return ": a number has no leading zeros"
    allowed = _allowed(path) if path else ()
    hint = nearest(value, allowed) if isinstance(value, str) else ""
    return hint if "did you mean" in hint else ""


def _nearest_key(path: KeyPath) -> str:
    """Return the nearest key of this level, or a key of the same name in another section, as a hint."""
    model = _model(path[:-1])
    here = list(model.model_fields) if model else []
    hint = nearest(path[-1], here)
    if "did you mean" in hint:
        return hint
    for section in ((), *((key,) for key in Settings.model_fields)):
        other = _model(section)
        if other and path[-1] in other.model_fields:
            return f"; did you mean {'.'.join((*section, path[-1]))!r}?"
    return hint
