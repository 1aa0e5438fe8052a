"""The trials of one part of a study, as every reader sees them: in folders, or in the tables of a pack."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ahf_cli.study.columns import Row, empty, metrics_in
from ahf_cli.study.opening import DamagedError
from ahf_cli.training.records import CurveRow, StepRow, TrialResult

if TYPE_CHECKING:
    import pyarrow as pa

    from ahf_cli.study.trial_folder import TrialFolders


class Trials(Protocol):
    """A reader of trials; it changes nothing."""

    def recipes(self) -> list[str]:
        """Return the names of the recipes that have trials, by name."""
        ...

    def slots(self, recipe: str) -> list[int]:
        """Return the slots of a recipe that have begun, in order."""
        ...

    def inspect(self, recipe: str, slot: int) -> TrialResult | None:
        """Return how a trial ended, None while it has not; raises DamagedError."""
        ...

    def note(self, recipe: str, slot: int) -> Mapping[str, Any] | None:
        """Return the content of a trial's `params.json`; raises DamagedError."""
        ...

    def running_curve(self, recipe: str, slot: int) -> pa.Table:
        """Return the evaluations of an unfinished trial so far; raises DamagedError."""
        ...

    def checkpoints(self, recipe: str, slot: int) -> dict[str, bytes]:
        """Return the files of an unfinished trial's checkpoints by name."""
        ...

    def weights(self, recipe: str, slot: int) -> bytes | None:
        """Return the file of a finished trial's final weights, None where it has none."""
        ...

    def curves(self, results: Sequence[TrialResult]) -> Labelled:
        """Return the evaluations of finished trials."""
        ...

    def steps(self, results: Sequence[TrialResult]) -> Labelled:
        """Return the steps of finished trials; some trials may lack them."""
        ...


@dataclass(frozen=True)
class Labelled:
    """Rows of several trials: the columns `recipe` and `trial`, and then the rows' own."""

    rows: pa.Table
    problems: tuple[str, ...] = ()
    """one line for each trial that could not be read"""


@dataclass(frozen=True)
class InFolders:
    """Trials that have a folder each."""

    folders: TrialFolders

    def recipes(self) -> list[str]:
        """Return the names of the recipes that have a folder, by name."""
        return self.folders.recipes()

    def slots(self, recipe: str) -> list[int]:
        """Return the slots of a recipe that have a folder, in order."""
        return self.folders.slots(recipe)

    def inspect(self, recipe: str, slot: int) -> TrialResult | None:
        """Return how a trial ended, None while it has not; raises DamagedError."""
        return self.folders.trial(recipe, slot).inspect()

    def note(self, recipe: str, slot: int) -> Mapping[str, Any] | None:
        """Return the content of a trial's `params.json`; raises DamagedError."""
        return self.folders.trial(recipe, slot).note()

    def running_curve(self, recipe: str, slot: int) -> pa.Table:
        """Return the evaluations of an unfinished trial so far; raises DamagedError."""
        return self.folders.trial(recipe, slot).running_curve()

    def checkpoints(self, recipe: str, slot: int) -> dict[str, bytes]:
        """Return the files of an unfinished trial's checkpoints by name."""
        return self.folders.trial(recipe, slot).checkpoint_files()

    def weights(self, recipe: str, slot: int) -> bytes | None:
        """Return the file of a finished trial's final weights, None where it has none."""
        return self.folders.trial(recipe, slot).weights()

    def curves(self, results: Sequence[TrialResult]) -> Labelled:
        """Return the evaluations of finished trials."""
        return self._labelled(results, lambda r: self.folders.trial(r.recipe, r.slot).curve_rows(), CurveRow)

    def steps(self, results: Sequence[TrialResult]) -> Labelled:
        """Return the steps of finished trials; some trials may lack them."""
        return self._labelled(results, lambda r: self.folders.trial(r.recipe, r.slot).step_rows(), StepRow)

    def _labelled(
        self, results: Sequence[TrialResult], rows_of: Callable[[TrialResult], pa.Table | None], row: Row
    ) -> Labelled:
        import pyarrow as pa

        tables, problems = [], []
        for result in results:
            try:
                rows = rows_of(result)
            except DamagedError as error:
                problems.append(f"{result.recipe}/{result.slot:03d}: {error.file.name} {error.why}")
                continue
            if rows is not None:
                tables.append(labelled(rows, result.recipe, result.slot))
        measured = dict.fromkeys(name for t in tables for name in metrics_in(t.column_names, row))
        first = empty(("recipe",), row, measured)
        first = first.add_column(1, "trial", pa.array([], pa.int64()))
        # The first table has all columns, so that columns of older files come in their place.
        return Labelled(pa.concat_tables([first, *tables], promote_options="default"), tuple(problems))


def labelled(rows: pa.Table, recipe: str, slot: int) -> pa.Table:
    """Return the rows of one trial with the columns `recipe` and `trial` in front."""
    import pyarrow as pa

    labels = {"recipe": pa.scalar(recipe), "trial": pa.scalar(slot, pa.int64())}
    for at, (name, value) in enumerate(labels.items()):
        rows = rows.add_column(at, name, pa.repeat(value, len(rows)))
    return rows


def read_results(trials: Trials, recipes: Sequence[str]) -> tuple[list[TrialResult], list[str]]:
    """Return the results of finished trials by recipe and slot, and one line for each damaged trial."""
    found, problems = [], []
    for recipe in recipes:
        for slot in trials.slots(recipe):
            try:
                result = trials.inspect(recipe, slot)
            except DamagedError as error:
                problems.append(f"{recipe}/{slot:03d}: {error.file.name} {error.why}")
                continue
            if result is not None:
                found.append(result)
    return found, problems


def own_value(result: TrialResult) -> float:
    """Return a trial's final objective, without the cap of `value`; NaN where it has none."""
    return result.measured.get(result.objective, math.nan) if result.status == "ok" else math.nan


def best_trial(results: Iterable[TrialResult]) -> TrialResult | None:
    """Return the trial with the least value, of those that did not diverge; None where all have."""
    ok = [result for result in results if result.status == "ok"]
    return min(ok, key=lambda r: rank(r.value, own_value(r), r.slot), default=None)


def rank(value: float, own: float, slot: int) -> tuple[float, float, int]:
    """Return the key that sorts trials: of equal values the least own one, of equals the first slot."""
    return value, own if math.isfinite(own) else math.inf, slot
