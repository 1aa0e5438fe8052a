"""Tables as text, LaTeX and numbers."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ahf_cli.report.statistics.interval import Interval
from ahf_cli.study.files import SUMMARY_DIGITS

NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """A table to save and print: its numbers, and its text for readers in parts by title."""

    name: str
    """stem of its files"""
    numbers: pd.DataFrame
    texts: Mapping[str, pd.DataFrame]
    note: str = ""
    """a remark for readers"""


def spread_interval(name: str, found: Interval) -> dict[str, float]:
    """Return an interval as the columns `name`, `name_low` and `name_high`."""
    return {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}


def within(row: Mapping[Any, Any], name: str, digits: int = 4, *, fixed: bool = True) -> str:
    """Return the estimate and interval in a row's columns as text, such as `0.5 [0.4, 0.6]`.

    Unless `fixed`, numbers have two significant digits in place of so many decimals.
    """
    values = [float(row[name + end]) for end in ("", "_low", "_high")]
    if math.isnan(values[0]):
        return NOTHING
    centre, low, high = (number(v, digits, fixed=True) if fixed else f"{v:.2g}" for v in values)
    return centre if math.isnan(values[1]) else f"{centre} [{low}, {high}]"


def number(value: float, digits: int = 4, *, fixed: bool = False) -> str:
    """Return a number as text with some decimals, or a dash for NaN.

    Unless `fixed`, a very small or large number has three significant digits.
    """
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    value = float(f"{value:.{SUMMARY_DIGITS}g}")  # so a tie rounds alike for every order of summation
    small = not fixed and 0 < abs(value) < 10**-digits * 10
    large = abs(value) >= (1e7 if fixed else 1e4)
    return f"{value:.3g}" if small or large else f"{value:.{digits}f}"


def is_words(column: pd.Series[str]) -> bool:
    """Return whether a column holds words, which are aligned to the left."""
    return any(cell[:1].isalpha() for cell in column)


def as_text(texts: Mapping[str, pd.DataFrame]) -> str:
    """Return tables of text in aligned columns, each under its title."""
    return "\n\n".join(f"{title}\n{_aligned(table)}" for title, table in texts.items())


def _aligned(texts: pd.DataFrame) -> str:
    columns = [[name, *texts[name]] for name in texts.columns]
    laid = []
    for cells in columns:
        width = max(len(cell) for cell in cells)
        words = is_words(pd.Series(cells[1:]))
        laid.append([cell.ljust(width) if words else cell.rjust(width) for cell in cells])
    return "\n".join("  ".join(row).rstrip() for row in zip(*laid, strict=True))


LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "–": "--", "±": r"$\pm$", "∞": r"$\infty$", "−": "$-$", "≤": r"$\le$", "≥": r"$\ge$", "×": r"$\times$",
    "‖": r"$\|$", "∇": r"$\nabla$", "√": r"$\surd$", "←": r"$\leftarrow$", "→": r"$\to$", "≈": r"$\approx$",
    "½": r"$\frac12$", "¼": r"$\frac14$", "¾": r"$\frac34$", "·": r"$\cdot$", "∘": r"$\circ$", "ᵀ": r"$^T$",
    "λ": r"$\lambda$", "Λ": r"$\Lambda$", "Σ": r"$\sum$", "ε": r"$\varepsilon$", "⊗": r"$\otimes$",
    "<": "$<$", ">": "$>$", "|": "$|$", "⁻": r"$^-$", "ₜ": "$_t$",
    "…": r"\dots{}", "◇": r"$\diamond$", "’": "'",
}  # fmt: skip
"""signs that LaTeX spells; Greek letters, and digits above and below the line, are spelt by their names"""


def tex(text: str) -> str:
    """Return plain text as LaTeX: its own signs escaped, and mathematical ones spelt."""
    return "".join(map(_tex, text))


def _tex(sign: str) -> str:
    if sign in LATEX or sign.isascii():
        return LATEX.get(sign, sign)
    kind, _, name = unicodedata.name(sign, "").rpartition(" ")
    if kind in ("GREEK SMALL LETTER", "GREEK CAPITAL LETTER"):
        return f"$\\{name.lower() if 'SMALL' in kind else name.capitalize()}$"
    place = {"SUPERSCRIPT": "^", "SUBSCRIPT": "_"}.get(kind.partition(" ")[0])
    digit = unicodedata.normalize("NFKC", sign)
    return f"${place}{{{digit}}}$" if place and digit.isascii() else sign


def as_latex(table: pd.DataFrame, title: str) -> str:
    """Return a table of text as LaTeX with booktabs; names are escaped."""
    layout = "".join("l" if is_words(table[name]) else "r" for name in table.columns)
    escaped = table.map(tex).rename(columns=tex)
    return f"% {title}\n{escaped.to_latex(index=False, escape=False, column_format=layout)}"


BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: ArrayLike, low: float, high: float, width: int = 16) -> str:
    """Return values (n,) between two levels as up to `width` block characters.

    A value beyond the levels is the lowest or highest block; a missing value is a space.  More values than
    blocks are averaged in equal parts.
    """
    x = np.asarray(values, dtype=float)
    if not len(x) or not high > low:
        return ""
    parts = np.array_split(x, min(width, len(x)))
    means = np.array([part[~np.isnan(part)].mean() if (~np.isnan(part)).any() else np.nan for part in parts])
    place = np.clip((means - low) / (high - low), 0, 1) * (len(BLOCKS) - 1)
    return "".join(" " if np.isnan(p) else BLOCKS[round(float(p))] for p in place)
