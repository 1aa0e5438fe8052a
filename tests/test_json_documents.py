"""The page on `--json`: its commands run, and each part of a document has exactly the listed keys."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ahf_cli import cli
from ahf_cli.cli import main
from tests.processes import ROOT

PAGE = (ROOT / "docs" / "json.md").read_text()
READ, WRITE = PAGE.split("\n## ")[1:]
SMALL = [
    "-o",
    "task.subset=300",
    "-o",
    "task.batch_size=64",
    "-o",
    "train.steps=2",
    "-o",
    "train.eval_every=2",
]


def documented(section: str) -> dict[str, dict[str, set[str]]]:
    """Return the listed keys by command and part."""
    found: dict[str, dict[str, set[str]]] = {}
    for command, part, keys in re.findall(r"^\| (?:`ahf ([^`]+)` )?\| `([^`]+)` \| (.+) \|$", section, re.M):
        parts = found.setdefault(command, {}) if command else found[list(found)[-1]]
        parts[part] = set(re.findall("`([^`]+)`", keys))
    return found


def parts_of(document: Any, part: str) -> Iterator[Any]:
    """Return the values at a part's place, such as `recipes.*` or `files[].deviations[]`."""
    found = [document]
    for step in re.findall(r"\[\]|[^.\[\]]+", part):
        if step == "[]":
            found = [element for value in found for element in value]
        elif step == "*":
            found = [element for value in found for element in value.values()]
        else:
            found = [value[step] for value in found]
    yield from found


def assert_documented_keys(section: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run each command of a section, in its order, and compare keys."""
    for command, parts in documented(section).items():
        words = command.split()
        trains = "--preset" in words and words[0] != "config"
        assert main([*words, "--json", *(SMALL if trains else [])]) == 0, command
        document = json.loads(capsys.readouterr().out)
        for part, keys in parts.items():
            values = list(parts_of(document, part))
            assert values, f"{command}: {part} is empty"
            for value in values:
                assert set(value) == keys, f"{command}: {part}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, whose results hold the reference studies."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "reference").symlink_to(ROOT / "results" / "reference")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("here")
def test_commands_that_read_have_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert_documented_keys(READ, capsys)


@pytest.mark.long
@pytest.mark.usefixtures("here", "one_process")
def test_commands_that_train_or_write_have_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert_documented_keys(WRITE, capsys)


def test_every_command_with_the_option_is_on_the_page() -> None:
    commands = dict(cli.COMMANDS)
    for group in ("config", "data"):
        for member in cli.GROUPS[group].registered_commands:
            assert member.callback
            commands[f"{group} {member.name or member.callback.__name__}"] = member.callback
    printing = {n for n, command in commands.items() if "as_json" in inspect.signature(command).parameters}
    listed = {" ".join(line.split()[:2]) for line in (*documented(READ), *documented(WRITE))}
    named = {line if line.split()[0] in ("config", "data") else line.split()[0] for line in listed}
    assert len(printing) > 20 and named - {"compare"} == printing
