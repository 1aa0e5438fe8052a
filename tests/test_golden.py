"""The recorded float64 traces of an independent program are reproduced step by step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ahf_cli.report.trace_file import read_trace, write_trace
from ahf_cli.training.trace import deviations, replay

FILES = sorted((Path(__file__).parent / "golden").glob("*.npz"))


def test_all_traces_are_here() -> None:
    assert len(FILES) == 16


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_trace_is_reproduced(file: Path) -> None:
    recorded = read_trace(file)
    found = deviations(recorded, replay(recorded))
    assert {d.quantity for d in found} >= {
        "loss",
        "stop",
        "cg_iterations",
        "last_direction",
        "final/fc1.weight",
    }
    assert [d for d in found if d.first_step is not None] == []


def test_a_changed_trace_is_noticed() -> None:
    recorded = read_trace(FILES[0])
    series = {**recorded.series, "damping": recorded.series["damping"] * (1 + 2e-5)}
    stops = recorded.series["stop"].copy()
    stops[3] = "residual"
    changed = replace(recorded, series={**series, "stop": stops})
    outside = {d.quantity: d.first_step for d in deviations(changed, replay(recorded)) if d.first_step}
    assert outside == {"damping": 1, "stop": 4}


def test_written_traces_read_back(tmp_path: Path) -> None:
    recorded = read_trace(FILES[0])
    write_trace(tmp_path / "t.npz", recorded)
    again = read_trace(tmp_path / "t.npz")
    assert dict(again.setup) == dict(recorded.setup)
    for name, values in recorded.series.items():
        np.testing.assert_array_equal(again.series[name], values)
    np.testing.assert_array_equal(again.x, recorded.x)
