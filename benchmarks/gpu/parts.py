"""The parts: lists of commands. Each command resumes, or is repeated at little cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ahf_cli.training.environment import cores
from benchmarks.sections import SECTIONS

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("tests", "bench", "paper", "fair_epoch", "published")
STAY = frozenset({
    "test_command_line", "test_comparison_tables", "test_findings", "test_notebook", "test_pack",
    "test_readme", "test_reference_studies", "test_reliability", "test_show", "test_study_data",
    "test_summary",
    "test_layers", "test_page", "test_postgres",
})  # fmt: skip
"""Test modules that need committed studies, compiled maps, a browser or a database, which do not travel."""
FEW_TESTS = ("test_cg", "test_device")
FEW_SECTIONS = ("products", "evaluation")
SHORT = ("task.subset=2000", "train.steps=4", "train.eval_every=2", "search.reruns=1")


@dataclass(frozen=True)
class Step:
    """A command of a part: the words after `python -m`."""

    name: str
    words: Sequence[str]


@dataclass(frozen=True)
class Part:
    """Commands with one limit of time and one archive.

    Attributes:
        steps: the commands.
        study: the study that they train.
        at_once: number of commands that run at one time.
        finished: exit codes of a command that need no repetition.
    """

    steps: Sequence[Step]
    study: str | None = None
    at_once: int = 1
    finished: frozenset[int] = frozenset({0})


def parts(device: str, small: bool, work: Path) -> dict[str, Part]:
    """Return all parts by name; each writes into the folder `work`/NAME."""
    return {
        "tests": _tests(small),
        "bench": _bench(device, small, work / "bench"),
        "paper": _study("paper", device, small, work / "paper", batch=10, prerun=True),
        "fair_epoch": _study("fair_epoch", device, small, work / "fair_epoch", batch=70),
        "published": _study("published", device, small, work / "published", batch=10, prerun=True),
    }


def _tests(small: bool) -> Part:
    """One process a module, so that an interrupted part keeps the modules that have ended."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    chosen = [f for f in files if (f.stem in FEW_TESTS if small else f.stem not in STAY)]
    options = ("-rfEs", "-p", "no:cacheprovider")
    steps = [Step(f.stem, ("pytest", *options, str(f.relative_to(ROOT)))) for f in chosen]
    # Results too: 1, tests failed; 2, a module cannot be imported; 5, all tests of a module are deselected.
    return Part(steps, at_once=min(8, max(1, cores() // 2)), finished=frozenset({0, 1, 2, 5}))


def _bench(device: str, small: bool, folder: Path) -> Part:
    common = ("benchmarks", "--device", device, "--out", str(folder), *(("--quick",) if small else ()))
    chosen = FEW_SECTIONS if small else SECTIONS
    return Part([Step(name, (*common, "--only", name)) for name in chosen])


def _study(preset: str, device: str, small: bool, folder: Path, batch: int, prerun: bool = False) -> Part:
    name = f"{preset}_small" if small else preset
    words = ["--preset", preset, "--study", name, "--results", str(folder), "--device", device]
    keys = (f"run.batch={batch}", *(SHORT if small else ()))
    words += [word for key in keys for word in ("--override", key)]
    words += ["--trials", "2"] if small else []
    commands = ("prerun", "search") if prerun else ("search",)
    return Part([Step(command, ("ahf_cli", command, *words)) for command in commands], study=name)
