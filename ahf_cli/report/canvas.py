"""Themes, captions and formats of figures, and their files."""

from __future__ import annotations

import html
import io
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from PIL import Image

from ahf_cli.errors import InputError
from ahf_cli.recipes.hyperparameters import nearest
from ahf_cli.report.plotting import Figure, FigureCanvasAgg, settings, write
from ahf_cli.report.text import tex
from ahf_cli.study.files import SUMMARY_DIGITS, atomic_write, csv_bytes

Format = Literal["png", "pdf", "svg", "pgf"]
ThemeName = Literal["screen", "paper", "paper-wide"]
DPI = 150
CHARACTERS_PER_INCH = 130.0
"""for text one point high"""
TEX = ("xelatex", "lualatex", "pdflatex")
_UNDATED: dict[str, dict[str, None]] = {
    "pdf": {"CreationDate": None}, "svg": {"Date": None}, "pgf": {}
}  # fmt: skip


@dataclass(frozen=True)
class Theme:
    """Sizes in inches and points."""

    name: ThemeName
    panel: tuple[float, float]
    """width and height of a panel; a figure may be wider than one panel"""
    width: float
    """of a whole figure"""
    font: float
    stacked: bool = False
    """one panel below the other, for one column of an article"""
    formats: tuple[Format, ...] = ("pdf",)
    """default formats"""
    rc: Any = field(default_factory=dict)
    """Matplotlib's settings"""

    def columns(self, panels: int, across: int) -> int:
        """Return the number of panels side by side."""
        return 1 if self.stacked else min(panels, across)


_COMMON = {
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "0.92",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
    "svg.hashsalt": "ahf", "svg.fonttype": "path", "axes.formatter.useoffset": False,
    "path.simplify_threshold": 0.3,
    "pdf.fonttype": 42,  # journals refuse Type 3
}  # fmt: skip
_PAPER = {
    **_COMMON, "font.size": 8, "font.family": ["STIXGeneral", "DejaVu Serif"], "mathtext.fontset": "stix",
    "lines.markersize": 3, "lines.markeredgewidth": 0.7, "legend.fontsize": 7, "axes.labelsize": 8,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}  # fmt: skip
THEMES: dict[ThemeName, Theme] = {
    "screen": Theme(
        "screen", (4.8, 3.7), 10, 10, formats=("png",),
        rc={**_COMMON, "font.size": 10, "lines.markersize": 4.5},
    ),
    "paper": Theme("paper", (3.25, 2.3), 3.25, 8, stacked=True, rc=_PAPER),
    "paper-wide": Theme("paper-wide", (3.3, 2.4), 6.75, 8, rc=_PAPER),
}  # fmt: skip
"""Themes by name: `screen`; `paper` for one column of a two-column article, and `paper-wide` for both."""


@dataclass(frozen=True)
class Drawing:
    """A figure before it is drawn: its table, its caption, and the function that draws it from the table."""

    name: str
    """stem of its files"""
    title: str
    table: pd.DataFrame
    caption: Sequence[str]
    """sentences that stand beside the figure"""
    draw: Callable[[Figure, Theme], None]
    """draws on an empty figure, from the table alone"""
    panels: int = 1
    height: float = 1.0
    """height of a panel, in multiples of the theme's"""
    across: int = 2
    """most panels side by side"""
    described: Sequence[str] = ()
    """sentences on the recipes, which end the caption where no other text describes them"""
    colored: bool = False
    """show values by colour, so that a dark page must not change the colours"""


def check_formats(formats: Sequence[str]) -> tuple[Format, ...]:
    """Return the formats.

    Raises InputError for an unknown format, or one whose program is not installed.
    """
    known: dict[str, Format] = {name: name for name in get_args(Format)}
    for name in formats:
        if name not in known:
            raise InputError(
                f"--format must be one of {', '.join(known)}, got {name!r}{nearest(name, known)}"
            )
    if "pgf" in formats and not any(map(shutil.which, TEX)):
        raise InputError(
            f"--format pgf needs one of {', '.join(TEX)} to measure its text, and none is installed"
        )
    return tuple(known[name] for name in formats)


@dataclass(frozen=True)
class Picture:
    """A drawn and laid-out figure, to be written in any format."""

    drawing: Drawing
    theme: Theme
    figure: Figure
    stamp: str
    image: Image.Image
    """its pixels"""

    def written(self, kind: Format) -> bytes:
        """Return the bytes of the figure in a format; they depend only on the drawing."""
        content = io.BytesIO()
        if kind == "png":
            self.image.save(content, "png", dpi=(DPI, DPI))
            return content.getvalue()
        tex: Any = {"pgf.texsystem": next(filter(shutil.which, TEX), TEX[0]), "pgf.rcfonts": False}
        with settings({**self.theme.rc, **tex}):
            write(self.figure, kind, content, DPI, _UNDATED[kind])
        return content.getvalue()

    def small(self, limit: int = 100_000) -> bytes:
        """Return the whole figure as a PNG of 128 colours, or of fewer if it has more bytes than the limit.

        It has 32 colours at least, and may then be larger.
        """
        for colours in (128, 64, 32):
            content = io.BytesIO()
            few = self.image.quantize(colours, dither=Image.Dither.NONE)
            few.save(content, "png", dpi=(DPI, DPI), optimize=True)
            if content.tell() <= limit:
                break
        return content.getvalue()

    def save(self, out: Path, formats: Sequence[Format]) -> list[Path]:
        """Write `data/<name>.csv` and `figures/<name>.<format>` under `out`, and return their paths.

        The caption stands beside them as text, HTML and LaTeX, `figures/<name>.caption.{txt,html,tex}`.
        """
        paths = [out / "data" / f"{self.drawing.name}.csv"]
        atomic_write(paths[0], csv_bytes(self.drawing.table, SUMMARY_DIGITS))
        for kind in dict.fromkeys(formats):
            paths.append(out / "figures" / f"{self.drawing.name}.{kind}")
            atomic_write(paths[-1], self.written(kind))
        for end, text in self.captions().items():
            paths.append(out / "figures" / f"{self.drawing.name}.caption.{end}")
            atomic_write(paths[-1], f"{text}\n".encode())
        return paths

    def captions(self) -> dict[str, str]:
        """Return the caption, with its stamp, as text, HTML and LaTeX."""
        drawing = self.drawing
        text = " ".join([*drawing.caption, *drawing.described, *([self.stamp] if self.stamp else [])])
        return {
            "txt": text,
            "html": f"<figcaption>{html.escape(text)}</figcaption>",
            "tex": f"\\caption{{{tex(text)}}}\n\\label{{fig:{drawing.name}}}",
        }


def make(drawing: Drawing, theme: Theme, stamp: str = "") -> Picture:
    """Draw a figure and lay it out once for all formats; its stamp covers no panel."""
    with settings(theme.rc):
        columns = theme.columns(drawing.panels, drawing.across)
        rows = -(-drawing.panels // columns)
        width = theme.width if columns > 1 or theme.stacked else 0.75 * theme.width
        panels = rows * theme.panel[1] * drawing.height
        figure = Figure(figsize=(width, panels), dpi=DPI, layout="constrained")
        drawing.draw(figure, theme)
        _frame(figure, panels + _legend_height(figure, theme), stamp, theme.font - 1)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # type: ignore[no-untyped-call]
        figure.set_layout_engine("none")  # laid out once for all formats
        pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return Picture(drawing, theme, figure, stamp, Image.fromarray(pixels).convert("RGB"))


def save(drawing: Drawing, out: Path) -> list[Path]:
    """Save a drawing as a PNG for the screen and its table as CSV, and return the paths."""
    return make(drawing, THEMES["screen"]).save(out, THEMES["screen"].formats)


def _frame(figure: Figure, panels: float, stamp: str, size: float) -> None:
    """Make room below the panels for the stamp."""
    width = figure.get_figwidth()
    words = textwrap.wrap(stamp, int(width * CHARACTERS_PER_INCH / size), subsequent_indent=" " * 4)
    below = len(words) * size * 1.32 / 72 + 0.15 if words else 0.02
    height = panels + below
    figure.set_size_inches(width, height)
    if stamp:
        figure.text(
            0.1 / width, 0.08 / height, "\n".join(words), fontsize=size, va="bottom", linespacing=1.3,
            parse_math=False, color="#B00020",
        )  # fmt: skip
        figure.text(
            0.5, (below + panels / 2) / height, "FORCED", fontsize=16 * panels, rotation=25, alpha=0.12,
            ha="center", va="center", color="#B00020", weight="bold", zorder=10,
        )  # fmt: skip
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0, below / height, 1, 1 - below / height))  # type: ignore[call-arg]  # it has it


def _legend_height(figure: Figure, theme: Theme) -> float:
    """Return the height of the legend beyond two rows, in inches; the panels have room for two."""
    rows = sum(-(-len(legend.get_texts()) // legend._ncols) for legend in figure.legends)  # type: ignore[attr-defined]
    return max(0, rows - 2) * theme.font * 1.65 / 72
