"""One trial's folder.  Its `result.json` is written last: it is the commit."""

from __future__ import annotations

import gzip
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from ahf_cli.study.columns import as_frame, empty, parse_csv, rows_bytes
from ahf_cli.study.files import atomic_write, make_folder, set_aside, sha256, write_json
from ahf_cli.study.manifest import NAME, SCHEMA
from ahf_cli.study.opening import LARGE, DamagedError, as_json, folders, read, read_json, unzip
from ahf_cli.tasks.metrics import MEASURED
from ahf_cli.training.records import CurveRow, StepRow, TrialResult

if TYPE_CHECKING:  # slow to import, and workers need them not
    import pandas as pd
    import pyarrow as pa

log = logging.getLogger("ahf")
WEIGHTS = "weights.npy"
"""the final weights θ of a trial of an equation, (P,) float64"""
_FILES = ("params.json", "curve.csv", "steps.csv.gz", WEIGHTS, "result.json")
"""the files of a finished trial, in the order in which they are written"""
_RESULT: TypeAdapter[TrialResult] = TypeAdapter(TrialResult)
_FLOATS = [f.name for f in fields(TrialResult) if f.type == "float"]
_NEEDED = ("train_loss", "test_loss", "validation_loss")
"""the metrics that every result has"""
_CHECKPOINT = re.compile(rb"ahf-checkpoint 1 step=(\d+) sha256=([0-9a-f]{64})\n")
MAX_STEPS = 10**8
"""Steps that a trial may have."""


@dataclass(frozen=True)
class TrialFolder:
    """One trial on disk.  Cheap and picklable: workers get it.

    `result` and `read_params` are for the processes that write: they set damaged files aside.  `inspect`,
    `note`, `curve_rows` and `step_rows` change nothing.
    """

    path: Path
    recipe: str
    slot: int

    def write_params(self, params: Mapping[str, object]) -> None:
        """Write `params.json`, the trial's hyperparameters."""
        write_json(self.path / "params.json", dict(params))

    def read_params(self) -> dict[str, Any] | None:
        """Return `params.json`, or None where it is missing or had to be set aside."""
        try:
            return self.note()
        except DamagedError as error:
            set_aside(error.file, error.why)
            return None

    def note(self) -> dict[str, Any] | None:
        """Return `params.json`, None where it is missing; raises DamagedError where it is no JSON object."""
        file = self.path / "params.json"
        try:
            value = read_json(file)
        except FileNotFoundError:
            return None
        if not isinstance(value, dict):
            raise DamagedError(file, "must be a JSON object")
        return value

    def begin_curve(self, rows: Sequence[CurveRow]) -> None:
        """Write the evaluations of a trial that begins, or goes on from a checkpoint with these.

        Without rows the file is empty: the first evaluation brings the names of its columns.
        """
        atomic_write(self.path / "curve.csv", rows_bytes(rows, CurveRow) if rows else b"")

    def append_curve(self, row: CurveRow) -> None:
        """Append one evaluation of a running trial, so that others can watch it.

        A crash can tear the line: readers of running trials drop a last line without its end.
        """
        text = rows_bytes([row], CurveRow)
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.path / "curve.csv", flags)
        try:
            os.write(descriptor, text.partition(b"\n")[2] if os.fstat(descriptor).st_size else text)
        finally:
            os.close(descriptor)

    def running_curve(self) -> pa.Table:
        """Return the evaluations of an unfinished trial so far, without a torn last line."""
        file = self.path / "curve.csv"
        try:
            text = read(file, LARGE)
        except FileNotFoundError:
            return empty((), CurveRow)
        whole = text[: text.rfind(b"\n") + 1]
        return parse_csv(file, whole, CurveRow) if whole else empty((), CurveRow)

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

    def checkpoint_files(self) -> dict[str, bytes]:
        """Return the files of its checkpoints by name, as they are."""
        found = ((file.name, _read(file, 64 * LARGE)) for file in self._checkpoints())
        return {name: data for name, data in found if data is not None}

    def finish(
        self, result: TrialResult, curve: Sequence[CurveRow], steps: Sequence[StepRow],
        weights: bytes | None = None,
    ) -> bool:  # fmt: skip
        """Write the trial's tables and then its result, and remove its checkpoints.

        A trial that is finished already is kept as it is, and False returned: a slot that two workers got is
        counted once.  A failed one is replaced.
        """
        if (before := self.result()) is not None and before.status != "failed":
            log.info("trial %s/%d is finished already; kept", self.recipe, self.slot)
            return False
        files = {
            "curve.csv": rows_bytes(curve, CurveRow),
            "steps.csv.gz": gzip.compress(rows_bytes(steps, StepRow), mtime=0),
            **({} if weights is None else {WEIGHTS: weights}),
        }
        self.commit(result, files)
        for file in self._checkpoints():
            file.unlink(missing_ok=True)
        return True

    def commit(self, result: TrialResult, files: Mapping[str, bytes], leave_out: Sequence[str] = ()) -> None:
        """Write the trial's tables, but those to leave out, and then its result with their checksums."""
        result_file = self.path / "result.json"
        result_file.unlink(missing_ok=True)  # a result must never stand beside another trial's tables
        for name, data in files.items():
            if name not in leave_out:
                atomic_write(self.path / name, data)
        kept = {name: data for name, data in files.items() if name not in leave_out}
        sizes = {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in kept.items()}
        write_json(result_file, {"schema": SCHEMA, **result.plain(), "files": sizes})

    def result(self) -> TrialResult | None:
        """Return how the trial ended; None while it has not, or where its files are damaged (set aside)."""
        try:
            return self.inspect()
        except DamagedError as error:
            set_aside(error.file, error.why)
            file = self.path / "result.json"
            set_aside(file, f"{error.file.name} is damaged; the trial counts as unfinished")
            return None

    def inspect(self) -> TrialResult | None:
        """Return how the trial ended, None while it has not; changes nothing.

        Raises:
            DamagedError: one of its files is not as it was written.
        """
        file = self.path / "result.json"
        data = _read(file)
        while data is not None:
            try:
                return self._judge(file, data)
            except DamagedError:
                seen, data = data, _read(file)
                if data == seen:  # else it was replaced while we looked: judge the new one
                    raise
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
        return as_frame(self.curve_rows())

    def curve_rows(self) -> pa.Table:
        """Return `curve.csv` as an Arrow table; raises DamagedError."""
        file = self.path / "curve.csv"
        return parse_csv(file, self._table(file), CurveRow)

    def steps(self) -> pd.DataFrame:
        """Return `steps.csv.gz`: one row per step, columns as in `StepRow`; empty where it was left out."""
        return as_frame(self.step_rows() or empty((), StepRow))

    def step_rows(self) -> pa.Table | None:
        """Return `steps.csv.gz` as an Arrow table, None where it was left out; raises DamagedError."""
        file = self.path / "steps.csv.gz"
        if not os.path.lexists(file):
            return None
        return parse_csv(file, unzip(file, self._table(file)), StepRow)

    def weights(self) -> bytes | None:
        """Return `weights.npy`, None where it was not kept."""
        return _read(self.path / WEIGHTS)

    def _table(self, file: Path) -> bytes:
        try:
            return read(file, LARGE)
        except FileNotFoundError:
            raise DamagedError(file, "is missing") from None

    def _checkpoints(self) -> tuple[Path, Path]:
        return self.path / "checkpoint.pt", self.path / "checkpoint.previous.pt"

    def _judge(self, file: Path, data: bytes) -> TrialResult:
        """Return the record in a `result.json`, or raise DamagedError for the first file that is damaged."""
        content = as_json(file, data)
        try:
            result = parse_result(content)
            optional = {"steps.csv.gz": None, WEIGHTS: None}
            sizes = {name: {**optional, **content["files"]}[name] for name in ("curve.csv", *optional)}
            said = {
                name: found and (int(found["bytes"]), str(found["sha256"])) for name, found in sizes.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(file, one_line(error)) from None
        if (result.recipe, result.slot) != (self.recipe, self.slot):
            raise DamagedError(
                file,
                f"must be of {self.recipe}/{self.slot:03d}, and is of {result.recipe}/{result.slot:03d}",
            )
        for name, written in said.items():
            table = self.path / name
            if name in optional and not os.path.lexists(table):
                continue
            found = self._table(table)
            if (len(found), sha256(found)) != written:
                raise DamagedError(table, "is not the file that was written with result.json")
        return result


@dataclass(frozen=True)
class TrialFolders:
    """The trials of a study, one folder per recipe and slot.  Cheap and picklable: workers get it."""

    path: Path

    def trial(self, recipe: str, slot: int) -> TrialFolder:
        """Return the folder of one trial, which need not exist yet."""
        return TrialFolder(self.path / recipe / f"{slot:03d}", recipe, slot)

    def recipes(self) -> list[str]:
        """Return the names of the recipes that have a folder."""
        return [name for name in folders(self.path) if re.fullmatch(NAME, name)]

    def slots(self, recipe: str) -> list[int]:
        """Return the slots of a recipe that have a folder."""
        names = (
            [] if (self.path / recipe).is_symlink() or self.path.is_symlink() else folders(self.path / recipe)
        )
        return sorted(int(name) for name in names if re.fullmatch(r"\d{3,9}", name, re.ASCII))

    def retire(self, recipe: str, belongs: Callable[[TrialResult], bool]) -> Path | None:
        """Set a recipe's trials aside if a finished one does not belong here; return where they are then."""
        folder = self.path / recipe
        results = (self.trial(recipe, slot).result() for slot in self.slots(recipe))
        if all(belongs(result) for result in results if result is not None):
            return None
        n = 1
        while (target := folder.with_name(f".{recipe}-before-{n}")).exists():
            n += 1
        return folder.rename(target)


def parse_result(content: Any) -> TrialResult:
    """Return the record in a parsed `result.json`; raises ValueError, KeyError or TypeError for others."""
    values: dict[str, object] = {k: math.nan for k in _FLOATS if content[k] is None}
    for key in ("params", "extra"):
        values[key] = _numbers(content.get(key, {}))
    measured = {key: value for key, value in content.items() if MEASURED.fullmatch(key)}
    for key in _NEEDED:
        _ = measured[key]
    result = _RESULT.validate_python({**content, **values, "measured": _numbers(measured)})
    if not 0 <= result.steps <= max(result.planned_steps, 0) <= MAX_STEPS or result.slot < 0:
        raise ValueError(
            f"steps must be in [0, planned_steps] and planned_steps ≤ {MAX_STEPS}, "
            f"got {result.steps} and {result.planned_steps}"
        )
    return result


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with NaN in the place of None."""
    return {key: math.nan if value is None else value for key, value in values.items()}


def one_line(error: Exception) -> str:
    """Return the first thing that is wrong with a record, with its key."""
    if isinstance(error, ValidationError):
        found = error.errors(include_url=False, include_context=False)[0]
        got = repr(found["input"])[:80]
        key, rule = ".".join(map(str, found["loc"])), found["msg"].replace("Input should", "must")
        return f"{key or 'the record'}: {rule}, got {got}"
    if isinstance(error, KeyError):
        return f"must have the key {error}, and lacks it"
    return str(error).partition("\n")[0] or type(error).__name__


def _read(file: Path, limit: int = LARGE) -> bytes | None:
    try:
        return read(file, limit)
    except FileNotFoundError:
        return None


def _read_checkpoint(file: Path) -> bytes | None:
    """Return a checkpoint's content, None where it is missing or its checksum is wrong (set aside)."""
    try:
        content = read(file, 64 * LARGE)
        head = _CHECKPOINT.match(content)
        data = content[head.end() :] if head else b""
        if head and head[2].decode() == sha256(data):
            return data
        set_aside(file, "its checksum is wrong")
    except FileNotFoundError:
        pass
    except DamagedError as error:
        set_aside(file, error.why)
    return None
