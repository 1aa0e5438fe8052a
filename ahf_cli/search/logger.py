"""The trials of a search or of a single run, followed into a target of `--log` by their records."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ahf_cli.search.plan import Hooks
from ahf_cli.search.pool import describe
from ahf_cli.search.targets import Kind, Target, TargetRun
from ahf_cli.study.store import Study
from ahf_cli.study.trial_folder import TrialFolder, TrialFolders
from ahf_cli.training.records import CurveRow, Progress, TrialResult

log = logging.getLogger("ahf")


@dataclass
class _Followed:
    """A trial that trains now, with the last steps that its target has."""

    target: Target
    folder: TrialFolder
    evaluated: int
    stepped: int = 0

    def progress(self, progress: Progress) -> None:
        """Hand on a new step, and the evaluations that the trial's file has gained."""
        step = progress.last
        if step is not None and step.step > self.stepped:
            self.stepped = step.step
            self.target.step(step)
        if progress.row is not None:
            self.evaluations(progress.row.step)

    def evaluations(self, last: int) -> None:
        """Hand on the rows of `curve.csv` up to a step that the target has not: none is lost."""
        for values in self.folder.running_curve().to_pylist():
            if self.evaluated < values["step"] <= last:
                self.evaluated = values["step"]
                self.target.evaluation(CurveRow.of(values))

    def end(self, result: TrialResult) -> None:
        """Hand on the remaining evaluations and the result."""
        self.evaluations(result.steps)
        self.target.end(result)


class Logger:
    """The runs of one study in one target.

    The first error of the target is one warning and ends the logging; training goes on.
    """

    def __init__(self, kind: Kind, study: Study):
        self.kind, self.study, self.failed = kind, study, False
        self._followed: dict[TrialFolder, _Followed] = {}

    def progress(self, folder: TrialFolder, progress: Progress) -> None:
        """Take the progress of a trial; the first one opens its run."""
        if folder not in self._followed:
            self._followed[folder] = self._opened(folder, progress)
            self._followed[folder].evaluations(progress.step - 1)
        self._followed[folder].progress(progress)

    def result(self, folder: TrialFolder, result: TrialResult) -> None:
        """Take the end of a trial; one that another process trained has no run here."""
        if (followed := self._followed.pop(folder, None)) is not None:
            followed.end(result)

    def close(self) -> None:
        """Close the runs of trials that were stopped."""
        while self._followed:
            self._followed.popitem()[1].target.end(None)

    def guarded(self, call: Callable[[], None]) -> None:
        """Make a call, unless an earlier one has failed."""
        if self.failed:
            return
        try:
            call()
        except Exception as error:
            self.failed = True
            log.warning("warning: logging ends, and training goes on: %s", describe(error))

    def _opened(self, folder: TrialFolder, progress: Progress) -> _Followed:
        name = folder.path.relative_to(self.study.folder).as_posix()
        params = (folder.note() or {}).get("params", {})
        said = json.dumps([self.study.manifest()["created"], name, params], sort_keys=True)
        # A trial whose first evaluation is known from another trial begins with step 1.
        step = progress.step if progress.step > 1 else 0
        key = hashlib.sha256(said.encode()).hexdigest()[:16]
        target = self.kind.open(
            TargetRun(self.study.name, name, key, params, step, self.study.folder / "log")
        )
        return _Followed(target, folder, step - 1 if target.resumed else -1)


@contextmanager
def following(logger: Logger | None, records: TrialFolders, hooks: Hooks) -> Iterator[Hooks]:
    """A context whose hooks also tell a logger of the trials in a folder."""
    if logger is None:
        yield hooks
        return

    def progress(progress: Progress) -> None:
        trial = records.trial(progress.recipe, progress.slot)
        logger.guarded(lambda: logger.progress(trial, progress))
        hooks.on_progress(progress)

    def result(result: TrialResult) -> None:
        trial = records.trial(result.recipe, result.slot)
        logger.guarded(lambda: logger.result(trial, result))
        hooks.on_result(result)

    try:
        yield replace(hooks, on_progress=progress, on_result=result)
    finally:
        logger.guarded(logger.close)
