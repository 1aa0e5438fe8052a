"""YAML, read strictly and written; no other module imports a YAML library."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import yaml

from ahf_cli.config.schema import show
from ahf_cli.errors import InputError

_YAML = "tag:yaml.org,2002:"


class _StrictLoader(yaml.SafeLoader):
    """A loader that keeps numbers, dates and keys as text: the schema knows their types.

    It records duplicate keys, of which YAML would silently keep the last.
    """

    yaml_implicit_resolvers = {}

    def __init__(self, stream: str | bytes):
        super().__init__(stream)
        self.problems: list[tuple[int, str]] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag == f"{_YAML}merge" or not isinstance(key, yaml.ScalarNode):  # refused when it is built
                continue
            key.tag = f"{_YAML}str"
            if key.value in seen:
                self.problems.append(
                    (line, f"key {key.value!r} appears twice, first in line {seen[key.value]}")
                )
            else:
                seen[key.value] = line
        return node


for _kind, _pattern in (("null", r"~|null|Null|NULL|"), ("bool", r"true|True|TRUE|false|False|FALSE")):
    _StrictLoader.add_implicit_resolver(f"{_YAML}{_kind}", re.compile(rf"(?:{_pattern})\Z"), None)
_StrictLoader.add_implicit_resolver(f"{_YAML}merge", re.compile(r"<<\Z"), ["<"])
for _kind in ("int", "float", "timestamp"):  # for an explicit tag, such as !!int 010
    _StrictLoader.add_constructor(f"{_YAML}{_kind}", lambda loader, node: node.value)


def parse_value(content: str | bytes, source: str) -> Any:
    """Parse one YAML value; raises InputError with the source and the line."""
    try:
        loader = _StrictLoader(content)
        data = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{source}{line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # invalid bytes, long numbers, deep nesting
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{source}: not valid YAML: {reason}") from None
    if loader.problems:
        raise InputError(f"{source}:{line}: {message}" for line, message in sorted(loader.problems))
    return data


def parse_yaml(content: str | bytes, source: str) -> dict[str, Any]:
    """Parse YAML whose top level is a mapping; keys are strings and appear once."""
    data = parse_value(content, source)
    if not isinstance(data, dict):
        raise InputError(f"{source}: the top level must be a mapping of keys to values, got {show(data)}")
    return data


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Return plain data as YAML, keys in the given order."""
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)


def read_yaml(file: pathlib.Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping, strictly."""
    return parse_yaml(read_file(file), str(file))


def read_file(file: pathlib.Path) -> bytes:
    """Return the content of a file that the user names; raises InputError if it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
