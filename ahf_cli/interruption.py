"""Signals that ask a command to stop, from its first moment to its last."""

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
"""Ctrl-C, a service manager's stop, what Slurm is told to send before time is up, and a closed terminal."""
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


def heard() -> list[signal.Signals]:
    """Return the signals that ask this process to stop: all but SIGHUP under `nohup`, which ignores it."""
    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in SIGNALS if not (deaf and number == signal.SIGHUP)]


def raise_on_signals() -> None:
    """Let every signal that asks to stop do what Ctrl-C does: raise KeyboardInterrupt."""
    for number in heard():
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
            if number == signal.SIGHUP:  # it may come twice, from the shell and from the system
                signal.signal(number, signal.SIG_IGN)
            _say("stopping: finishing the step and saving a checkpoint (again: stop at once)", quiet)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

        before = {n: signal.signal(n, note) for n in heard()}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _say(text: str, quiet: bool) -> None:
    """Print a line to standard error; where the terminal is gone, let all that follows go nowhere."""
    try:
        print("" if quiet else f"{text}\n", end="", file=sys.stderr, flush=True)
    except OSError:
        for number in (1, 2):
            to_null(number)
