"""`ahf report --format mlrc`: a study as a reproducibility report in LaTeX."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from ahf_cli import load_study
from ahf_cli.cli import main
from ahf_cli.report.text import tex

REFERENCE = Path(__file__).parents[1] / "results" / "reference"


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        ("a_b & 5 %", r"a\_b \& 5 \%"),
        ("\\x{~^}", r"\textbackslash{}x\{\textasciitilde{}\textasciicircum{}\}"),
        ("λ₀ = 10⁻²", r"$\lambda$$_{0}$ = 10$^-$$^{2}$"),
        ("α ± ∞", r"$\alpha$ $\pm$ $\infty$"),
        ("Ω", r"$\Omega$"),
        ("é", "é"),
    ],
)
def test_signs_become_latex(plain: str, expected: str) -> None:
    assert tex(plain) == expected


def test_the_report_has_the_numbers_of_the_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(REFERENCE / "quick"), "--out", str(tmp_path), "--json"]) == 0
    files = [Path(name) for name in json.loads(capsys.readouterr().out)["files"]]
    assert files[0] == tmp_path / "reproduction.tex" and all(file.stat().st_size for file in files)
    text = files[0].read_text()
    sections = re.findall(r"\\section\{(.*?)\}", text)
    assert sections == ["Scope of reproducibility", "Methodology", "Results", "Discussion"]
    assert set(re.findall(r"\\includegraphics\[.*?\]\{(.*?)\}", text)) == {file.name for file in files[1:]}
    study = load_study(REFERENCE / "quick")
    for recipe in study.recipes:
        assert rf"\item[\texttt{{{tex(recipe)}}}]" in text
    shares = study.trials["outcome"].eq("trained").groupby(study.trials["recipe"]).mean()
    assert shares.max() < 1 and "No recipe trained in every trial." in text
    counts = study.trials.query("recipe == 'hf'")["outcome"].value_counts()
    assert ", ".join(f"{n} {outcome}" for outcome, n in counts.items()) in text
    mean = study.trials.query("recipe == 'hf_ggn'")["test_accuracy"].mean()
    assert f"{mean:.4f}" in text
    assert text.isascii()


def test_another_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(REFERENCE / "quick"), "--format", "word"]) == 2
    assert "mlrc" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("study", ["quick", "opponents_mlp", "pinn"])
def test_the_report_compiles(study: str, tmp_path: Path) -> None:
    """Debian's texlive-latex-recommended and lmodern have all packages."""
    assert main(["report", str(REFERENCE / study), "--out", str(tmp_path), "-q"]) == 0
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "reproduction.tex"],
        cwd=tmp_path, capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "reproduction.pdf").read_bytes().startswith(b"%PDF")
    assert "Missing character" not in (tmp_path / "reproduction.log").read_text(errors="replace")
