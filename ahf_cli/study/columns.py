"""The columns of a study's tables, and their form as CSV and as Arrow tables."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

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

    kinds = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
    return {name: kinds[kind] for name, kind in names.items()}


def parse_csv(file: Path, text: bytes, row: Row) -> pa.Table:
    """Return the rows of a CSV file: numbers exactly as written, an empty number as NaN.

    Columns may be missing, as in a file of an older version; there are none but those of `row`.

    Raises:
        DamagedError: a cell has another type, a line another length, or a column is unknown.
    """
    import pyarrow as pa
    from pyarrow import csv

    names = text.partition(b"\n")[0].decode(errors="replace").split(",")
    known = arrow_types(columns(row, metrics_in(names, row)))
    unknown = [name for name in names if name not in known]
    if unknown or len(set(names)) < len(names):
        raise DamagedError(
            file, f"must have the columns {', '.join(known)}, each once, got {unknown or names}"
        )
    try:
        table = csv.read_csv(
            io.BytesIO(text),
            csv.ReadOptions(use_threads=False),
            convert_options=csv.ConvertOptions(
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
    """Return a table without rows: columns of text, and then those of `row` with its metrics."""
    import pyarrow as pa

    kinds = {**arrow_types(dict.fromkeys(names, str)), **arrow_types(columns(row, measured))}
    return pa.table({name: pa.array([], kind) for name, kind in kinds.items()})
