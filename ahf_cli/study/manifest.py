"""The content of `manifest.json`: its schema, and the differences between two of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ahf_cli.errors import InputError
from ahf_cli.study.files import strict
from ahf_cli.study.opening import DamagedError

SCHEMA = 1
"""Version of the layout on disk."""

SESSION_KEYS = ("command", "commit", "dirty", "versions", "numerics", "device", "threads", "host")
"""Keys that may change from one session of a study to the next; each session keeps its own."""


PRERUN = r"prerun(-[A-Za-z0-9._-]{1,57})?"
"""Names of the folders that hold a pre-run."""
FILES = rf"^(plugins/[A-Za-z0-9_][A-Za-z0-9._-]*\.py|{PRERUN}/(config\.yaml|manifest\.json|ranges\.yaml))$"
"""Places of the small files that a packed study carries in its manifest."""
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
Name = Annotated[str, Field(pattern=f"^{NAME}$")]
Key = Annotated[str, Field(max_length=200)]
Scalar = str | int | float | bool | None
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Plan = dict[Name, Count]


def check_name(name: str, what: str = "study") -> str:
    """Return the name, or raise InputError: names become folders, so they are never paths."""
    if not re.fullmatch(NAME, name):
        raise InputError(
            f"{what} name must be 1 to 64 letters, digits, '.', '_' or '-' "
            f"and begin with a letter or digit, got {name!r}"
        )
    return name


class _Part(BaseModel):
    """A mapping whose known keys have types; others are kept and not read."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Space(_Part):
    low: float
    high: float
    log: bool = False


class _Recipe(_Part):
    structure: dict[Key, Scalar | dict[Key, Scalar | list[Scalar]]] = {}
    """choices; a class has its arguments by name"""
    fixed: dict[Key, float] = {}


class _Task(_Part):
    data: str | None = None
    model: str | None = None
    loss: str | None = None
    split: str | None = None
    batch_size: int | None = None
    subset: int | None = None


class _Train(_Part):
    steps: int | None = None
    epochs: float | None = None
    longer: dict[Key, int] = {}


class _Search(_Part):
    design: str = "paper"
    sampler: str = "tpe"
    objective: str = "train_loss"
    seeds: str | int = "one"
    repeats: int = 1


class _Identity(_Part):
    seed: int | float = 0
    task: _Task = _Task()
    train: _Train = _Train()
    search: _Search = _Search()
    recipes: dict[Name, _Recipe] = {}
    spaces: dict[Name, dict[Key, _Space]] = {}
    plugins: dict[Key, str] = {}
    contrasts: list[list[Name]] = []
    params: dict[Key, float] = {}


class _Session(_Part):
    started: str = ""
    command: str = ""
    commit: str | None = None
    dirty: bool | None = None
    versions: dict[Key, str | None] = {}
    numerics: str = "pytorch"
    device: str | None = None
    host: str | None = None


class TableFile(BaseModel):
    """One table of a packed study, as it was written."""

    model_config = ConfigDict(extra="forbid", strict=True)
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Packed(BaseModel):
    """The section `packed` of a packed study's manifest."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: Literal[1]
    tables: dict[Literal["trials", "curves", "steps", "weights"], TableFile]
    partial: bool = False
    without_steps: list[Name] = []
    """recipes whose steps were left out"""
    files: dict[Annotated[str, Field(pattern=FILES)], str] = {}
    """the content of small files, by their place in the study's folder"""


class _Metric(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,40}$")]
    label: Annotated[str, Field(min_length=1, max_length=80)]
    better: Literal["lower", "higher"]
    unit: Annotated[str, Field(max_length=80)]
    short: Annotated[str, Field(max_length=40)]
    top: Annotated[float, Field(gt=0)] | None = None
    baseline: float | None = None
    bar: float | None = None
    log: bool = False


class _Manifest(_Part):
    schema_: Annotated[int, Field(alias="schema", ge=1)]
    name: str = ""
    created: str = ""
    identity: _Identity = _Identity()
    plan: Plan = {}
    rerun_plan: Plan = {}
    sessions: list[_Session] = []
    metrics: list[_Metric] = []
    packed: Packed | None = None


def checked(file: Path, content: Any) -> dict[str, Any]:
    """Return the content of a manifest, unchanged.

    Raises:
        DamagedError: it does not follow the schema; the line names the first key that does not.
        InputError: it is of a later version.
    """
    schema = content.get("schema") if isinstance(content, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise InputError(f"{file} has schema {schema}, and this version of ahf reads up to {SCHEMA}")
    try:
        _Manifest.model_validate(content)
    except ValidationError as error:
        raise DamagedError(file, rule_of(error)) from None
    return dict(content)


def rule_of(error: ValidationError) -> str:
    """Return the first key that does not follow a schema, the rule and the value, in one line."""
    found = error.errors(include_url=False)[0]
    key = ".".join(map(str, found["loc"])) or "the file"
    got = repr(found["input"])
    got = got if len(got) <= 80 else f"{got[:77]}…"
    rule = found["msg"].replace("Input should", "must").partition(" or instance of")[0]
    return f"{key}: {rule[:1].lower()}{rule[1:]}, got {got}"


def first(name: str, identity: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of a new study."""
    now = _now()
    head = {"schema": SCHEMA, "name": name, "created": now, "identity": identity, "plan": {}}
    return {**head, **given, "sessions": [session(now, given)]}


def following(
    before: Mapping[str, Any], identity: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the manifest of a study that is resumed: it only grows, and a session is added."""
    plans = {}
    for key in ("plan", "rerun_plan"):
        old, new = before.get(key, {}), given.get(key, {})
        if old or new:
            plans[key] = {**old, **{recipe: max(n, old.get(recipe, 0)) for recipe, n in new.items()}}
    sessions = [*before.get("sessions", []), session(_now(), given)]
    return {**before, "identity": identity, **plans, "sessions": sessions}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def session(now: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of one session."""
    return {"started": now, **{k: given[k] for k in SESSION_KEYS if k in given}}


def refuse_other(name: str, on_disk: Mapping[str, object], asked: Mapping[str, object]) -> None:
    """Raise InputError if an identity differs from the one on disk, with one line for each difference.

    More recipes than those on disk, with their spaces, are no difference: the study grows by them.
    """
    different = _differences(on_disk, _of_recipes(asked, on_disk))
    if different:
        raise InputError([f"study {name!r} exists with other settings; use another name:", *different])


def refuse_mixture(before: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise InputError if earlier sessions of a study computed by another numerical path than this one."""
    earlier = {s.get("numerics", "pytorch") for s in before.get("sessions", [])} - {given["numerics"]}
    if earlier:
        raise InputError(
            f"study {before.get('name', '')!r} holds trials whose numerics are {', '.join(sorted(earlier))}, "
            f"and this process computes by {given['numerics']}; -o run.mix_numerics=true goes on all the same"
        )


def _of_recipes(identity: Mapping[str, object], before: Mapping[str, object]) -> dict[str, object]:
    """Return an identity with only the recipes of the one before it."""
    names, own = before.get("recipes"), identity.get("recipes")
    if not isinstance(names, Mapping) or not isinstance(own, Mapping) or set(own) <= set(names):
        return dict(identity)

    def kept(section: object, by: Mapping[str, object]) -> dict[str, object]:
        found = section if isinstance(section, Mapping) else {}
        return {key: value for key, value in found.items() if key in by}

    found = {**identity, **{key: kept(identity.get(key), names) for key in ("recipes", "spaces")}}
    train = identity.get("train")
    if isinstance(train, Mapping) and "longer" in train:
        longer = kept(train["longer"], names)
        found["train"] = {k: v for k, v in train.items() if k != "longer"} | (
            {"longer": longer} if longer else {}
        )
    plugins = before.get("plugins")
    known = kept(identity.get("plugins"), plugins if isinstance(plugins, Mapping) else {})
    return {**{k: v for k, v in found.items() if k != "plugins"}, **({"plugins": known} if known else {})}


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping as it is after a way through JSON."""
    return dict(json.loads(json.dumps(strict(value))))


def _flatten(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, Mapping) or (prefix and not value):
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _differences(on_disk: Mapping[str, object], asked: Mapping[str, object]) -> list[str]:
    """One line per key that differs, as `key: on disk X, asked for Y`."""
    old, new = _flatten(on_disk), _flatten(asked)

    def said(flat: Mapping[str, object], key: str) -> str:
        return json.dumps(flat[key], ensure_ascii=False) if key in flat else "nothing"

    return [
        f"{key}: on disk {said(old, key)}, asked for {said(new, key)}"
        for key in dict.fromkeys([*old, *new])
        if key not in old or key not in new or old[key] != new[key]
    ]
