"""Numbers of committed studies with their intervals, as text for the templates of docs and README."""

from docs.findings.interval import interval
from docs.findings.jumps import Jumps
from docs.findings.recipe import Recipe
from docs.findings.study import Study, load

__all__ = ["Jumps", "Recipe", "Study", "interval", "load"]
