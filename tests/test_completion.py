"""Completion by each shell's own call, in folders with a study, without one and with a damaged one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ahf_cli.cli import main
from ahf_cli.config.load import load, presets
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.tasks.catalogue import MODELS
from ahf_cli.tasks.datasets import DATA_SETS
from tests.processes import ROOT, environment
from tests.studies import write_study

SHELLS = ("bash", "zsh", "fish")
Complete = Callable[..., list[str]]


def variables(shell: str, words: list[str]) -> dict[str, str]:
    """Return the environment that a shell's function gives the program; bash splits words at `=`."""
    variable = {"_AHF_COMPLETE": f"complete_{shell}", "_AHF_KEY": ""}
    if shell == "bash":
        split = [part for word in words[:-1] for part in re.split("(=)", word) if part]
        last = [part for part in re.split("(=)", words[-1]) if part] or [""]
        split += last
        return {**variable, "COMP_WORDS": "\n".join(split), "COMP_CWORD": str(len(split) - 1)}
    action = {"_TYPER_COMPLETE_FISH_ACTION": "get-args"} if shell == "fish" else {}
    return {**variable, **action, "_TYPER_COMPLETE_ARGS": " ".join(words)}


@pytest.fixture
def complete(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Complete:
    """Return a function of a shell and words after `ahf`, the last one incomplete, to the offered names."""

    def offered(shell: str, *words: str) -> list[str]:
        for name, value in variables(shell, ["ahf", *words]).items():
            monkeypatch.setenv(name, value)
        assert main([]) == 0
        said = capsys.readouterr()
        assert said.err == ""
        if shell == "zsh":
            return re.findall(r'^[^"\n]*"([^"]*)"', said.out, re.M)  # the rest of a line is help
        return [line.partition("\t")[0] for line in said.out.splitlines() if line]

    return offered


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a results folder here, with a study, a packed reference study and a damaged study."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results"
    write_study(folder, "mine", {"hf": 2, "adam": 1}, {"hf": [0.3, 0.4], "adam": [0.2]})
    (folder / "reference").mkdir()
    (folder / "reference" / "quick").symlink_to(ROOT / "results" / "reference" / "quick")
    (folder / "torn").mkdir()
    (folder / "torn" / "manifest.json").write_text('{"plan": ')
    return folder


def beginning(start: str, names: object) -> list[str]:
    assert hasattr(names, "__iter__")
    found = [str(name) for name in names if str(name).startswith(start)]
    assert found
    return found


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize("shell", SHELLS)
def test_names_are_offered_where_they_are_due(shell: str, complete: Complete) -> None:
    due = {
        "doct": ["doctor"],
        "train hf": beginning("hf", RECIPES),
        "search --recipe ad": beginning("ad", RECIPES),
        "search --preset ratio --recipe hf": [],
        "search --preset quick --recipe hf_g": beginning("hf_g", load("quick").recipe_names),
        "prerun --recipe adaptive": beginning("adaptive", RECIPES),
        "search --preset p": beginning("p", presets()),
        "search --study ": ["mine", "torn"],
        "worker --study m": ["mine"],
        "rm q": [],
        "show ": ["mine", "torn", "quick"],
        "status --study q": ["quick"],
        "compare --study mine --study q": ["quick"],
        "compare --study new=m": ["new=mine"],
        "leaderboard mine q": ["quick"],
        "ls m": ["models", "mine"],
        "show mine ": ["hf/000", "hf/001", "adam/000"],
        "show mine adam": ["adam/000"],
        "show quick hf/": ["hf/000", "hf/001", "hf/002", "hf/003"],
        "show torn ": [],
        "show none ": [],
        "pack mine --without-steps a": ["adam"],
        "data fetch cifar": ["cifar10", "cifar100"],
        "train hf -o task.data=fa": [f"task.data={name}" for name in beginning("fa", DATA_SETS)],
        "train hf -o task.model=": [f"task.model={name}" for name in MODELS],
        "train hf -o task.mo": [f"task.model={name}" for name in MODELS],
        "train hf -o train.steps=": [],
        "train -o train.steps=5 hf_st": ["hf_stable"],
        "show mine --results nowhere ": [],
    }
    for line, expected in due.items():
        words = line.split(" ")
        if shell == "bash" and "=" in words[-1]:  # it replaces the text after `=` alone
            expected = [name.rpartition("=")[2] for name in expected]
        assert complete(shell, *words) == expected, line


@pytest.mark.parametrize("shell", SHELLS)
def test_an_empty_folder_offers_no_study_and_no_error(
    shell: str, complete: Complete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("a: [")
    for line in ("show ", "show x hf", "rm ", "pack ", "compare --study ", "search --study ", "nosuch x",
                 "search --config broken.yaml --recipe ", "search --config none.yaml --recipe "):  # fmt: skip
        assert complete(shell, *line.split(" ")) == [], line
    assert complete(shell, "train", "hf_stab") == ["hf_stable"]
    assert [path.name for path in tmp_path.iterdir()] == ["broken.yaml"]


def test_an_option_with_its_value_in_one_word_is_completed_in_bash(complete: Complete) -> None:
    assert complete("bash", "search", "--preset=quic") == ["quick"]
    assert complete("bash", "search", "--preset=quick", "--recipe", "hf_ggn") == ["hf_ggn"]


HEAVY = {"torch", "optuna", "pandas", "pyarrow", "matplotlib", "torchvision", "numpy"}
ALL = """
import json, os, sys
from ahf_cli.cli import main
for variables in json.loads(sys.argv[1]):
    os.environ |= variables
    assert main([]) == 0
print(*sys.modules, file=sys.stderr)
"""


@pytest.mark.usefixtures("results")
def test_a_completion_imports_nothing_slow() -> None:
    lines = ("show quick hf/", "search --preset quick --recipe h", "train -o task.model=", "rm m")
    each = json.dumps([variables("fish", ["ahf", *line.split(" ")]) for line in lines])
    done = subprocess.run(
        [sys.executable, "-c", ALL, each], capture_output=True, text=True, env=environment(), check=True
    )
    assert {"hf/000", "hf_ggn", "task.model=lenet", "mine"} <= set(done.stdout.split())
    assert "typer" in done.stderr.split() and not HEAVY & set(done.stderr.split())


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_bash_itself_completes_by_the_script_that_ahf_prints(tmp_path: Path) -> None:
    program = tmp_path / "ahf"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ahf_cli "$@"\n')
    program.chmod(0o755)
    script = (
        "source <(ahf --show-completion bash)\nCOMP_WORDS=(ahf train -o task.data = fa)\nCOMP_CWORD=5\n"
        '_ahf_completion ahf\necho "${COMPREPLY[*]}"'
    )
    env = environment({"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"})
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env)
    assert done.stderr == "" and done.stdout.split() == beginning("fa", DATA_SETS)
