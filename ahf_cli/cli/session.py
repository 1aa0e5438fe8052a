"""What the commands that train share: from a configuration to a finished study on disk."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ahf_cli.cli.options import log
from ahf_cli.errors import InterruptedRunError

if TYPE_CHECKING:
    from ahf_cli.experiment.config import Config
    from ahf_cli.experiment.train import Plan
    from ahf_cli.experiment.worker import TaskSpec
    from ahf_cli.report.store import Study


class Interruption:
    """Notes the first Ctrl-C or SIGTERM; a second one ends the process as usual."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        """Tell whether a signal has come."""
        return self.asked

    @contextmanager
    def watched(self, quiet: bool) -> Iterator[Interruption]:
        """Watch for signals within the context."""

        def note(number: int, frame: FrameType | None) -> None:
            self.asked = True
            log("stopping: finishing the step and saving a checkpoint (again: stop at once)", quiet)
            for other in before:
                signal.signal(other, signal.default_int_handler if other == signal.SIGINT else signal.SIG_DFL)

        before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def command_line() -> str:
    """Return the command as typed."""
    return shlex.join(["ahf", *sys.argv[1:]])


def interrupted() -> InterruptedRunError:
    """Return the error that says how to go on."""
    return InterruptedRunError(f"interrupted; this resumes it: {command_line()}")


def task_spec(config: Config) -> TaskSpec:
    """Find data and device."""
    from ahf_cli.experiment.environment import resolve_device
    from ahf_cli.experiment.worker import TaskSpec
    from ahf_cli.tasks.data import locate

    device = resolve_device(config.run.device)
    task = config.task
    return TaskSpec(locate(), task.split, task.batch_size, task.subset, device)


def train_size(config: Config) -> int:
    """Number of training images of a configuration's split."""
    whole = 50_000 if config.task.split == "paper" else 60_000
    return min(config.task.subset or whole, whole)


def plan_of(config: Config) -> Plan:
    """Return how each trial of a configuration trains."""
    from ahf_cli.experiment.train import Plan

    return Plan(
        steps=config.total_steps(train_size(config)),
        eval_every=config.train.eval_every,
        seed=config.seed,
        objective=config.search.objective,
        eval_subset=config.train.eval_subset,
        checkpoint_every=config.run.checkpoint_every,
    )


def workers_and_batch(config: Config, device: str) -> tuple[int, int]:
    """Processes, and trials side by side in each: one per core on a CPU, one with ten trials on a GPU."""
    from ahf_cli.experiment.environment import cores

    if device == "cpu":
        return config.run.workers or cores(), config.run.batch or 1
    return config.run.workers or 1, config.run.batch or 10


def threads_of(device: str) -> int:
    """Threads of a single run: all cores on a CPU."""
    from ahf_cli.experiment.environment import cores

    return cores() if device == "cpu" else 4


def manifest(config: Config, spec: TaskSpec, workers: int) -> dict[str, Any]:
    """Return the record of what this session runs on."""
    from ahf_cli.experiment.environment import describe
    from ahf_cli.tasks.data import digests

    return {
        "command": command_line(),
        **describe(spec.device),
        "workers": workers,
        "threads": 1 if spec.device == "cpu" else None,
        "seeds": {"training": config.seed, "sampler": config.seed},
        "data": digests(spec.folder),
        "plan": dict.fromkeys(config.searched, config.search.trials),
    }


def run_search(config: Config, study: Study, quiet: bool, title: str, stream: int = 0) -> dict[str, Any]:
    """Run or resume the search of a configuration in a study's folder, and return a summary.

    Raises:
        InterruptedRunError: stopped by a signal; the same command resumes.
    """
    from ahf_cli.cli.progress import Display
    from ahf_cli.experiment.search import Hooks, Search, SearchPlan
    from ahf_cli.experiment.worker import ProcessPool

    spec, plan = task_spec(config), plan_of(config)
    workers, batch = workers_and_batch(config, spec.device)
    started = time.monotonic()
    study.open_for_writing(config.to_yaml(), config.identity(), manifest(config, spec, workers))
    with study:
        total = config.search.trials * len(config.searched)
        search = Search(
            SearchPlan(
                {name: config.recipe(name) for name in config.searched},
                {name: config.space(name) for name in config.searched},
                config.search.trials, config.seed, config.search.sampler, workers, batch, stream,
                _prefix(config, stream),
            ),
            study,
            config.storage or f"sqlite:///{study.index()}",
        )  # fmt: skip
        left = len(search.unfinished)
        log(_plan_line(title, study.folder, total, left, plan.steps, workers, spec.device), quiet)
        workers = max(1, min(workers, left))
        threads = 1 if spec.device == "cpu" else 4
        stop = Interruption()
        with stop.watched(quiet), Display(title, total - left, total, quiet) as display:
            done = search.run(
                lambda: ProcessPool(spec, plan, study.trials, workers, threads),
                Hooks(display.result, display.progress, stop),
            )
        study.write_derived()
        if not done:
            raise interrupted()
    return _summary(study, config, time.monotonic() - started)


def _prefix(config: Config, stream: int) -> str:
    """Name Optuna's studies by recipe in a study's own file, and fully in a storage that may hold others."""
    return f"{config.study}/{'prerun' if stream else 'search'}/" if config.storage else ""


def _plan_line(title: str, folder: Path, total: int, left: int, steps: int, workers: int, device: str) -> str:
    if not left:
        return f"{title}: all {total} trials are done in {folder}"
    done = f", {total - left} of them done" if left < total else ""
    return f"{title}: {total} trials of {steps} steps{done}; {workers} worker(s) on {device}; in {folder}"


def _summary(study: Study, config: Config, seconds: float) -> dict[str, Any]:
    recipes = {}
    for name in config.searched:
        results = study.finished(name)
        ok = [r for r in results if r.status == "ok"]
        best = min(ok, key=lambda r: r.value, default=None)
        recipes[name] = {
            "trials": len(results),
            "ok": len(ok),
            "diverged": sum(r.status == "diverged" for r in results),
            "stalled": sum(r.stalled for r in results),
            "best_value": best.value if best else None,
            "best_params": best.params if best else None,
            "best_test_accuracy": best.test_accuracy if best else None,
        }
    return {"study": study.name, "folder": str(study.folder), "seconds": seconds, "recipes": recipes}


def say_summary(summary: dict[str, Any]) -> list[str]:
    """Return a search's summary as lines for a person."""
    lines = []
    for name, found in summary["recipes"].items():
        counts = f"{found['trials']} trials: {found['ok']} ok"
        counts += f" ({found['stalled']} stalled)" if found["stalled"] else ""
        counts += f", {found['diverged']} diverged"
        if found["best_params"]:
            best = " ".join(f"{k}={v:.4g}" for k, v in found["best_params"].items() if k != "mu")
            accuracy = found["best_test_accuracy"]
            counts += f"; best loss {found['best_value']:.4f}, test accuracy {accuracy:.4f} at {best}"
        lines.append(f"{name}: {counts}")
    return lines
