"""Recorded traces are reproduced; `ahf verify` names each deviation and each damaged file."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ahf_cli.cli import main
from ahf_cli.report.trace_file import read_trace, write_trace
from ahf_cli.training.trace import Trace, deviations, problems, replay

GOLDEN = Path(__file__).parent / "golden" / "mlp_hf_hessian.npz"
TRACE = read_trace(GOLDEN)
W = TRACE.init["fc1.weight"]


def with_setup(**changes: object) -> Trace:
    return replace(TRACE, setup={**TRACE.setup, **changes})


def without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def series(**changes: Any) -> Trace:
    return replace(TRACE, series={**TRACE.series, **changes})


def init(**changes: Any) -> Trace:
    return replace(TRACE, init={**TRACE.init, **{k.replace("_", "."): v for k, v in changes.items()}})


@pytest.mark.parametrize(
    ("trace", "line"),
    [
        (replace(TRACE, final=without(TRACE.final, "fc1.bias")), "a trace must hold final/fc1.bias"),
        (replace(TRACE, series=without(TRACE.series, "stop")), "a trace must hold trace/stop"),
        (
            replace(TRACE, final={**TRACE.final, "fc9.weight": W}),
            "final/fc9.weight is no parameter of the model; did you mean 'fc2.weight'?",
        ),
        (series(los=np.zeros(12)), "trace/los is no quantity of a trace; did you mean 'loss'?"),
        (series(loss=np.zeros(11)), "trace/loss must have one value a step, (12,), got (11,)"),
        (series(loss=np.zeros((12, 1))), "trace/loss must have one value a step, (12,), got (12, 1)"),
        (series(loss=np.array(["x"] * 12)), "trace/loss must hold real numbers, got <U1"),
        (series(stop=np.zeros(12)), "trace/stop must hold strings, got float64"),
        (with_setup(batch=0), "setup: batch must be an integer ≥ 1, got 0"),
        (with_setup(batch="64"), "setup: batch must be an integer ≥ 1, got '64'"),
        (with_setup(steps=True), "setup: steps must be an integer ≥ 1, got True"),
        (with_setup(batch=4000), "x must hold at least 48000 examples (1 × 12 steps × batch 4000), got 768"),
        (
            with_setup(curvature_batch="independent"),
            "x must hold at least 1536 examples (2 × 12 steps × batch 64), got 768",
        ),
        (with_setup(recipe="hff"), "setup: unknown recipe 'hff'; did you mean 'hf'?"),
        (with_setup(recipe=["hf"]), "setup: recipe must be the name of one, got ['hf']"),
        (with_setup(kind="cnn"), "setup: kind must be one of mlp, lenet, got 'cnn'"),
        (
            with_setup(curvature="gnn"),
            "setup: curvature must be one of hessian, ggn, automatic, fisher, got 'gnn'",
        ),
        (with_setup(lr=-1.0), "setup: lr must be in (0, inf), got -1.0"),
        (with_setup(lr="x"), "setup: lr must be a number, got 'x'"),
        (with_setup(damping=None), "setup: damping must be a number, got nothing"),
        (replace(TRACE, y=TRACE.y + 5), "y must be classes in [0, 10), got 5 to 14"),
        (replace(TRACE, y=TRACE.y - 1), "y must be classes in [0, 10), got -1 to 8"),
        (replace(TRACE, y=TRACE.y / 2), "y must hold integers, got float64"),
        (replace(TRACE, y=TRACE.y[:5]), "y must have one class an example, (768,), got (5,)"),
        (replace(TRACE, x=TRACE.x * np.nan), "x must be finite, got 37632 values that are not"),
        (replace(TRACE, x=TRACE.x[:, :40]), "x must have the shape (768, 49), got (768, 40)"),
        (replace(TRACE, x=TRACE.x.astype(complex)), "x must hold real numbers, got complex128"),
        (init(fc1_weight=W * np.inf), "init/fc1.weight must be finite, got 784 values that are not"),
        (init(fc1_weight=W.astype(str)), "init/fc1.weight must hold real numbers, got <U32"),
        (
            init(fc1_weight=W[0]),
            "init/fc1.weight must have the shape (outputs, inputs), got (49,)",
        ),
        (
            init(fc1_weight=W.T),
            "init/fc2.weight must take the 49 outputs of the layer before it, got (10, 16)",
        ),
        (
            replace(TRACE, last_direction=TRACE.last_direction[:-1]),
            "last_direction must have the shape (970,), got (969,)",
        ),
    ],
)
def test_a_file_that_is_no_whole_trace_is_refused(
    trace: Trace, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_trace(tmp_path / "t.npz", trace)
    assert main(["verify", str(GOLDEN), str(tmp_path / "t.npz")]) == 2
    assert capsys.readouterr() == ("", f"ahf: {tmp_path / 't.npz'}: {line}\n")


def test_everything_that_is_wrong_is_named_at_once() -> None:
    wrong = replace(with_setup(batch=900), final={}, y=TRACE.y[:, None])
    assert [line.split(" ")[0] for line in problems(wrong)] == ["a", "x", "y"]
    assert problems(with_setup(kind="lenet"))[0].startswith("a trace must hold init/conv1.weight, init/conv1")


def damaged(content: bytes) -> dict[str, bytes]:
    flipped = bytearray(content)
    flipped[3000] ^= 255
    return {
        "empty": b"",
        "text": b"hello",
        "pickle": pickle.dumps({"x": 1}),
        "half": content[: len(content) // 2],
        "flipped": bytes(flipped),
    }


@pytest.mark.parametrize("name", damaged(b"x" * 4000))
def test_a_damaged_file_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "t.npz"
    file.write_bytes(damaged(GOLDEN.read_bytes())[name])
    assert main(["verify", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ahf: {file}: not a readable .npz trace: ")


@pytest.mark.parametrize("setup", ["3", "[1]", "", "{1: 2}", "__import__('os')", "[" * 5000])
def test_a_setup_that_is_no_dict_is_refused(
    setup: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(GOLDEN) as archive:
        np.savez(tmp_path / "t.npz", allow_pickle=False, **{**archive, "setup": np.array(setup)})
    assert main(["verify", str(tmp_path / "t.npz")]) == 2
    assert "setup must be a dict literal of names to values, got" in capsys.readouterr().err


def test_pickled_objects_are_never_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(GOLDEN) as archive:
        np.savez(tmp_path / "t.npz", **{**archive, "y": np.array([{}, 1], dtype=object)})
    assert main(["verify", str(tmp_path / "t.npz"), str(tmp_path / "no.npz"), str(tmp_path)]) == 2
    objects, absent, folder = capsys.readouterr().err.splitlines()
    assert objects.endswith("t.npz: not a readable .npz trace: Object arrays cannot be loaded")
    assert absent.endswith("no.npz: cannot be read: No such file or directory")
    assert folder.endswith(": cannot be read: Is a directory")


@pytest.mark.parametrize(
    ("trace", "quantity", "largest", "where"),
    [
        (series(loss=TRACE.series["loss"] + 1e-3 * (np.arange(12) == 4)), "loss", 1e-3, "step 5"),
        (series(loss=np.where(np.arange(12) == 2, np.nan, TRACE.series["loss"])), "loss", np.inf, "step 3"),
        (series(stop=np.array(["foo"] * 12)), "stop", 1.0, "step 1"),
        (replace(TRACE, last_direction=np.full(970, np.nan)), "last_direction", np.inf, "the end"),
        (
            replace(TRACE, final={**TRACE.final, "fc1.weight": TRACE.final["fc1.weight"] * 1.001}),
            "final/fc1.weight", 1e-3, "the end",
        ),
    ],
)  # fmt: skip
def test_what_leaves_the_tolerance_is_named(
    trace: Trace,
    quantity: str,
    largest: float,
    where: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (found,) = [d for d in deviations(trace, replay(TRACE)) if d.first_step is not None]
    assert found.quantity == quantity and found.largest == pytest.approx(largest, rel=0.6)
    write_trace(tmp_path / "t.npz", trace)
    assert main(["verify", str(tmp_path / "t.npz"), "-q"]) == 1
    said = capsys.readouterr()
    assert said.out.count("\n") == 2 and f"first outside at {where}" in said.out
    assert "1 of 1 traces leave the tolerance" in said.err


def test_a_misspelt_choice_is_mentioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_trace(tmp_path / "t.npz", with_setup(curvatur="ggn"))
    assert main(["verify", str(tmp_path / "t.npz")]) == 0
    assert "unknown names in setup are ignored: curvatur" in capsys.readouterr().err


def test_all_quantities_are_in_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(GOLDEN), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    names = {d["quantity"] for d in document["files"][0]["deviations"]}
    assert document["ok"] and names == {
        *TRACE.series, "last_direction", *(f"final/{name}" for name in TRACE.init)
    }  # fmt: skip


FILES = sorted((Path(__file__).parent / "golden").glob("*.npz"))


def test_all_traces_are_here() -> None:
    assert len(FILES) == 16


@pytest.mark.parametrize("way", ["explicit layers", "graphs"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_trace_is_reproduced(file: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "graphs":
        monkeypatch.setattr("ahf_cli.optim.layers.chain.record", lambda model, inputs: None)
    recorded = read_trace(file)
    found = deviations(recorded, replay(recorded))
    assert {d.quantity for d in found} >= {
        "loss",
        "stop",
        "cg_iterations",
        "last_direction",
        "final/fc1.weight",
    }
    assert [d for d in found if d.first_step is not None] == []


def test_a_changed_trace_is_noticed() -> None:
    recorded = read_trace(FILES[0])
    series = {**recorded.series, "damping": recorded.series["damping"] * (1 + 2e-5)}
    stops = recorded.series["stop"].copy()
    stops[3] = "residual"
    changed = replace(recorded, series={**series, "stop": stops})
    outside = {d.quantity: d.first_step for d in deviations(changed, replay(recorded)) if d.first_step}
    assert outside == {"damping": 1, "stop": 4}


def test_written_traces_read_back(tmp_path: Path) -> None:
    recorded = read_trace(FILES[0])
    write_trace(tmp_path / "t.npz", recorded)
    again = read_trace(tmp_path / "t.npz")
    assert dict(again.setup) == dict(recorded.setup)
    for name, values in recorded.series.items():
        np.testing.assert_array_equal(again.series[name], values)
    np.testing.assert_array_equal(again.x, recorded.x)
