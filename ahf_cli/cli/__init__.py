"""The command `ahf`, one module a command; slow modules are imported inside the functions."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import ahf_cli
from ahf_cli.cli import (
    audit,
    compare,
    completion,
    config,
    data,
    doctor,
    leaderboard,
    prerun,
    report,
    reproduce,
    search,
    show,
    status,
    studies,
    timing,
    train,
    verify,
    worker,
)
from ahf_cli.cli.options import with_plugins
from ahf_cli.errors import AhfError, InterruptedRunError
from ahf_cli.interruption import resume_line, scrub
from ahf_cli.streams import to_null

EPILOG = (
    "Exit codes: [bold]0[/bold] done, [bold]1[/bold] error, [bold]2[/bold] usage or bad input, "
    "[bold]3[/bold] incomplete, [bold]75[/bold] interrupted (the same command resumes)."
)

# A new command is one line here: a function, or a Typer application with its own sub-commands.
COMMANDS: dict[str, Callable[..., None]] = {
    "prerun": prerun.prerun,
    "search": search.search,
    "reproduce": reproduce.reproduce,
    "worker": worker.worker,
    "status": status.status,
    "show": show.show,
    "audit": audit.audit,
    "leaderboard": leaderboard.leaderboard,
    "timing": timing.timing,
    "report": report.report,
    "train": train.train,
    "verify": verify.verify,
    "ls": studies.ls,
    "rm": studies.rm,
    "export": studies.export,
    "pack": studies.pack,
    "unpack": studies.unpack,
    "repair": studies.repair,
    "doctor": doctor.doctor,
}
GROUPS: dict[str, typer.Typer] = {"compare": compare.app, "data": data.app, "config": config.app}


class _Group(TyperGroup):
    """A group of commands that ends at Ctrl-C with this program's exit code instead of Typer's."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise InterruptedRunError(resume_line()) from None


app = typer.Typer(
    name="ahf",
    help="A reference laboratory for Hessian-free optimization.",
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from ahf_cli.optim.layers.compiled import described

        typer.echo(f"ahf {ahf_cli.__version__}, {described()}")
        raise typer.Exit


@app.callback()
def _ahf(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options of `ahf` itself."""


for _name, _command in COMMANDS.items():
    app.command(_name, epilog=EPILOG)(with_plugins(_command))
for _name, _application in GROUPS.items():
    for _member in _application.registered_commands:
        _member.epilog = EPILOG
        _member.callback = with_plugins(_member.callback) if _member.callback else None
    if (_info := _application.registered_callback) and _info.callback:
        _info.callback = with_plugins(_info.callback)
    app.add_typer(_application, name=_name, epilog=EPILOG)


def main(args: Sequence[str] | None = None) -> int:
    """Run `ahf` with the given arguments, by default the process's, and return the exit code."""
    try:
        code = _exit_code(args)
        sys.stdout.flush()
        return code
    except AhfError as error:
        return _fail(error.lines, error.exit_code)
    except KeyboardInterrupt:
        return _fail([resume_line()], InterruptedRunError.exit_code)
    except BrokenPipeError:  # the reader has ended, as in `ahf … | head`
        _discard_output()
        return 1
    except Exception as error:
        if os.environ.get("AHF_DEBUG"):
            traceback.print_exception(error)
        if isinstance(error, OSError):  # a full disk, a missing permission
            _discard_output()
            where = f"{error.filename}: " if error.filename else ""
            return _fail([f"{where}{error.strerror or error}"], 1)
        hint = "set AHF_DEBUG=1 for the traceback"
        return _fail([f"internal error: {type(error).__name__}: {error} ({hint})"], 1)


def _exit_code(args: Sequence[str] | None) -> int:
    completion.join_words()
    try:
        app(args, prog_name="ahf")
    except SystemExit as end:  # Typer ends so, after it has printed help or a usage error
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _fail(lines: Sequence[str], exit_code: int) -> int:
    for line in lines:
        # A name from a file may contain a line break or an escape code.
        printable = "".join(c if c.isprintable() else repr(c)[1:-1] for c in scrub(line))
        with contextlib.suppress(OSError):  # a full disk or a closed terminal; the exit code remains
            print(f"ahf: {printable}", file=sys.stderr)
    return exit_code


def _discard_output() -> None:
    """Drop unwritten output, else Python reports the same error again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        to_null(sys.stdout.fileno())
