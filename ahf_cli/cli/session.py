"""Signals, remarks and storage of a command that trains."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ahf_cli.errors import InputError, InterruptedRunError
from ahf_cli.interruption import Interruption, resume_line
from ahf_cli.tasks.metrics import digits
from ahf_cli.training.records import headline

if TYPE_CHECKING:
    from ahf_cli.config.load import Config
    from ahf_cli.study.store import Study


def interrupted() -> InterruptedRunError:
    """Return the error of an interrupted command; its line names the command that resumes."""
    return InterruptedRunError(resume_line())


def storage_url(option: str | None, config: Config | None) -> str | None:
    """Return the URL of the storage from the option, the environment or the configuration, in this order.

    Raises:
        InputError: the URL is wrong, or the option holds a password, which every user could read.
    """
    from ahf_cli.search.storage import has_password, parse_url

    if option is not None and has_password(option):
        raise InputError(
            "--storage: holds a password, which everybody on this machine could read in the list of "
            "processes; give the URL in the environment variable AHF_STORAGE"
        )
    url = option or os.environ.get("AHF_STORAGE") or (config.storage if config is not None else None)
    if url is not None:
        parse_url(url)
    return url


def run_search(
    config: Config,
    study: Study,
    quiet: bool,
    title: str,
    stream: int = 0,
    storage: str | None = None,
    log: str | None = None,
) -> dict[str, Any]:
    """Run or resume the search of a configuration in a study's folder, and return a summary.

    Raises:
        InterruptedRunError: a signal stopped the search; the same command resumes.
    """
    from ahf_cli.cli.progress import Terminal
    from ahf_cli.search.run import run

    stop, url = Interruption(), storage_url(storage, config)
    with stop.watched(quiet):
        finished = run(
            config, study, title, stream=stream, storage=url, log=log, reporter=Terminal(quiet),
            should_stop=stop,
        )  # fmt: skip
    if not finished.done:
        raise interrupted()
    return finished.summary


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """Return the summary of a search as lines of text."""
    lines = []
    for name, found in summary["recipes"].items():
        loss = found["objective"].replace("_", " ")
        said = [f"{n} {what}" for what, n in found["outcomes"].items() if n]
        counts = f"{found['trials']} trials: {', '.join(said) or 'none finished'}"
        if found["best_params"]:
            best = " ".join(f"{k}={v:.4g}" for k, v in found["best_params"].items() if k != "mu")
            counts += f"; best: trial {found['best_trial']}, {loss} {digits(found['best_value'])}, "
            counts += f"{_headline(found, 'best')} at {best}"
        lines.append(f"{name}: {counts}")
        if again := found["reruns"]:
            means = ""
            if again["mean_value"] is not None:
                means = f", mean {loss} {digits(again['mean_value'])} and {_headline(again, 'mean')}"
                means += " of the other runs" if again["diverged"] else ""
            lines.append(
                f"  its best again with {again['runs']} new seeds: "
                f"{', '.join(f'{n} {what}' for what, n in again['outcomes'].items() if n)}{means}"
            )
    return lines


def _headline(found: dict[str, Any], head: str) -> str:
    """Return the last test metric as text."""
    return headline(
        {k.removeprefix(f"{head}_"): v for k, v in found.items() if k.startswith(f"{head}_test_")}
    )
