"""What runs in a worker process: one thread on a CPU, data loaded once, jobs until told to stop."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, Full
from typing import Any

import torch
import torch.multiprocessing

from ahf_cli.experiment.records import Progress, TrialRecords, TrialResult
from ahf_cli.experiment.search import Job, Outcome
from ahf_cli.experiment.train import Batch, Plan, StoppedError, begin, restore, train
from ahf_cli.tasks.data import Split, SplitName, load
from ahf_cli.tasks.task import Task


@dataclass(frozen=True)
class TaskSpec:
    """How a process gets its task."""

    folder: Path
    split: SplitName
    batch_size: int
    subset: int | None
    device: str

    def load(self) -> Task:
        """Load the data."""
        return self.on(load(self.folder, self.split, self.subset))

    def on(self, data: Split) -> Task:
        """Take data that are loaded already."""
        return Task.lenet_on(data, self.batch_size, self.device)

    def shared(self) -> Split | None:
        """Load the data into memory that spawned processes share; None where the system has none to give."""
        data = load(self.folder, self.split, self.subset)
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
        records: TrialRecords,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        should_stop: Callable[[], bool] = lambda: False,
    ):
        self.task, self.plan, self.records = task, plan, records
        self.on_progress, self.should_stop = on_progress, should_stop

    def run(self, job: Job) -> Outcome:
        """Train a job's trials and commit each; what was checkpointed before goes on from there."""
        results: list[TrialResult] = []
        if self.should_stop():
            return Outcome(results, stopped=True)
        try:
            for batch in self._batches(job):
                results += self._train(job, batch)
        except StoppedError:
            return Outcome(results, stopped=True)
        except Exception as error:
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
                os._exit(1)  # as if the system had killed this process: its trials are tried again
            if os.environ.get("AHF_DEBUG"):
                traceback.print_exc()
            return Outcome(results, error=f"{type(error).__name__}: {error}".splitlines()[0])
        return Outcome(results)

    def _batches(self, job: Job) -> list[Batch]:
        """Continue trials that have a checkpoint, each alone; begin the others side by side."""
        continued, fresh = [], {}
        for slot, params in job.params.items():
            batch = self._restored(job, slot, params)
            if batch is None:
                fresh[slot] = params
            else:
                continued.append(batch)
        begun = [begin(self.task, job.recipe, self.plan, fresh)] if fresh else []
        return continued + begun

    def _restored(self, job: Job, slot: int, params: dict[str, float]) -> Batch | None:
        for checkpoint in self.records.trial(job.recipe.name, slot).load_checkpoints():
            try:
                batch = restore(self.task, job.recipe, self.plan, checkpoint)
            except Exception:  # of another version: the older one, or from the start
                continue
            if batch.trials[0].params == job.recipe.complete(params):
                return batch
        return None

    def _train(self, job: Job, batch: Batch) -> list[TrialResult]:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        name = job.recipe.name
        done = train(
            self.task,
            batch,
            on_progress=self.on_progress,
            on_checkpoint=lambda slot, data, step: self.records.trial(name, slot).save_checkpoint(data, step),
            should_stop=self.should_stop,
        )
        results = [replace(result, started=started, host=socket.gethostname()) for result in done]
        for result, trial in zip(results, batch.trials, strict=True):
            self.records.trial(name, result.slot).finish(result, trial.curve, trial.steps)
        return results


class ProcessPool:
    """Spawned worker processes with one task each, a queue for their progress, and a word to stop them."""

    def __init__(self, spec: TaskSpec, plan: Plan, records: TrialRecords, workers: int, threads: int):
        context = torch.multiprocessing.get_context("spawn")  # hands tensors over by reference
        data = spec.shared() if workers > 1 else None
        self._queue: Any = context.Queue(maxsize=1000)
        self._stop = context.Event()
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=context,
            initializer=_start,
            initargs=(spec, data, plan, records, self._queue, self._stop, threads),
        )

    def submit(self, job: Job) -> Future[Outcome]:
        """Hand in a job."""
        # A job may start a process, which takes over that Ctrl-C is blocked: even while it imports.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._pool.submit(_run, job)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def progress(self) -> Iterator[Progress]:
        """Yield what running trials have said since the last call."""
        while True:
            try:
                yield self._queue.get_nowait()
            except Empty:
                return

    def stop(self) -> None:
        """Ask all workers to finish their step, checkpoint and stop."""
        self._stop.set()

    def __enter__(self) -> ProcessPool:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._queue.close()
        self._queue.cancel_join_thread()


_worker: Worker | None = None


def _start(
    spec: TaskSpec,
    data: Split | None,
    plan: Plan,
    records: TrialRecords,
    queue: Any,
    stop: Any,
    threads: int,
) -> None:
    """Prepare a spawned process."""
    global _worker
    torch.set_num_threads(threads)
    # A terminal sends Ctrl-C to every process; here the parent alone decides, by `stop`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # SIGTERM keeps its default: a pool that lost a worker ends the others so, and checkpoints are atomic.
    last: dict[tuple[str, int], float] = {}

    def report(progress: Progress) -> None:
        now, key = time.monotonic(), (progress.recipe, progress.slot)
        if progress.row is None and now - last.get(key, 0) < 0.5:
            return
        last[key] = now
        with contextlib.suppress(Full):  # progress is for the eye: a full queue loses some of it
            queue.put_nowait(progress)

    threading.Thread(target=_end_with_parent, daemon=True).start()
    task = spec.load() if data is None else spec.on(data)
    _worker = Worker(task, plan, records, report, stop.is_set)


def _end_with_parent() -> None:
    """End this process when its parent is gone, or it would go on beside the search that replaces its own."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(job: Job) -> Outcome:
    if _worker is None:
        raise RuntimeError("the process was not prepared")
    return _worker.run(job)
