"""Progress of a running search: bars on a terminal, sparse lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ahf_cli.cli.options import log
from ahf_cli.search.plan import Hooks
from ahf_cli.study.trials import own_value
from ahf_cli.tasks.metrics import digits
from ahf_cli.training.records import Progress as TrialProgress
from ahf_cli.training.records import TrialResult, headline, headline_of

_SHOWN = 8
"""most running trials that have a bar"""
_EVERY = 60.0
"""seconds between lines without a terminal"""


def describe(result: TrialResult) -> str:
    """Return the end of a trial as one line: outcome, final values, time, hyperparameters."""
    name = f"{result.recipe}/{result.slot:03d}"
    params = " ".join(f"{key}={value:.4g}" for key, value in result.params.items() if key != "mu")
    if result.status == "diverged":
        end = f"diverged at step {result.steps}{f' ({result.error})' if result.error else ''}"
    else:
        loss = f"{result.objective.replace('_', ' ')} {digits(own_value(result))}"
        end = f"{loss}  {headline(result.measured)}"
    return f"{name:28} {end}  ({result.seconds:.0f} s)  {params}"


class Terminal:
    """A reporter that prints remarks and shows the trials of each stage."""

    def __init__(self, quiet: bool):
        self.quiet = quiet

    def say(self, line: str) -> None:
        """Print a remark."""
        log(line, self.quiet)

    @contextmanager
    def stage(self, title: str, done: int, total: int) -> Iterator[Hooks]:
        """A context with hooks that show the trials of a stage."""
        with Display(title, done, total, self.quiet) as display:
            yield Hooks(display.result, display.progress, display.remark)


class Display:
    """A display of running and finished trials, used as a context manager."""

    def __init__(self, title: str, done: int, total: int, quiet: bool):
        self.quiet, self.total, self.done = quiet, total, done
        self._last_line = time.monotonic()
        self._running: dict[tuple[str, int], TaskID] = {}
        self._bars: Progress | None = None
        if not quiet and sys.stderr.isatty():
            self._bars = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"), console=Console(stderr=True),
            )  # fmt: skip
            self._overall = self._bars.add_task(f"[bold]{title}", total=total, completed=done, note="")

    def __enter__(self) -> Display:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._bars:
            self._bars.stop()

    def progress(self, progress: TrialProgress) -> None:
        """Show the progress of a running trial."""
        key = (progress.recipe, progress.slot)
        note = f"loss {digits(progress.loss)}"
        if progress.row is not None:
            value = headline_of(progress.row.measured)[1]
            note = f"train {digits(progress.row.measured['train_loss'])}  test {digits(value)}"
        if self._bars is None:
            self._line(f"{key[0]}/{key[1]:03d} step {progress.step} of {progress.planned_steps}, {note}")
            return
        if key not in self._running and len(self._running) < _SHOWN:
            self._running[key] = self._bars.add_task(
                f"{key[0]}/{key[1]:03d}", total=progress.planned_steps, note=""
            )
        if key in self._running:
            self._bars.update(self._running[key], completed=progress.step)
            if progress.row is not None:
                self._bars.update(self._running[key], note=note)

    def evaluation(self, progress: TrialProgress) -> None:
        """Show the bar of a single run, and a line at every evaluation."""
        if progress.row is not None:
            row = progress.row
            train, test = (digits(row.measured[f"{where}_loss"]) for where in ("train", "test"))
            loss = f"train loss {train}  test loss {test}"
            also = f"  {headline(row.measured)}" if headline_of(row.measured)[0] != "test_loss" else ""
            text = f"step {row.step:5}  {loss}{also}  ({row.seconds:.0f} s)"
            if self._bars is None:
                log(text, self.quiet)
            else:
                self._bars.console.print(text, highlight=False, markup=False)
        if self._bars is not None:
            self.progress(progress)

    def result(self, result: TrialResult) -> None:
        """Print the line of a finished trial."""
        self.done += 1
        if self._bars is None:
            log(f"[{self.done}/{self.total}] {describe(result)}", self.quiet)
            self._last_line = time.monotonic()
            return
        self._bars.console.print(describe(result), highlight=False, markup=False)
        self._bars.update(self._overall, completed=self.done)
        bar = self._running.pop((result.recipe, result.slot), None)
        if bar is not None:
            self._bars.remove_task(bar)

    def remark(self, text: str) -> None:
        """Print a remark, such as an error before a repeated try."""
        if self._bars is None:
            log(text, self.quiet)
        else:
            self._bars.console.print(text, highlight=False, markup=False)

    def _line(self, text: str) -> None:
        now = time.monotonic()
        if now - self._last_line >= _EVERY:
            self._last_line = now
            log(f"[{self.done}/{self.total}] {text}", self.quiet)
