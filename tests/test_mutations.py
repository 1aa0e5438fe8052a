"""A study with changed files: each reading command ends with a known exit code and changes no file."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ahf_cli.study.store import Study
from benchmarks.reliability import mutations as module
from benchmarks.reliability.mutations import COMMANDS, files_of, mutated, mutations, small_study, tried
from tests.simulated_studies import simulate_study


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    small_study(folder)
    return folder


def test_changed_files_end_in_order(studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("ahf"), "disabled", True)
    places = files_of(studies / "s")
    assert len(places) >= 12 and len(COMMANDS) == 10
    assert all(len(mutations(studies / "s" / place)) >= 40 for place in places)
    found = mutated(studies, tmp_path / "scratch", 200)
    assert found["tried"] == 200 and found["failed"] == []


@pytest.mark.parametrize("place", ["config.yaml", "manifest.json", "trials/hf/000/result.json"])
def test_a_pipe_in_the_place_of_a_file_stops_no_command(
    place: str, studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 10)
    (pipe,) = (m for m in mutations(studies / "s" / place) if m[0] == "a pipe")
    for command in COMMANDS:
        assert tried(studies / "s", Path(place), pipe, command, tmp_path / "scratch") == ""


def test_a_changed_file_is_seen(studies: Path, tmp_path: Path) -> None:
    """A command that writes into the study fails the check."""
    study = studies / "s"
    writes = ("writes", lambda file: None)
    assert module.tried(study, Path("config.yaml"), writes, "show", tmp_path / "scratch") == ""
    module.COMMANDS["export inside"] = ["export", "s"]
    try:
        said = module.tried(study, Path("config.yaml"), writes, "export inside", tmp_path / "scratch")
    finally:
        del module.COMMANDS["export inside"]
    assert said.endswith("files changed")


@pytest.mark.usefixtures("one_figure")
@pytest.mark.parametrize("place", ["report", "trials", "trials/hf", ".lock", "study.db", "plugins"])
def test_nothing_is_written_through_a_link(tmp_path: Path, place: str) -> None:
    from ahf_cli.cli import main

    study = Study(tmp_path / "results", "s")
    simulate_study(tmp_path / "results", "s", trials=2, points=3, recipes=("hf",))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    target = outside if place not in (".lock", "study.db") else outside / "precious"
    path = study.folder / place
    if path.exists():
        path.rename(tmp_path / "moved") if not path.is_file() else path.unlink()
    path.symlink_to(target)
    words = ["--results", str(tmp_path / "results")]
    codes = [
        main([*command, *words])
        for command in (["repair", "s"], ["compare", "--study", "s"], ["export", "s"])
    ]
    assert codes[0] == 2 and set(codes) <= {0, 2, 3}
    assert [p.name for p in outside.iterdir()] == ["precious"] and (
        outside / "precious"
    ).read_text() == "mine"
