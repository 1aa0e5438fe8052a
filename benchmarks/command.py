"""The command line: starts the measuring processes, keeps their numbers, draws the tables."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ahf_cli.errors import AhfError, InputError
from benchmarks import document, drawing, record
from benchmarks.sections import SECTIONS, section
from benchmarks.tables import render

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "reference" / "benchmarks"
DOCUMENT = ROOT / "docs" / "performance.md"


def parser() -> argparse.ArgumentParser:
    """Make the parser of `python -m benchmarks`."""
    p = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default: cpu)")
    p.add_argument(
        "--threads",
        type=_threads,
        metavar="N,N…",
        help="thread counts (default: 1,2; with cuda or --quick 1)",
    )
    p.add_argument("--quick", action="store_true", help="few repeats and the smaller cases: under a minute")
    p.add_argument(
        "--only", nargs="+", type=section, metavar="NAME", help=f"some tables of: {', '.join(SECTIONS)}"
    )
    p.add_argument(
        "--out", type=Path, metavar="DIR", help="write the numbers there, and leave docs/ as it is"
    )
    p.add_argument("--render", action="store_true", help="measure nothing: draw docs/ from kept numbers")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and draw, or only draw; return the exit code."""
    options = parser().parse_args(arguments)
    try:
        if options.render:
            _draw(options.out or RESULTS)
        else:
            _measure(options)
    except AhfError as error:
        print(*(f"error: {line}" for line in error.lines), sep="\n", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: the sections that had ended are kept; --render draws them", file=sys.stderr)
        return 130
    return 0


def _measure(options: argparse.Namespace) -> None:
    """Measure section after section; keep and print each at its end."""
    folder = (options.out or RESULTS).resolve()
    record.check_writable(folder)
    keeps = not options.quick or options.out is not None
    file = folder / f"{options.device}.json"
    kept = record.earlier(file) if keeps else None
    threads = options.threads or _default_threads(options.device, options.quick)
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"warning: the machine is busy (load {load:.1f}); the numbers will be noisy", file=sys.stderr)
    stamp = record.stamp(options.quick, load)
    failures: list[str] = []
    for name in (name for name in SECTIONS if name in (options.only or SECTIONS)):
        try:
            answers = [_spawn(options.device, count, options.quick, name) for count in threads]
        except SectionError as error:
            failures += error.lines
            print(f"error: {error}", file=sys.stderr)
            continue
        new = {
            "schema": record.SCHEMA, "device": options.device,
            "machine": record.machine(answers[0]["gpu"]), **stamp,
            "sections": {name: {
                **stamp, "threads": threads,
                "packages": sorted({package for answer in answers for package in answer["packages"]}),
                "rows": [row for answer in answers for row in answer["rows"]],
            }},
        }  # fmt: skip
        print(f"\n{render(new)}\n", flush=True)
        if keeps:
            kept = record.merge(kept, new)
            record.write(file, kept)
    if not keeps:
        print("not kept: a quick run is only written with --out DIR", file=sys.stderr)
    elif kept is not None:
        print(f"written: {file}", file=sys.stderr)
        if options.out is None:
            _draw(folder)
    if failures:
        raise AhfError([*failures, "the other sections are complete"])


def _draw(folder: Path) -> None:
    """Redraw the tables of the document from all kept numbers."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise InputError(
            f"--render needs numbers: there is no *.json in {folder}; run `python -m benchmarks`"
        )
    text = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else "# Performance\n"
    for file in files:
        content = record.read(file)
        text = document.replace(text, file.stem, render(content))
        if own := content["sections"].get("classes"):
            drawing.classes(own["rows"], DOCUMENT.with_name("classes.svg"))
    record.write_text(DOCUMENT, text)
    print(f"drawn: {DOCUMENT}", file=sys.stderr)


class SectionError(AhfError):
    """A section whose measuring process failed."""


def _spawn(device: str, threads: int, quick: bool, section: str) -> dict[str, Any]:
    """Measure a section in a fresh process with so many threads."""
    job = {"device": device, "threads": threads, "quick": quick, "section": section}
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = time.perf_counter()
    print(f"{threads} thread{'s' * (threads > 1)}: {section} …", flush=True, file=sys.stderr)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.child", json.dumps(job)],
        stdout=subprocess.PIPE,
        env={**os.environ, **dict.fromkeys(names, str(threads))},
        cwd=ROOT,
        check=False,
    )
    if done.returncode == InputError.exit_code:
        raise SystemExit(done.returncode)  # the process has said why
    if done.returncode:
        raise SectionError(f"{section} with threads {threads} failed: exit code {done.returncode}")
    print(f"{time.perf_counter() - before:.0f} s", file=sys.stderr)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])  # a package may print, too
    return answer


def _default_threads(device: str, quick: bool) -> list[int]:
    if device == "cuda" or quick:
        return [1]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [n for n in (1, 2) if n <= cores]


def _threads(text: str) -> list[int]:
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or len(set(counts)) < len(counts):
        raise argparse.ArgumentTypeError(f"must be different integers ≥ 1 with commas between, got {text!r}")
    return counts
