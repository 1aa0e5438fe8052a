"""The benchmarks measure, keep and draw; their numbers are no test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ahf_cli.errors import InputError
from benchmarks import document
from benchmarks.record import merge, slug

ROOT = Path(__file__).parents[1]


def test_tables_replace_tables_and_leave_prose() -> None:
    text = "# Title\n\nprose\n\n<!-- begin: cpu -->\nold\n<!-- end: cpu -->\n\nmore\n"
    new = document.replace(text, "cpu", "cpu", "| new |")
    assert new == "# Title\n\nprose\n\n<!-- begin: cpu -->\n\n| new |\n\n<!-- end: cpu -->\n\nmore\n"
    assert document.replace(new, "cpu", "cpu", "| new |") == new
    assert "## GPU 1\n\n<!-- begin: gpu-1 -->" in document.replace(new, "gpu-1", "GPU 1", "x")
    with pytest.raises(InputError, match="once each"):
        document.replace("<!-- begin: cpu -->", "cpu", "cpu", "x")


def test_a_quick_run_replaces_no_full_one() -> None:
    machine = {"processor": "p", "gpu": None, "cores": 2}
    full = {"machine": machine, "sections": {"steps": {"quick": False}}, "quick": False}
    quick = {
        "machine": machine,
        "sections": {"steps": {"quick": True}, "growth": {"quick": True}},
        "quick": True,
    }
    kept, note = merge(full, quick)
    assert kept is not None and kept["sections"] == {"steps": {"quick": False}, "growth": {"quick": True}}
    assert note == "kept from a full run: steps"
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_a_quick_run_gives_numbers_with_nothing_but_torch(tmp_path: Path) -> None:
    words = ["--quick", "--only", "products", "--threads", "1", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "cpu.json").read_text())
    rows = content["sections"]["products"]["rows"]
    assert {r["curvature"] for r in rows if "curvature" in r} == {"hessian", "ggn"}
    assert all(r["ms"]["median"] > 0 for r in rows if r.get("quantity") in ("gradient", "Hessian product"))
    assert not {"optuna", "typer", "pandas", "matplotlib"} & set(content["packages"])
    assert "| Hessian" in done.stdout and "target" in done.stdout
