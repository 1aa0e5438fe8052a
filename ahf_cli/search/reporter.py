"""Reporters: the receivers of a run's remarks and progress."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from ahf_cli.search.plan import Hooks


class Reporter(Protocol):
    """Receives remarks, and the trials of each stage as they run and end."""

    def say(self, line: str) -> None:
        """Take a remark of one line."""
        ...

    def stage(self, title: str, done: int, total: int) -> AbstractContextManager[Hooks]:
        """Return a context whose hooks are told of a stage's trials."""
        ...


class Silent:
    """A reporter that drops everything."""

    def say(self, line: str) -> None:
        """Drop a remark."""

    def stage(self, title: str, done: int, total: int) -> AbstractContextManager[Hooks]:
        """Return hooks that do nothing."""
        return nullcontext(Hooks())


SILENT = Silent()
ShouldStop = Callable[[], bool]
"""Asked after every step; a run that is to stop saves checkpoints and ends."""


def never() -> bool:
    """Return False: the run goes on to its end."""
    return False
