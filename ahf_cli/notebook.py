"""Functions that do the work of the commands and return objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd

from ahf_cli.config.load import Config, from_text, load, parse
from ahf_cli.errors import AhfError, InputError
from ahf_cli.recipes.recipe import single_run
from ahf_cli.report.comparison import Comparison
from ahf_cli.report.exhibits.exhibit import Choices
from ahf_cli.report.statistics.trajectory import Band
from ahf_cli.report.study_data import StudyData, pool, read_study
from ahf_cli.search.plan import SILENT, Hooks, Reporter
from ahf_cli.search.prerun import estimates_of, write_ranges
from ahf_cli.search.run import run as run_search
from ahf_cli.search.single import Single, train_single
from ahf_cli.study import pack as packing
from ahf_cli.study.find import find_study
from ahf_cli.study.status import survey
from ahf_cli.study.store import Study
from ahf_cli.training.records import Progress

Source = Config | Mapping[str, Any] | str | Path
"""A configuration: a `Config`, nested plain data, the name of a preset, or the path of a YAML file."""


class Printed:
    """A reporter that prints remarks and one line a finished trial."""

    def say(self, line: str) -> None:
        """Print a remark."""
        print(line)

    def stage(self, title: str, done: int, total: int) -> Any:
        """Return hooks that print trials and remarks."""
        return nullcontext(
            Hooks(lambda result: print(f"{result.recipe}/{result.slot:03d} {result.status}"), on_remark=print)
        )


def configure(source: Source = "quick", *overrides: str) -> Config:
    """Return a checked configuration.

    Args:
        source: the name of a preset, the path of a YAML file, nested plain data, or a configuration.
        overrides: settings as of `--override`, such as `"train.steps=100"`.

    Raises:
        InputError: a wrong configuration, with one line a fault.
    """
    if isinstance(source, Config):
        return parse(source.plain(), source.study) if not overrides else _changed(source, overrides)
    if isinstance(source, Mapping):
        config = parse({"study": "study", **source}, "the configuration")
        return _changed(config, overrides) if overrides else config
    text = str(source)
    if isinstance(source, Path) or text.endswith((".yaml", ".yml")):
        return load(file=Path(text), overrides=overrides)
    return load(text, overrides=overrides)


def _changed(config: Config, overrides: Sequence[str]) -> Config:
    return from_text(config.to_yaml(), f"study {config.study}", config.study, overrides)


def run(
    source: Source = "quick",
    results: str | Path = "results",
    *,
    storage: str | None = None,
    log: str | None = None,
    verbose: bool = False,
) -> StudyData:
    """Run or resume a search, with the re-runs of a fair design, and return the study.

    After Ctrl-C or a stop of the program, the same call resumes.

    Args:
        source: the configuration, as for `configure`.
        results: the folder that holds studies.
        storage: the URL of a PostgreSQL storage that other processes share.
        log: a target that shows the trials: tensorboard, mlflow or wandb.
        verbose: print remarks and one line a finished trial.

    Raises:
        InputError: a wrong configuration, a target that is not installed, or a folder that holds a study with
            other settings.
        AhfError: trials failed too often.
    """
    config = configure(source)
    study = Study(Path(results), config.study)
    run_search(config, study, storage=storage, log=log, reporter=_reporter(verbose))
    return read_study(study)


def prerun(
    source: Source = "quick", results: str | Path = "results", *, verbose: bool = False
) -> pd.DataFrame:
    """Run or resume a pre-run; return one row each for σ and L.

    Columns: hyperparameter, proposed range, the paper's range, whether the data support the proposal, and how
    it is measured.  The ranges are written to `ranges.yaml` in the pre-run's folder.
    """
    config = configure(source)
    whole = Study(Path(results), config.study)
    whole.refuse_packed()
    study, own = Study(whole.folder, "prerun"), config.for_prerun()
    run_search(own, study, "prerun", stream=1, reporter=_reporter(verbose))
    found = estimates_of(study, own)
    write_ranges(study, own, found)
    return pd.DataFrame(
        [
            {
                "hyperparameter": e.hyperparameter, "low": e.range.low, "high": e.range.high,
                "paper_low": e.paper.low, "paper_high": e.paper.high, "supported": e.supported, "how": e.how,
            }
            for e in found
        ]
    )  # fmt: skip


def train(
    recipe: str,
    source: Source = "quick",
    results: str | Path = "results",
    *,
    log: str | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    **params: float,
) -> StudyData:
    """Train one recipe once and return the study of that trial.

    Args:
        recipe: the name of the recipe, or an optimizer class, such as `torch.optim.NAdam`.
        source: the configuration, as for `configure`.
        results: the folder that holds studies.
        log: a target that shows the run: tensorboard, mlflow or wandb.
        on_progress: a function that is called at every step.
        params: hyperparameters, such as `lr=0.3`; the others have the defaults of `ahf train`.

    Raises:
        InputError: an unknown recipe or hyperparameter, or a value outside its interval.
    """
    config = configure(source).with_class(recipe)
    found = config.recipe(recipe)
    try:
        found.complete(params)
    except ValueError as error:
        raise InputError(str(error)) from None
    single = Single(config, found, single_run(found) | params)
    study = single.study(Path(results))
    if train_single(single, study, on_progress=on_progress, log=log) is None:
        raise AhfError(f"{recipe} was stopped; the same call resumes from its checkpoint")
    return read_study(study)


def status(study: str, results: str | Path = "results") -> pd.DataFrame:
    """Return the progress of a study's search, one row a recipe.

    Columns: trials planned, ok, diverged, failed, running and waiting; best value; seconds left.
    An unknown time is NaN.

    Args:
        study: the name of the study.
        results: the folder that holds studies.

    Raises:
        InputError: no such study.
    """
    found, _ = survey(find_study(Path(results), study))
    rows = [
        {
            "recipe": s.recipe, "planned": s.planned, "ok": s.ok, "diverged": s.diverged, "failed": s.failed,
            "running": len(s.running), "waiting": s.waiting,
            "best_value": s.best_value, "seconds_left": s.seconds_left,
        }
        for s in found
    ]  # fmt: skip
    return pd.DataFrame(rows).set_index("recipe").astype({"best_value": float, "seconds_left": float})


def compare(
    *studies: StudyData,
    target: float | None = None,
    band: Band = "se",
    attribute: bool = False,
    force: bool = False,
) -> Comparison:
    """Return a comparison of the recipes of one study, or of several side by side.

    The result has `tables` (DataFrames in `.numbers`), `verdict`, `overview()`, `save_tables(folder)` and
    `save_figures(folder, "screen", ("png",))`.

    Args:
        studies: results of `run` or `load_study`; several are labelled by their names.
        target: the value of the headline metric that trials have to meet.
        band: `se`, `sd`, `ci` or `iqr`.
        attribute: show the effect of each single choice.
        force: give a verdict although conditions differ.

    Raises:
        InputError: no study, two studies of one name, or no finished trial.
    """
    named = {data.study.name: data for data in studies}
    if not studies or len(named) < len(studies):
        raise InputError("compare needs studies with different names, at least one")
    data = pool(named)
    if not len(data.trials):
        raise InputError(f"no trial of {', '.join(named)} is finished yet")
    return Comparison(data, Choices(band, target, attribute=attribute), force)


def pack(study: StudyData, to: str | Path, *, partial: bool = False) -> StudyData:
    """Write a study as a few files into the folder `to`/NAME, and return the packed study.

    Raises InputError for a study that is not finished, unless `partial`, and for a folder that exists.
    """
    return read_study(_study_at(packing.pack(study.study, Path(to), partial)))


def unpack(study: StudyData, to: str | Path) -> StudyData:
    """Write a packed study as folders into `to`/NAME, and return the unpacked study, which can be resumed."""
    return read_study(_study_at(packing.unpack(study.study, Path(to))))


def _study_at(folder: Path) -> Study:
    return Study(folder.parent, folder.name)


def _reporter(verbose: bool) -> Reporter:
    return Printed() if verbose else SILENT
