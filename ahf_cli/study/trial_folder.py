"""One trial's folder.  Its `result.json` is written last: it is the commit."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from ahf_cli.experiment.records import CurveRow, StepRow, TrialResult
from ahf_cli.study.files import atomic_write, make_folder, set_aside, sha256, write_json

if TYPE_CHECKING:  # slow to import, and workers need it not
    import pandas as pd

SCHEMA = 1
"""Version of the layout on disk."""

log = logging.getLogger("ahf")
_FILES = ("params.json", "curve.csv", "steps.csv.gz", "result.json")
"""what is left of a finished trial, in the order in which it is written"""
_RESULT: TypeAdapter[TrialResult] = TypeAdapter(TrialResult)
_FLOATS = [f.name for f in fields(TrialResult) if f.type == "float"]
_CHECKPOINT = re.compile(rb"ahf-checkpoint 1 step=(\d+) sha256=([0-9a-f]{64})\n")


@dataclass(frozen=True)
class TrialFolder:
    """One trial on disk.  Cheap and picklable: workers get it."""

    path: Path
    recipe: str
    slot: int

    def write_params(self, params: Mapping[str, object]) -> None:
        """Write `params.json`: what the trial was asked to run."""
        write_json(self.path / "params.json", dict(params))

    def read_params(self) -> dict[str, Any] | None:
        """Return `params.json`, or None where there is none or it had to be set aside."""
        file = self.path / "params.json"
        try:
            value = json.loads(file.read_bytes())
            if not isinstance(value, dict):
                raise ValueError("not an object")
        except FileNotFoundError:
            return None
        except ValueError as error:
            set_aside(file, str(error))
            return None
        return value

    def save_checkpoint(self, data: bytes, step: int) -> None:
        """Write a checkpoint under a checksum, and keep the one before it."""
        make_folder(self.path)
        new, previous = self._checkpoints()
        if new.exists():
            os.replace(new, previous)
        head = f"ahf-checkpoint 1 step={step} sha256={sha256(data)}\n"
        atomic_write(new, head.encode() + data)

    def load_checkpoints(self) -> list[bytes]:
        """Return the whole checkpoints, newest first; damaged ones are set aside."""
        return [data for file in self._checkpoints() if (data := _read_checkpoint(file)) is not None]

    def finish(self, result: TrialResult, curve: Sequence[CurveRow], steps: Sequence[StepRow]) -> bool:
        """Write the trial's tables and then its result, and remove its checkpoints.

        A trial that is finished already is kept as it is, and False returned: a slot that two workers got is
        counted once.  A failed one is replaced.
        """
        before = self.result()
        if before is not None and before.status != "failed":
            log.info("trial %s/%d is finished already; kept", self.recipe, self.slot)
            return False
        result_file = self.path / "result.json"
        result_file.unlink(missing_ok=True)  # a result must never stand beside another trial's tables
        files = {
            "curve.csv": rows_bytes(curve, CurveRow),
            "steps.csv.gz": gzip.compress(rows_bytes(steps, StepRow), mtime=0),
        }
        for name, data in files.items():
            atomic_write(self.path / name, data)
        sizes = {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in files.items()}
        write_json(result_file, {"schema": SCHEMA, **asdict(result), "files": sizes})
        for file in self._checkpoints():
            file.unlink(missing_ok=True)
        return True

    def result(self) -> TrialResult | None:
        """Return how the trial ended; None while it has not, or where its files are damaged (set aside)."""
        file = self.path / "result.json"
        data = _read(file)
        while data is not None:
            verdict = self._judge(data)
            if isinstance(verdict, TrialResult):
                return verdict
            seen, data = data, _read(file)
            if data == seen:  # else it was replaced while we looked: judge the new one
                bad, why = verdict
                set_aside(bad, why)
                set_aside(file, f"{bad.name} is damaged; the trial counts as unfinished")
                return None
        return None

    def pack(self) -> dict[str, bytes]:
        """Return the files of a finished trial by name."""
        return {name: data for name in _FILES if (data := _read(self.path / name)) is not None}

    def unpack(self, files: Mapping[str, bytes]) -> bool:
        """Write the files of a trial that another machine has finished; False where they are no whole trial.

        Raises nothing for odd content: it came through a database.
        """
        if not {"result.json", "curve.csv"} <= files.keys() or self.result() is not None:
            return False
        for name in _FILES:  # the result last: it is the commit
            if name in files:
                atomic_write(self.path / name, files[name])
        return self.result() is not None

    def curve(self) -> pd.DataFrame:
        """Return `curve.csv`: one row per evaluation, columns as in `CurveRow`."""
        import pandas as pd

        return pd.read_csv(io.BytesIO(self.curve_text()))

    def curve_text(self) -> bytes:
        """Return the content of `curve.csv`."""
        return (self.path / "curve.csv").read_bytes()

    def steps(self) -> pd.DataFrame:
        """Return `steps.csv.gz`: one row per step, columns as in `StepRow`; empty where it was left out."""
        import pandas as pd

        text = self.steps_text()
        return with_stops(pd.read_csv(io.BytesIO(text))) if text else rows_frame([], StepRow)

    def steps_text(self) -> bytes:
        """Return the content of `steps.csv.gz`, unpacked; nothing where it was left out."""
        file = self.path / "steps.csv.gz"
        return gzip.decompress(file.read_bytes()) if file.exists() else b""

    def _checkpoints(self) -> tuple[Path, Path]:
        return self.path / "checkpoint.pt", self.path / "checkpoint.previous.pt"

    def _judge(self, data: bytes) -> TrialResult | tuple[Path, str]:
        """Return the record in a `result.json`, or the damaged file and what is wrong with it."""
        file = self.path / "result.json"
        try:
            content = json.loads(data)
            result = _parse(content)
            damaged = self._damaged(content["files"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return file, repr(error).splitlines()[0]
        if (result.recipe, result.slot) != (self.recipe, self.slot):
            return file, f"it is of trial {result.recipe}/{result.slot}"
        return (damaged, "missing, or not as its result.json says") if damaged else result

    def _damaged(self, files: Mapping[str, Mapping[str, object]]) -> Path | None:
        """Return the first table that is not the one written with the result; left-out steps are allowed."""
        for name in ("curve.csv", "steps.csv.gz"):
            file, said = self.path / name, files[name]
            if not file.exists() and name == "steps.csv.gz":
                continue
            if not file.exists() or file.stat().st_size != said["bytes"]:
                return file
            if sha256(file.read_bytes()) != said["sha256"]:
                return file
        return None


@dataclass(frozen=True)
class TrialFolders:
    """The trials of a study, one folder per recipe and slot.  Cheap and picklable: workers get it."""

    path: Path

    def trial(self, recipe: str, slot: int) -> TrialFolder:
        """Return the folder of one trial, which need not exist yet."""
        return TrialFolder(self.path / recipe / f"{slot:03d}", recipe, slot)

    def retire(self, recipe: str, belongs: Callable[[TrialResult], bool]) -> Path | None:
        """Set a recipe's trials aside if a finished one does not belong here; return where they are then."""
        folder = self.path / recipe
        slots = [int(p.name) for p in folder.glob("[0-9]*") if p.name.isdecimal()]
        results = (self.trial(recipe, slot).result() for slot in slots)
        if all(belongs(result) for result in results if result is not None):
            return None
        n = 1
        while (target := folder.with_name(f".{recipe}-before-{n}")).exists():
            n += 1
        return folder.rename(target)


def _parse(content: dict[str, Any]) -> TrialResult:
    """Return the record in a parsed `result.json`; raises ValueError or KeyError where it is none."""
    values: dict[str, object] = {k: math.nan for k in _FLOATS if content[k] is None}
    for key in ("params", "extra"):
        values[key] = {k: math.nan if v is None else v for k, v in content[key].items()}
    return _RESULT.validate_python({**content, **values})


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read_checkpoint(file: Path) -> bytes | None:
    """Return a checkpoint's content, None where there is none or its checksum is wrong (set aside)."""
    if not file.exists():
        return None
    content = file.read_bytes()
    head = _CHECKPOINT.match(content)
    data = content[head.end() :] if head else b""
    if head and head[2].decode() == sha256(data):
        return data
    set_aside(file, "its checksum is wrong")
    return None


def rows_bytes(rows: Sequence[CurveRow] | Sequence[StepRow], row: type[CurveRow] | type[StepRow]) -> bytes:
    """Return records of one kind as CSV, with all digits of their numbers; NaN is an empty field."""
    names = [f.name for f in fields(row)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for values in rows:
        cells = (getattr(values, name) for name in names)
        writer.writerow("" if isinstance(c, float) and math.isnan(c) else c for c in cells)
    return text.getvalue().encode()


def with_stops(steps: pd.DataFrame) -> pd.DataFrame:
    """Return steps as they were written: no reason to stop is an empty string."""
    return steps.assign(stop=steps["stop"].astype(object).fillna("").astype(str))


def rows_frame(
    rows: Sequence[CurveRow] | Sequence[StepRow], row: type[CurveRow] | type[StepRow]
) -> pd.DataFrame:
    """Return records of one kind as a table; its columns are there even without rows."""
    import pandas as pd

    names = [f.name for f in fields(row)]
    return pd.DataFrame([[getattr(r, name) for name in names] for r in rows], columns=names)
