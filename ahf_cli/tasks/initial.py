"""The length of a task's initial weights, without its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ahf_cli.optim import Layout
from ahf_cli.tasks.catalogue import MODELS, make_model
from ahf_cli.tasks.datasets import DATA_SETS
from ahf_cli.tasks.models import glorot_uniform


def initial_length(task: Mapping[str, Any], seed: int) -> float | None:
    """Return ‖θ₀‖ for a training seed, scales of normalisation layers left out; None for unknown names.

    Args:
        task: section `task` of an identity, with `data` and `model`.
        seed: training seed; the length hardly depends on it.
    """
    data, model = DATA_SETS.get(str(task.get("data"))), str(task.get("model"))
    if data is None or model not in MODELS:
        return None
    layout = Layout.of(make_model(model, data.shape, data.outputs).named_parameters())
    return float(glorot_uniform(layout, seed).norm())
