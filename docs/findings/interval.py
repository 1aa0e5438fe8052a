"""Numbers with intervals, as text."""

from __future__ import annotations

import math

from ahf_cli.report.text import number


def interval(mean: float, low: float, high: float, sign: bool = False, digits: int = 3) -> str:
    """Return a number as text with its interval; equal values have no interval."""
    written = (number(float(x), digits, fixed=True) for x in (mean, low, high))
    head, low_end, high_end = (text if text.strip("-0.") else text.lstrip("-") for text in written)
    head = f"+{head}" if sign and float(head) > 0 else head
    return head if math.isnan(low) else f"{head} [{low_end}, {high_end}]"
