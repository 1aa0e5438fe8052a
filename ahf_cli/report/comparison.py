"""A comparison: its tables, figures, verdict, and their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ahf_cli.report import exhibits
from ahf_cli.report.canvas import THEMES, Drawing, Format, Picture, ThemeName, make
from ahf_cli.report.exhibits.curves import curve_table
from ahf_cli.report.exhibits.exhibit import Choices
from ahf_cli.report.exhibits.new_seeds import pairs_of
from ahf_cli.report.study_data import StudyData
from ahf_cli.report.text import Table, as_latex, as_text, sparkline
from ahf_cli.report.verdict import Verdict, verdict
from ahf_cli.study.files import SUMMARY_DIGITS, atomic_write, write_csv
from ahf_cli.training.outcome import OUTCOMES


@dataclass(frozen=True)
class Comparison:
    """A comparison of a study's recipes; tables, figures and files are made on demand."""

    data: StudyData
    choices: Choices = Choices()
    force: bool = False

    @cached_property
    def tables(self) -> dict[str, Table]:
        """The tables by name; a study without re-runs has no tables of re-runs."""
        return exhibits.tables(self.data, self.choices)

    @cached_property
    def verdict(self) -> Verdict:
        """The verdict in words."""
        data = self.data
        pairs = self.tables.get("rerun_pairs") or pairs_of(data)
        equal_cost, robustness = self.tables["equal_cost"], self.tables["robustness"]
        acts = self.tables["acts"]
        return verdict(data, pairs, equal_cost, robustness, acts, force=self.force)

    @cached_property
    def drawn(self) -> tuple[list[Drawing], dict[str, str]]:
        """The figures, and the reasons of undrawn figures by name."""
        return exhibits.drawings(self.data, self.choices)

    @property
    def document(self) -> dict[str, Any]:
        """The numbers with their intervals, as plain data."""
        verdict = self.verdict
        return {
            "studies": list(self.data.names),
            "band": self.choices.band,
            "target": self.choices.target,
            "complete": not self.data.missing,
            "missing": self.data.missing,
            "problems": list(self.data.problems),
            "verdict": {
                "claim": verdict.claim, "leader": verdict.leader, "refused": list(verdict.refused),
                "forced": verdict.forced, "condition": verdict.condition, "text": verdict.lines(),
            },
            **{name: table.numbers.to_dict("records") for name, table in self.tables.items()},
        }  # fmt: skip

    def save_tables(self, out: str | Path) -> list[Path]:
        """Write the verdict, and each table as CSV, aligned text and LaTeX (booktabs), under `out`/tables."""
        paths, out = [], Path(out)
        for table in self.tables.values():
            file = out / "tables" / table.name
            paths += [file.with_suffix(end) for end in (".csv", ".txt", ".tex")]
            write_csv(paths[-3], table.numbers, SUMMARY_DIGITS)
            note = f"\n{table.note}" if table.note else ""
            atomic_write(paths[-2], f"{as_text(table.texts)}{note}\n".encode())
            latex = "\n".join(as_latex(part, title) for title, part in table.texts.items())
            atomic_write(paths[-1], latex.encode())
        paths.append(out / "verdict.txt")
        atomic_write(paths[-1], ("\n".join(self.verdict.lines()) + "\n").encode())
        return paths

    @cached_property
    def pictures(self) -> list[Picture]:
        """The figures, drawn for the screen."""
        return [make(drawing, THEMES["screen"], self.verdict.stamp) for drawing in self.drawn[0]]

    def save_figures(
        self, out: str | Path, theme: ThemeName = "screen", formats: Sequence[Format] = ("png",)
    ) -> list[Path]:
        """Write each figure with its table under `out`."""
        if theme == "screen":
            made = self.pictures
        else:
            made = [make(drawing, THEMES[theme], self.verdict.stamp) for drawing in self.drawn[0]]
        return [path for picture in made for path in picture.save(Path(out), formats)]

    def overview(self) -> pd.DataFrame:
        """Return a table for one screen: counts, final values and curves as sparklines."""
        finals = self.tables["final_values"].numbers
        finals = finals.drop_duplicates(["metric", "recipe"])
        metrics = self.data.metrics
        curves = {m.column: curve_table(self.data.curves, m, "se") for m in metrics.shown}
        rows = []
        for name in self.data.recipes:
            own: Mapping[str, Any] = {
                row["metric"]: row for row in finals[finals["recipe"] == name].to_dict("records")
            }
            first = next(iter(own.values()))
            row = {"recipe": name, "n": f"{first['n']}/{first['planned']}"}
            row |= {what: str(first[what.replace(" ", "_")]) for what in OUTCOMES}
            for metric in metrics.shown:
                found = own[metric.label]
                row[metric.label] = _plus_minus(found["mean"], found["standard_error"])
                line = curves[metric.column]
                low, high = sorted((metric.scale, 0.0 if metric.better == "lower" else metric.top))
                row[f"{metric.label.partition(' ')[2]} curve"] = sparkline(
                    line[line["recipe"] == name]["centre"], low, high
                )
            rows.append(row)
        return pd.DataFrame(rows)


def _plus_minus(mean: float, error: float) -> str:
    if pd.isna(mean):
        return "–"
    small = max(abs(mean), abs(error)) < 5e-3
    centre, half = (f"{x:.2e}" if small or abs(x) >= 1e4 else f"{x:.3f}" for x in (mean, error))
    return f"{centre} ± {half}" if pd.notna(error) else f"{centre} (n = 1)"
