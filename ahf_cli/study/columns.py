"""The columns of a study's tables, and their form as CSV and as Arrow tables."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ahf_cli.study.opening import DamagedError
from ahf_cli.tasks.metrics import MEASURED
from ahf_cli.training.records import CurveRow, StepRow

if TYPE_CHECKING:  # slow to import, and neither workers nor `ahf status` need them
    import pandas as pd
    import pyarrow as pa

Row = type[CurveRow] | type[StepRow]
KINDS: dict[str, type] = {"int": int, "float": float, "str": str}


def columns(row: Row, measured: Iterable[str] = ()) -> dict[str, type]:
    """Return the columns of a table by name, each with the type of its cells.

    In the place of an evaluation's metrics stand the columns `measured`.
    """
    found: dict[str, type] = {}
    for f in fields(row):
        found |= dict.fromkeys(measured, float) if f.name == "measured" else {f.name: KINDS[str(f.type)]}
    return found


def metrics_in(names: Iterable[str], row: Row) -> list[str]:
    """Return the names that are columns of metrics, in a table of evaluations."""
    return [name for name in names if row is CurveRow and MEASURED.fullmatch(name)]


def arrow_types(names: dict[str, type]) -> dict[str, pa.DataType]:
    """Return the Arrow types of columns."""
    import pyarrow as pa

    kinds = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_(), bytes: pa.binary()}
    return {name: kinds[kind] for name, kind in names.items()}


def parse_csv(file: Path, text: bytes, row: Row) -> pa.Table:
    """Return the rows of a CSV file: numbers exactly as written, an empty number as NaN.

    Columns may be missing, as in a file of an older version; all of them are columns of `row`.

    Raises:
        DamagedError: a cell has another type, a line another length, or a column is unknown.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    names = text.partition(b"\n")[0].decode(errors="replace").split(",")
    known = arrow_types(columns(row, metrics_in(names, row)))
    unknown = [name for name in names if name not in known]
    if unknown or len(set(names)) < len(names):
        raise DamagedError(
            file, f"must have the columns {', '.join(known)}, each once, got {unknown or names}"
        )
    try:
        table = arrow_csv.read_csv(
            io.BytesIO(text),
            arrow_csv.ReadOptions(use_threads=False),
            convert_options=arrow_csv.ConvertOptions(
                column_types={name: known[name] for name in names},
                null_values=[""],
                strings_can_be_null=False,
            ),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise DamagedError(file, f"must be CSV: {str(error).splitlines()[0]}") from None
    return without_nulls(file, table)


def without_nulls(file: Path, table: pa.Table) -> pa.Table:
    """Return a table with NaN for every missing number; raises DamagedError where an integer is missing."""
    import pyarrow as pa

    for at, name in enumerate(table.column_names):
        column = table.column(name)
        if column.null_count == 0:
            continue
        if not pa.types.is_floating(column.type):
            raise DamagedError(file, f"{name} must have a value in every row, and lacks it")
        table = table.set_column(at, name, column.fill_null(float("nan")))
    return table


def as_frame(table: pa.Table) -> pd.DataFrame:
    """Return an Arrow table as a pandas one, with plain columns."""
    import pyarrow as pa

    for at, field in enumerate(table.schema):
        if pa.types.is_float32(field.type):
            table = table.set_column(at, field.name, table.column(at).cast(pa.float64()))
    frame: pd.DataFrame = table.to_pandas()
    return frame


def empty(names: Iterable[str], row: Row, measured: Iterable[str] = ()) -> pa.Table:
    """Return a table without rows: columns of text, and then the columns of `row` with its metrics."""
    import pyarrow as pa

    kinds = {**arrow_types(dict.fromkeys(names, str)), **arrow_types(columns(row, measured))}
    return pa.table({name: pa.array([], kind) for name, kind in kinds.items()})


def rows_bytes(rows: Sequence[CurveRow] | Sequence[StepRow], row: Row) -> bytes:
    """Return records of one kind as CSV, with all digits of their numbers; NaN is an empty field."""
    plain = [_fields(values) for values in rows]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(plain[0] if plain else columns(row))
    for values in plain:
        writer.writerow("" if isinstance(c, float) and math.isnan(c) else c for c in values.values())
    return text.getvalue().encode()


def rows_frame(rows: Sequence[CurveRow] | Sequence[StepRow], row: Row) -> pd.DataFrame:
    """Return records of one kind as a table; its columns are there even without rows."""
    import pandas as pd

    plain = [_fields(values) for values in rows]
    return pd.DataFrame(plain, columns=list(plain[0] if plain else columns(row)))


def _fields(values: CurveRow | StepRow) -> dict[str, Any]:
    return values.plain() if isinstance(values, CurveRow) else vars(values)


def csv_of(rows: pa.Table, row: Row) -> bytes:
    """Return the rows of a trial as the CSV that they came from: a column without any value was not there."""
    known = columns(row, metrics_in(rows.column_names, row))
    wanted = [name for name in known if name in rows.column_names]
    names = [name for name in wanted if not len(rows) or rows.column(name).null_count < len(rows)]
    cells = [_cells(rows.column(name)) for name in names]
    lines = [",".join(names), *map(",".join, zip(*cells, strict=True))]
    return ("\n".join(lines) + "\n").encode()


def _cells(column: pa.ChunkedArray) -> list[str]:
    """Return the cells of a column as text: the shortest text of the same number, NaN empty."""
    return ["" if isinstance(v, float) and math.isnan(v) else str(v) for v in _values(column)]


def _values(column: pa.ChunkedArray) -> list[Any]:
    import pyarrow as pa

    return list((column.cast(pa.float64()) if pa.types.is_floating(column.type) else column).to_pylist())
