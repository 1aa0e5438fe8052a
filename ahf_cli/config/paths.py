"""The dotted keys of overrides as paths of keys, and nested mappings with other values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ahf_cli.config.schema import Bounds, KeyPath
from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS


def key_path(key: str, value: object) -> KeyPath:
    """Split a dotted key; the name of a recipe may hold dots, so the known parts are taken from the end."""
    first, *rest = key.split(".")
    last = 0
    if first == "train" and rest[:1] == ["longer"]:
        return (first, "longer", *filter(None, [".".join(rest[1:])]))
    if first == "recipes" and "fixed" in rest[1:]:  # arguments of a class
        at = rest.index("fixed", 1)
        return (first, ".".join(rest[:at]), "fixed", *filter(None, [".".join(rest[at + 1 :])]))
    if first == "recipes" and not isinstance(value, dict):
        last = 1
    elif first == "spaces":
        last = 2 if rest[-1:] and rest[-1] in ("low", "high", "log") else 0
        bounds = isinstance(value, dict) and value and value.keys() <= Bounds.model_fields.keys()
        last = 1 if not last and rest[-1:] and (bounds or rest[-1] in HYPERPARAMETERS) else last
        if last and len(rest) > last + 1 and rest[-last].isdecimal():  # an element, such as betas.0
            rest[-last - 1 : len(rest) - last + 1] = [".".join(rest[-last - 1 : len(rest) - last + 1])]
    if first not in ("recipes", "spaces") or len(rest) <= last:
        return (first, *rest)
    cut = len(rest) - last
    return (first, ".".join(rest[:cut]), *rest[cut:])


def with_value(data: Mapping[str, Any], path: KeyPath, value: object) -> dict[str, Any]:
    """Copy nested mappings with one value set."""
    if len(path) == 1:
        return {**data, path[0]: value}
    inner = data.get(path[0])
    return {**data, path[0]: with_value(inner if isinstance(inner, Mapping) else {}, path[1:], value)}


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Copy nested mappings with the values of a second one set."""
    pairs = ((key, old.get(key), value) for key, value in new.items())
    both = {k: merged(a, b) for k, a, b in pairs if isinstance(a, Mapping) and isinstance(b, Mapping)}
    return {**old, **new, **both}
