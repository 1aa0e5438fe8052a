"""The lock of a folder: one process writes, and every process may ask for its name."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

from filelock import Timeout, UnixFileLock

from ahf_cli.errors import AhfError, InputError
from ahf_cli.study.opening import open_regular

WAIT_SECONDS = 0.4
"""Longest wait for the lock: a process that asks for the holder keeps it for an instant."""


class FolderLock:
    """A lock on the file `.lock` of a folder; the operating system drops it when its process ends."""

    def __init__(self, folder: Path):
        self._path = folder / ".lock"
        self._lock: UnixFileLock | None = None

    def acquire(self, what: str) -> None:
        """Take the lock and write this process's name into its file.

        Raises:
            AhfError: another process holds the lock of `what`; the message names it.
            InputError: the file is a link, a pipe or another file that is not regular.
        """
        self.release()
        with suppress(FileNotFoundError):
            open_regular(self._path).close()
        # Its fallback, a lock that is the existence of the file, would outlive a killed process.
        lock = UnixFileLock(
            self._path, WAIT_SECONDS, thread_local=False, poll_interval=0.1, fallback_to_soft=False,
            on_acquired=_write_name,
        )  # fmt: skip
        try:
            lock.acquire()
        except Timeout:
            raise AhfError(f"{what} is in use by process {self.holder() or 'unknown'}") from None
        self._lock = lock

    def release(self) -> None:
        """Give back the lock if this object holds it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def holder(self) -> str | None:
        """Return the process that holds the lock, as "PID on HOST"; None if the lock is free."""
        try:
            with open_regular(self._path) as file:
                try:
                    # A shared lock, which filelock lacks: two processes that ask do not see each other, and
                    # network file systems grant it on a file that is open for reading.
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return file.read(200).decode(errors="replace").strip() or "unknown"
        except (OSError, InputError):
            return None
        return None


def _write_name(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
