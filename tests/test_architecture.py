"""Imports point down and never in a circle, heavy packages stay in their rooms, names are given once."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ahf_cli

PACKAGE = Path(ahf_cli.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
SHARED = {"ahf_cli.errors", "ahf_cli.interruption", "ahf_cli.streams"}
# A package may import itself, `SHARED` and these.
BELOW: dict[str, set[str]] = {
    "recipes": set(),
    "optim": {"recipes"},
    "tasks": {"recipes", "optim"},
    "plugin": {"recipes", "optim", "tasks"},
    "config": {"recipes", "tasks", "plugin"},
    "training": {"recipes", "optim", "tasks"},
    "study": {"recipes", "tasks", "config", "training"},
    "search": {"recipes", "tasks", "plugin", "config", "training", "study"},
    "report": {"recipes", "tasks", "config", "training", "study"},
    "cli": {"recipes", "optim", "tasks", "plugin", "config", "training", "study", "search", "report"},
}
# Of the training, rooms that only read need these modules; nothing that runs.
ONLY_READ = {"study", "report"}
READABLE = {"records", "outcome", "trace", "environment"}
ONLY_IN = {
    "typer": {"cli"},
    "rich": {"cli"},
    "optuna": {"search/sampler.py", "search/slots.py", "search/storage.py"},
    "sqlalchemy": {"search/storage.py"},
    "yaml": {"config/strict_yaml.py"},
    "pandas": {"study", "report", "cli", "notebook.py"},
    "matplotlib": {"report/plotting.py"},
    "bokeh": {"report"},
    "jinja2": {"report"},
    "torchvision": {"tasks"},
    "filelock": {"study/lock.py"},
    "click": set(),
    "mlflow": {"search/targets.py"},
    "wandb": {"search/targets.py"},
}


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, also inside functions and for type checking."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {node.module} if node.module != "ahf_cli" else {f"ahf_cli.{a.name}" for a in node.names}
    return found


def test_there_is_something_to_check() -> None:
    assert {p.parent.name for p in MODULES} >= {*BELOW}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    home = relative.parts[0] if len(relative.parts) > 1 else ""
    for name in imports(path):
        top, where = name.split(".")[0], str(relative)
        if top in ONLY_IN:
            assert any(where == place or home == place for place in ONLY_IN[top]), f"{where} imports {name}"
        if top != "ahf_cli" or home == "" or name in SHARED:
            continue
        room = name.split(".")[1:2]
        assert not room or room[0] in BELOW[home] | {home}, f"{where} imports {name}"
        if home in ONLY_READ and room == ["training"]:
            assert name.split(".")[2] in READABLE, f"{where} imports {name}"


def modules_read(path: Path, known: set[str]) -> set[str]:
    """Return the modules of `known` that a file imports; a package that only leads to one is not read."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & known or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known


def test_no_import_is_in_a_circle() -> None:
    names = {p: ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts) for p in MODULES}
    known = {path: name.removesuffix(".__init__") for path, name in names.items()}
    graph = {name: modules_read(path, set(known.values())) - {name} for path, name in known.items()}
    assert sum(map(len, graph.values())) > 3 * len(graph)
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)  # raises CycleError


def test_a_class_has_a_name_of_its_own() -> None:
    trees = (ast.parse(path.read_text()) for path in MODULES)
    counts = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert len(counts) > 100 and [name for name, n in counts.items() if n > 1] == []


def test_a_file_name_is_there_twice_only_with_the_command_of_that_name() -> None:
    files = [p for p in MODULES if p.name != "__init__.py"]
    counts = Counter(path.name for path in files if path.parent.name != "cli")
    commands = {path.name for path in files if path.parent.name == "cli"}
    assert {name for name, n in counts.items() if n > 1} <= commands


def test_a_module_fits_on_five_screens() -> None:
    lines = {str(p.relative_to(PACKAGE)): len(p.read_text().splitlines()) for p in MODULES}
    assert {name: n for name, n in lines.items() if n > 350} == {}
    assert statistics.median(lines.values()) <= 150


def test_the_core_needs_torch_alone() -> None:
    allowed = {"torch", "ahf_cli", *sys.stdlib_module_names}
    for path in (PACKAGE / "optim").glob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= allowed, path


@pytest.mark.parametrize(
    "arguments", [["--help"], ["compare", "--help"], ["config", "ls"], ["search", "--help"]]
)
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom ahf_cli.cli import main\n"
        f"assert main({arguments!r}) == 0\n"
        "heavy = {'torch', 'optuna', 'pandas', 'matplotlib', 'torchvision', 'bokeh'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
