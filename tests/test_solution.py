"""Final weights of trials of equations: kept, packed, checked, and drawn beside the known solution."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ahf_cli.cli import main
from ahf_cli.report.canvas import THEMES, Drawing, make
from ahf_cli.report.exhibits.solution import DECADES, POINTS, field, solution
from ahf_cli.report.study_data import load_study
from ahf_cli.study.find import find_study
from ahf_cli.study.opening import DamagedError
from ahf_cli.study.pack import pack, unpack
from ahf_cli.study.store import Study
from ahf_cli.tasks.data import load
from ahf_cli.tasks.datasets import DATA_SETS
from ahf_cli.tasks.models import tanh_64
from tests.conftest import kept_registries
from tests.searches import serial_pool
from tests.studies import write_study

PINN = ["--preset", "pinn", "-o", "train.steps=1", "-o", "train.longer={}", "-o", "train.eval_every=1"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A study of two recipes and re-runs, after two steps each."""
    folder = tmp_path_factory.mktemp("solution")
    words = ["-o", "search.trials=2", "-o", "search.reruns=1", "-o", "search.recipes=[lm, adam]"]
    words += ["-o", "run.workers=1", "-o", "recipes={}", "-o", "spaces={}", "--results", str(folder), "-q"]
    with pytest.MonkeyPatch.context() as patch, kept_registries():
        patch.setattr("ahf_cli.search.run.process_pool", serial_pool)
        assert main(["search", *PINN, *words]) == 0
    yield folder


def weights_of(study: Study, recipe: str = "lm", slot: int = 0) -> bytes:
    found = study.reader.weights(recipe, slot)
    assert found is not None
    return found


def test_the_kept_weights_have_the_recorded_error_and_are_those_that_are_drawn(results: Path) -> None:
    study = find_study(results, "pinn")
    theta = torch.from_numpy(np.load(io.BytesIO(weights_of(study))))
    assert theta.shape == (257,) and theta.dtype == torch.float64
    net = tanh_64((2,), 1).double()
    torch.nn.utils.vector_to_parameters(theta, net.parameters())
    points = load(None, "paper", None, DATA_SETS["poisson2d_sin"]).test
    inside = points.images[:, -1] == 0
    x = points.images[inside, :-1]
    with torch.no_grad():
        error = (net(x)[:, 0] - points.labels[inside, 1]).square().mean().sqrt()
    result = study.reader.inspect("lm", 0)
    assert result is not None
    assert float(error) == pytest.approx(result.measured["test_error"], rel=1e-9)
    drawn = solution([(study, "lm", 0)])
    assert isinstance(drawn, Drawing)
    x = torch.from_numpy(drawn.table[["x1", "x2"]].to_numpy().copy())
    assert len(x) == POINTS**2 and x.min() == 0 and x.max() == 1
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(drawn.table["u"].to_numpy().copy()), net(x)[:, 0])
    exact = np.sin(np.pi * drawn.table["x1"]) * np.sin(np.pi * drawn.table["x2"])
    np.testing.assert_allclose(drawn.table["solution"], exact, atol=1e-15)
    np.testing.assert_allclose(drawn.table["error"], (drawn.table["u"] - exact).abs(), atol=1e-15)


def test_the_picture_has_its_fields_in_place(results: Path) -> None:
    """A point at (x1, x2) has the colour of u there, and not of u at (x2, x1)."""
    drawn = solution([(find_study(results, "pinn"), "adam", 0)])
    assert isinstance(drawn, Drawing)
    panels = make(drawn, THEMES["screen"]).figure.axes[:3]
    for axes, column in zip(panels, ("u", "solution", "error"), strict=True):
        shown = np.asarray(axes.collections[0].get_array()).reshape(POINTS, POINTS)
        for i, j in ((0, POINTS - 1), (7, 40)):
            row = drawn.table[(drawn.table["x2"].rank(method="dense") == i + 1)].iloc[j]
            floor = drawn.table["error"].max() / DECADES if column == "error" else -np.inf
            assert shown[i, j] == max(row[column], floor)
        assert axes.get_xlabel() == "$x_1$" and axes.get_ylabel() == "$x_2$" and axes.get_title()
    assert panels[2].collections[0].norm.vmax == drawn.table["error"].max()


def test_five_coordinates_are_drawn_as_a_slice() -> None:
    net = tanh_64((5,), 1).double()
    theta = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
    content = io.BytesIO()
    np.save(content, theta.numpy())
    table = field({"data": "poisson5d_cos", "model": "tanh_64"}, content.getvalue())
    x = torch.full((len(table), 5), 0.5, dtype=torch.float64)
    x[:, :2] = torch.from_numpy(table[["x1", "x2"]].to_numpy().copy())
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(table["u"].to_numpy().copy()), net(x)[:, 0])
    torch.testing.assert_close(
        torch.from_numpy(table["solution"].to_numpy().copy()), torch.cos(torch.pi * x).sum(1)
    )


def test_weights_travel_through_a_pack_in_every_bit(results: Path, tmp_path: Path) -> None:
    study = find_study(results, "pinn")
    pack(study, tmp_path / "packs")
    packed = find_study(tmp_path / "packs", "pinn")
    unpack(packed, tmp_path / "back")
    back = find_study(tmp_path / "back", "pinn")
    for part in ((s, s.reruns) for s in (packed, back)):
        for own, other in zip((study, study.reruns), part, strict=True):
            for result in own.read_results()[0]:
                key = (result.recipe, result.slot)
                assert weights_of(own, *key) == weights_of(other, *key)
    assert back.trial("lm", 0).inspect() is not None
    pack(packed, tmp_path / "again")
    one, two = (tmp_path / where / "pinn" / "weights.parquet" for where in ("packs", "again"))
    assert one.read_bytes() == two.read_bytes()


def test_the_comparison_draws_the_best_trial_of_each_recipe(results: Path) -> None:
    from ahf_cli.report.exhibits import exhibits
    from ahf_cli.report.exhibits.exhibit import Choices

    (figure,) = (e.figures["solution"] for e in exhibits() if "solution" in e.figures)
    data = load_study(results / "pinn")
    drawn = figure(data, Choices())
    assert isinstance(drawn, Drawing) and drawn.name == "solution"
    best = [f"{recipe}/{int(row['trial']):03d}" for recipe, row in data.best.iterrows()]
    assert list(drawn.table["trial"].unique()) == best and len(best) == 2
    assert "with the least validation loss of each recipe" in drawn.caption[0]
    for old in ("quick", "pinn_heat"):  # another task, and a pack of a version without weights
        assert figure(load_study(f"results/reference/{old}"), Choices()) is None


def test_show_writes_the_picture_and_says_where_there_are_no_weights(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["show", "pinn", "lm/1", "--out", str(tmp_path), "--results"]
    assert main([*words, str(results)]) == 0
    assert "figures/solution_lm_001.png" in capsys.readouterr().out
    assert (tmp_path / "data" / "solution_lm_001.csv").exists()
    old = ["show", "pinn_heat", "lm_fixed/1", "--out", str(tmp_path), "--results", "results/reference"]
    assert main(old) == 0
    said = capsys.readouterr().out
    assert "trial lm_fixed/001 has no weights, so that its solution is not drawn" in said
    assert "solution_lm" not in said


def test_changed_weights_are_damage_and_left_out_ones_are_not(results: Path, tmp_path: Path) -> None:
    made = write_study(tmp_path, "s", {"hf": 1}, {})
    content = weights_of(find_study(results, "pinn"))
    donor = find_study(results, "pinn").trial("lm", 0)
    files = donor.pack()
    assert list(files)[-2:] == ["weights.npy", "result.json"]  # the result last: it is the commit
    trial = made.trial("lm", 0)
    assert trial.unpack(files) and trial.weights() == content
    assert json.loads(files["result.json"])["files"]["weights.npy"]["bytes"] == len(content)
    file = trial.path / "weights.npy"
    file.write_bytes(content[:-1])
    with pytest.raises(DamagedError, match=r"weights\.npy: is not the file that was written"):
        trial.inspect()
    file.unlink()
    assert trial.inspect() is not None
