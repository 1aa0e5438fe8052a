"""The script for a machine with a GPU: size of the pack, limits of time, resumption, messages."""

from __future__ import annotations

import json
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ahf_cli.config.load import load
from ahf_cli.errors import AhfError, IncompleteError, InputError
from benchmarks.gpu import pack as packing
from benchmarks.gpu import run as running
from benchmarks.gpu.command import main
from benchmarks.gpu.execution import excerpt
from benchmarks.gpu.parts import FEW_TESTS, NAMES, ROOT, STAY, Part, Step, parts
from benchmarks.gpu.run import Record, Settings

QUICK = Step("quick", ("platform",))
LONG = Step("long", ("timeit", "-n", "1", "-s", "import time", "time.sleep(60)"))
FAILING = Step("failing", ("no_such_module",))
HERE = "{}.{}".format(*sys.version_info)


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a packed folder of 3 KiB beside a checkout of 1 KiB, made without internet."""

    def make(name: str, size: int) -> None:
        (tmp_path / "packed" / name).mkdir(parents=True)
        (tmp_path / "packed" / name / "file").write_bytes(bytes(size))

    monkeypatch.setattr(packing, "_wheels", lambda folder, python: make("wheels", 1024))
    monkeypatch.setattr(packing, "_data", lambda folder: make("data", 2048))
    monkeypatch.setattr(packing, "checkout_bytes", lambda root: 1024)
    return tmp_path / "packed"


def test_what_travels_has_a_limit(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kib = 1 / 1024
    with pytest.raises(
        InputError, match=r"^--limit: checkout, wheels and data must be at most 0.003\d* MiB, got 0.0 \("
    ):
        packing.pack(packed, 3.9 * kib, "3.12")
    assert packing.manifest(packed) is None
    (packed / "wheels" / "file").unlink()
    (packed / "data" / "file").unlink()
    for name in ("wheels", "data"):
        (packed / name).rmdir()
    packing.pack(packed, 4 * kib, "3.12")
    assert "0.0 MiB with the checkout" in capsys.readouterr().err


def test_a_complete_folder_is_packed_once_and_a_damaged_one_again(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing.pack(packed, 1, "3.12")
    with monkeypatch.context() as context:
        context.setattr(packing, "_wheels", lambda folder, python: pytest.fail("downloaded again"))
        packing.pack(packed, 1, "3.12")
        with pytest.raises(InputError, match="--limit"):
            packing.pack(packed, 0.001, "3.12")
    (packed / "data" / "file").write_bytes(b"cut")
    assert packing.manifest(packed) is None
    with pytest.raises(InputError, match="^--packed must be a folder that .* completed, got "):
        packing.install(packed, packed)


def test_wheels_of_another_python_are_refused(packed: Path) -> None:
    packing.pack(packed, 1, "3.7")
    with pytest.raises(InputError, match=f"^--packed must hold wheels for Python {HERE}, got wheels for 3.7"):
        packing.install(packed, packed)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="Git counts, and this is no checkout")
def test_the_checkout_is_counted_without_results() -> None:
    files = (ROOT / "ahf_cli").rglob("*.py")
    assert sum(p.stat().st_size for p in files) < packing.checkout_bytes(ROOT) < 8 * packing.MIB


def run_part(part: Part, out: Path, state: Record, minutes: float = 1, archive: float = 1) -> Record:
    """Run a part named `part` and return its state on the disk."""
    settings = Settings(out, out, "cpu", minutes=minutes, archive=archive)
    running.run_part("part", part, settings, state, running._environment(settings, str(out)))
    assert {path.name for path in out.iterdir()} == {"state.json", "part.tar.gz"}
    found: Record = json.loads((out / "state.json").read_text())["parts"]["part"]
    return found


def test_a_part_ends_in_time_and_resumes_with_what_is_left(tmp_path: Path) -> None:
    state: Record = {"settings": {}, "parts": {}}
    began = time.monotonic()
    kept = run_part(Part([QUICK, LONG]), tmp_path, state, minutes=0.02)
    assert time.monotonic() - began < 5
    assert (kept["done"], kept["steps"]["quick"]["code"], kept["steps"]["long"]["code"]) == (False, 0, None)
    kept["steps"]["quick"]["said"] = ["not run again"]
    kept = run_part(Part([QUICK, Step("long", QUICK.words)]), tmp_path, {"parts": {"part": kept}})
    assert kept["done"] and kept["steps"]["quick"]["said"] == ["not run again"]
    assert kept["steps"]["long"]["seconds"] > 0.5
    with tarfile.open(tmp_path / "part.tar.gz") as tar:
        assert {"logs/quick.txt", "logs/long.txt"} <= set(tar.getnames())


def test_a_lost_archive_repeats_the_part(tmp_path: Path) -> None:
    steps = {"quick": {"code": 0, "seconds": 9.0, "said": []}, "failing": {"code": 1, "seconds": 9.0}}
    state: Record = {"parts": {"part": {"done": False, "seconds": 9.0, "steps": steps}}}
    assert run_part(Part([QUICK]), tmp_path, state)["steps"]["quick"]["seconds"] < 9


def test_a_killed_run_leaves_a_folder_that_goes_before_the_archive(tmp_path: Path) -> None:
    state: Record = {"parts": {}}
    run_part(Part([FAILING]), tmp_path, state)
    (tmp_path / "work" / "part").mkdir(parents=True)
    (tmp_path / "work" / "part" / "newer").touch()
    run_part(Part([FAILING]), tmp_path, state)
    with tarfile.open(tmp_path / "part.tar.gz") as tar:
        assert "newer" in tar.getnames()


def test_a_large_archive_leaves_checkpoints_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "work" / "part"
    work.mkdir(parents=True)
    for name in ("checkpoint.pt", "curve.csv"):
        (work / name).touch()
    run_part(Part([FAILING]), tmp_path, {"parts": {}}, archive=1e-6)
    assert "without checkpoints" in capsys.readouterr().err
    with tarfile.open(tmp_path / "part.tar.gz") as tar:
        assert "curve.csv" in tar.getnames() and "checkpoint.pt" not in tar.getnames()


def test_a_failure_is_kept_and_stops_no_other_command(tmp_path: Path) -> None:
    kept = run_part(Part([FAILING, QUICK], at_once=2), tmp_path, {"parts": {}})
    assert (kept["done"], kept["steps"]["failing"]["code"], kept["steps"]["quick"]["code"]) == (False, 1, 0)
    assert "no_such_module" in kept["steps"]["failing"]["said"][-1]
    lines = ["FAILED tests/a.py", "other", "", "1", "2", "1 failed in 3 s", ""]
    assert excerpt(lines) == ["FAILED tests/a.py", "1", "2", "1 failed in 3 s"]


@pytest.mark.parametrize(
    ("step", "error", "line"),
    [(FAILING, AhfError, "not done: tests"), (LONG, IncompleteError, "the same command resumes")],
)
def test_a_run_tells_what_is_not_done(
    step: Step, error: type[AhfError], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "install", lambda packed, site: {"commit": "abc"})
    monkeypatch.setattr(running, "parts", lambda *settings: {"tests": Part([step])})
    with pytest.raises(error, match=line) as raised:
        running.run(["tests"], Settings(tmp_path, tmp_path, "cpu", minutes=0.01 if step is LONG else 1))
    assert type(raised.value) is error
    assert json.loads((tmp_path / "state.json").read_text())["commit"] == "abc"
    with pytest.raises(InputError, match=r"^--out must be a folder of the same --device and --small, got "):
        running.run(["tests"], Settings(tmp_path, tmp_path, "cpu", small=True))


def test_parts_are_commands_of_this_checkout(tmp_path: Path) -> None:
    assert set(FEW_TESTS) | STAY <= {file.stem for file in (ROOT / "tests").glob("test_*.py")}
    for small in (False, True):
        found = parts("cpu", small, tmp_path)
        assert tuple(found) == NAMES
        assert {"test_cg", "test_device"} <= {step.name for step in found["tests"].steps}
        for name, batch in (("paper", 10), ("fair_epoch", 70), ("published", 10)):
            words = found[name].steps[-1].words
            keys = [key for flag, key in zip(words, words[1:], strict=False) if flag == "--override"]
            assert load(name, overrides=keys).run.batch == batch


def one_line(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line of a refused command."""
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("run --parts tets", "argument --parts: unknown part 'tets'; did you mean 'tests'?"),
        ("run --minutes 0", "argument --minutes: must be a number > 0, got '0'"),
        ("run --minutes nan", "argument --minutes: must be a number > 0, got 'nan'"),
        ("run --files 0", "argument --files: must be an integer ≥ 1, got '0'"),
        ("run --device cpu --files 5 --out {}", "--files must be at least 6 for 5 parts in {}, got 5"),
        ("run --device cpu --packed {} --out {}", "--packed must be a folder that `python -m benchmarks.gpu"),
        ("pack --limit x", "argument --limit: must be a number > 0, got 'x'"),
        ("pack --python 2.7", "argument --python: must be a version such as 3.12, got '2.7'"),
        ("", "the following arguments are required: pack|run"),
    ],
)
def test_bad_arguments_are_one_clear_line(
    words: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = str(tmp_path)
    assert line.replace("{}", here) in one_line(words.replace("{}", here).split(), capsys)


@pytest.mark.parametrize("size", [0, 10, 100])
def test_a_damaged_archive_is_refused(size: int, tmp_path: Path) -> None:
    state: Record = {"parts": {}}
    run_part(Part([FAILING]), tmp_path, state)
    file = tmp_path / "part.tar.gz"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(
        InputError, match=r"part.tar.gz is damaged \(.*\): delete it, and its part begins again$"
    ):
        run_part(Part([FAILING]), tmp_path, state)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"settings": {"device": "cpu", "small": false}, "parts": {"tests": 1}}']
)
def test_a_damaged_state_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state.json").write_text(text)
    said = one_line(["run", "--device", "cpu", "--out", str(tmp_path)], capsys)
    assert "state.json: must be a file that `python -m benchmarks.gpu` wrote" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = one_line(["run", "--out", str(tmp_path)], capsys)
    assert said == "error: --device must be a device that is there, got 'cuda', and PyTorch finds none\n"
    assert not list(tmp_path.iterdir())
