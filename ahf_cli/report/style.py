"""Colour, dashes and marker of each recipe, the same in all figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from zlib import crc32

__all__ = ["COLORS", "Style", "styles"]


@dataclass(frozen=True)
class Style:
    """Colour, dashes and marker of a recipe; dashes and marker are enough in a grey print."""

    color: str
    line: str | tuple[float, tuple[float, ...]]
    marker: str
    hollow: bool = False

    @property
    def face(self) -> str:
        """Fill of the marker, which is white in a hollow one."""
        return "white" if self.hollow else self.color


# Okabe and Ito's palette without its yellow, a grey, Tol's wine, and four others between these in lightness.
COLORS = ("#0072B2", "#D55E00", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#666666", "#882255", "#4B2E83",
          "#6B6E00", "#7A4419", "#E8607A")  # fmt: skip
_LINES: tuple[str | tuple[float, tuple[float, ...]], ...] = (
    "-",
    (0, (6, 2)),
    (0, (6, 2, 1.5, 2)),
    (0, (1.5, 1.5)),
    (0, (10, 2)),
    (0, (3, 1.5, 1, 1.5, 1, 1.5)),
    (0, (8, 2, 3, 2)),
    (0, (3, 1.2)),
    (0, (1, 3)),
    (0, (4, 4)),
    (0, (7, 1.5, 1, 1.5, 1, 1.5, 1, 1.5)),
    (0, (3, 1.5, 3, 1.5, 1, 1.5)),
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "p", "<", ">", "*", "h", "d")  # no cross: it marks a divergence
_N = len(COLORS)
_SLOTS = (
    "hf", "adaptive_hf", "hf_published", "adaptive_hf_published", "adam", "sgd_momentum", "hf_stable",
    "adaptive_hf_stable", "adahessian", "kfac", "ekfac", "natural_gradient",
    "adamw", "nadam", "nesterov", "muon", "rmsprop", "lm", "adagrad", "soap", "hf_kfac", "", "", "kfac_free",
    "hf_nystrom", "hf_martens", "hf_spring", "lbfgs", "", "sgd", "", "lm_geodesic", "", "", "", "hf_careful",
)  # fmt: skip
"""Known names, one line for each time that the colours repeat.  Recipes of one study differ in colour."""
_FIXED = {name: slot for slot, name in enumerate(_SLOTS) if name}
_RESERVED = 4
"""slots of the paper's four recipes, which no other recipe takes"""


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Return the style of each recipe, which depends on its name.

    A built-in recipe has a slot of its own.  Another recipe has that of the built-in one with which its name
    begins, as `adam_linear` with `adam`, or one computed from its name.  It takes the next free slot if a
    recipe of the figure has that colour.  Of `study/recipe` names of one recipe, the first has its slot.
    """
    names = list(dict.fromkeys(names))
    taken: dict[str, int] = {}
    for name in names:
        slot = _FIXED.get(name.rpartition("/")[2])
        if slot is not None and slot not in taken.values():
            taken[name] = slot
    for name in sorted(names, key=lambda name: (_stem(name) is None, name)):
        if name not in taken:
            taken[name] = _free(name, set(taken.values()))
    return {name: _style(taken[name]) for name in names}


def _stem(name: str) -> int | None:
    """Return the slot of the longest known name with which a name begins, except the paper's."""
    bare = name.rpartition("/")[2]
    known = [k for k, slot in _FIXED.items() if bare.startswith(f"{k}_") and slot >= _RESERVED]
    return _FIXED[max(known, key=len)] if known else None


def _free(name: str, used: set[int]) -> int:
    """Return the slot of a recipe that is not built in, with a free colour while there is one."""
    first = _stem(name)
    if first is None:
        first = _RESERVED + crc32(name.encode()) % (len(_SLOTS) - _RESERVED)
    order: list[int] = [*range(first, 12 * _N), *range(_RESERVED, first)]
    colors = {slot % _N for slot in used}
    some = [slot for slot in order if slot not in used]
    return ([slot for slot in some if slot % _N not in colors] or some)[0]


def _style(slot: int) -> Style:
    lap, color = divmod(slot, _N)  # where the colours repeat, markers are hollow, then of another shape
    return Style(COLORS[color], _LINES[color], _MARKERS[(color + 5 * (lap // 2)) % _N], lap % 2 == 1)
