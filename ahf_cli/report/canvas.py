"""Themes, captions and formats of figures, and their files."""

from __future__ import annotations

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
from ahf_cli.study.files import SUMMARY_DIGITS, atomic_write, csv_bytes

Format = Literal["png", "pdf", "svg", "pgf"]
ThemeName = Literal["screen", "paper"]
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
    caption: bool
    """write the caption below the panels; else into a separate file, for an article's \\caption"""
    formats: tuple[Format, ...]
    """default formats"""
    rc: Any = field(default_factory=dict)
    """Matplotlib's settings"""

    def columns(self, panels: int, across: int) -> int:
        """Return the number of panels side by side; an article has one column."""
        return min(panels, across) if self.caption else 1


_COMMON = {
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "0.92",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
    "svg.hashsalt": "ahf", "svg.fonttype": "path", "axes.formatter.useoffset": False,
    "path.simplify_threshold": 0.3,
    "pdf.fonttype": 42,  # journals refuse Type 3
}  # fmt: skip
THEMES: dict[ThemeName, Theme] = {
    "screen": Theme("screen", (4.8, 3.7), 10, 10, True, ("png",), {**_COMMON, "font.size": 10}),
    "paper": Theme(
        "paper", (3.35, 2.3), 3.35, 8, False, ("pdf",),
        {**_COMMON, "font.size": 8, "font.family": ["STIXGeneral", "DejaVu Serif"],
         "mathtext.fontset": "stix", "lines.markersize": 3, "legend.fontsize": 7, "axes.labelsize": 8,
         "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
         "xtick.labelsize": 7, "ytick.labelsize": 7},
    ),
}  # fmt: skip
"""Themes by name: `screen` for single files, `paper` for one column of a two-column article."""


@dataclass(frozen=True)
class Drawing:
    """A figure before it is drawn: its table, its caption, and the function that draws it from the table."""

    name: str
    """stem of its files"""
    title: str
    table: pd.DataFrame
    caption: Sequence[str]
    draw: Callable[[Figure, Theme], None]
    """draws on an empty figure, from the table alone"""
    panels: int = 1
    height: float = 1.0
    """height of a panel, in multiples of the theme's"""
    across: int = 2
    """most panels side by side"""


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
    below: float
    """height below the panels for stamp and caption, in inches"""
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

    def panels(self) -> bytes:
        """Return the panels alone as a PNG."""
        width, height = self.image.size
        content = io.BytesIO()
        alone = self.image.crop((0, 0, width, height - round(self.below * DPI)))
        alone.save(content, "png", dpi=(DPI, DPI))
        return content.getvalue()

    def small(self) -> bytes:
        """Return the whole figure as a PNG of 128 colours, for the documents of a repository."""
        content = io.BytesIO()
        few = self.image.quantize(128, dither=Image.Dither.NONE)
        few.save(content, "png", dpi=(DPI, DPI), optimize=True)
        return content.getvalue()

    def save(self, out: Path, formats: Sequence[Format]) -> list[Path]:
        """Write `data/<name>.csv` and `figures/<name>.<format>` under `out`, and return their paths.

        The paper theme writes the caption beside the figure.
        """
        paths = [out / "data" / f"{self.drawing.name}.csv"]
        atomic_write(paths[0], csv_bytes(self.drawing.table, SUMMARY_DIGITS))
        for kind in dict.fromkeys(formats):
            paths.append(out / "figures" / f"{self.drawing.name}.{kind}")
            atomic_write(paths[-1], self.written(kind))
        if not self.theme.caption:
            paths.append(out / "figures" / f"{self.drawing.name}.caption.txt")
            text = " ".join([*self.drawing.caption, *([self.stamp] if self.stamp else [])])
            atomic_write(paths[-1], f"{text}\n".encode())
        return paths


def make(drawing: Drawing, theme: Theme, stamp: str = "") -> Picture:
    """Draw a figure and lay it out once for all formats; caption and stamp never cover a panel."""
    with settings(theme.rc):
        columns = theme.columns(drawing.panels, drawing.across)
        rows = -(-drawing.panels // columns)
        width = theme.width if columns > 1 or theme.name == "paper" else 0.75 * theme.width
        panels = rows * theme.panel[1] * drawing.height
        figure = Figure(figsize=(width, panels), dpi=DPI, layout="constrained")
        drawing.draw(figure, theme)
        caption = drawing.caption if theme.caption else ()
        below = _frame(figure, panels + _legend_height(figure, theme), caption, stamp, 0.8 * theme.font)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # type: ignore[no-untyped-call]
        figure.set_layout_engine("none")  # laid out once for all formats
        pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return Picture(drawing, theme, figure, stamp, below, Image.fromarray(pixels).convert("RGB"))


def save(drawing: Drawing, out: Path) -> list[Path]:
    """Save a drawing as a PNG for the screen and its table as CSV, and return the paths."""
    return make(drawing, THEMES["screen"]).save(out, THEMES["screen"].formats)


def _frame(figure: Figure, panels: float, caption: Sequence[str], stamp: str, size: float) -> float:
    """Make room below the panels for stamp and caption, and return its height in inches."""
    width = figure.get_figwidth()
    texts = [
        _wrapped(part, width * CHARACTERS_PER_INCH / size) for part in ([stamp] if stamp else [], caption)
    ]
    heights = [len(words) * size * 1.32 / 72 for words in texts]
    below = sum(heights) + 0.15 if any(texts) else 0.02
    height = panels + below
    figure.set_size_inches(width, height)
    for words, bottom, color in zip(texts, (heights[1], 0), ("#B00020", "black"), strict=True):
        figure.text(
            0.1 / width, (0.08 + bottom) / height, "\n".join(words), fontsize=size, va="bottom",
            linespacing=1.3, parse_math=False, color=color,
        )  # fmt: skip
    if stamp:
        figure.text(
            0.5, (below + panels / 2) / height, "FORCED", fontsize=16 * panels, rotation=25, alpha=0.12,
            ha="center", va="center", color="#B00020", weight="bold", zorder=10,
        )  # fmt: skip
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0, below / height, 1, 1 - below / height))  # type: ignore[call-arg]  # it has it
    return below


def _legend_height(figure: Figure, theme: Theme) -> float:
    """Return the height of the legend beyond two rows, in inches; the panels have room for two."""
    rows = sum(-(-len(legend.get_texts()) // legend._ncols) for legend in figure.legends)  # type: ignore[attr-defined]
    return max(0, rows - 2) * theme.font * 1.65 / 72


def _wrapped(texts: Sequence[str], characters: float) -> list[str]:
    return [
        line for text in texts for line in textwrap.wrap(text, int(characters), subsequent_indent=" " * 4)
    ]
