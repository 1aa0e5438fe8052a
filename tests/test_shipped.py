"""`ahf config cp` and `ahf config example`: whole copies, and one line for each wrong name or place."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from ahf_cli.cli import main
from ahf_cli.config.load import load
from ahf_cli.config.shipped import examples
from tests.processes import ROOT

FOLDER = ROOT / "examples"
FILES = sorted(path.name for path in FOLDER.iterdir() if path.is_file())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with the file `there`, a link to nothing and a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("mine")
    (tmp_path / "link").symlink_to("nothing")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "file", "source"),
    [
        ("cp fair my.yaml", "my.yaml", "configs/fair.yaml"),
        ("cp quick folder", "folder/quick.yaml", "configs/quick.yaml"),
        ("example spirals.py", "spirals.py", "examples/spirals.py"),
        ("example spirals.yaml folder", "folder/spirals.yaml", "examples/spirals.yaml"),
        ("example notebook.py own.py", "own.py", "examples/notebook.py"),
    ],
)
def test_a_copy_has_every_byte_and_its_name_is_printed(
    words: str, file: str, source: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", *words.split()]) == 0
    assert capsys.readouterr() == (f"{file}\n", "")
    assert (here / file).read_bytes() == (ROOT / source).read_bytes()


def test_the_copy_of_a_preset_is_its_configuration(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "cp", "quick", "new.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"preset": "quick", "file": "new.yaml"}
    assert load(file=Path("new.yaml")).identity() == load("quick").identity()
    assert load(file=Path("new.yaml")).study == "new"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("cp quik new", "unknown preset 'quik'; did you mean 'quick'?"),
        ("cp configs/quick.yaml new", "unknown preset 'configs/quick.yaml'; "),
        ("cp quick there", "there exists and is not overwritten; give another name"),
        ("cp quick link", "link exists and is not overwritten; give another name"),
        ("cp quick none/new", "none/new: the folder none does not exist"),
        ("cp quick there/new", "there/new: the folder there does not exist"),
        ("example spiral.py new", "unknown example 'spiral.py'; did you mean 'spirals.py'?"),
        ("example ../pyproject.toml new", "unknown example '../pyproject.toml'; known: autoencoder.py, "),
        ("example spirals.py there", "there exists and is not overwritten; give another name"),
        ("example spirals.py none/new", "none/new: the folder none does not exist"),
    ],
)
def test_a_wrong_name_or_place_is_one_line_and_changes_no_file(
    words: str, line: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.rglob("*"))
    assert main(["config", *words.split()]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"ahf: {line}") and said.err.count("\n") == 1
    assert sorted(here.rglob("*")) == before and (here / "there").read_text() == "mine"


def test_examples_are_listed_with_their_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "example", "--json"]) == 0
    listed = {entry["name"]: entry["purpose"] for entry in json.loads(capsys.readouterr().out)}
    assert list(listed) == FILES == list(examples()) and len(FILES) > 8
    for name, purpose in listed.items():
        opening = " ".join((FOLDER / name).read_text().replace("\n# ", " ").lstrip('"# ').split())
        assert len(purpose.split()) > 5 and opening.startswith(purpose)
    assert main(["config", "example"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == FILES


def test_the_wheel_has_the_files_of_both_folders() -> None:
    """Setuptools takes the modules of a listed package, and other files by their patterns."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for package, folder in (("ahf_cli.configs", "configs"), ("ahf_cli.examples", "examples")):
        assert package in tool["packages"] and tool["package-dir"][package] == folder
        patterns = [*tool["package-data"][package], "*.py"]
        files = [path for path in (ROOT / folder).iterdir() if path.is_file()]
        assert files and all(any(path.match(pattern) for pattern in patterns) for path in files)


def searches() -> list[str]:
    """Return the `ahf search` commands in the heads of presets and in the pages, with a configuration."""
    files = [*sorted((ROOT / "configs").glob("*.yaml")), *sorted((ROOT / "docs").glob("*.md"))]
    texts = [re.sub(r"\\\n#? *", "", path.read_text()) for path in files]
    lines = [line for text in texts for line in re.findall(r"^(?:# {5}|\$ )?(ahf search .*)$", text, re.M)]
    return [line for line in lines if "--preset" in line and "OPTIONS" not in line]


def test_each_printed_search_has_a_valid_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    commands = searches()
    assert len(commands) > 20
    for command in commands:
        words = re.sub(r" --(?:log|results) \S+| --dry-run| -q", "", command.split("  #")[0])
        words = words.replace("--design ", "-o search.design=")
        code = main(["config", "show", *shlex.split(words)[2:]])
        assert code == 0, f"{command}: {capsys.readouterr().err}"
