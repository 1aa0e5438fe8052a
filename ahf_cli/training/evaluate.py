"""The metrics of K parameter vectors on whole sets."""

from __future__ import annotations

import torch
from torch import Tensor

from ahf_cli.optim.distributed import average
from ahf_cli.optim.precision import in_full_precision
from ahf_cli.tasks.data import LabelledImages
from ahf_cli.tasks.metrics import MEASURES
from ahf_cli.tasks.task import Task

CHUNK = {"cpu": 1_000, "cuda": 10_000}
"""Number of examples in one forward pass, or of positions of sequences, by device.

Few examples fit the caches of a CPU; many examples hide the cost of each call.  The number for a CPU is
measured (docs/performance.md), the number for a GPU is not.
"""

MOST = 100_000
"""Largest number of examples times trials in one forward pass: some 14 kB each in LeNet's first layer."""


@torch.inference_mode()
@in_full_precision
def evaluate(
    task: Task, parameters: Tensor, examples: LabelledImages, limit: int | None = None
) -> dict[str, Tensor]:
    """Return the task's metrics on the first `limit` examples of a set, as means over examples.

    Args:
        task: gives model, loss and device.
        parameters: (K, P).
        examples: the set.
        limit: number of examples; default: all.

    Returns:
        The loss as `loss` and the other metrics by name; (K,) each, float64 on the CPU.
    """
    count = min(limit or len(examples), len(examples))
    names = ("loss", *task.split.metrics)
    totals = torch.zeros(len(names), parameters.shape[0], dtype=torch.float64, device=task.device)
    measures = [MEASURES[name] for name in task.split.metrics]
    positions = examples.labels[0].numel() if examples.labels.dtype == torch.int64 else 1
    chunk = max(1, min(CHUNK[task.device.type], MOST // len(parameters)) // positions)
    rank, world = task.part
    for first in range(rank * chunk, count, world * chunk):
        part = task.examples(examples, first, min(first + chunk, count))
        outputs = part.outputs(parameters)
        totals[0] += part.loss.value(outputs, part.targets).double() * outputs.shape[1]
        for at, measure in enumerate(measures, start=1):
            totals[at] += measure.value(outputs, part.targets).double().sum(dim=-1)
    if world > 1:
        totals = average(totals) * world
    means = (totals / count).cpu()
    for at, measure in enumerate(measures, start=1):
        if measure.of_mean is not None:
            means[at] = measure.of_mean(means[at])
    return dict(zip(names, means.unbind(0), strict=True))
