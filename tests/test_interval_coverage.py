"""Coverage of 95 % intervals: the figures of docs/statistics.md, simulated again, against their goal."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from ahf_cli.report.statistics.sample import empirical_distribution
from docs.coverage import samples, shares, tables
from docs.coverage.__main__ import DOCUMENT, filled, line

TEXT = DOCUMENT.read_text(encoding="utf-8")
CHEAP = {("mean", 10), ("paired difference", 20), ("Cliff's δ", 20)}


def figures(name: str) -> list[list[str]]:
    """Return the cells of a table in the document."""
    body = TEXT.split(f"<!-- begin: {name} -->\n")[1].split(f"\n<!-- end: {name} -->")[0]
    return [row.strip("| ").split(" | ") for row in body.splitlines()[2:]]


def test_the_document_has_the_figures_of_cheap_rows() -> None:
    found = [case.row() for case in samples.rows() if (case.name, case.n) in CHEAP]
    found += [shares.share_row(20), tables.rows()[0].row(), tables.rows()[-1].row()]
    assert len(found) == 6
    for row in found:
        assert line(row) in TEXT, "run `python -m docs.coverage`"


@pytest.mark.long
def test_the_document_has_the_figures_of_all_rows() -> None:
    assert filled(TEXT) == TEXT, "run `python -m docs.coverage`"


def test_intervals_of_one_and_two_samples_reach_the_goal() -> None:
    rows = figures("samples")
    assert len(rows) == len(samples.rows())
    for name, n, normal, skewed, very, mixed in rows:
        if name == samples.BAND:
            continue
        slack = 0 if name.startswith(("mean", "paired")) else 0.01
        plain = [float(v) for v in (normal, skewed, very)]
        assert all(0.92 - slack <= v <= 0.98 + slack for v in plain), (name, n)
        figure = re.fullmatch(r"(\[?)([\d.]+) \(([\d.]+), [\d.]+\)\]?", mixed)
        if figure and not figure[1]:
            least = 0.92 if name != "median" else 0.95
            assert least - slack <= float(figure[2]) and float(figure[3]) >= 0.85, (name, n)


def test_an_interval_of_the_mean_of_two_clusters_is_far_from_the_goal() -> None:
    least = [float(re.findall(r"[\d.]+", row[-1])[1]) for row in figures("samples") if row[0] == "mean"]
    assert min(least) < 0.5


def test_intervals_of_shares_reach_the_goal_on_average() -> None:
    for _, _, mean, least, _ in figures("shares"):
        assert 0.92 <= float(mean) <= 0.98 and float(least) >= 0.85


def test_intervals_of_crossed_tables_reach_the_goal_for_normal_effects() -> None:
    for effects, _, deviations, mean, alone, *parts in figures("tables"):
        if effects == "normal":
            top = 0.99 if deviations.startswith("0 : 0") else 0.98
            assert 0.92 <= float(mean) <= top
            assert all(0.92 <= float(part) <= 0.98 for part in parts if part != "–")
            assert not deviations.startswith("1 : 2") or float(alone.strip("[]")) < 0.9
        if effects == "skewness 1.4":
            assert 0.92 <= float(mean) <= 0.98


@pytest.mark.parametrize("n", [20, 70])
def test_the_band_of_a_distribution_holds_the_whole_of_it(n: int) -> None:
    rng = np.random.default_rng(0)
    half = math.sqrt(math.log(40) / (2 * n))
    runs, held = 1000, 0
    for _ in range(runs):
        found = empirical_distribution(rng.random(n))
        # F is the diagonal; F̂ jumps at each value, so both sides of the jump are checked
        held += bool(
            np.all(found.value <= found.share - 1 / n + half) and np.all(found.value >= found.share - half)
        )
    assert 0.93 <= held / runs <= 0.99
