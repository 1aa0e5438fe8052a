"""A packed study: a few read-only files with all that its trials' folders held."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ahf_cli.errors import InputError
from ahf_cli.study.columns import Row, arrow_types, columns, metrics_in
from ahf_cli.study.files import sha256
from ahf_cli.study.manifest import NAME, PRERUN, Packed, checked
from ahf_cli.study.opening import LARGE, DamagedError, read, read_json
from ahf_cli.study.trial_folder import MAX_STEPS, one_line, parse_result
from ahf_cli.study.trials import Labelled
from ahf_cli.tasks.metrics import MEASURED
from ahf_cli.training.records import CurveRow, StepRow, TrialResult

if TYPE_CHECKING:  # slow to import
    import pyarrow as pa

TABLES = ("trials", "curves", "steps")
KEYS = {"phase": str, "recipe": str, "trial": int}
"""Columns of every table: part of the study, recipe, and slot of the trial that a row belongs to."""
_KINDS = {"float": float, "int": int, "bool": bool}
RESULT = {
    f.name: _KINDS.get(str(f.type), str)
    for f in fields(TrialResult) if f.name not in ("recipe", "slot", "params", "measured", "extra")
}  # fmt: skip
"""Columns of the table of trials, beside metrics, `params.*` and `extra.*`; empty for an unfinished trial."""
ADDED = {"numerics", "losses", "still_from"}
"""Columns that packs of older versions lack."""
LOSSES = {f"{where}_loss": float for where in ("train", "validation", "test")}
"""The metrics that every task has."""
EXTRAS = {"note": str, "has_steps": bool}
"""The content of `params.json`, and whether the trial's steps were kept."""
MAX_TRIALS, MAX_CELLS = 1_000_000, 2**28
"""Trials, and cells of a table, that a packed study may have."""
Key = tuple[str, str, int]


def is_packed(folder: Path) -> bool:
    """Tell whether a folder holds a packed study, or remains of one."""
    return any(os.path.lexists(folder / f"{name}.parquet") for name in TABLES)


class Pack:
    """A packed study's manifest and tables, each read once and checked then.

    Raises:
        DamagedError: a file is missing, was changed, or does not follow the schema.
        InputError: it is of a later version.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The content of `manifest.json`."""
        file = self.folder / "manifest.json"
        try:
            content = read_json(file)
        except FileNotFoundError:
            raise DamagedError(file, "is missing from a packed study") from None
        found = content.get("packed") if isinstance(content, dict) else None
        version = found.get("format") if isinstance(found, dict) else None
        if isinstance(version, int) and version > 1:
            raise InputError(f"{file} has packed.format {version}, and this version of ahf reads up to 1")
        if found is None:
            raise DamagedError(file, "must have the key packed, beside tables")
        return checked(file, content)

    @cached_property
    def section(self) -> Packed:
        """The manifest's section on the pack itself."""
        return Packed.model_validate(self.manifest["packed"])

    @property
    def files(self) -> dict[str, str]:
        """The content of small files, by their place in the study's folder."""
        return self.section.files

    def phases(self) -> list[str]:
        """Return the parts of the study that have trials or files."""
        own = [name.partition("/")[0] for name in self.files if not name.startswith("plugins/")]
        return list(dict.fromkeys([*own, *(phase for phase, _, _ in self.trials)]))

    @cached_property
    def trials(self) -> dict[Key, dict[str, Any]]:
        """The rows of the table of trials."""
        table = self._table("trials", {**KEYS, **RESULT, **LOSSES, **EXTRAS}, MAX_TRIALS)
        file = self.folder / "trials.parquet"
        rows: dict[Key, dict[str, Any]] = {}
        for row in table.to_pylist():
            phase, recipe, trial = key = tuple(row[name] for name in KEYS)
            good = re.fullmatch(rf"search|rerun|{PRERUN}", str(phase)) and re.fullmatch(NAME, str(recipe))
            if not good or trial is None or not 0 <= trial < 10**9 or key in rows:
                raise DamagedError(file, f"phase, recipe and trial must name each row once, got {key}")
            rows[key] = row
        return rows

    @cached_property
    def curves(self) -> pa.Table:
        """The table of evaluations."""
        return self._rows("curves", CurveRow, lambda steps: steps + 2)

    @cached_property
    def steps(self) -> pa.Table:
        """The table of steps; a pack without the steps of any trial has no file for it."""
        import pyarrow as pa

        if "steps" not in self.section.tables and not any(row["has_steps"] for row in self.trials.values()):
            return pa.schema(arrow_types({**KEYS, **columns(StepRow)})).empty_table()
        return self._rows("steps", StepRow, lambda steps: steps)

    @cached_property
    def weights(self) -> dict[Key, bytes]:
        """The files of final weights by trial; packs of other tasks have no such table."""
        if "weights" not in self.section.tables:
            return {}
        rows = self._table("weights", {**KEYS, "weights": bytes}, len(self.trials)).to_pylist()
        found = {(row["phase"], row["recipe"], row["trial"]): row["weights"] for row in rows}
        if not found.keys() <= self.trials.keys() or None in found.values():
            raise DamagedError(
                self.folder / "weights.parquet", "each row must have weights of a trial of trials.parquet"
            )
        return found

    def _rows(self, name: str, row: Row, most: Callable[[int], int]) -> pa.Table:
        """Return a table, each of whose rows belongs to a trial that can have as many."""
        import pyarrow as pa

        bounds: Counter[Key] = Counter()
        for key, content in self.trials.items():
            if content["status"] is None:
                bounds[key] = 100_000  # it ran when it was packed
            elif isinstance(content["steps"], int) and 0 <= content["steps"] <= MAX_STEPS:
                bounds[key] = most(content["steps"])
        wanted = columns(row, self._measured(row))
        table = self._table(name, {**KEYS, **wanted}, sum(bounds.values()))
        for added in [c for c in wanted if c in ADDED and c not in table.column_names]:
            table = table.append_column(added, pa.nulls(len(table), pa.float64()))
        file = self.folder / f"{name}.parquet"
        counts = table.group_by(list(KEYS)).aggregate([([], "count_all")]).to_pylist()
        for found in counts:
            key = tuple(found[part] for part in KEYS)
            if key not in bounds:
                raise DamagedError(file, f"rows must belong to trials of trials.parquet, got {key}")
            if found["count_all"] > bounds[key]:
                what = f"{key[1]}/{key[2]:03d} of {key[0]}"
                raise DamagedError(
                    file, f"{what} must have at most {bounds[key]} rows, got {found['count_all']}"
                )
        for field in table.schema:
            if not pa.types.is_floating(field.type) and table.column(field.name).null_count:
                raise DamagedError(file, f"{field.name} must have a value in every row, and lacks it")
        return table

    def _measured(self, row: Row) -> list[str]:
        """Return the columns of metrics that a table of evaluations must have."""
        first = next(iter(self.trials.values()), {})
        return metrics_in([*LOSSES, *first], row)

    def _table(self, name: str, wanted: Mapping[str, type], most: int) -> pa.Table:
        """Return a table whose file is unchanged, with columns of the right types."""
        import pyarrow as pa
        from pyarrow import parquet

        file = self.folder / f"{name}.parquet"
        try:
            data = read(file, LARGE)
        except FileNotFoundError:
            raise DamagedError(file, "is missing") from None
        said = self.section.tables.get(name)  # type: ignore[call-overload]
        if said is None:
            raise DamagedError(self.folder / "manifest.json", f"packed.tables must have {name}, and lacks it")
        if (len(data), sha256(data)) != (said.bytes, said.sha256):
            raise DamagedError(
                file, f"must be the file of {said.bytes} bytes that manifest.json names by its SHA-256"
            )
        try:
            source = parquet.ParquetFile(
                pa.BufferReader(data), thrift_string_size_limit=2**24, thrift_container_size_limit=2**20
            )
            about, types = source.metadata, {f.name: f.type for f in source.schema_arrow}
            if about.num_rows > most or about.num_rows * max(len(types), 1) > MAX_CELLS:
                raise DamagedError(
                    file, f"must have at most {min(most, MAX_CELLS)} rows, got {about.num_rows}"
                )
            self._check_columns(file, types, wanted, name)
            return source.read(use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, DamagedError):
                raise
            raise DamagedError(file, f"must be a Parquet file: {str(error).splitlines()[0]}") from None

    def _check_columns(
        self, file: Path, found: Mapping[str, pa.DataType], wanted: Mapping[str, type], table: str
    ) -> None:
        import pyarrow as pa

        types = arrow_types(dict(wanted))
        for name, kind in found.items():
            spread = table == "trials" and name.startswith(("params.", "extra."))
            if spread or (table != "steps" and MEASURED.fullmatch(name)):
                types[name] = pa.float64()
            if name not in types:
                raise DamagedError(file, f"has the unknown column {name!r}")
            alike = {types[name], pa.float32()} if types[name] == pa.float64() else {types[name]}
            if kind not in alike:
                raise DamagedError(file, f"column {name!r} must be {types[name]}, got {kind}")
        for name in types:
            if name not in found and name not in ADDED:
                raise DamagedError(file, f"must have the column {name!r}, and lacks it")


@dataclass(frozen=True)
class PackedTrials:
    """The trials of one part of a packed study."""

    pack: Pack
    phase: str

    def recipes(self) -> list[str]:
        """Return the names of the recipes that have trials, by name."""
        return sorted({recipe for phase, recipe, _ in self.pack.trials if phase == self.phase})

    def slots(self, recipe: str) -> list[int]:
        """Return the slots of a recipe that have a row, in order."""
        return sorted(t for phase, name, t in self.pack.trials if (phase, name) == (self.phase, recipe))

    def inspect(self, recipe: str, slot: int) -> TrialResult | None:
        """Return how a trial ended, None while it has not; raises DamagedError."""
        row = self.pack.trials.get((self.phase, recipe, slot))
        if row is None or row["status"] is None:
            return None
        try:
            return parse_result(result_content(row))
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedError(self.pack.folder / "trials.parquet", one_line(error)) from None

    def note(self, recipe: str, slot: int) -> Mapping[str, Any] | None:
        """Return the content of a trial's `params.json`; raises DamagedError."""
        row = self.pack.trials.get((self.phase, recipe, slot))
        if row is None or row["note"] is None:
            return None
        try:
            note = json.loads(row["note"])
        except (ValueError, RecursionError):
            note = None
        if not isinstance(note, dict):
            raise DamagedError(self.pack.folder / "trials.parquet", "note must be a JSON object")
        return note

    def running_curve(self, recipe: str, slot: int) -> pa.Table:
        """Return the evaluations of an unfinished trial so far."""
        import pyarrow.compute as pc

        rows = self._of(self.pack.curves)
        own = rows.filter(pc.and_(pc.equal(rows["recipe"], recipe), pc.equal(rows["trial"], slot)))
        return own.drop_columns(["recipe", "trial"])

    def checkpoints(self, recipe: str, slot: int) -> dict[str, bytes]:
        """Return the files of an unfinished trial's checkpoints by name."""
        folder = self.pack.folder / "checkpoints" / self.phase / recipe / f"{slot:03d}"
        found = {}
        for name in ("checkpoint.pt", "checkpoint.previous.pt"):
            try:
                found[name] = read(folder / name, 64 * LARGE)
            except FileNotFoundError:
                continue
        return found

    def weights(self, recipe: str, slot: int) -> bytes | None:
        """Return the file of a finished trial's final weights, None where it has none."""
        return self.pack.weights.get((self.phase, recipe, slot))

    def curves(self, results: Sequence[TrialResult]) -> Labelled:
        """Return the evaluations of finished trials."""
        return self._finished(self.pack.curves, results)

    def steps(self, results: Sequence[TrialResult]) -> Labelled:
        """Return the steps of finished trials; some trials may lack them."""
        return self._finished(self.pack.steps, results)

    def _of(self, table: pa.Table) -> pa.Table:
        import pyarrow.compute as pc

        return table.filter(pc.equal(table["phase"], self.phase)).drop_columns(["phase"])

    def _finished(self, table: pa.Table, results: Sequence[TrialResult]) -> Labelled:
        """Return the rows of trials in the order of the table, by recipe and slot."""
        import pyarrow as pa
        import pyarrow.compute as pc

        rows = self._of(table)
        recipes = {r.recipe for r in results}
        rows = rows.filter(pc.is_in(rows["recipe"], pa.array(sorted(recipes), pa.string())))
        every = {(r, t) for p, r, t in self.pack.trials if p == self.phase and r in recipes}
        gone = every - {(r.recipe, r.slot) for r in results}
        for recipe, slot in gone:  # unfinished or damaged ones
            rows = rows.filter(
                pc.invert(pc.and_(pc.equal(rows["recipe"], recipe), pc.equal(rows["trial"], slot)))
            )
        if not len(rows):  # as of trials in folders, of which none has brought names of metrics
            rows = rows.drop_columns([name for name in rows.column_names if MEASURED.fullmatch(name)])
        return Labelled(rows)


def result_content(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the table of trials in the form of a `result.json`."""
    content = {
        name: value for name, value in row.items()
        if (name in RESULT and (name not in ADDED or value is not None)) or MEASURED.fullmatch(name)
    }  # fmt: skip
    for part in ("params", "extra"):
        head = f"{part}."
        content[part] = {
            k.removeprefix(head): v for k, v in row.items() if k.startswith(head) and v is not None
        }
    return {**content, "recipe": row["recipe"], "slot": row["trial"]}
