"""`python -m benchmarks.reliability`: every experiment at length, its numbers printed and kept."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ahf_cli.errors import AhfError
from benchmarks import record
from benchmarks.document import replace
from benchmarks.reliability import damage, kills, machines
from benchmarks.reliability.mutations import study_mutated
from benchmarks.reliability.postgres import cluster, database, programs

NUMBERS = Path("results/reference/reliability.json")
PAGE = Path("docs/reliability.md")
Row = dict[str, Any]
KILLS, WORKERS_KILLED, LOAD = 30, 5, 1000
"""Kills of a search, searches with killed workers, and trials of no length."""


def main() -> int:
    """Run everything, or with `--render` only draw the page from the numbers that are kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__)
    parser.add_argument("--render", action="store_true", help="measure nothing; write the page again")
    parser.add_argument("--quick", action="store_true", help="short forms; print, and write nothing")
    words = parser.parse_args()
    if not words.render:
        found = measure(words.quick)
        if words.quick:
            sys.stdout.write(render(found) + "\n")
            return 0
        record.write(NUMBERS, found)
    text = render(json.loads(NUMBERS.read_text()))
    PAGE.write_text(replace(PAGE.read_text(), "numbers", text, str(PAGE)))
    sys.stdout.write(text + "\n")
    return 0


def measure(quick: bool) -> dict[str, Any]:
    """Run every experiment; return its numbers.

    Raises:
        AhfError: there is no PostgreSQL on this machine.
    """
    if programs() is None:
        raise AhfError("no PostgreSQL here: install Debian's package postgresql")
    logging.getLogger("ahf").setLevel(logging.ERROR)
    rows: list[Row] = []

    def run(name: str, experiment: Callable[[Path], Row | None]) -> None:
        sys.stderr.write(f"{name}\n")
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="ahf-reliability-") as folder:
            found = experiment(Path(folder))
        if found is not None:
            rows.append({"experiment": name, **found, "took": time.monotonic() - began})

    trials, kill_count, times, load = (8, 2, 1, 40) if quick else (100, KILLS, WORKERS_KILLED, LOAD)
    run("killed", lambda folder: kills.search_killed(folder, trials, kill_count))
    run("two_at_once", lambda folder: kills.two_at_once(folder, 6))
    for name in damage.FILES:
        run(f"cut {name}", lambda folder, name=name: damage.cut(folder, name, 12 if quick else None))  # type: ignore[misc]
    run("cut study.db", lambda folder: damage.database_cut(folder, 2 if quick else 24))
    run("writes_failed", lambda folder: damage.writes_failed(folder, 997 if quick else 23))
    run("mutated", lambda folder: study_mutated(folder, 60 if quick else None))
    run("disk_filled", lambda folder: damage.disk_filled())
    with cluster() as server:
        for seed in range(times):
            run(
                "workers_killed",
                lambda folder, seed=seed: machines.workers_killed(  # type: ignore[misc]
                    folder, database(server), 8 if quick else 40, seed
                ),
            )
        run("worker_paused", lambda folder: machines.worker_paused(folder, database(server)))
    run("load sqlite", lambda folder: machines.load(folder, None, load, 4))
    with cluster(durable=True) as server:
        run("load postgresql", lambda folder: machines.load(folder, database(server), load, 8))
    return {**record.stamp(quick, os.getloadavg()[0]), "machine": record.machine(None), "rows": rows}


def render(found: dict[str, Any]) -> str:
    """Write the numbers as Markdown."""
    by_name: dict[str, list[Row]] = {}
    for row in found["rows"]:
        by_name.setdefault(row["experiment"], []).append(row)
    on, commit = found["machine"], str(found["commit"])[:7]
    lines = [f"{on['processor']}, {on['cores']} cores. {found['date'][:10]}, commit {commit}.", ""]
    table = [["what was done", "how often", "what came out"]]
    for name, describe in _LINES.items():
        for group in [rows for key, rows in by_name.items() if key.split()[0] == name]:
            table.append(describe(group))
    widths = [max(len(row[k]) for row in table) for k in range(3)]
    for n, row in enumerate(table):
        lines.append("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |")
        if n == 0:
            lines.append("|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def _killed(rows: list[Row]) -> list[str]:
    (r,) = rows
    same = "equal to" if r["equal"] else "NOT EQUAL to"
    return [
        "search killed with SIGKILL, and started again",
        f"{r['kills']} kills",
        f"{r['trials']} of {r['planned']} trials, {r['complete']['slots']} slots complete once, tables "
        f"{same} those of a search left alone, {r['damaged']} files damaged",
    ]


def _two(rows: list[Row]) -> list[str]:
    (r,) = rows
    return [
        "two searches on one folder at once",
        "1 time",
        f"one leaves with code {r['code']}, the other counts {r['counted']} of {r['planned']} trials",
    ]


def _cut(rows: list[Row]) -> list[str]:
    (r,) = rows
    if r["file"] == "study.db":
        came = f"{r['survived']} made anew from the trials, tables unchanged"
    else:
        touched = "ANOTHER TRIAL TOUCHED" if r["others_touched"] else "no other trial touched"
        came = f"{r['noticed']} set aside, {r['redone']} done again, {touched}"
    return [f"{r['file']} cut short", f"{r['positions']} positions", came]


def _writes(rows: list[Row]) -> list[str]:
    (r,) = rows
    return [
        "disk full in the middle of writing a trial",
        f"{r['positions']} positions",
        f"{r['failed']} writes failed, {r['torn']} trials torn",
    ]


def _mutated(rows: list[Row]) -> list[str]:
    (r,) = rows
    return [
        "a file of a study changed, in folders and packed, and one of ten reading commands run",
        f"{r['tried']} runs",
        f"{len(r['failed'])} internal errors, hangs or changed files",
    ]


def _disk(rows: list[Row]) -> list[str]:
    (r,) = rows
    return [
        "small file system filled during a search, then enlarged",
        "1 time",
        f"the search leaves with code {r['code']}; then {r['trials']} of {r['planned']} trials",
    ]


def _workers(rows: list[Row]) -> list[str]:
    killed = sum(r["killed"] for r in rows)
    trials, planned = (sum(r[key] for r in rows) for key in ("trials", "planned"))
    once = sum(r["complete"]["slots"] for r in rows)
    return [
        "PostgreSQL, search and four workers, two of them killed",
        f"{len(rows)} searches, {killed} kills",
        f"{trials} of {planned} trials, {once} slots complete once",
    ]


def _paused(rows: list[Row]) -> list[str]:
    (r,) = rows
    changed = "RESULTS CHANGED" if r["changed"] else "no result changed"
    return [
        "PostgreSQL, worker paused past the grace period and woken",
        "1 time",
        f"{len(r['refused'])} late result refused, exit code {r['code']}, {changed}",
    ]


def _load(rows: list[Row]) -> list[str]:
    (r,) = rows
    where = "one SQLite owner" if r["experiment"].endswith("sqlite") else "PostgreSQL that waits for its disk"
    return [
        f"trials of no length, {r['workers']} workers, {where}",
        f"{r['trials']} trials",
        f"{r['per_second']:.0f} a second with start and end, {r['milliseconds']:.1f} ms from one to the next",
    ]


_LINES: dict[str, Callable[[list[Row]], list[str]]] = {
    "killed": _killed, "two_at_once": _two, "cut": _cut, "writes_failed": _writes, "mutated": _mutated,
    "disk_filled": _disk, "workers_killed": _workers, "worker_paused": _paused, "load": _load,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
