"""The numbers of committed studies, as texts with their intervals, for the templates of docs and README."""

from ahf_cli.report.numbers.interval import interval
from ahf_cli.report.numbers.jumps import Jumps
from ahf_cli.report.numbers.pairs import difference
from ahf_cli.report.numbers.recipe import Recipe
from ahf_cli.report.numbers.study import Study, load

__all__ = ["Jumps", "Recipe", "Study", "difference", "interval", "load"]
