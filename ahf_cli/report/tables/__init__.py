"""Tables of trials and curves: what figures are drawn from, and what is printed."""

from ahf_cli.report.tables.curves import curve_table, step_table
from ahf_cli.report.tables.finals import AT_CHANCE, LEFT_OUT, final_table, readable
from ahf_cli.report.tables.metrics import at_baseline, recipe_names
from ahf_cli.report.tables.text import as_text, is_words, number

__all__ = [
    "AT_CHANCE",
    "LEFT_OUT",
    "as_text",
    "at_baseline",
    "curve_table",
    "final_table",
    "is_words",
    "number",
    "readable",
    "recipe_names",
    "step_table",
]
