"""The tables of coverage in docs/statistics.md, which `python -m docs.coverage` simulates in a minute or two.

Each stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->`.  The random numbers of a row depend on
its name alone, so that a test can simulate any row again and compare it with the document.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from docs.coverage import samples, shares, tables

DOCUMENT = Path(__file__).parents[1] / "statistics.md"


def line(cells: Sequence[str]) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def filled(text: str) -> str:
    """Return the document with its tables simulated again."""
    found = {
        "samples": table(samples.HEAD, [case.row() for case in samples.rows()]),
        "shares": table(shares.HEAD, shares.rows()),
        "tables": table(tables.HEAD, [case.row() for case in tables.rows()]),
    }
    for name, rows in found.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{rows}\n{end}{after}"
    return text


def main() -> int:
    """Write the document."""
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
