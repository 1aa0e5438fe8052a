"""The README: its example, its configuration, its commands and its links."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ahf_cli.cli import main
from ahf_cli.config.load import load, presets

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def test_the_python_example_descends() -> None:
    done = subprocess.run([sys.executable, "-c", block("python")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    losses = [float(value) for value in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert len(losses) == 20 and losses[-1] < 0.05 * losses[0]


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "ratio.yaml"
    file.write_text(block("yaml"))
    config = load(file=file)
    assert config.recipe("hf_ggn_update").choices.reduction_ratio == "update"
    assert config.space("hf_ggn_update")["lr"].low == 0.01


@pytest.mark.parametrize("command", sorted(set(re.findall(r"ahf (\w+)", README))))
def test_every_command_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "Usage: ahf" in capsys.readouterr().out


def test_every_link_and_preset_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) >= 3
    for link in links:
        assert (ROOT / link).exists(), link
    assert {"smoke", "quick", "paper"} <= presets().keys()
    for name in presets():
        assert load(name).study == name
