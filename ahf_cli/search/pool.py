"""Worker processes: each has a pipe of its own, so that the death of one concerns one job and no lock."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Protocol

from ahf_cli.interruption import SIGNALS
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.training.records import Progress, Start, TrialResult


@dataclass(frozen=True)
class Job:
    """Trials of one recipe that one worker trains side by side."""

    recipe: Recipe
    params: dict[int, dict[str, float]]
    """free hyperparameters by slot"""
    attempts: Mapping[int, int] = field(default_factory=dict)
    """which attempt this is, by slot; the first where it is not said"""
    starts: Mapping[int, Start] = field(default_factory=dict)
    """seeds by slot; where it is not said, the seed of the plan"""
    extra: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """further numbers of the results by slot"""


@dataclass(frozen=True)
class Outcome:
    """A worker's message about a job."""

    results: list[TrialResult]
    stopped: bool = False
    """asked to stop; unfinished trials are in their checkpoints"""
    error: str = ""
    """the failure in one line"""
    infrastructure: bool = False
    """the error is one of memory, disk or process, and the trial can be tried again; else it is a bug"""


@dataclass(frozen=True)
class Ended:
    """A job is over."""

    job: Job
    outcome: Outcome


Report = Callable[[Progress], None]
ShouldStop = Callable[[], bool]


class Prepare(Protocol):
    """First call in a worker process: picklable, returns the runner of jobs."""

    def __call__(self, report: Report, should_stop: ShouldStop) -> Callable[[Job], Outcome]:
        """Load the data of every job."""
        ...


class WorkerPool(Protocol):
    """Processes, or whatever else, that run jobs."""

    def free(self) -> int:
        """Return how many jobs can be handed in."""
        ...

    def submit(self, job: Job) -> None:
        """Hand in a job."""
        ...

    def events(self, timeout: float) -> Iterable[Progress | Ended]:
        """Return messages about running jobs, after at most `timeout` seconds."""
        ...

    def stop(self) -> None:
        """Ask all workers to checkpoint and stop."""
        ...

    def __enter__(self) -> WorkerPool: ...

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Wait for running jobs and end the workers."""


class ProcessPool:
    """Spawned worker processes, started when there is a job for them and replaced when they die."""

    def __init__(self, prepare: Prepare, workers: int):
        self._prepare = prepare
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker | None] = [None] * workers
        self._stopping = False

    def free(self) -> int:
        """Return how many jobs can be handed in."""
        return sum(worker is None or worker.job is None for worker in self._workers)

    def submit(self, job: Job) -> None:
        """Hand in a job; there must be a free worker."""
        for place, worker in enumerate(self._workers):
            if worker is not None and worker.job is not None:
                continue
            if worker is None or not worker.accepts(job):
                if worker is not None:
                    worker.end()
                worker = self._workers[place] = _Worker(self._context, self._prepare)
                if not worker.accepts(job):
                    worker.job = job  # it died at birth, which `events` will tell
            return
        raise RuntimeError("every worker has a job")

    def events(self, timeout: float) -> Iterator[Progress | Ended]:
        """Yield the messages of workers; wait for them at most `timeout` seconds."""
        busy = {worker.connection: worker for worker in self._workers if worker is not None and worker.job}
        if not busy:
            time.sleep(timeout)
        for connection in wait(list(busy), timeout):
            assert isinstance(connection, Connection)
            yield from self._heard(busy[connection])

    def stop(self) -> None:
        """Ask all workers to finish their step, checkpoint and stop."""
        self._stopping = True
        for worker in self._workers:
            if worker is not None:
                worker.stop()

    def pids(self) -> list[int]:
        """Return the processes that are there."""
        found = [worker.process.pid for worker in self._workers if worker is not None]
        return [pid for pid in found if pid is not None]

    def __enter__(self) -> ProcessPool:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Wait for running jobs and end the workers."""
        for worker in self._workers:
            if worker is not None:
                worker.stop()
        for worker in self._workers:
            if worker is not None:
                worker.end()

    def _heard(self, worker: _Worker) -> Iterator[Progress | Ended]:
        """Read all that a worker has sent, or find it dead."""
        job = worker.job
        assert job is not None
        try:
            while worker.connection.poll():
                said = worker.connection.recv()
                if isinstance(said, Outcome):
                    worker.job = None
                    if said.error or said.stopped:  # a process short of memory is not used again
                        worker.end()
                        self._forget(worker)
                    yield Ended(job, said)
                    return
                yield said
        except (EOFError, OSError):
            worker.job = None
            how = worker.end()
            self._forget(worker)
            outcome = Outcome([], True) if self._stopping else Outcome([], False, how, infrastructure=True)
            yield Ended(job, outcome)

    def _forget(self, worker: _Worker) -> None:
        self._workers[self._workers.index(worker)] = None


class _Worker:
    """One process, seen from its parent."""

    def __init__(self, context: multiprocessing.context.SpawnContext, prepare: Prepare):
        self.job: Job | None = None
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_serve, args=(prepare, theirs), daemon=True)
        # A terminal or a scheduler sends signals to workers as well.  A process takes over which of them are
        # blocked: it must not die of one while it imports.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def accepts(self, job: Job) -> bool:
        """Give it a job; False where it is dead."""
        try:
            if self.connection.poll():  # it has nothing to say but that it is gone
                return False
            self.connection.send(job)
        except (EOFError, OSError):
            return False
        self.job = job
        return True

    def stop(self) -> None:
        """Ask it to stop."""
        with contextlib.suppress(OSError):
            self.connection.send(None)

    def end(self) -> str:
        """Wait until it has ended, and return how."""
        self.stop()
        self.connection.close()  # it may be waiting for a reader of its messages
        self.process.join(None if self.job else 10)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        name = f"worker process {self.process.pid}"
        if code >= 0:
            return f"{name} ended with code {code}"
        why = " (out of memory, or killed by somebody)" if code == -signal.SIGKILL else ""
        return f"{name} was killed by {signal.Signals(-code).name}{why}"


class _Ears:
    """A worker process's view of its parent and of signals."""

    def __init__(self, connection: Connection):
        self.connection, self.asked, self.idle = connection, False, True
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._terminate)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self.idle:
            raise SystemExit(0)

    def should_stop(self) -> bool:
        """Tell whether to stop: the parent said so, or is gone."""
        if not self.asked and self.connection.poll():
            self.asked = True
        return self.asked

    def report(self, progress: Progress) -> None:
        """Tell how far a trial is, unless nobody is listening."""
        if select.select([], [self.connection], [], 0)[1]:
            with contextlib.suppress(OSError):
                self.connection.send(progress)

    def jobs(self) -> Iterator[Job]:
        """Yield jobs until there are no more."""
        while not self.asked:
            self.idle = True
            try:
                job = self.connection.recv()
            except (EOFError, OSError):
                return
            self.idle = False
            if not isinstance(job, Job):
                return
            yield job


def _serve(prepare: Prepare, connection: Connection) -> None:
    """Run jobs in a spawned process until its parent says that there are no more."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    ears = _Ears(connection)
    try:
        run = prepare(ears.report, ears.should_stop)
    except Exception as error:  # told as the outcome of the first job
        failed = Outcome([], False, describe(error), is_infrastructure(error))

        def run(job: Job) -> Outcome:
            return failed

    for job in ears.jobs():
        with contextlib.suppress(OSError):
            connection.send(run(job))


def _end_with_parent() -> None:
    """End this process when its parent is gone, or it would go on beside the search that replaces its own."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def describe(error: BaseException) -> str:
    """Return an exception in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    if "out of memory" in str(error):
        first = str(error).split(". ")[0].splitlines()[0]
        return f"{first}: lower run.batch, the trials side by side, or task.batch_size"
    return f"{type(error).__name__}: {error}".splitlines()[0]


def is_infrastructure(error: BaseException) -> bool:
    """Tell whether an error is one of memory or disk, which another attempt may not meet."""
    said = str(error)
    return isinstance(error, MemoryError | OSError) or "allocate memory" in said or "out of memory" in said
