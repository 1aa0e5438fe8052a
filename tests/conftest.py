"""Fixtures of several files: registries and data folders as on a fresh machine, and finished studies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ahf_cli import plugin
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS
from ahf_cli.recipes.parts import SLOTS
from ahf_cli.report import exhibits
from ahf_cli.report.canvas import Drawing
from ahf_cli.report.exhibits.exhibit import Choices
from ahf_cli.report.study_data import StudyData
from ahf_cli.study.find import find_study
from ahf_cli.study.pack import unpack
from ahf_cli.tasks import folder as folders
from ahf_cli.tasks.catalogue import LOSSES, MODELS
from ahf_cli.tasks.datasets import DATA_SETS
from ahf_cli.tasks.metrics import MEASURES
from ahf_cli.training import timing
from tests.fashion_mnist import FASHION, idx
from tests.searches import serial_pool

REFERENCE = Path(__file__).parents[1] / "results" / "reference"
REGISTRIES: tuple[dict[Any, Any], ...] = (
    RECIPES,
    HYPERPARAMETERS,
    *SLOTS.values(),
    MODELS,
    LOSSES,
    DATA_SETS,
    MEASURES,
    plugin.LOADED,
    plugin.ORIGIN,
)


@contextmanager
def kept_registries() -> Iterator[None]:
    """Remove each registration of the block after its end."""
    before = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, content in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(content)


@pytest.fixture(autouse=True)
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a search in this process measure its costs in one round of one step."""
    for name in ("ROUNDS", "WARM_UP", "STEPS", "REPEATS"):
        monkeypatch.setattr(timing, name, 1)


@pytest.fixture
def registries() -> Iterator[None]:
    """Remove each registration of the test after its end."""
    with kept_registries():
        yield


@pytest.fixture
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hide each data set of this machine."""
    monkeypatch.delenv("AHF_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(folders, "SYSTEM", tmp_path / "system")
    return tmp_path


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    """Return a results folder with the finished reference study `quick` in folders."""
    unpack(find_study(REFERENCE, "quick"), tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def contents() -> dict[str, bytes]:
    """Return the four files of a small Fashion-MNIST: 60 + 10 random images."""
    draw = np.random.default_rng(1)
    made = {}
    for prefix, count in (("train", 60), ("t10k", 10)):
        images = draw.integers(0, 256, (count, 28, 28), np.uint8)
        made[f"{prefix}-images-idx3-ubyte.gz"] = idx(images)
        made[f"{prefix}-labels-idx1-ubyte.gz"] = idx(np.arange(count, dtype=np.uint8) % 10)
    return made


@pytest.fixture
def bare(no_data: Path, monkeypatch: pytest.MonkeyPatch, contents: dict[str, bytes]) -> Path:
    """Hide each data set, and register the small files as Fashion-MNIST."""
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setitem(DATA_SETS, FASHION, replace(DATA_SETS[FASHION], files=files, training=60))
    return no_data


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the trials of each search in this process, without the start of workers."""
    monkeypatch.setattr("ahf_cli.search.run.process_pool", serial_pool)


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw figure 2 of each comparison and leave out the others."""
    whole = exhibits.drawings

    def second(data: StudyData, choices: Choices) -> tuple[list[Drawing], dict[str, str]]:
        drawn, missing = whole(data, choices)
        return [drawing for drawing in drawn if drawing.name == "figure2"], missing

    monkeypatch.setattr(exhibits, "drawings", second)
