"""Signals that stop a command."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ahf_cli.streams import to_null

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
"""Ctrl-C, a service manager's stop, Slurm's signal before the time limit, and a closed terminal."""
RESUMABLE = {"search", "prerun", "reproduce", "train", "worker"}
"""Commands that resume when they are typed again."""
_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s]*@|([?&]password=)[^&\s]*")


def scrub(text: str) -> str:
    """Return a text without the passwords of URLs in it."""
    return _PASSWORD.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", text)


def command_line() -> str:
    """Return the command as typed."""
    return scrub(shlex.join(["ahf", *sys.argv[1:]]))


def resume_line() -> str:
    """Return the line of an interrupted command, with the command line where that resumes it."""
    resumes = sys.argv[1:2] and sys.argv[1] in RESUMABLE and "--dry-run" not in sys.argv
    return f"interrupted; this resumes it: {command_line()}" if resumes else "interrupted"


def heard() -> list[signal.Signals]:
    """Return the signals that stop this process: all but SIGHUP under `nohup`, which ignores it."""
    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in SIGNALS if not (deaf and number == signal.SIGHUP)]


def raise_on_signals() -> None:
    """Raise KeyboardInterrupt at every signal that stops, as at Ctrl-C."""
    for number in heard():
        signal.signal(number, signal.default_int_handler)


class Interruption:
    """A record of the first signal that stops; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        """Return whether a signal has come."""
        return self.asked

    @contextmanager
    def watched(self, quiet: bool) -> Iterator[Interruption]:
        """A context in which the first signal is recorded instead of raised."""

        def note(number: int, frame: FrameType | None) -> None:
            self.asked = True
            if number == signal.SIGHUP:  # the shell and the system may both send it
                signal.signal(number, signal.SIG_IGN)
            _say("stopping: finishing the step and saving a checkpoint; a second signal stops at once", quiet)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

        before = {n: signal.signal(n, note) for n in heard()}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _say(text: str, quiet: bool) -> None:
    """Print a line to standard error; without a terminal, drop all later output."""
    try:
        print("" if quiet else f"{text}\n", end="", file=sys.stderr, flush=True)
    except OSError:
        for number in (1, 2):
            to_null(number)
