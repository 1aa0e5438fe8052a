"""Errors that a user sees as lines without a traceback, and their exit codes."""

from __future__ import annotations

from collections.abc import Iterable


class AhfError(Exception):
    """An error that ends the command; `lines` name its cause.  Exit code 1."""

    exit_code = 1

    def __init__(self, lines: str | Iterable[str]):
        self.lines = [lines] if isinstance(lines, str) else list(lines)
        super().__init__("\n".join(self.lines))


class InputError(AhfError):
    """An error in the input; each line names the rule, the key and the value.  Exit code 2."""

    exit_code = 2


class IncompleteError(AhfError):
    """An error of a command that needs unfinished trials; it shows the finished ones.  Exit code 3."""

    exit_code = 3


class InterruptedRunError(AhfError):
    """A stop by a signal; the same command resumes from the checkpoint.  Exit code 75."""

    exit_code = 75
