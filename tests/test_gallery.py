"""The gallery of figures: each exhibit has its picture, and the command that draws it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ahf_cli.cli import compare, main
from ahf_cli.errors import InputError
from ahf_cli.report.exhibits import figures
from tests.conftest import REFERENCE

GALLERY = (Path(__file__).parents[1] / "docs" / "gallery.md").read_text()
SHOWN = re.findall(
    r"!\[.+?\]\(\.\./results/reference/(\w+)/(\w+)\.png\)\n\n.+\n\n```\nahf (.+)\n```\n", GALLERY
)


def test_every_figure_of_the_program_is_in_the_gallery_once() -> None:
    assert sorted(name for _, name, _ in SHOWN) == sorted(figures())
    assert all((REFERENCE / study / f"{name}.png").stat().st_size <= 100_000 for study, name, _ in SHOWN)


@pytest.mark.parametrize(("study", "command"), sorted({(study, command) for study, _, command in SHOWN}))
def test_the_command_below_a_figure_is_valid_and_asks_for_it(
    study: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[compare.Request, tuple[compare.Part, ...]]] = []

    def make(request: compare.Request, parts: tuple[compare.Part, ...]) -> compare.Made:
        asked.append((request, parts))
        raise InputError("enough")

    monkeypatch.setattr(compare, "make", make)
    assert main(shlex.split(command)) == 2
    ((request, parts),) = asked
    assert parts == ("figures",) and request.out == Path("gallery") / study
    found = compare.comparison(request)  # a bare name is sought in results/ and in its reference/
    assert found.data.study.folder.name == study
    names = {name for _, name, own in SHOWN if own == command}
    assert found.choices.attribute or "attribution" not in names
    assert found.choices.target is not None or "time_to_target" not in names
