"""Every hyperparameter, declared once; help texts, configurations and tables read it without torch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass


def nearest(name: str, known: Iterable[str], pluggable: bool = False) -> str:
    """Return `; did you mean 'x'?` for the closest known name, or the list of all known names.

    With `pluggable`, the list also says how a plug-in is loaded.
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    more = ", and a plug-in's with --plugin FILE.py" if pluggable else ""
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}{more}"


@dataclass(frozen=True)
class Range:
    """A search interval [low, high], uniform or log-uniform."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Hyperparameter:
    """One hyperparameter: symbol in the paper, default, valid interval, and search range of Appendix B."""

    name: str
    symbol: str
    help: str
    default: float
    low: float
    """lower end of the valid values; excluded if `open_low`"""
    open_low: bool
    high: float = math.inf
    """upper end of the valid values; always excluded"""
    search: Range | None = None
    """range of the paper's Appendix B.2; None if the paper fixes the value"""

    def rule(self) -> str:
        """Return the interval of valid values as text, such as `(0, inf)`."""
        return f"{'(' if self.open_low else '['}{self.low:g}, {self.high:g})"

    def accepts(self, value: float) -> bool:
        """Return whether a value is finite and in the interval of `rule`."""
        above = value > self.low if self.open_low else value >= self.low
        return math.isfinite(value) and above and value < self.high

    def check(self, value: float, where: str | None = None) -> float:
        """Return the value; raises ValueError with the rule, the hyperparameter and the value."""
        if not self.accepts(value):
            raise ValueError(f"{where or self.name} must be in {self.rule()}, got {value!r}")
        return value


def of_class(name: str) -> Hyperparameter:
    """Return the declaration of an argument of an optimizer class, which judges its values itself."""
    return Hyperparameter(name, name, "argument of the optimizer's class", 0.0, -math.inf, False)


HYPERPARAMETERS: dict[str, Hyperparameter] = {
    h.name: h
    for h in (
        Hyperparameter("lr", "α", "step size", 1.0, 0, True, search=Range(1e-3, 1, log=True)),
        Hyperparameter("damping", "λ₀", "initial damping", 10.0, 0, True, search=Range(1, 30)),
        Hyperparameter(
            "beta2", "β₂", "decay of the second moment", 1e-5, 0, False, 1, Range(1e-10, 1e-4, log=True)
        ),
        Hyperparameter(
            "epsilon", "ε", "target size of the direction", 1e-2, 0, True, search=Range(1e-5, 0.1, log=True)
        ),
        Hyperparameter("sigma", "σ", "bound on the direction's norm", 50.0, 0, True, search=Range(30, 100)),
        Hyperparameter("smoothness", "L", "conjugate smoothness", 100.0, 0, True, search=Range(50, 300)),
        Hyperparameter("mu", "μ", "added to the root of the second moment", 1e-8, 0, True),
        Hyperparameter(
            "halving", "τ", "steps after which α is half", 200.0, 0, True, search=Range(20, 2000, log=True)
        ),
        Hyperparameter("radius", "r", "longest update", 0.3, 0, True, search=Range(0.03, 3, log=True)),
        Hyperparameter("weight_decay", "w", "weight of ½ ‖θ‖² in h, or of −α w θ in u", 2e-5, 0, False),
        Hyperparameter("momentum", "γ", "decay of the gradients' sum or mean", 0.9, 0, False, 1),
        Hyperparameter(
            "structural_weight",
            "μ",
            "weight of the hidden states' change in the damping",
            0.1,
            0,
            False,
            search=Range(0.01, 1, log=True),
        ),
        Hyperparameter(
            "gradient_radius", "c", "longest gradient", 1.0, 0, True, search=Range(0.1, 10, log=True)
        ),
        Hyperparameter("recall", "μ", "share of the last direction that the damping keeps", 0.9, 0, False, 1),
        Hyperparameter("beta1", "β₁", "decay of the first moment", 0.9, 0, False, 1),
        Hyperparameter(
            "warmup_share", "w", "share of the steps in which α rises", 0.05, 0, False, 1, Range(0.01, 0.2)
        ),
        Hyperparameter(
            "average_decay",
            "d",
            "largest decay of the averaged iterate",
            0.99,
            0,
            False,
            1,
            Range(0.9, 0.999),
        ),
        Hyperparameter("hessian_power", "k", "power of the Hessian's diagonal", 1.0, 0, True, 2),
    )
}


def middle(found: Range) -> float:
    """Return the middle of a range; for a logarithmic range the geometric mean of its ends."""
    return math.sqrt(found.low * found.high) if found.log else (found.low + found.high) / 2


def declare(names: Iterable[str]) -> None:
    """Enter arguments of an optimizer class whose names are new."""
    for name in names:
        HYPERPARAMETERS.setdefault(name, of_class(name))
