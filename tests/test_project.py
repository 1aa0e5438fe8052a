"""The files of the project itself: citation, issue forms, security page, release script."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.processes import ROOT

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
FORMS = sorted(path.name for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
PAGES = ("CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md")


def test_the_citation_has_what_its_format_requires_and_the_present_version() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "title", "message", "authors"} <= found.keys()  # required by format 1.2.0
    assert found["cff-version"] == "1.2.0" and str(found["version"]) == VERSION
    assert found["license"] == "MIT" and found["type"] == "software"
    for work in (found, *found["references"]):
        assert work["title"] and work["authors"]
        assert all(
            {"name"} <= a.keys() or {"family-names", "given-names"} <= a.keys() for a in work["authors"]
        )
    assert all({"type", "year"} <= work.keys() for work in found["references"])
    assert re.search(rf"^## {re.escape(VERSION)}$", (ROOT / "CHANGELOG.md").read_text(), re.M)


@pytest.mark.parametrize("name", [name for name in FORMS if name != "config.yml"])
def test_an_issue_form_is_one(name: str) -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / name).read_text())
    assert (
        {"name", "description", "body"} <= form.keys() <= {"name", "description", "body", "labels", "title"}
    )
    ids = [part["id"] for part in form["body"]]
    assert len(set(ids)) == len(ids) >= 3
    for part in form["body"]:
        assert part.keys() <= {"type", "id", "attributes", "validations"}
        assert part["type"] in {"textarea", "input", "dropdown"} and part["attributes"]["label"]
        options = part["attributes"].get("options", [])
        assert all(isinstance(option, str) for option in options) and bool(options) is (
            part["type"] == "dropdown"
        )
    asked = {part["id"]: part for part in form["body"]}
    if name == "bug.yml":
        assert "ahf doctor" in asked["doctor"]["attributes"]["label"]
        assert asked["doctor"]["validations"]["required"] is True


@pytest.mark.parametrize("name", PAGES)
def test_links_of_a_page_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text())
    assert links or name == "SECURITY.md"
    assert all((ROOT / link).exists() for link in links)


def test_saved_tensors_and_arrays_are_read_without_pickle() -> None:
    """As the security page says; the pickles of CIFAR have a restricted reader of their own."""
    calls: list[tuple[str, dict[str | None, Any]]] = []
    texts = (path.read_text() for path in (ROOT / "ahf_cli").rglob("*.py"))
    for text in (text for text in texts if re.search(r"\b(load|loads|eval)\(", text)):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call):
                values = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                calls.append((ast.unparse(node.func), values))
    tensors = [values for name, values in calls if name == "torch.load"]
    arrays = [values for name, values in calls if name == "np.load"]
    assert len(tensors) >= 2 and all(values["weights_only"] is True for values in tensors)
    assert len(arrays) >= 2 and all(values["allow_pickle"] is False for values in arrays)
    assert not [name for name, _ in calls if name in {"pickle.load", "pickle.loads", "yaml.load", "eval"}]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a repository of version 1.2.3 whose Python writes its arguments into dist/."""
    files = {
        "pyproject.toml": '[project]\nname = "own"\nversion = "1.2.3"\n',
        "CHANGELOG.md": "# Changelog\n\n## 1.2.3\n",
        "CITATION.cff": "version: 1.2.3\n",
        "README.md": LINKED + (ROOT / "README.md").read_text(),
        ".gitignore": ".venv/\ndist/\n",
        ".venv/bin/python": "#!/bin/sh\nmkdir -p dist\nfor last; do :; done\n"
        'echo "$@" > dist/arguments\ncp "$last/README.md" dist\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / ".venv/bin/python").chmod(0o755)
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def git(folder: Path, *words: str) -> None:
    own = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *own, *words], cwd=folder, check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "state")


def test_the_extension_has_no_format_that_one_python_builds_and_another_refuses() -> None:
    """`#` needs a macro until Python 3.12 and none from 3.13 on; one wheel serves all."""
    source = (ROOT / "ahf_cli" / "optim" / "layers" / "_selected.c").read_text()
    formats = re.findall(r'PyArg_ParseTuple\(args, "([^"]*)"', source)
    assert len(formats) == 4 and not [found for found in formats if "#" in found]


URL = "https://example.org/own"
LINKED = "![a curve](figures/a.png), [page](docs/page.md#part), [`x`](https://example.org/x)\n"


def release(folder: Path, *options: str, url: str = URL) -> subprocess.CompletedProcess[str]:
    script = [str(ROOT / ".ci" / "release"), *([url] if url else []), *options]
    return subprocess.run(script, cwd=folder, capture_output=True, text=True)


def test_a_release_is_built_from_a_clean_commit_with_its_changes(project: Path) -> None:
    (project / "dist").mkdir()
    (project / "dist" / "older.whl").write_text("")
    done = release(project, "--no-isolation")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "README.md\narguments\nnext: git tag v1.2.3, push it to https://example.org/own,"
    )
    *words, copy = (project / "dist" / "arguments").read_text().split()
    assert words == ["-m", "build", "--outdir", "dist", "--no-isolation"] and not Path(copy).exists()
    text = (project / "dist" / "README.md").read_text()
    assert text.startswith(
        f"![a curve]({URL}/raw/v1.2.3/figures/a.png), [page]({URL}/blob/v1.2.3/docs/page.md#part), "
        "[`x`](https://example.org/x)\n"
    )
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert len(targets) > 20 and all(target.startswith("https://") for target in targets)
    assert (project / "README.md").read_text().startswith(LINKED)


@pytest.mark.parametrize(
    "url", ["", "--no-isolation", "http://a.org/b", "https://a.org", "https://a.org/b/", "https://a.org/b c"]
)
def test_a_release_needs_the_address_of_the_repository(url: str, project: Path) -> None:
    done = release(project, url=url)
    line = f"release: URL must be the repository's address, https://HOST/PATH, got '{url}'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


@pytest.mark.parametrize(
    ("file", "text", "committed", "line"),
    [
        ("new.md", "new", False, "the tree must be clean: commit or remove ?? new.md"),
        ("CHANGELOG.md", "## 1.2.3\nmore", False, "the tree must be clean: commit or remove  M CHANGELOG.md"),
        ("CHANGELOG.md", "## 1.2.30\n### 1.2.3\n", True, "CHANGELOG.md must have the entry ## 1.2.3"),
        ("CITATION.cff", "version: 1.2.2\n", True, "CITATION.cff must have the version 1.2.3"),
        ("pyproject.toml", "[project]\n", True, 'pyproject.toml must have one line version = "…"'),
        ("", "v1.2.3", True, "the tag v1.2.3 exists: choose another version"),
    ],
)
def test_a_release_is_refused_in_one_line(
    file: str, text: str, committed: bool, line: str, project: Path
) -> None:
    if file:
        (project / file).write_text(text)
    else:
        git(project, "tag", text)
    if committed:
        commit(project)
    done = release(project)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"release: {line}\n")
    assert not (project / "dist").exists()


@pytest.mark.long
def test_a_release_has_a_wheel_and_a_source_distribution(project: Path) -> None:
    (project / "own.py").write_text("")
    backend = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    (project / "pyproject.toml").write_text(backend + '[project]\nname = "own"\nversion = "1.2.3"\n')
    (project / ".venv/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    commit(project)
    assert release(project, "--no-isolation").returncode == 0
    names = sorted(path.name for path in (project / "dist").iterdir())
    assert names == ["own-1.2.3-py3-none-any.whl", "own-1.2.3.tar.gz"]
