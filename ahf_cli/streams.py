"""Standard streams that take every text."""

from __future__ import annotations

import io
import os
import sys


def prepare() -> None:
    """Open closed standard streams on the null device, and escape characters that an encoding lacks.

    Else the next opened file, such as a database, would get the number of a closed stream.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            to_null(number)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def to_null(number: int) -> None:
    """Set a file descriptor of this process and its children to the null device."""
    null = os.open(os.devnull, os.O_RDWR)
    if null == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(null, number)
        os.close(null)


def takes_unicode() -> bool:
    """Return whether standard output takes every character unescaped."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"
