"""Documents with numbers from committed studies, which `make findings` fills in.

`docs/findings/templates/NAME.md` is Markdown with Jinja expressions over the studies in `results/reference/`.
The filled template is `docs/NAME.md`, or the part of README.md between `<!-- begin: NAME -->` and
`<!-- end: NAME -->`.
A test fills in the templates again, and compares their numbers with the documents.
Words that depend on numbers stand in `verdict(condition, words)`; data that contradict them raise an error.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from ahf_cli.report.canvas import THEMES, make
from ahf_cli.report.exhibits.published_curves import read_curve
from docs.findings import Study, load

ROOT = Path(__file__).parents[2]


def verdict(holds: bool, words: str) -> str:
    """Return words that hold only under a condition on the data, such as "does not hold".

    Raises:
        ValueError: the data contradict the words.
    """
    if not holds:
        raise ValueError(f"the data contradict {words!r}: rewrite that sentence")
    return words


def fill(template: Path, results: Path) -> str:
    """Return the text of one template with its numbers."""

    def study(name: str) -> Study:
        return load(results / name)

    def fits() -> list[dict[str, Any]]:
        """Return the rows that `python -m benchmarks.fits` has written."""
        found: list[dict[str, Any]] = json.loads((results / "fits.json").read_text())["rows"]
        return found

    def curve(name: str, metric: str) -> pd.DataFrame:
        """Return a curve of the paper's figures."""
        found = read_curve(f"motokawa_2020.csv/{name}")
        return found[found["metric"] == metric]

    def slope() -> float:
        """Return the slope of log step size on log norm over the points of the paper's Figure 1."""
        both = curve("Pre-run", "direction_l1").merge(curve("Pre-run", "eq3_step_size"), on="step")
        return float(np.polyfit(np.log(both["mean_x"]), np.log(both["mean_y"]), 1)[0])

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )  # Markdown of our own
    text = environment.from_string(template.read_text(encoding="utf-8"))
    given = {"study": study, "verdict": verdict, "fits": fits}
    return text.render(**given, curve=curve, slope=slope).strip() + "\n"


def targets(root: Path = ROOT) -> dict[Path, str]:
    """Return the texts of README.md and the pages under docs, by file."""
    readme = root / "README.md"
    text, pages = readme.read_text(encoding="utf-8"), {}
    for template in sorted((root / "docs" / "findings" / "templates").glob("*.md")):
        filled, key = fill(template, root / "results" / "reference"), template.stem
        begin, end = f"<!-- begin: {key} -->", f"<!-- end: {key} -->"
        if begin in text:
            before, after = text.split(begin)[0], text.split(end)[1]
            text = f"{before}{begin}\n{filled}{end}{after}"
        else:
            pages[root / "docs" / template.name] = filled
    return {readme: text, **pages}


def figures(texts: Iterable[str], root: Path = ROOT) -> dict[Path, bytes]:
    """Return the figures of reference studies that texts show, as small PNGs by file."""
    shown = re.findall(r"\]\((?:\.\./)?(results/reference/(\w+)/(\w+)\.png)\)", "\n".join(texts))
    found = {}
    for place, study, name in dict.fromkeys(shown):
        drawn = load(root / "results" / "reference" / study).drawing(name)
        found[root / place] = make(drawn, THEMES["screen"]).small()
    return found


def main() -> int:
    """Write the documents and their figures."""
    texts = targets()
    files = {file: text.encode() for file, text in texts.items()} | figures(texts.values())
    for file, content in files.items():
        file.write_bytes(content)
        sys.stdout.write(f"{file.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
