"""An exhibit: the tables and figures that answer one question about a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ahf_cli.report.canvas import Drawing
from ahf_cli.report.statistics.trajectory import Band
from ahf_cli.report.study_data import StudyData
from ahf_cli.report.text import Table


@dataclass(frozen=True)
class Choices:
    """Choices of the reader about tables and figures."""

    band: Band = "se"
    target: float | None = None
    """target value of the headline metric"""
    references: Mapping[str, float] = field(default_factory=dict)
    """published values of the headline by name"""
    published: Mapping[str, str] = field(default_factory=dict)
    """source of the published curve of each recipe, FILE/CURVE"""
    attribute: bool = False
    """compare recipes that differ in one choice"""


Figure = Callable[[StudyData, Choices], Drawing | str | None]
"""makes a figure; a text says why it cannot be drawn; None: the reader did not ask for it"""


@dataclass(frozen=True)
class Exhibit:
    """The tables and figures of one question; a module of this package declares one as `EXHIBIT`."""

    place: int
    """position among the exhibits of a report"""
    tables: Sequence[Callable[[StudyData, Choices], Table | None]] = ()
    """None: the study has no data for this table"""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """by name"""
