"""From a study's folders to a packed study, and back."""

from __future__ import annotations

import gzip
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ahf_cli.errors import AhfError, InputError
from ahf_cli.recipes.hyperparameters import nearest
from ahf_cli.study.columns import arrow_types, csv_of, empty
from ahf_cli.study.files import atomic_write, make_folder, sha256, write_json
from ahf_cli.study.opening import DamagedError, read
from ahf_cli.study.packed import EXTRAS, KEYS, LOSSES, RESULT
from ahf_cli.study.store import Study
from ahf_cli.study.trial_folder import WEIGHTS, TrialFolder
from ahf_cli.study.trials import labelled
from ahf_cli.tasks.metrics import MEASURED
from ahf_cli.training.records import CurveRow, StepRow, TrialResult

if TYPE_CHECKING:  # slow to import
    import pyarrow as pa

LEVEL = 15
"""Zstandard's level: higher ones take minutes for a percent."""


def pack(study: Study, to: Path, partial: bool = False, without_steps: Sequence[str] = ()) -> Path:
    """Write a study as a packed one into the folder `to`/NAME, and return that.

    Args:
        study: a study in either form.
        to: the folder that gets it.
        partial: take a study that is not finished, with the checkpoints of its trials.
        without_steps: recipes whose steps are left out.

    Raises:
        InputError: the study is not finished, is damaged or in use, the recipe of `without_steps` is unknown,
            or the folder exists.
    """
    manifest = study.manifest()
    if not manifest:
        raise DamagedError(study.folder / "manifest.json", "is missing; `ahf repair` makes it anew")
    if holder := study.holder():
        raise AhfError(f"study {study.name!r} is in use by process {holder}: pack it when that has ended")
    for name in without_steps:
        if name not in study.recipes():
            raise InputError(
                f"--without-steps: no recipe {name!r} in {study.name}{nearest(name, study.recipes())}"
            )
    parts = _parts(study)
    read_parts = {phase: part.read_results() for phase, part in parts.items()}
    _refuse_damaged(study, {phase: problems for phase, (_, problems) in read_parts.items()})
    short = [line for phase, part in parts.items() for line in _unfinished(phase, part, read_parts[phase][0])]
    if short and not partial:
        raise InputError(
            f"study {study.name!r} is not finished ({'; '.join(short)}); --partial packs it as far as it is"
        )
    tables: dict[str, list[pa.Table]] = {"trials": [], "curves": [], "steps": [], "weights": []}
    checkpoints: dict[str, bytes] = {}
    for phase, part in parts.items():
        results, _ = read_parts[phase]
        _add_part(tables, checkpoints, phase, part, results, without_steps)
    old = manifest.get("packed", {})
    section = {
        "format": 1,
        "partial": bool(short),
        "without_steps": sorted({*without_steps, *old.get("without_steps", [])}),
        "files": _small_files(study),
    }
    with _written_at_once(to / study.name) as folder:
        said = {}
        for name, parts_of in {k: each for k, each in tables.items() if each}.items():
            data = _parquet(_joined(parts_of))
            atomic_write(folder / f"{name}.parquet", data)
            said[name] = {"bytes": len(data), "sha256": sha256(data)}
        for place, data in checkpoints.items():
            atomic_write(folder / "checkpoints" / place, data)
        _write_texts(study, folder)
        write_json(folder / "manifest.json", {**manifest, "packed": {**section, "tables": said}})
    return to / study.name


def unpack(study: Study, to: Path) -> Path:
    """Write a packed study as folders into `to`/NAME, and return that; every value is the packed one.

    Raises:
        InputError: the study is not packed, is damaged, or the folder exists.
    """
    if study.pack is None:
        raise InputError(f"{study.folder} is not packed")
    manifest, files = dict(study.manifest()), study.pack.files
    manifest.pop("packed")
    with _written_at_once(to / study.name) as folder:
        for phase, part in _parts(study).items():
            place = {"search": "trials", "rerun": "reruns"}.get(phase, f"{phase}/trials")
            _write_trials(part, phase, folder / place)
        for name, text in files.items():
            atomic_write(folder / name, text.encode())
        _write_texts(study, folder)
        write_json(folder / "manifest.json", manifest)
    return to / study.name


def _parts(study: Study) -> dict[str, Study]:
    """Return search, re-runs and pre-runs by the name that the tables give them."""
    return {"search": study, "rerun": study.reruns, **{name: study.part(name) for name in study.preruns()}}


def _write_texts(study: Study, folder: Path) -> None:
    for name in ("config.yaml", "costs.json"):
        if (text := study.text(name)) is not None:
            atomic_write(folder / name, text.encode())


def _refuse_damaged(study: Study, problems: dict[str, list[str]]) -> None:
    lines = [f"{phase} {line}" for phase, found in problems.items() for line in found]
    if lines:
        words = f"`ahf repair {study.name}` sets it aside" if study.pack is None else "get it again"
        raise InputError([f"{study.folder} is damaged: {line}; {words}" for line in lines])


def _unfinished(phase: str, part: Study, results: Sequence[TrialResult]) -> Iterator[str]:
    """Say of each recipe that lacks trials how many it has; one whose trials all diverged has no re-runs."""
    done = [r.recipe for r in results if r.status != "failed"]
    for recipe, n in part.planned().items():
        if done.count(recipe) < n and not part.hopeless(recipe):
            yield f"{recipe} {done.count(recipe)} of {n}{'' if phase == 'search' else f' in {phase}'}"


def _add_part(
    tables: dict[str, list[pa.Table]], checkpoints: dict[str, bytes], phase: str, part: Study,
    results: Sequence[TrialResult], without_steps: Sequence[str],
) -> None:  # fmt: skip
    """Add the trials of one part of a study to the tables of a pack."""
    import pyarrow as pa

    reader, rows = part.reader, []
    kept = [r for r in results if r.recipe not in without_steps]
    curves, steps = reader.curves(results), reader.steps(kept)
    if curves.problems or steps.problems:
        _refuse_damaged(part, {phase: [*curves.problems, *steps.problems]})
    have = _having_steps(part, kept)
    done = {(r.recipe, r.slot): r for r in results}
    running = []
    for recipe in part.recipes():
        for slot in reader.slots(recipe):
            note, result = reader.note(recipe, slot), done.get((recipe, slot))
            rows.append(_row(phase, recipe, slot, result, note, (recipe, slot) in have))
            if result is None:
                found = reader.checkpoints(recipe, slot)
                checkpoints |= {f"{phase}/{recipe}/{slot:03d}/{name}": data for name, data in found.items()}
                if found:
                    running.append(labelled(reader.running_curve(recipe, slot), recipe, slot))
    tables["trials"].append(_trials_table(rows))
    kept_weights = [(*key, data) for key in done if (data := reader.weights(*key)) is not None]
    if kept_weights:
        columns = ([phase] * len(kept_weights), *zip(*kept_weights, strict=True))
        types = arrow_types({**KEYS, "weights": bytes}).items()
        each_column = zip(types, columns, strict=True)
        tables["weights"].append(pa.table({n: pa.array(list(c), t) for (n, t), c in each_column}))
    for name, each in (("curves", [curves.rows, *running]), *([("steps", [steps.rows])] if have else [])):
        joined = pa.concat_tables(each, promote_options="default")
        tables[name].append(joined.add_column(0, "phase", pa.repeat(pa.scalar(phase), len(joined))))


def _having_steps(part: Study, results: Sequence[TrialResult]) -> set[tuple[str, int]]:
    """Return the trials whose steps were not left out, also where they have none."""
    if part.pack is None:
        keys = [(r.recipe, r.slot) for r in results]
        return {key for key in keys if (part.trial(*key).path / "steps.csv.gz").exists()}
    rows = part.pack.trials
    return {(r.recipe, r.slot) for r in results if rows[part.phase, r.recipe, r.slot]["has_steps"]}


def _row(
    phase: str, recipe: str, slot: int, result: TrialResult | None, note: Any, has_steps: bool
) -> dict[str, Any]:
    """Return the row of one trial in the table of trials."""
    text = None if note is None else json.dumps(note)
    row: dict[str, Any] = {"phase": phase, "recipe": recipe, "trial": slot, **dict.fromkeys(RESULT)}
    if result is not None:
        content = result.plain()
        row |= {name: value for name, value in content.items() if name in RESULT or MEASURED.fullmatch(name)}
        for part in ("params", "extra"):
            row |= {f"{part}.{key}": float(value) for key, value in content[part].items()}
    return {**row, "note": text, "has_steps": has_steps}


def _trials_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    import pyarrow as pa

    names = dict.fromkeys(name for row in rows for name in row)
    measured = [name for name in names if MEASURED.fullmatch(name)]
    spread = [name for name in names if name.startswith(("params.", "extra."))]
    types = arrow_types({**KEYS, **RESULT})
    types |= dict.fromkeys([*measured, *LOSSES, *spread], pa.float64()) | arrow_types(EXTRAS)
    # from_pandas=False keeps NaN, a value, apart from null, a missing value
    return pa.table(
        {
            name: pa.array([row.get(name) for row in rows], kind, from_pandas=False)
            for name, kind in types.items()
        }
    )


def _joined(parts: Sequence[pa.Table]) -> pa.Table:
    """Return tables as one, with float32 columns for numbers that are exactly such."""
    import numpy as np
    import pyarrow as pa

    table = pa.concat_tables(parts, promote_options="default")
    for at, field in enumerate(table.schema):
        if pa.types.is_float64(field.type):
            values = table.column(at).to_numpy()
            with np.errstate(over="ignore"):
                narrow = values.astype(np.float32)
            if np.array_equal(narrow, values, equal_nan=True):
                table = table.set_column(at, field.name, table.column(at).cast(pa.float32(), safe=False))
    return table


def _parquet(table: pa.Table) -> bytes:
    """Return a table as Parquet: dictionaries for text, split bytes for floats, differences for integers."""
    import pyarrow as pa
    from pyarrow import parquet

    names: dict[str, list[str]] = {"text": [], "float": [], "int": []}
    for field in table.schema:
        kind = "float" if pa.types.is_floating(field.type) else "int" if field.type == pa.int64() else "text"
        names[kind].append(field.name)
    coded = dict.fromkeys(names["float"], "BYTE_STREAM_SPLIT") | dict.fromkeys(
        names["int"], "DELTA_BINARY_PACKED"
    )
    buffer = io.BytesIO()
    parquet.write_table(
        table, buffer, compression="zstd", compression_level=LEVEL, use_dictionary=names["text"],
        column_encoding=coded, write_statistics=False,
    )  # fmt: skip
    return buffer.getvalue()


def _small_files(study: Study) -> dict[str, str]:
    """Return the texts that travel in the manifest: files of pre-runs, and plug-ins."""
    if study.pack is not None:
        return dict(study.pack.files)
    names = [
        f"{name}/{file}"
        for name in study.preruns()
        for file in ("config.yaml", "manifest.json", "ranges.yaml")
    ]
    plugins = study.folder / "plugins"
    names += [f"plugins/{file.name}" for file in sorted(plugins.glob("*.py")) if not plugins.is_symlink()]
    found = {}
    for name in names:
        try:
            found[name] = read(study.folder / name).decode()
        except FileNotFoundError:
            continue
        except UnicodeDecodeError as error:
            raise DamagedError(study.folder / name, f"must be UTF-8: {error.reason}") from None
    return found


def _write_trials(part: Study, phase: str, folder: Path) -> None:
    """Write the trials of one part of a packed study as folders."""
    assert part.pack is not None
    results, problems = part.read_results()
    _refuse_damaged(part, {phase: problems})
    done = {(r.recipe, r.slot): r for r in results}
    curves = _by_trial(part.reader.curves(results).rows)
    steps = _by_trial(part.reader.steps(results).rows)
    for recipe in part.reader.recipes():
        for slot in part.reader.slots(recipe):
            key, trial = (recipe, slot), TrialFolder(folder / recipe / f"{slot:03d}", recipe, slot)
            if (note := part.reader.note(*key)) is not None:
                trial.write_params(note)
            if key in done:
                kept = bool(part.pack.trials[part.phase, recipe, slot]["has_steps"])
                weights = part.reader.weights(*key)
                _write_trial(trial, done[key], curves.get(key), steps.get(key), kept, weights)
                continue
            running = part.reader.running_curve(*key)
            if len(running):
                atomic_write(trial.path / "curve.csv", csv_of(running, CurveRow))
            for name, data in part.reader.checkpoints(*key).items():
                atomic_write(trial.path / name, data)


def _write_trial(
    trial: TrialFolder, result: TrialResult, curve: pa.Table | None, steps: pa.Table | None, kept: bool,
    weights: bytes | None,
) -> None:  # fmt: skip
    """Write the files of a finished trial, the result last."""
    files = {
        "curve.csv": csv_of(curve if curve is not None else empty((), CurveRow), CurveRow),
        "steps.csv.gz": gzip.compress(
            csv_of(steps if steps is not None else empty((), StepRow), StepRow), mtime=0
        ),
        **({} if weights is None else {WEIGHTS: weights}),
    }
    trial.commit(result, files, leave_out=() if kept else ("steps.csv.gz",))


def _by_trial(table: pa.Table) -> dict[tuple[str, int], pa.Table]:
    """Return the rows of each trial; the rows of one trial stand together."""
    import numpy as np

    if not len(table):
        return {}
    recipes = table.column("recipe").combine_chunks().dictionary_encode()
    codes, slots = recipes.indices.to_numpy(), table.column("trial").to_numpy()
    edges = np.flatnonzero((np.diff(codes) != 0) | (np.diff(slots) != 0)) + 1
    starts = [0, *edges.tolist(), len(table)]
    names = recipes.dictionary.to_pylist()
    found: dict[tuple[str, int], pa.Table] = {}
    for begin, end in zip(starts, starts[1:], strict=False):
        own = table.slice(begin, end - begin).drop_columns(["recipe", "trial"])
        found[names[codes[begin]], int(slots[begin])] = own
    return found


@contextmanager
def _written_at_once(folder: Path) -> Iterator[Path]:
    """Give a folder to write to, which gets its name when all is written; a failure leaves nothing."""
    if os.path.lexists(folder):
        raise InputError(f"{folder} exists, and is not written over: give another folder with --to")
    hidden = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            make_folder(hidden)
        except OSError as error:
            raise InputError(f"cannot write to {folder.parent}: {error.strerror or error}") from error
        yield hidden
        os.rename(hidden, folder)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
