"""The metrics of K parameter vectors on whole sets."""

from __future__ import annotations

import torch
from torch import Tensor

from ahf_cli.optim.distributed import average
from ahf_cli.tasks.data import LabelledImages
from ahf_cli.tasks.metrics import MEASURES
from ahf_cli.tasks.task import Task

CHUNK = {"cpu": 1_000, "cuda": 10_000}
"""Examples at once: few enough for a CPU's caches, many enough to hide what each call costs.

The CPU's is measured (docs/performance.md), the GPU's is not.
"""


@torch.inference_mode()
def evaluate(
    task: Task, parameters: Tensor, examples: LabelledImages, limit: int | None = None
) -> dict[str, Tensor]:
    """Return the task's metrics on the first `limit` examples of a set: means over examples.

    Args:
        task: gives model, loss and device.
        parameters: (K, P).
        examples: the set.
        limit: number of examples; all by default.

    Returns:
        The loss as `loss` and the other metrics by name; (K,) each, float64 on the CPU.
    """
    count = min(limit or len(examples), len(examples))
    names = ("loss", *task.split.metrics)
    totals = torch.zeros(len(names), parameters.shape[0], dtype=torch.float64, device=task.device)
    measures = [MEASURES[name].value for name in task.split.metrics]
    chunk = CHUNK[task.device.type]
    rank, world = task.part
    for first in range(rank * chunk, count, world * chunk):
        part = task.examples(examples, first, min(first + chunk, count))
        outputs = part.outputs(parameters)
        totals[0] += part.loss.value(outputs, part.targets).double() * outputs.shape[1]
        for at, measure in enumerate(measures, start=1):
            totals[at] += measure(outputs, part.targets).double().sum(dim=-1)
    if world > 1:
        totals = average(totals) * world
    return dict(zip(names, (totals / count).cpu().unbind(0), strict=True))
