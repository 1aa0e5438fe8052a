"""The style of each recipe in every figure, and the outcomes of its trials in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Style:
    """Colour, dashes and marker: any one of them tells the recipes apart."""

    color: str
    line: str | tuple[float, tuple[float, ...]]
    marker: str


# Okabe and Ito's palette without its yellow, a grey, and Tol's wine: distinct in common colour blindness.
_COLORS = ("#0072B2", "#D55E00", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#666666", "#882255")
_LINES: tuple[str | tuple[float, tuple[float, ...]], ...] = (
    "-",
    (0, (6, 2)),
    (0, (6, 2, 1.5, 2)),
    (0, (1.5, 1.5)),
    (0, (10, 3)),
    (0, (3, 1.5, 1, 1.5, 1, 1.5)),
    (0, (8, 2, 1, 2, 1, 2)),
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "p", "<", ">", "*", "h")  # no cross: it marks a divergence
_ORDER = (
    "hf", "adaptive_hf", "hf_published", "adaptive_hf_published", "adam", "sgd_momentum", "hf_stable",
    "adaptive_hf_stable", "adahessian", "hf_martens", "natural_gradient", "nesterov", "rmsprop", "adagrad",
)  # fmt: skip
_FIXED = {name: index for index, name in enumerate(_ORDER)}
_RESERVED = 4
"""Styles that no derived recipe takes: those of the paper's four."""


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Give each recipe its style: built-in ones keep theirs, others take the next free ones by name.

    Of `study/recipe` names with the same built-in recipe, the first keeps its style.
    """
    names = list(dict.fromkeys(names))
    taken: dict[str, int] = {}
    for name in names:
        index = _FIXED.get(name.rpartition("/")[2])
        if index is not None and index not in taken.values():
            taken[name] = index
    free = (i for i in range(_RESERVED, len(_FIXED) + len(names) + 1) if i not in taken.values())
    for name in sorted(names):
        if name not in taken:
            taken[name] = next(free)
    return {name: _style(taken[name]) for name in names}


def _style(index: int) -> Style:
    lap = index // len(_COLORS)  # a second lap through the colours takes other dashes
    return Style(
        _COLORS[index % len(_COLORS)], _LINES[(index + lap) % len(_LINES)], _MARKERS[index % len(_MARKERS)]
    )


def observed(trials: pd.DataFrame) -> str:
    """Say what was seen in one recipe's finished trials, from their records alone."""
    done = trials[trials["status"] != "failed"]
    n = len(done)
    if n == 0:
        return "No trial is finished."
    diverged = int((done["status"] == "diverged").sum())
    stalled = int(((done["status"] == "ok") & done["stalled"].astype(bool)).sum())
    trained = n - diverged - stalled
    what = [
        f"{count} {word}"
        for count, word in ((trained, "trained"), (stalled, "did not train"), (diverged, "diverged"))
        if count
    ]
    if len(what) == 1:
        return f"Seen: {'all ' if n > 1 else ''}{what[0]}."
    return f"Seen: of {n} trials, {', '.join(what)}."
