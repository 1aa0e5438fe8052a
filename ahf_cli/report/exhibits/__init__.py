"""The exhibits of a comparison: one module a question, with its table, figure and caption.

A new module is found by its `EXHIBIT`; no list names it.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from ahf_cli.report.canvas import Drawing
from ahf_cli.report.exhibits.exhibit import Choices, Exhibit, Figure
from ahf_cli.report.study_data import StudyData
from ahf_cli.report.text import Table


@cache
def exhibits() -> tuple[Exhibit, ...]:
    """Return all exhibits in their order."""
    modules = (import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__))
    return tuple(sorted((m.EXHIBIT for m in modules if hasattr(m, "EXHIBIT")), key=lambda e: e.place))


def figures() -> dict[str, Figure]:
    """Return the functions that make all figures, by name."""
    return {name: figure for exhibit in exhibits() for name, figure in exhibit.figures.items()}


def tables(data: StudyData, choices: Choices) -> dict[str, Table]:
    """Return the tables that the study has data for, by name."""
    made = (table(data, choices) for exhibit in exhibits() for table in exhibit.tables)
    return {table.name: table for table in made if table is not None}


def drawings(data: StudyData, choices: Choices) -> tuple[list[Drawing], dict[str, str]]:
    """Return the figures that the study has data for, and the reason for each other one."""
    made = {name: figure(data, choices) for name, figure in figures().items()}
    return (
        [found for found in made.values() if isinstance(found, Drawing)],
        {name: found for name, found in made.items() if isinstance(found, str)},
    )
