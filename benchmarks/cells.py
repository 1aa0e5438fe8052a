"""Cells of Markdown tables: numbers with their quartiles, and targets.  Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def markdown(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Draw a Markdown table with aligned columns; the first line is the header."""
    cells = [[str(cell) for cell in line] for line in (header, *rows)]
    widths = [max(3, *(len(line[n]) for line in cells)) for n in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def number(value: float, digits: int | None = None) -> str:
    """Write a number with three digits or so."""
    if digits is None:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def spread(s: Row, digits: int | None = None) -> str:
    """Write median (low quartile – high quartile)."""
    if digits is None:
        digits = 0 if s["median"] >= 100 else 1 if s["median"] >= 10 else 2
    return f"{number(s['median'], digits)} ({number(s['low'], digits)} – {number(s['high'], digits)})"


def percent(s: Row) -> str:
    """Write the spread of a share in percent."""
    return spread({key: 100 * s[key] for key in ("median", "low", "high")}, 1) + " %"


def at_most(value: float, target: float, share: bool = False) -> str:
    """Say whether a value keeps within its target; a share is written in percent."""
    over = value - target
    limit, missed = (
        (f"{100 * target:g} %", f"{100 * over:.1f} points") if share else (f"{target:g}", f"{over:.2f}")
    )
    return f"≤ {limit}: " + ("met" if over <= 0 else f"missed by {missed}")


def at_least(value: float, target: float) -> str:
    """Say whether a value reaches its target."""
    return f"≥ {target:g}: " + ("met" if value >= target else f"missed by {target - value:.2f}")
