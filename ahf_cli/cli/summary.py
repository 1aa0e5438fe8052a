"""The summary of a search in words."""

from __future__ import annotations

from typing import Any

from ahf_cli.training.records import headline


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """Return a search's summary as lines for a person."""
    lines = []
    for name, found in summary["recipes"].items():
        loss = found["objective"].replace("_", " ")
        counts = f"{found['trials']} trials: {found['ok']} ok"
        counts += f" ({found['stalled']} did not train)" if found["stalled"] else ""
        counts += f", {found['diverged']} diverged"
        if found["best_params"]:
            best = " ".join(f"{k}={v:.4g}" for k, v in found["best_params"].items() if k != "mu")
            counts += f"; best: trial {found['best_trial']}, {loss} {found['best_value']:.4f}, "
            counts += f"{_headline(found, 'best')} at {best}"
        lines.append(f"{name}: {counts}")
        if again := found["reruns"]:
            means = ""
            if again["mean_value"] is not None:
                means = f", mean {loss} {again['mean_value']:.4f} and {_headline(again, 'mean')}"
                means += " of those that did not" if again["diverged"] else ""
            lines.append(
                f"  its best again with {again['runs']} new seeds: {again['diverged']} diverged{means}"
            )
    return lines


def _headline(found: dict[str, Any], head: str) -> str:
    """Return the last of the test metrics in words."""
    return headline(
        {k.removeprefix(f"{head}_"): v for k, v in found.items() if k.startswith(f"{head}_test_")}
    )
