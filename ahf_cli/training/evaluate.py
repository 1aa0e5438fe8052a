"""Loss and accuracy of K parameter vectors on whole sets."""

from __future__ import annotations

import torch
from torch import Tensor

from ahf_cli.optim.distributed import average
from ahf_cli.tasks.data import LabelledImages
from ahf_cli.tasks.task import Task

CHUNK = {"cpu": 1_000, "cuda": 10_000}
"""Images at once: few enough for a CPU's caches, many enough to hide what each call costs.

The CPU's is measured (docs/performance.md), the GPU's is not.
"""


@torch.inference_mode()
def evaluate(
    task: Task, parameters: Tensor, images: LabelledImages, limit: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return mean cross-entropy and accuracy on the first `limit` images of a set.

    Args:
        task: gives model and device.
        parameters: (K, P).
        images: the set.
        limit: number of images; all by default.

    Returns:
        Two tensors (K,), float64 on the CPU.
    """
    count = min(limit or len(images), len(images))
    rows = parameters.shape[0]
    loss = torch.zeros(rows, dtype=torch.float64, device=task.device)
    correct = torch.zeros_like(loss)
    chunk = CHUNK[task.device.type]
    rank, world = task.part
    for first in range(rank * chunk, count, world * chunk):
        part = task.examples(images, first, min(first + chunk, count))
        outputs = part.outputs(parameters)
        size = outputs.shape[1]
        loss += part.loss.value(outputs, part.targets).double() * size
        correct += (outputs.argmax(dim=-1) == part.targets).sum(dim=-1)
    if world > 1:
        loss, correct = average(torch.stack([loss, correct])) * world
    return (loss / count).cpu(), (correct / count).cpu()
