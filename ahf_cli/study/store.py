"""The one writer and reader of results: a study's folder, with one folder per trial in it.

Every file is written whole or not at all.  What a crash or a bad disk left torn is set aside under another
name and logged, and its trial counts as unfinished.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ahf_cli.errors import AhfError, InputError
from ahf_cli.experiment.records import TrialResult
from ahf_cli.hyperparameters import nearest
from ahf_cli.study.files import (
    atomic_write,
    csv_bytes,
    make_folder,
    set_aside,
    write_csv,
    write_json,
    write_table,
)
from ahf_cli.study.frames import curves_frame, steps_frame, trials_frame
from ahf_cli.study.lock import FolderLock
from ahf_cli.study.manifest import first, following, plain, refuse_other
from ahf_cli.study.trial_folder import SCHEMA, TrialFolder, TrialFolders

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Reruns",
    "Study",
    "TrialFolder",
    "TrialFolders",
    "atomic_write",
    "check_name",
    "csv_bytes",
    "curves_frame",
    "find_study",
    "steps_frame",
    "study_names",
    "trials_frame",
    "write_csv",
    "write_json",
    "write_table",
]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: str, what: str = "study") -> str:
    """Return the name, or raise InputError: names become folders, so they are never paths."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"{what} name must be 1 to 64 letters, digits, '.', '_' or '-' "
            f"and begin with a letter or digit, got {name!r}"
        )
    return name


def study_names(results: Path) -> list[str]:
    """Names of the studies in a results folder."""
    if not results.is_dir():
        return []
    return sorted(
        p.name for p in results.iterdir() if NAME.fullmatch(p.name) and Study(results, p.name).exists()
    )


def find_study(results: Path, name: str) -> Study:
    """Return an existing study, or raise InputError with the nearest existing name."""
    study = Study(results, name)
    if not study.exists():
        known = study_names(results)
        raise InputError(
            f"no study {name!r} in {results}{nearest(name, known) if known else '; it has none'}"
        )
    return study


class Study:
    """A study's folder `results/<name>`: opened for writing by one process, read by any.

    Use it as a context manager to release the lock that `open_for_writing` takes.
    """

    def __init__(self, results: Path, name: str):
        self.results = Path(results)
        self.name = check_name(name)
        self._lock = FolderLock(self.folder)

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return self.results / self.name

    @property
    def trials_folder(self) -> Path:
        """The folder of its trials, one folder per recipe and slot."""
        return self.folder / "trials"

    @property
    def trials(self) -> TrialFolders:
        """Its trials, in a form that worker processes can be given."""
        return TrialFolders(self.trials_folder)

    @property
    def report_folder(self) -> Path:
        """The folder of its figures and tables."""
        return self.folder / "report"

    @property
    def prerun(self) -> Study:
        """The study's pre-run: a study of its own in the folder `prerun`."""
        return Study(self.folder, "prerun")

    @property
    def reruns(self) -> Reruns:
        """The re-runs of its best trials with new seeds."""
        return Reruns(self.results, self.name)

    def exists(self) -> bool:
        """Tell whether there is anything of this study on disk."""
        return any((self.folder / part).exists() for part in ("manifest.json", "trials", "prerun"))

    def open_for_writing(
        self, config_yaml: str, identity: Mapping[str, object], manifest: Mapping[str, Any]
    ) -> None:
        """Create the study or resume it, under a lock that ends with this process.

        `manifest["plan"]` gives the number of trials of each recipe; on resuming it only grows.  Raises
        InputError if the folder cannot be written or holds a study with another identity, AhfError if another
        process has it open.  Nothing is overwritten then.
        """
        try:
            make_folder(self.folder)
            self._acquire()
            try:
                content = self._next_manifest(plain(identity), plain(manifest))
                for stale in self.folder.rglob(".*.tmp"):
                    stale.unlink(missing_ok=True)
                atomic_write(self.folder / "config.yaml", config_yaml.encode())
                write_json(self.folder / "manifest.json", content)
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise InputError(f"cannot write results to {self.folder}: {error.strerror or error}") from error

    def drop_session(self) -> None:
        """Take back the record of this session, which has trained nothing: no result is of its code."""
        content = self.manifest()
        if len(content["sessions"]) > 1:
            write_json(self.folder / "manifest.json", {**content, "sessions": content["sessions"][:-1]})

    def result_files(self) -> dict[Path, int]:
        """Return the `result.json` of all trials and re-runs, with the times of their last change."""
        found = (f for s in (self, self.reruns) for f in s.trials_folder.glob("*/*/result.json"))
        return {file: file.stat().st_mtime_ns for file in found}

    def lock(self) -> None:
        """Keep other processes from writing, as `open_for_writing` does, whatever the manifest says."""
        self._acquire()

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def __enter__(self) -> Study:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def manifest(self) -> dict[str, Any]:
        """Return `manifest.json`, {} where there is none; raises InputError where it cannot be read."""
        file = self.folder / "manifest.json"
        try:
            content = json.loads(file.read_bytes())
            if not isinstance(content, dict) or not isinstance(content["schema"], int):
                raise ValueError("not a manifest")
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError) as error:
            raise InputError(f"{file} is damaged ({error}): {self._repair}") from error
        if content["schema"] > SCHEMA:
            raise InputError(
                f"{file} has schema {content['schema']}, and this version of ahf reads up to {SCHEMA}"
            )
        return content

    @property
    def _repair(self) -> str:
        name, results = self.name, self.results
        if name == "prerun":  # a part of the study that it lies in
            name, results = results.name, results.parent
        return f"`ahf repair {name} --results {results}` makes it anew from config.yaml and the trials"

    def planned(self) -> dict[str, int]:
        """Return how many trials each recipe is to have."""
        return self._plan("plan")

    def _plan(self, key: str) -> dict[str, int]:
        plan = self.manifest().get(key)
        found = plan.items() if isinstance(plan, dict) else ()
        return {recipe: n for recipe, n in found if isinstance(n, int) and NAME.fullmatch(recipe)}

    def recipes(self) -> list[str]:
        """Return the recipes found on disk: planned ones in the order of the plan, then others by name."""
        found, plan = self.recipes_on_disk(), list(self.planned())
        return [r for r in plan if r in found] + sorted(r for r in found if r not in plan)

    def recipes_on_disk(self) -> list[str]:
        """Return the recipes found on disk by name, whatever the manifest says."""
        return sorted(p.name for p in _folders(self.trials_folder) if NAME.fullmatch(p.name))

    def trial(self, recipe: str, slot: int) -> TrialFolder:
        """Return the folder of one trial, which need not exist yet."""
        return self.trials.trial(check_name(recipe, "recipe"), slot)

    def finished(self, recipe: str) -> list[TrialResult]:
        """Return the results of a recipe by slot: ok and diverged ones, and those that failed for good."""
        folders = (p.name for p in _folders(self.trials_folder / check_name(recipe, "recipe")))
        slots = sorted(int(name) for name in folders if name.isdecimal())
        results = (self.trial(recipe, slot).result() for slot in slots)
        return [result for result in results if result is not None]

    def index(self) -> Path:
        """Return the file of the search's database, set aside before if it is no whole database.

        It is an index of the trial folders, and is made anew from them.
        """
        file = self.folder / "study.db"
        if file.exists():
            try:
                with closing(sqlite3.connect(file)) as connection:
                    (said,) = connection.execute("PRAGMA quick_check").fetchone()
            except sqlite3.OperationalError as error:  # locked: somebody looks at it
                raise AhfError(f"{file} cannot be opened: {error}") from None
            except sqlite3.DatabaseError as error:
                said = str(error)
            if said != "ok":
                for part in (file, *(file.with_name(f"study.db-{end}") for end in ("journal", "wal", "shm"))):
                    set_aside(part, said)
        return file.absolute()

    def holder(self) -> str | None:
        """Return the process that has the study open for writing, as "PID on HOST"; None where none has."""
        return self._lock.holder()

    def remove(self) -> None:
        """Delete the study's folder; raises AhfError where a process has it open.

        Of a folder that is a symbolic link only the link is deleted, and nothing is locked.
        """
        if self.folder.is_symlink():
            self.folder.unlink()
            return
        lock = self.folder / ".lock"
        if lock.is_symlink() or lock.is_fifo():  # no process of ours holds it, and it must not be followed
            lock.unlink()
        self._acquire()
        gone = self.folder.with_name(f".{self.name}.{secrets.token_hex(4)}.removed")
        os.replace(self.folder, gone)  # at once, so that half a study is never seen
        self.close()
        shutil.rmtree(gone)

    def write_derived(self, read: tuple[pd.DataFrame, pd.DataFrame] | None = None) -> None:
        """Write `trials.csv`, `curves.csv` (`read`, where they have been read already) and `reruns.csv`."""
        trials, curves = read or (trials_frame(self), curves_frame(self))
        write_csv(self.folder / "trials.csv", trials)
        write_csv(self.folder / "curves.csv", curves)
        if self.reruns.recipes_on_disk():
            self.reruns.write_derived()

    def _acquire(self) -> None:
        self._lock.acquire(f"study {self.name!r}")

    def _next_manifest(self, identity: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """Return the manifest to write, or raise InputError if what is on disk is another study."""
        before = self.manifest()
        if not before:
            if any(_folders(self.trials_folder)):
                raise InputError(f"{self.folder} holds trials but no manifest.json: {self._repair}")
            return self.first_manifest(identity, given)
        refuse_other(self.name, before.get("identity", {}), identity)
        return following(before, _now(), identity, given)

    def first_manifest(self, identity: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the manifest of a new study."""
        return first(self.name, SCHEMA, _now(), identity, given)


class Reruns(Study):
    """The re-runs of a study: `reruns/<recipe>/<replicate>`, trial folders whose slot is the replicate."""

    @property
    def trials_folder(self) -> Path:
        """The folder of the re-runs, one folder per recipe and replicate."""
        return self.folder / "reruns"

    def planned(self) -> dict[str, int]:
        """Return how many re-runs each recipe is to have."""
        return self._plan("rerun_plan")

    def write_derived(self, read: tuple[pd.DataFrame, pd.DataFrame] | None = None) -> None:
        """Write `reruns.csv`, all finished re-runs in one table."""
        write_csv(self.folder / "reruns.csv", trials_frame(self))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _folders(path: Path) -> Iterator[Path]:
    return (p for p in path.iterdir() if p.is_dir()) if path.is_dir() else iter(())
