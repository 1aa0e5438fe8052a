"""The one writer and reader of results: a study's folder, with one folder per trial in it.

Every file is written whole or not at all.  What a crash or a bad disk left torn is set aside under another
name and logged, and its trial counts as unfinished.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from ahf_cli.errors import AhfError, InputError
from ahf_cli.experiment.records import CurveRow, StepRow, TrialResult
from ahf_cli.hyperparameters import nearest
from ahf_cli.report.files import (
    atomic_write,
    csv_bytes,
    make_folder,
    set_aside,
    strict,
    write_csv,
    write_json,
)
from ahf_cli.report.trial_folder import SCHEMA, TrialFolder, TrialFolders, rows_frame

if TYPE_CHECKING:  # slow to import, and neither workers nor `ahf status` need it
    import pandas as pd

__all__ = [
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
]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SESSION_KEYS = ("command", "commit", "dirty", "versions", "device", "threads", "host")
"""What may change from one session of a study to the next, and is kept for each."""


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
        self._lock: IO[str] | None = None

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
                content = self._next_manifest(_plain(identity), _plain(manifest))
                for stale in self.folder.rglob(".*.tmp"):
                    stale.unlink(missing_ok=True)
                atomic_write(self.folder / "config.yaml", config_yaml.encode())
                write_json(self.folder / "manifest.json", content)
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise InputError(f"cannot write results to {self.folder}: {error.strerror or error}") from error

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

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
        plan = self.manifest().get("plan")
        found = plan.items() if isinstance(plan, dict) else ()
        return {recipe: n for recipe, n in found if isinstance(n, int) and NAME.fullmatch(recipe)}

    def recipes(self) -> list[str]:
        """Return the recipes found on disk: planned ones in the order of the plan, then others by name."""
        found = [p.name for p in _folders(self.trials_folder) if NAME.fullmatch(p.name)]
        plan = list(self.planned())
        return [r for r in plan if r in found] + sorted(r for r in found if r not in plan)

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
                for part in (file, file.with_name("study.db-journal"), file.with_name("study.db-wal")):
                    set_aside(part, said)
        return file.absolute()

    def write_derived(self) -> None:
        """Write `trials.csv` and `curves.csv`, all finished trials in one table each."""
        write_csv(self.folder / "trials.csv", trials_frame(self))
        write_csv(self.folder / "curves.csv", curves_frame(self))

    def _acquire(self) -> None:
        """Take the advisory lock on `.lock`, which the system drops when this process ends."""
        self.close()
        file = open(self.folder / ".lock", "a+", encoding="utf-8")  # noqa: SIM115  # held open until close()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise AhfError(f"study {self.name!r} is in use by process {holder}") from error
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._lock = file

    def _next_manifest(self, identity: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """Return the manifest to write, or raise InputError if what is on disk is another study."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        session = {"started": now, **{k: given[k] for k in SESSION_KEYS if k in given}}
        before = self.manifest()
        if not before:
            if any(_folders(self.trials_folder)):
                raise InputError(f"{self.folder} holds trials but no manifest.json: {self._repair}")
            head = {"schema": SCHEMA, "name": self.name, "created": now, "identity": identity, "plan": {}}
            return {**head, **given, "sessions": [session]}
        different = _differences(before.get("identity", {}), identity)
        if different:
            raise InputError(
                [f"study {self.name!r} exists with other settings; use another name:", *different]
            )
        plan = {**before.get("plan", {})}
        for recipe, n in given.get("plan", {}).items():
            plan[recipe] = max(n, plan.get(recipe, 0))
        return {**before, "plan": plan, "sessions": [*before.get("sessions", []), session]}


def trials_frame(study: Study) -> pd.DataFrame:
    """One row per finished trial: the fields of `TrialResult`, with `params.*` and `extra.*` spread."""
    import pandas as pd

    rows = []
    for result in (r for recipe in study.recipes() for r in study.finished(recipe)):
        row = {"recipe": result.recipe, "trial": result.slot, **asdict(result)}
        del row["slot"]
        for key in ("params", "extra"):
            row |= {f"{key}.{k}": v for k, v in row.pop(key).items()}
        rows.append(row)
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["recipe", "trial", "status"])


def curves_frame(study: Study) -> pd.DataFrame:
    """One row per finished trial and evaluation: recipe, trial, status and the columns of `CurveRow`."""
    frames = []
    for result in (r for recipe in study.recipes() for r in study.finished(recipe)):
        frames.append(_labelled(study.trial(result.recipe, result.slot).curve(), result))
    return _joined(frames, CurveRow)


def steps_frame(study: Study, recipe: str) -> pd.DataFrame:
    """One row per finished trial and step: recipe, trial, status and the columns of `StepRow`."""
    frames = [_labelled(study.trial(recipe, r.slot).steps(), r) for r in study.finished(recipe)]
    return _joined(frames, StepRow)


def _labelled(frame: pd.DataFrame, result: TrialResult) -> pd.DataFrame:
    frame.insert(0, "recipe", result.recipe)
    frame.insert(1, "trial", result.slot)
    frame.insert(2, "status", result.status)
    return frame


def _joined(frames: list[pd.DataFrame], row: type[CurveRow] | type[StepRow]) -> pd.DataFrame:
    import pandas as pd

    frames = [frame for frame in frames if len(frame)]
    if frames:
        return pd.concat(frames, ignore_index=True)
    empty = rows_frame([], row)
    return empty.assign(recipe="", trial=0, status="")[["recipe", "trial", "status", *empty.columns]]


def _folders(path: Path) -> Iterator[Path]:
    return (p for p in path.iterdir() if p.is_dir()) if path.is_dir() else iter(())


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a mapping reads as after a way through JSON."""
    return dict(json.loads(json.dumps(strict(value))))


def _flatten(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, Mapping) or (prefix and not value):
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _differences(on_disk: Mapping[str, object], asked: Mapping[str, object]) -> list[str]:
    """One line per key that differs, as `key: on disk X, asked for Y`."""
    old, new = _flatten(on_disk), _flatten(asked)

    def said(flat: Mapping[str, object], key: str) -> str:
        return json.dumps(flat[key], ensure_ascii=False) if key in flat else "nothing"

    return [
        f"{key}: on disk {said(old, key)}, asked for {said(new, key)}"
        for key in dict.fromkeys([*old, *new])
        if key not in old or key not in new or old[key] != new[key]
    ]
