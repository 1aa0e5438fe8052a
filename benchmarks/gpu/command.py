"""The command line: `pack` on a machine with internet, `run` on the machine with the GPU."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from ahf_cli.errors import AhfError, InputError, InterruptedRunError
from ahf_cli.recipes.hyperparameters import nearest
from benchmarks.gpu.pack import FOLDER, LIMIT, PYTHON, pack
from benchmarks.gpu.parts import NAMES
from benchmarks.gpu.run import ARCHIVE, FILES, MINUTES, OUT, Settings, run


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def parser() -> argparse.ArgumentParser:
    """Make the parser of `python -m benchmarks.gpu`."""
    p = _Parser(prog="python -m benchmarks.gpu", description=__doc__)
    commands = p.add_subparsers(dest="command", required=True, metavar="pack|run")
    one = commands.add_parser("pack", help="download wheels and Fashion-MNIST; needs internet")
    one.add_argument(
        "--limit", type=_positive, default=LIMIT, metavar="MIB",
        help="most MiB of the checkout without results/, the wheels and the data (default: %(default)g)",
    )  # fmt: skip
    one.add_argument(
        "--python", type=_version, default=PYTHON, metavar="3.N",
        help="version of Python on the GPU machine (default: %(default)s)",
    )  # fmt: skip
    two = commands.add_parser("run", help="install the wheels, then run the parts; needs no internet")
    two.add_argument(
        "--parts", type=_parts, default=list(NAMES), metavar="A,B",
        help=f"some parts of: {', '.join(NAMES)} (default: all)",
    )  # fmt: skip
    two.add_argument(
        "--minutes",
        type=_positive,
        default=MINUTES,
        metavar="M",
        help="limit of a part (default: %(default)g)",
    )
    two.add_argument(
        "--files", type=_count, default=FILES, metavar="N",
        help="most files in the results folder: state.json and one archive a part (default: %(default)s)",
    )  # fmt: skip
    two.add_argument(
        "--archive", type=_positive, default=ARCHIVE, metavar="MIB",
        help="most MiB of an archive with checkpoints; beyond, they are left out (default: %(default)g)",
    )  # fmt: skip
    two.add_argument(
        "--out", type=Path, default=OUT, metavar="DIR", help="results folder (default: results/gpu)"
    )
    two.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="where to compute (default: cuda)"
    )
    two.add_argument("--small", action="store_true", help="rehearse: few tests, tables, trials and steps")
    for command in (one, two):
        command.add_argument(
            "--packed", type=Path, default=FOLDER, metavar="DIR",
            help="folder of wheels and data (default: build/gpu)",
        )  # fmt: skip
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack or run; return the exit code: 0 done, 1 error, 2 bad input, 3 incomplete, 75 interrupted."""
    try:
        options = parser().parse_args(arguments)
        if options.command == "pack":
            pack(options.packed, options.limit, options.python)
        else:
            names = [field.name for field in fields(Settings)]
            run(options.parts, Settings(**{name: getattr(options, name) for name in names}))
    except AhfError as error:
        print(*(f"error: {line}" for line in error.lines), sep="\n", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return AhfError.exit_code
    except KeyboardInterrupt:
        print("interrupted at once; the same command resumes", file=sys.stderr)
        return InterruptedRunError.exit_code
    return 0


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number > 0, got {text!r}")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer ≥ 1, got {text!r}")
    return int(text)


def _version(text: str) -> str:
    major, _, minor = text.partition(".")
    if major != "3" or not minor.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a version such as 3.12, got {text!r}")
    return text


def _parts(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in NAMES:
            raise argparse.ArgumentTypeError(f"unknown part {name!r}{nearest(name, NAMES)}")
    return [name for name in NAMES if name in names]
