"""Loss and accuracy of guessing: the floor that a trial is measured against."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ahf_cli.errors import InputError
from ahf_cli.tasks.catalogue import LOSSES
from ahf_cli.tasks.datasets import DATA_SETS


@dataclass(frozen=True)
class Chance:
    """What guessing gives in a task: the floor that a trial is measured against.

    `loss` caps the value that a sampler is told, and a diverged trial counts with both in reports.
    """

    loss: float
    accuracy: float

    @classmethod
    def of(cls, classes: int) -> Chance:
        """Return ln K and 1/K: mean cross-entropy and accuracy of guessing among K equally likely classes."""
        return cls(math.log(classes), 1 / classes)


TEN_CLASSES = Chance.of(10)


def chance_of_task(task: Mapping[str, Any]) -> Chance:
    """Return what guessing gives in a task, the section `task` of a study's identity.

    Where the section is missing or empty, as in a damaged study, it is that of ten classes.  Raises
    InputError for a data set or loss that is not known, as those of plug-ins that are not loaded.
    """
    for key, known in (("data", DATA_SETS), ("loss", LOSSES)):
        name = task.get(key)
        if isinstance(name, str) and name not in known:
            raise InputError(
                f"task.{key}: {name!r} is not known; where it is a plug-in's, add --plugin FILE.py"
            )
    data, loss = (DATA_SETS.get(str(task.get("data"))), LOSSES.get(str(task.get("loss", "cross_entropy"))))
    if data is None or loss is None:
        return TEN_CLASSES
    return Chance(loss.chance(data.classes), 1 / data.classes)
