"""`ahf prerun`: search ranges of σ and L from the dynamics of the direction, as in the paper."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ahf_cli.cli import completion, session
from ahf_cli.cli.options import (
    DEFAULT_RESULTS,
    ConfigFile,
    Device,
    Json,
    Override,
    Preset,
    Quiet,
    Results,
    Study,
    Trials,
    emit_json,
    repeated,
    resolve,
    say,
)
from ahf_cli.recipes.hyperparameters import HYPERPARAMETERS
from ahf_cli.search.summary import refuse_vanished

if TYPE_CHECKING:
    from ahf_cli.config.load import Config

OneRecipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help="Take this recipe instead of prerun.recipe, in the folder prerun-NAME.",
        autocompletion=completion.recipes,
    ),
]


def prerun(
    trials: Trials = None,
    recipe: OneRecipe = None,
    preset: Preset = None,
    config: ConfigFile = None,
    override: Override = None,
    study: Study = None,
    results: Results = DEFAULT_RESULTS,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Estimate σ and L from the dynamics of ‖g‖ over 15 trials, and propose search ranges.

    The command writes into the folder RESULTS/STUDY/prerun: ranges.yaml, which `ahf search --ranges` takes,
    and the paper's Figure 1.  With another `--recipe` than the configuration's it writes into prerun-NAME.
    """
    from ahf_cli.config.load import Setting

    resolved = resolve(
        preset, config, study, override, trials=trials, device=device, trials_key="prerun.trials"
    )
    folder = "prerun"
    if recipe is not None and recipe != resolved.prerun.recipe:
        folder = f"prerun-{recipe[:57]}"
        overrides = [*(override or ()), Setting("--recipe", ("prerun", "recipe"), recipe)]
        resolved = resolve(
            preset, config, study, overrides, trials=trials, device=device, trials_key="prerun.trials"
        )
    document = run(resolved, results, quiet, folder)
    if as_json:
        emit_json(document)
    for line in lines(document) if not as_json else ():
        say(line)
    refuse_vanished(document)
    if document["proposed"] and not as_json:
        same = shlex.join(repeated(preset, config, override, results, device))
        say(f"to search these ranges: {_search(resolved, document)} {same}".rstrip())


def run(config: Config, results: Path, quiet: bool, folder_name: str = "prerun") -> dict[str, Any]:
    """Run or resume a study's pre-run, write ranges and figures, and return the estimates as plain data."""
    from ahf_cli.report.exhibits.prerun import prerun_figures
    from ahf_cli.search.prerun import estimates_of, write_ranges
    from ahf_cli.study.frames import steps_frame
    from ahf_cli.study.store import Study as StudyFolder

    own = config.for_prerun()
    name = config.prerun.recipe
    whole = StudyFolder(results, config.study)
    whole.refuse_packed()
    folder = StudyFolder(whole.folder, folder_name)
    summary = session.run_search(own, folder, quiet, "prerun", stream=1)
    estimates = estimates_of(folder, own)
    file, used = write_ranges(folder, own, estimates)
    norm = own.recipe(name).choices.norm
    steps = steps_frame(folder, name)
    figures = prerun_figures(steps, norm, folder.folder) if len(steps) else []
    return {
        **summary,
        "recipe": name,
        "norm": norm,
        "estimates": [
            {
                "hyperparameter": e.hyperparameter,
                "low": e.range.low,
                "high": e.range.high,
                "paper_low": e.paper.low,
                "paper_high": e.paper.high,
                "supported": e.supported,
                "how": e.how,
            }
            for e in estimates
        ],
        "proposed": [e.hyperparameter for e in used],
        "ranges": str(file),
        "figures": [str(figure) for figure in figures],
    }


def lines(document: dict[str, Any]) -> list[str]:
    """Return the estimates of a pre-run as lines of text."""
    found = []
    for e in document["estimates"]:
        proposal = f"[{e['low']:.4g}, {e['high']:.4g}]" if e["supported"] else "none"
        paper = f"[{e['paper_low']:g}, {e['paper_high']:g}]"
        symbol = HYPERPARAMETERS[e["hyperparameter"]].symbol
        found.append(f"{e['hyperparameter']} {symbol}: proposed {proposal}, the paper's {paper}")
        found.append(f"  {e['how']}")
    if not document["proposed"]:
        found.append(f"{document['recipe']} has neither σ nor L: no range to search")
    return [*found, document["ranges"], *document["figures"]]


def _search(config: Config, document: dict[str, Any]) -> str:
    """Return the command that searches the proposed ranges, in a new study."""
    own = document["recipe"]
    recipe = [] if own in config.searched else ["--recipe", own]
    name = f"{config.study}-ranges{'' if own in config.searched else f'-{own}'}"[:64]
    return shlex.join(["ahf", "search", "--study", name, "--ranges", document["ranges"], *recipe])
