"""The standard streams, made such that every text can be written to them."""

from __future__ import annotations

import io
import os
import sys


def prepare() -> None:
    """Open closed standard streams on the null device; write characters that one lacks as escapes.

    A closed stream's number would else be given to the next file that is opened, such as a database.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            to_null(number)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def to_null(number: int) -> None:
    """Let a file descriptor, for this process and those that it starts, be the null device."""
    null = os.open(os.devnull, os.O_RDWR)
    if null == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(null, number)
        os.close(null)


def takes_unicode() -> bool:
    """Tell whether standard output takes every character as it is."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"
