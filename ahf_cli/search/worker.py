"""A worker process: one thread on a CPU, data loaded once, jobs until told to stop."""

from __future__ import annotations

import io
import os
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing  # from here on, processes hand tensors over by reference

from ahf_cli import plugin
from ahf_cli.search.pool import (
    Job,
    Outcome,
    ProcessPool,
    Report,
    ShouldStop,
    describe,
    is_infrastructure,
)
from ahf_cli.study.trial_folder import TrialFolders
from ahf_cli.tasks.data import Split, SplitName, load
from ahf_cli.tasks.datasets import DATA_SETS
from ahf_cli.tasks.task import Task
from ahf_cli.training.records import CurveRow, Progress, Start, TrialResult
from ahf_cli.training.train import Batch, Plan, StoppedError, begin, restore, side_by_side, train


@dataclass(frozen=True)
class TaskSpec:
    """How a process gets its task."""

    folder: Path | None
    """where the files of the data set are; None where it has none"""
    split: SplitName
    batch_size: int
    subset: int | None
    device: str
    model: str = "lenet"
    loss: str = "cross_entropy"
    data: str = "fashion_mnist"
    dtype: str = "float32"
    plugins: tuple[plugin.Plugin, ...] = ()
    """first call in a process"""

    def load(self) -> Task:
        """Load the data."""
        return self.on(self.read())

    def read(self) -> Split:
        """Return the data."""
        return load(self.folder, self.split, self.subset, DATA_SETS[self.data])

    def on(self, data: Split) -> Task:
        """Take data that are loaded already."""
        return Task.on(data, self.model, self.batch_size, self.device, getattr(torch, self.dtype), self.loss)

    def shared(self) -> Split | None:
        """Load the data into memory that spawned processes share; None where the system has none to give."""
        data = self.read()
        try:
            for images in (data.train, data.validation, data.test):
                if images is not None:
                    images.images.share_memory_()  # type: ignore[no-untyped-call]
                    images.labels.share_memory_()  # type: ignore[no-untyped-call]
        except (RuntimeError, OSError):  # a small /dev/shm, as in some containers
            return None
        return data


class Worker:
    """A process's task and where its trials are recorded."""

    def __init__(
        self,
        task: Task,
        plan: Plan,
        records: TrialFolders,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        should_stop: Callable[[], bool] = lambda: False,
    ):
        self.task, self.plan, self.records = task, plan, records
        self.on_progress, self.should_stop = on_progress, should_stop
        self._first: dict[tuple[int, ...], list[CurveRow]] = {}
        """the evaluations at step 0 of the last batch, by the seeds of its rows"""

    def run(self, job: Job) -> Outcome:
        """Train a job's trials and commit each; trials with a checkpoint go on from it."""
        results: list[TrialResult] = []
        if self.should_stop():
            return Outcome(results, stopped=True)
        try:
            for batch in self._batches(job):
                results += self._train(job, batch)
        except StoppedError:
            return Outcome(results, stopped=True)
        except Exception as error:
            if os.environ.get("AHF_DEBUG"):
                traceback.print_exc()
            return Outcome(results, False, describe(error), is_infrastructure(error))
        return Outcome(results)

    def _batches(self, job: Job) -> list[Batch]:
        """Continue trials that have a checkpoint, begin the others; those at one step run side by side."""
        plan = self.plan.of(job.recipe.name)
        continued, fresh = [], {}
        for slot, params in job.params.items():
            batch = self._restored(job, plan, slot, params)
            if batch is None:
                fresh[slot] = params
            else:
                continued.append(batch)
        begun = [begin(self.task, job.recipe, plan, fresh, job.starts)] if fresh else []
        return side_by_side(continued) + begun

    def _restored(self, job: Job, plan: Plan, slot: int, params: dict[str, float]) -> Batch | None:
        for checkpoint in self.records.trial(job.recipe.name, slot).load_checkpoints():
            try:
                batch = restore(self.task, job.recipe, plan, checkpoint, job.starts.get(slot))
            except Exception:  # of another version: the older one, or from the start
                continue
            if batch.trials[0].params == job.recipe.complete(params):
                return batch
        return None

    def _train(self, job: Job, batch: Batch) -> list[TrialResult]:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        name = job.recipe.name
        plain = all(job.starts.get(t.slot, Start(t.seed)).repeat == 0 for t in batch.trials)
        begins = tuple(trial.seed for trial in batch.trials)
        if batch.step == 0 and plain and begins in self._first:  # equal seeds have equal initial weights
            for trial, row in zip(batch.trials, self._first[begins], strict=True):
                trial.curve.append(row)
        for trial in batch.trials:
            self.records.trial(name, trial.slot).begin_curve(trial.curve)

        def heard(progress: Progress) -> None:
            if progress.row is not None:
                self.records.trial(name, progress.slot).append_curve(progress.row)
            self.on_progress(progress)

        done = train(
            self.task,
            batch,
            on_progress=heard,
            on_checkpoint=lambda slot, data, step: self.records.trial(name, slot).save_checkpoint(data, step),
            should_stop=self.should_stop,
        )
        if plain:
            self._first = {begins: [trial.curve[0] for trial in batch.trials]}
        host = socket.gethostname()
        results = [
            replace(
                result, started=started, host=host, attempts=job.attempts.get(result.slot, 1),
                extra={**result.extra, **job.extra.get(result.slot, {})},
            )
            for result in done
        ]  # fmt: skip
        for k, (result, trial) in enumerate(zip(results, batch.trials, strict=True)):
            weights = None
            if self.task.split.equation is not None and result.status == "ok":
                weights = weights_bytes(batch.state.evaluated[k])
            self.records.trial(name, result.slot).finish(result, trial.curve, trial.steps, weights)
        return results


def weights_bytes(theta: torch.Tensor) -> bytes:
    """Return weights (P,) as the bytes of a NumPy file of float64, from which a solution is drawn."""
    content = io.BytesIO()
    np.save(content, theta.detach().double().cpu().numpy(), allow_pickle=False)
    return content.getvalue()


@dataclass(frozen=True)
class Trainer:
    """The data that a worker process needs to train.

    Called there, it loads the data and returns the runner of jobs.
    """

    spec: TaskSpec
    data: Split | None
    """in memory that processes share; None to load them in each"""
    plan: Plan
    records: TrialFolders
    threads: int

    def __call__(self, report: Report, should_stop: ShouldStop) -> Callable[[Job], Outcome]:
        """Prepare this process."""
        torch.set_num_threads(self.threads)
        plugin.run(self.spec.plugins)
        last: dict[tuple[str, int], float] = {}

        def seldom(progress: Progress) -> None:
            now, key = time.monotonic(), (progress.recipe, progress.slot)
            if progress.row is not None or now - last.get(key, 0) >= 0.5:
                last[key] = now
                report(progress)

        task = self.spec.load() if self.data is None else self.spec.on(self.data)
        return Worker(task, self.plan, self.records, seldom, should_stop).run


def process_pool(
    spec: TaskSpec, plan: Plan, records: TrialFolders, workers: int, threads: int
) -> ProcessPool:
    """Make the processes that train."""
    data = spec.shared() if workers > 1 else None
    return ProcessPool(Trainer(spec, data, plan, records, threads), workers)
