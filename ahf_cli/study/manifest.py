"""What `manifest.json` says, and how two of them differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ahf_cli.errors import InputError
from ahf_cli.study.files import strict

SESSION_KEYS = ("command", "commit", "dirty", "versions", "device", "threads", "host")
"""What may change from one session of a study to the next, and is kept for each."""


def first(
    name: str, schema: int, now: str, identity: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the manifest of a new study."""
    head = {"schema": schema, "name": name, "created": now, "identity": identity, "plan": {}}
    return {**head, **given, "sessions": [session(now, given)]}


def following(
    before: Mapping[str, Any], now: str, identity: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the manifest of a study that is resumed: it only grows, and a session is added."""
    plans = {}
    for key in ("plan", "rerun_plan"):
        old, new = before.get(key, {}), given.get(key, {})
        if old or new:
            plans[key] = {**old, **{recipe: max(n, old.get(recipe, 0)) for recipe, n in new.items()}}
    sessions = [*before.get("sessions", []), session(now, given)]
    return {**before, "identity": identity, **plans, "sessions": sessions}


def session(now: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of one session."""
    return {"started": now, **{k: given[k] for k in SESSION_KEYS if k in given}}


def refuse_other(name: str, on_disk: Mapping[str, object], asked: Mapping[str, object]) -> None:
    """Raise InputError where two identities differ in what is on disk, with one line for each difference.

    More recipes than those on disk, with their spaces, are no difference: the study grows by them.
    """
    different = _differences(on_disk, _of_recipes(asked, on_disk))
    if different:
        raise InputError([f"study {name!r} exists with other settings; use another name:", *different])


def _of_recipes(identity: Mapping[str, object], before: Mapping[str, object]) -> dict[str, object]:
    """Return an identity without what it says of other recipes than those of the one before it."""
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
    """Return what a mapping reads as after a way through JSON."""
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
