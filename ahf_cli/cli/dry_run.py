"""`ahf search --dry-run`: the estimate of a search in words."""

from __future__ import annotations

from typing import Any


def lines(document: dict[str, Any]) -> list[str]:
    """Return an estimate as lines for a person, with its assumptions."""
    if not document["recipes"]:
        return [
            f"nothing is left to do: all trials of {document['study']} are finished in {document['folder']}"
        ]
    found = []
    for name, r in document["recipes"].items():
        space = ", ".join(
            f"{key} [{low:g}, {high:g}]{' log' if is_log else ''}"
            for key, (low, high, is_log) in r["space"].items()
        )
        again = f", then {r['reruns']} re-runs of the best" if r["reruns"] else ""
        more = f" of {r['steps']} steps" if r["steps"] != document["steps"] else ""
        done = f" of {r['planned']}, the others are finished," if r["trials"] < r["planned"] else ""
        found.append(
            f"{name}: {r['trials']} trials{done}{more} over {space or 'nothing: all is fixed'}{again}"
        )
        found.append(
            f"  {r['seconds_per_step']:.3f} s a step with {r['cg_iterations']:.1f} CG iterations, "
            f"{r['seconds_per_trial'] / 60:.1f} min a trial, {r['evaluation_share']:.0%} of it evaluation"
        )
    workers = document["workers"]
    found.append(
        f"together: {document['hours']:.1f} hours on {workers} worker(s) ({document['device']}), "
        f"{document['megabytes']:.0f} MB on disk"
    )
    found.append(
        f"assumed: {document['steps']} steps a trial, none diverges early; a step costs what it costs around "
        "step 20 at the middle of the search space; workers do not slow each other down"
    )
    return found
