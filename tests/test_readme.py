"""The README and the pages beside it: examples, commands, links and sentences."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ahf_cli.cli import main
from ahf_cli.config.load import load

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = sorted(page for page in (ROOT / "docs").rglob("*.md") if "templates" not in page.parts)
PAGES = [ROOT / "README.md", ROOT / "results" / "README.md", *DOCS]
ADDED = {"prerun": "--preset smoke", "search": "--preset smoke", "compare": "--preset smoke"}
"""arguments that a test adds to a command that takes hours"""


def blocks(text: str, language: str = "") -> list[str]:
    return [code for name, code in re.findall(r"^```(\S*)\n(.*?)^```", text, re.M | re.S) if name == language]


def commands(text: str) -> list[str]:
    """Return the lines of all shell blocks without their comments."""
    lines = "".join(blocks(text)).splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a page without code, tables, headings and addresses of links."""
    text = re.sub(r"^```.*?^```|<!--.*?-->", "\n\n", text, flags=re.M | re.S)
    text = re.sub(r"^(\||#|!\[).*$", "\n\n", text, flags=re.M)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return [part.strip() for part in re.split(r"\n\s*\n|^- ", text, flags=re.M) if part.strip()]


def sentences(text: str) -> list[str]:
    return [s for part in paragraphs(text) for s in re.split(r"(?<=[.:?])\s+", part)]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120
    long = [s for s in sentences(README) if len(s.split()) > 25]
    assert not long, long
    assert max(len(part.split()) for part in paragraphs(README)) <= 80


def test_the_python_example_descends() -> None:
    (code,) = blocks(README, "python")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    losses = [float(value) for value in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert len(losses) == 20 and losses[-1] < 0.05 * losses[0]


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    (code,) = blocks((ROOT / "docs" / "plugins.md").read_text(), "yaml")
    file = tmp_path / "ratio.yaml"
    file.write_text(code)
    config = load(file=file)
    assert config.recipe("hf_ggn_update").choices.reduction_ratio == "update"
    assert config.space("hf_ggn_update")["lr"].low == 0.01


NAMED = sorted({name for page in PAGES for name in re.findall(r"`ahf (\w+)", page.read_text())})


@pytest.mark.parametrize("command", NAMED)
def test_every_command_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "Usage: ahf" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert re.match(r"https?://", link) or (page.parent / link).exists(), link


@pytest.mark.long
def test_every_command_of_the_readme_runs(tmp_path: Path) -> None:
    """As typed, one after the other; `make test` is this suite, and stands in no block."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    typed = commands(README)
    assert {line.split()[0] for line in typed} == {"make", "source", "ahf"}
    for line in typed:
        if line.startswith("source"):
            assert line == "source .venv/bin/activate"
            continue
        place = ROOT if line.startswith("make") else tmp_path
        whole = f"{line} {ADDED.get(line.split()[1], '')}" if line.startswith("ahf") else line
        done = subprocess.run(
            whole, shell=True, cwd=place, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{whole}\n{done.stderr}"
        assert done.stdout or done.stderr or line.startswith("make"), whole
    report = tmp_path / "results" / "smoke" / "report" / "figures"
    assert (report / "figure2.png").stat().st_size > 10_000
    assert list((tmp_path / "results" / "smoke" / "prerun" / "figures").glob("*.png"))
