"""`ahf doctor`: its page, its exit code, each reason that prevents training, and paths without names."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ahf_cli.cli import main
from ahf_cli.training import installation
from ahf_cli.training.installation import LEAST_FREE, without_home
from tests.fashion_mnist import system_folder, write

Patch = pytest.MonkeyPatch


@pytest.fixture
def usable(bare: Path, contents: dict[str, bytes], monkeypatch: Patch) -> Path:
    """Return a home folder, with the small Fashion-MNIST and a disk that is not full."""
    write(system_folder(), contents)
    monkeypatch.setenv("HOME", str(bare))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=12e9))
    monkeypatch.chdir(bare)
    return bare


def examined(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any, str]:
    """Return exit code, JSON document and error lines of `ahf doctor --json`."""
    code = main(["doctor", "--json", *words])
    said = capsys.readouterr()
    return code, json.loads(said.out), said.err


def test_a_usable_installation_is_one_aligned_page(usable: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--results", str(usable / "mine")]) == 0
    said = capsys.readouterr()
    *lines, last = said.out.splitlines()
    assert (last, said.err) == ("ahf can train here", "")
    heads = [line.split()[0] for line in lines if line[0] != " "]
    assert heads == [
        "ahf",
        "Python",
        "packages",
        "platform",
        "threads",
        "device",
        "numerics",
        "data",
        "results",
    ]
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    assert all(line[9] == " " and line[10] != " " for line in lines)
    assert f"torch {torch.__version__.partition('+')[0]}" in said.out
    assert "data      Fashion-MNIST: verified in ~/system/share/datasets/fashion-mnist" in lines
    assert "results   ~/mine: 12.0 GB free" in lines
    assert str(usable) not in said.out and not (usable / "mine").exists()


def nothing(path: Path, patch: Patch) -> None:
    """Leave the installation as it is."""


def no_data(path: Path, patch: Patch) -> None:
    patch.setenv("AHF_DATA_DIR", str(path / "nowhere"))


def damaged(path: Path, patch: Patch) -> None:
    (system_folder() / "t10k-labels-idx1-ubyte.gz").write_bytes(b"none")


def full(path: Path, patch: Patch) -> None:
    patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=LEAST_FREE - 1))


def read_only(path: Path, patch: Patch) -> None:
    patch.setattr(os, "access", lambda path, mode: False)


def a_file(path: Path, patch: Patch) -> None:
    (path / "results").write_text("")


def threads(path: Path, patch: Patch) -> None:
    patch.setenv("OMP_NUM_THREADS", "two")


def absent(path: Path, patch: Patch) -> None:
    patch.setattr(installation, "version", lambda name: None if name == "optuna" else "1.0")


def unfit(path: Path, patch: Patch) -> None:
    real = importlib.import_module

    def load(name: str) -> Any:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nand more")
        return real(name)

    patch.setattr(importlib, "import_module", load)
    patch.setattr(installation, "version", lambda name: "1.0")


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (nothing, ""),
        (no_data, "data: data folder ~/nowhere does not exist"),
        (damaged, "data: ~/system/share/datasets/fashion-mnist/t10k-labels-idx1-ubyte.gz is damaged"),
        (full, "results: ~ must have at least 100 MB of free disk, has 100.0 MB"),
        (read_only, "results: ~ must be a folder that this user may write"),
        (a_file, "results: ~/results must be a folder"),
        (threads, "threads: OMP_NUM_THREADS must be an integer in [1, 1024], got two"),
        (absent, "versions: optuna is not installed"),
        (
            unfit,
            "versions: torchvision 1.0 cannot be imported: operator torchvision::nms does not exist",
        ),
    ],
)  # fmt: skip
def test_each_fault_that_prevents_training_is_named(
    broken: Callable[[Path, Patch], None],
    problem: str,
    usable: Path,
    monkeypatch: Patch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken(usable, monkeypatch)
    code, found, err = examined(capsys)
    assert code == (1 if problem else 0) and found["ready"] is not bool(problem)
    assert err == "".join(f"ahf: {line}\n" for line in found["problems"])
    assert [line.startswith(problem) for line in found["problems"]] == ([True] if problem else [])
    named = [key for key, section in found.items() if isinstance(section, dict) and section["problem"]]
    assert named == ([problem.partition(":")[0]] if problem else [])


def test_a_device_has_a_name_and_memory_or_a_reason(
    usable: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system. Please install one\nfrom there")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert examined(capsys)[1]["device"]["reason"] == "Found no NVIDIA driver on your system"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert examined(capsys)[1]["device"]["reason"] == "this build of PyTorch is for the CPU alone"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    gpu = SimpleNamespace(name="H100", total_memory=80e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: gpu)
    assert examined(capsys)[1]["device"] == {
        "name": "cuda", "gpus": [{"name": "H100", "gigabytes": 80.0}], "reason": None, "problem": None,
    }  # fmt: skip
    assert main(["doctor"]) == 0
    assert "device    cuda: H100 with 80.0 GB\n" in capsys.readouterr().out


def test_a_home_folder_is_replaced_and_no_other_folder(monkeypatch: Patch, tmp_path: Path) -> None:
    home = tmp_path / "al"
    monkeypatch.setenv("HOME", str(home))
    texts = {
        f"{home}": "~",
        f"in {home}/x, not {home}.": "in ~/x, not ~.",
        f"{home}ice/x": f"{home}ice/x",
        f"{home}.old": f"{home}.old",
        f"/mnt{home}": f"/mnt{home}",
    }
    for text, expected in texts.items():
        assert without_home({"a": [text, 1, None]}) == {"a": [expected, 1, None]}
    monkeypatch.setenv("HOME", "/")
    assert without_home("/usr") == "/usr"
