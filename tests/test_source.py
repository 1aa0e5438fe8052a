"""Two commits count as one where their training code is equal."""

import subprocess
import sys
from pathlib import Path

import pytest

from ahf_cli.training import environment
from ahf_cli.training.environment import TRAINING, same_training


@pytest.fixture
def commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a first commit, one that changes a text, and one that changes training code."""
    monkeypatch.setattr(environment, "ROOT", tmp_path)

    def git(*words: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@t"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *who, *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "-q")
    found = []
    for name, text in (("ahf_cli/optim/cg.py", "1"), ("README.md", "a"), ("ahf_cli/optim/cg.py", "2")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        git("add", "-A")
        git("commit", "-qm", name)
        found.append(git("rev-parse", "HEAD"))
    return found


def test_commits_are_alike_where_only_other_files_differ(commits: list[str]) -> None:
    first, text, training = commits
    assert same_training(first, text) and same_training(text, first)
    assert not same_training(text, training) and not same_training(first, training)


def test_a_commit_that_git_does_not_know_is_not_alike(commits: list[str], tmp_path: Path) -> None:
    assert not same_training(commits[0], "b" * 40)


def test_without_git_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert not same_training("a" * 40, "b" * 40)
    assert environment.commit() == {"commit": None, "dirty": None}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not same_training("a" * 40, "b" * 40)


def test_everything_that_training_imports_is_watched() -> None:
    code = "import sys, ahf_cli.training.train, ahf_cli.search.sampler; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    ours = [name for name in modules if name.startswith("ahf_cli")]
    watched = [path.removesuffix(".py").replace("/", ".") for path in TRAINING]
    packages = {"ahf_cli", "ahf_cli.search", "ahf_cli.training"}
    assert "ahf_cli.optim.cg" in ours
    assert [m for m in ours if m not in packages and not m.startswith(tuple(watched))] == []
    assert all((environment.ROOT / path).exists() for path in TRAINING)
