"""The site of these pages, by Sphinx: `make site` builds it into build/site, without a network.

The pages are readable without Sphinx too.  So their links are those of the repository, and are mapped here.
"""

from __future__ import annotations

import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import cast

import typer.main
from jupyter_cache.executors.utils import single_nb_execution
from myst_nb.core.execute import direct
from sphinx.application import Sphinx
from typer.cli import get_docs_for_click

DOCS = Path(__file__).parent
# Cells of the tutorials find `ahf` beside this Python, on one thread.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # Optuna asks for bars that a page does not show

import ahf_cli  # noqa: E402
from ahf_cli.cli import app as program  # noqa: E402

project = "ahf"
author = "The ahf authors"
copyright = f"2026, {author}"
release = ahf_cli.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["findings", "coverage", "**/__pycache__"]
html_theme = "furo"
html_title = "ahf"
html_static_path = ["_static"]
html_css_files = ["site.css"]
# Equations are Unicode text in these pages, so that no script renders them.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_merge_streams = True
# Pieces of a line that arrive one by one are joined, before MyST-NB ends each with a new line.
direct.single_nb_execution = partial(single_nb_execution, coalesce_streams=True)
autodoc_typehints = "none"
autodoc_member_order = "bysource"
# Pages are Markdown for any reader, and code of any language stands in their blocks.
suppress_warnings = ["misc.highlighting_failure"]

LINKS = {
    r"\]\(docs/": "](",  # from README.md
    r"\]\(results/README\.md": "](results.md",
    r"\]\(\.\./results/README\.md": "](results.md",
    r"\]\(\.\./docs/": "](",  # from results/README.md
    r"\]\((?:\.\./)?examples\)": "](examples.md)",
    r"\]\(results/reference/": "](../results/reference/",
    r"\]\(CITATION\.cff\)": "](../CITATION.cff)",
    r"\]\(\.\./ahf_cli/[\w/]+\.py\)": "](api.md)",
    r"\]\(\.\./examples/(\w+)\.\w+\)": r"](examples.md)",
}
"""links of the repository, and of the site"""


def mapped(text: str) -> str:
    """Return a page with the links of the site."""
    for link, page in LINKS.items():
        text = re.sub(link, page, text)
    return text


def commands() -> str:
    """Return the help of all commands as a page, generated from the program."""
    command = typer.main.get_command(program)
    context = command.make_context("ahf", [], resilient_parsing=True)
    text = get_docs_for_click(obj=command, ctx=context, name="ahf", title="Options of all commands")
    return re.sub(r"\[/?bold\]", "", text)


def setup(app: Sphinx) -> None:
    """Write the generated page, and map links as pages are read."""
    (DOCS / "options.md").write_text(commands(), encoding="utf-8")

    def read(app: Sphinx, *where: object) -> None:
        source = cast(list[str], where[-1])  # a page, or a file that a page includes
        source[0] = mapped(source[0])

    def docstring(app: Sphinx, what: str, name: str, item: object, options: object, lines: list[str]) -> None:
        # Docstrings are plain text with code in backticks, and formulas have * and |.
        lines[:] = [re.sub(r"([*|])", r"\\\1", line).replace("`", "``") for line in lines]

    app.connect("autodoc-process-docstring", docstring, priority=400)  # before Napoleon
    app.connect("source-read", read)
    app.connect("include-read", read)
