"""Wheel and source distribution: their files, and the commands of an installation outside the checkout.

The clean environment has the wheel alone.  Its dependencies are those of the environment that runs the tests,
added to its path by a `.pth` file, since PyTorch is large: their own installation is not tested here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

from ahf_cli.config.load import presets
from tests.processes import ROOT

pytestmark = pytest.mark.long
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = ["ahf_cli", "configs", "examples", "tests", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"]


@dataclass(frozen=True)
class Installed:
    """A clean environment with the wheel, and an empty folder to work in."""

    programs: Path
    here: Path
    environment: dict[str, str]

    def __call__(self, *words: str) -> str:
        """Run a program of the environment and return its output."""
        command = [str(self.programs / words[0]), *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.here, env=self.environment)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout


def tracked(*folders: str) -> list[str]:
    """Return the files of folders that the repository has."""
    listed = subprocess.run(["git", "ls-files", "-z", *folders], capture_output=True, text=True, cwd=ROOT)
    assert listed.returncode == 0, listed.stderr
    return [name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a source distribution of a copy of the repository, and the wheel that is built from it."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in tracked(*SOURCES):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (source,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Return an environment with the wheel; its dependencies are those of this environment."""
    folder, here = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("elsewhere")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", str(built[1])], check=True)
    (own,) = folder.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (own / "shared.pth").write_text("".join(f"{path}\n" for path in shared))
    unset = {"PYTHONPATH", "VIRTUAL_ENV", "AHF_DEBUG"}
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return Installed(folder / "bin", here, {**kept, "OMP_NUM_THREADS": "1"})


def test_the_wheel_has_all_files_of_the_package_and_no_others(built: tuple[Path, Path]) -> None:
    names = {name for name in zipfile.ZipFile(built[1]).namelist() if not name.endswith("/")}
    files = {name for name in names if ".dist-info/" not in name}
    folders = {f"ahf_cli/{name}" for name in tracked("configs", "examples")}
    compiled = {name for name in files if PurePosixPath(name).suffix == ".so"}
    assert files - compiled == {*tracked("ahf_cli"), *folders}
    assert len(compiled) <= 1 and len(folders) > 25  # without a compiler there is none
    assert {name.partition("/")[0] for name in names - files} == {f"ahf_cli-{PROJECT['version']}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert re.fullmatch(r"ahf_cli-\S+-cp311-abi3-\w+\.whl", built[1].name)  # every Python from 3.11 on


def test_the_source_distribution_has_no_tests_and_no_results(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert {*tracked("ahf_cli", "configs", "examples"), "LICENSE", "README.md", "pyproject.toml"} <= names
    tops = {name.partition("/")[0] for name in names}
    assert not tops & {"tests", "results", "benchmarks", "docs", ".ci"}


def test_the_metadata_have_the_extras_and_what_this_environment_fits(
    built: tuple[Path, Path], installed: Installed
) -> None:
    wheel = zipfile.ZipFile(built[1])
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = wheel.read(name).decode().partition("\n\n")[0].splitlines()
    assert {"postgres", "log", "bench"} <= {
        line[16:] for line in lines if line.startswith("Provides-Extra: ")
    }
    needed = [Requirement(line[15:]) for line in lines if line.startswith("Requires-Dist: ")]
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    extras = ({"extra": name} for name in ("", "postgres", "log"))
    own = [r for extra in extras for r in needed if r.marker is None or r.marker.evaluate(extra)]
    found = installed("python", "-c", code, *(r.name for r in own)).split()
    assert len(found) > 10 and all(r.specifier.contains(v) for r, v in zip(own, found, strict=True))


def test_an_installation_trains_and_has_presets_and_examples(installed: Installed) -> None:
    assert installed("ahf", "--version").startswith(f"ahf {PROJECT['version']}, ")
    code = (
        "import ahf_cli, ahf_cli.optim; from ahf_cli import HessianFree; print(ahf_cli.__file__, HessianFree)"
    )
    place = installed("python", "-c", code)
    assert place.startswith(str(installed.programs.parent)) and "HessianFree" in place
    listed = installed("ahf", "config", "ls")
    assert all(name in listed for name in presets())
    said = installed("ahf", "train", "hf_stable", "--preset", "smoke")
    assert "6 steps in" in said and list(installed.here.glob("results/*/trials/hf_stable/000/result.json"))


def test_an_installation_runs_a_plugin_that_it_ships(installed: Installed) -> None:
    for name in ("spirals.py", "spirals.yaml"):
        assert installed("ahf", "config", "example", name).strip() == name
        assert (installed.here / name).read_bytes() == (ROOT / "examples" / name).read_bytes()
    plugin, short = (
        ["--plugin", "spirals.py"],
        ["-o", "train.steps=4", "-o", "train.eval_every=2", "-o", "search.reruns=1"],
    )
    words = ["--config", "spirals.yaml", "--trials", "1", "--recipe", "hf_heavy_ball", "--study", "s", *short]
    installed("ahf", "search", *plugin, *words, "-q")
    installed("ahf", "compare", *plugin, "--study", "s", "-q")
    assert "<html" in (installed.here / "results" / "s" / "report" / "report.html").read_text()
