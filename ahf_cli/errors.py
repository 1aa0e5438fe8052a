"""The errors that a user sees as one clear line each, and their exit codes."""

from __future__ import annotations

from collections.abc import Iterable


class AhfError(Exception):
    """Something ended the command; `lines` say what, and no traceback is shown.  Exit code 1."""

    exit_code = 1

    def __init__(self, lines: str | Iterable[str]):
        self.lines = [lines] if isinstance(lines, str) else list(lines)
        super().__init__("\n".join(self.lines))


class InputError(AhfError):
    """Bad input: each line names the rule, the key and the value.  Exit code 2."""

    exit_code = 2


class IncompleteError(AhfError):
    """The command did what it could, but what it needs is not finished.  Exit code 3."""

    exit_code = 3


class InterruptedRunError(AhfError):
    """Stopped by a signal after a checkpoint; the same command resumes.  Exit code 75."""

    exit_code = 75
