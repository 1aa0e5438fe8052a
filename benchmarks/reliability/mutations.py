"""Files of a small study changed at each place: a reading command says so in order, and changes nothing."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ahf_cli.cli import main
from ahf_cli.study.files import atomic_write
from ahf_cli.study.pack import pack
from ahf_cli.study.store import Study
from benchmarks.reliability.damage import content

Mutation = tuple[str, Callable[[Path], None]]
COMMANDS = {
    "ls": ["ls"],
    "ls STUDY": ["ls", "s", "--json"],
    "status": ["status"],
    "status STUDY": ["status", "--study", "s", "--json"],
    "show": ["show", "s"],
    "show TRIAL": ["show", "s", "hf/0", "--out", "OUT"],
    "show --prerun": ["show", "s", "--prerun"],
    "compare tables": ["compare", "tables", "--study", "s", "--quiet"],
    "export": ["export", "s", "--out", "OUT"],
    "pack": ["pack", "s", "--to", "OUT", "--partial"],
}
"""Ten reading commands."""
_VALUES: list[Any] = [
    None, True, -1, 0, 10**30, 1.5, float("nan"), "", "x" * 5000, "\x00\n\x1b[2J", [], [1, 2],
    {}, {"a": {"b": [0]}}, "../../etc/passwd",
]  # fmt: skip
_CELLS = [b"", b"x", b"-1", b"1e999", b"nan", b'"', b",,", b"\xff", b"99999999999999999999", b"=1+1"]


def mutations(file: Path, seed: int = 0) -> list[Mutation]:
    """Return at least 40 changes of a file: of its kind, its bytes and its values."""
    whole, rng = file.read_bytes(), random.Random(f"{seed} {file.name}")
    found: list[Mutation] = [
        ("missing", lambda f: f.unlink()),
        ("empty", lambda f: _write(f, b"")),
        ("a folder", _folder),
        ("a link", lambda f: _link(f, f.with_name(f"{f.name}.target"))),
        ("a link to nothing", lambda f: _link(f, f.with_name("nowhere"))),
        ("a pipe", _pipe),
        ("nested lists", lambda f: _write(f, b"[" * 100_000 + b"]" * 100_000)),
        ("zeros", lambda f: _write(f, bytes(1000))),
    ]
    for at in sorted(rng.sample(range(len(whole)), min(12, len(whole)))):
        found.append((f"cut at {at}", lambda f, at=at: _write(f, whole[:at])))  # type: ignore[misc]
        byte = bytes([rng.randrange(256)])
        changed = whole[:at] + byte + whole[at + 1 :]
        found.append((f"byte {at}", lambda f, data=changed: _write(f, data)))  # type: ignore[misc]
    if file.suffix == ".json":
        found += list(_of_json(whole, rng))
    if file.suffixes[-1:] in ([".csv"], [".gz"]):
        found += list(_of_rows(whole, file.suffix == ".gz", rng))
    while len(found) < 40:
        noise = rng.randbytes(rng.randrange(1, 400))
        found.append((f"noise {len(found)}", lambda f, data=noise: _write(f, data)))  # type: ignore[misc]
    return found


def _of_json(whole: bytes, rng: random.Random) -> Iterator[Mutation]:
    """Yield a JSON file with each of its first values changed, and with keys gone."""
    content = json.loads(whole)
    places = list(_places(content))
    for place in places:
        value = rng.choice(_VALUES)
        yield f"{'.'.join(map(str, place))} = {value!r:.20}", _setting(content, place, value)
        yield f"{'.'.join(map(str, place))} gone", _setting(content, place, _setting)


def _places(content: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in pairs:
        yield (*before, key)
        yield from _places(value, (*before, key))


def _setting(content: Any, place: tuple[Any, ...], value: Any) -> Callable[[Path], None]:
    copy = json.loads(json.dumps(content))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    if value is _setting:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return lambda f: _write(f, json.dumps(copy).encode())


def _of_rows(whole: bytes, zipped: bool, rng: random.Random) -> Iterator[Mutation]:
    """Yield a table of a trial with single cells changed, and its result.json made to fit it."""
    lines = (gzip.decompress(whole) if zipped else whole).split(b"\n")
    for n in range(20):
        row, cell = rng.randrange(len(lines) - 1), rng.choice(_CELLS)
        cells = lines[row].split(b",")
        cells[rng.randrange(len(cells))] = cell
        text = b"\n".join([*lines[:row], b",".join(cells), *lines[row + 1 :]])
        yield f"cell {n}: {cell!r}", lambda f, text=text: _fitting(f, gzip.compress(text) if zipped else text)  # type: ignore[misc]
    if zipped:
        yield "a bomb", lambda f: _fitting(f, _bomb())


@cache
def _bomb() -> bytes:
    """Return a small file that unpacks to more than a table may have."""
    return gzip.compress(bytes(600 * 2**20), 1)


def _fitting(file: Path, data: bytes) -> None:
    import hashlib

    _write(file, data)
    result = file.with_name("result.json")
    if not result.exists():  # of a trial that runs
        return
    content = json.loads(result.read_bytes())
    content["files"][file.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    _write(result, json.dumps(content).encode())


def _write(file: Path, data: bytes) -> None:
    file.write_bytes(data)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _link(file: Path, target: Path) -> None:
    if target.name != "nowhere":
        shutil.copy(file, target)
    file.unlink()
    file.symlink_to(target)


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def files_of(study: Path) -> list[Path]:
    """Return the places of the files to change: those of the study, and of one of its trials of each kind."""
    folders = ("", "trials/hf/000", "prerun", "prerun/trials/hf/000", "reruns/hf/000", "trials/hf/002")
    found = [file for folder in folders for file in sorted((study / folder).glob("*")) if file.is_file()]
    return [
        file.relative_to(study)
        for file in found
        if file.suffix not in (".db", ".target") and file.name != "steps.csv"
    ]


PATIENCE = 60
"""Seconds after which a command counts as hanging."""


class _HangError(BaseException):
    """A command takes too long; no handler of errors catches it."""


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    """A context that ends with `_HangError` after `PATIENCE` seconds, also within a blocking call."""

    def ring(*unused: object) -> None:
        raise _HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tried(study: Path, place: Path, mutation: Mutation, command: str, scratch: Path) -> str:
    """Change one file of a copy of a study, run one command, and return what is wrong, or nothing."""
    shutil.rmtree(scratch, ignore_errors=True)
    copy = scratch / "results" / "s"
    shutil.copytree(study, copy)
    mutation[1](copy / place)
    before = _state(copy)
    words = [str(scratch / "out") if word == "OUT" else word for word in COMMANDS[command]]
    out, err = io.StringIO(), io.StringIO()
    what = f"{place} {mutation[0]}: {command}: "
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _alarm():
        try:
            code = main([*words, "--results", str(scratch / "results")])
        except _HangError:
            return f"{what}hangs for {PATIENCE} s"
    said = err.getvalue()
    if code not in (0, 1, 2, 3) or "internal error" in said or "Traceback" in said:
        return what + (said.strip().splitlines() or [f"code {code}"])[-1]
    if code in (1, 2) and not said.strip():
        return what + "nothing was said"
    return what + "files changed" if _state(copy) != before else ""


def study_mutated(folder: Path, count: int | None) -> dict[str, Any]:
    """Make a small study and try changes of its files; return how many, and what failed."""
    small_study(folder / "studies")
    return mutated(folder / "studies", folder / "scratch", count)


def small_study(folder: Path) -> None:
    """Write a study `s` with a pre-run, re-runs, and a trial that is not finished."""
    study, curve = Study(folder, "s"), content(0)[1]
    identity = {"recipes": {"hf": {"structure": {}}}, "search": {"design": "fair", "sampler": "random"}}
    with study:
        study.open_for_writing("study: s\n", identity, {"plan": {"hf": 3}, "rerun_plan": {"hf": 1}})
    with study.prerun as part:
        part.open_for_writing("study: s\n", identity, {"plan": {"hf": 1}})
    atomic_write(study.prerun.folder / "ranges.yaml", b"hf: {}\n")
    for part, slots in ((study, (0, 1)), (study.reruns, (0,)), (study.prerun, (0,))):
        for slot in slots:
            part.trial("hf", slot).write_params({"recipe": "hf", "slot": slot, "params": {"lr": 0.1}})
            part.trial("hf", slot).finish(*content(slot))
    unfinished = study.trial("hf", 2)
    unfinished.write_params({"recipe": "hf", "slot": 2, "params": {"lr": 0.1}})
    unfinished.save_checkpoint(b"state", 1)
    unfinished.begin_curve(curve)


def _state(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        found[str(path)] = (
            about.st_mode,
            path.read_bytes() if path.is_file() and not path.is_symlink() else None,
        )
    return found


def mutated(studies: Path, scratch: Path, count: int | None, seed: int = 0) -> dict[str, Any]:
    """Try changes of a study in folders and packed, all or a seeded sample; return how many, and what failed.

    Args:
        studies: a folder that holds a small study `s`; its pack is made beside it.
        scratch: a folder for copies.
        count: how many to try; None for all.
        seed: of the sample.
    """
    own = studies / "s"
    packed = studies / "packed" / "s"
    if not packed.exists():
        pack(Study(studies, "s"), studies / "packed", partial=True)
    cases = [
        (study, place, mutation, command)
        for study in (own, packed)
        for place in files_of(study)
        for mutation in mutations(study / place, seed)
        for command in COMMANDS
    ]
    chosen = cases if count is None else random.Random(seed).sample(cases, count)
    failed = [found for case in chosen if (found := tried(*case, scratch))]
    return {"cases": len(cases), "tried": len(chosen), "failed": failed}
