"""Signals that ask a command to stop, from its first moment to its last."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""Ctrl-C, a service manager's stop, and what Slurm is told to send before time is up."""
RESUMABLE = {"search", "prerun", "reproduce", "train", "worker"}
"""Commands that go on where they were stopped when they are typed again."""
_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s]*@|([?&]password=)[^&\s]*")


def scrub(text: str) -> str:
    """Return a text without the passwords of URLs in it."""
    return _PASSWORD.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", text)


def command_line() -> str:
    """Return the command as typed."""
    return scrub(shlex.join(["ahf", *sys.argv[1:]]))


def resume_line() -> str:
    """Say how to go on, where the command is one that goes on."""
    resumes = sys.argv[1:2] and sys.argv[1] in RESUMABLE
    return f"interrupted; this resumes it: {command_line()}" if resumes else "interrupted"


def raise_on_signals() -> None:
    """Let every signal that asks to stop do what Ctrl-C does: raise KeyboardInterrupt."""
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)


class Interruption:
    """Notes the first signal that asks to stop; a second one ends the process as usual."""

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
            if not quiet:
                print(
                    "stopping: finishing the step and saving a checkpoint (again: stop at once)",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

        before = {n: signal.signal(n, note) for n in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
