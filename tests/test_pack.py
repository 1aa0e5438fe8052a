"""A packed study holds each value of its folders, and a damaged pack is refused."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from ahf_cli.cli import main
from ahf_cli.errors import InputError
from ahf_cli.report.study_data import load_study
from ahf_cli.study.find import find_study
from ahf_cli.study.pack import pack, unpack
from ahf_cli.study.store import Study
from tests.simulated_studies import simulate_study
from tests.studies import CURVE, NAN, RESULT, STEPS, write_study

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "results" / "reference"
STUDIES = sorted(path.parent.name for path in REFERENCE.glob("*/manifest.json"))


def trial_files(folder: Path) -> dict[str, object]:
    """Return the contents of a study's files by place; JSON as values, since its keys have no order."""
    found: dict[str, object] = {}
    for file in sorted(folder.rglob("*")):
        place = str(file.relative_to(folder))
        if file.is_file() and file.name != ".lock":
            data = file.read_bytes()
            found[place] = json.loads(data) if file.suffix == ".json" else data
    return found


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = simulate_study(tmp_path / "own", "s", trials=3, points=4, reruns=2, recipes=("hf", "hf_published"))
    odd = replace(RESULT, slot=3, recipe="hf", value=1e300, extra={"peak": NAN}, error="=1+1\n\x00é")
    made.trial("hf", 3).finish(replace(odd, status="failed"), [], [])
    return made


def packed(study: Study, to: Path) -> Study:
    pack(study, to, partial=True)
    return find_study(to, study.name)


@pytest.mark.parametrize("name", ["quick", "signs", "robust_wide", "stable_parts"])
def test_a_reference_study_comes_back_in_every_byte_after_a_second_way(tmp_path: Path, name: str) -> None:
    """Folders, their pack and the folders from that pack have the same files and tables."""
    source = find_study(REFERENCE, name)
    first = unpack(source, tmp_path / "a")
    again = pack(Study(tmp_path / "a", name), tmp_path / "b")
    second = unpack(find_study(tmp_path / "b", name), tmp_path / "c")
    assert trial_files(first) == trial_files(second) and len(trial_files(first)) > 40
    tables = [load_study(path) for path in (REFERENCE / name, first, again, second)]
    for other in tables[1:]:
        for part in ("trials", "curves", "steps", "reruns", "rerun_curves"):
            pd.testing.assert_frame_equal(getattr(tables[0], part), getattr(other, part), check_exact=True)
        assert other.problems == () and other.missing == []


def test_every_value_of_folders_travels(tmp_path: Path, study: Study) -> None:
    back = unpack(packed(study, tmp_path / "packs"), tmp_path / "back")
    assert trial_files(back).keys() == trial_files(study.folder).keys()
    one, other = load_study(study.folder), load_study(back)
    for part in ("trials", "curves", "steps", "reruns", "rerun_curves"):
        pd.testing.assert_frame_equal(getattr(one, part), getattr(other, part), check_exact=True)
    assert len(one.trials) == 7 and len(one.reruns) == 4
    got, sent = Study(tmp_path / "back", "s").trial("hf", 3).inspect(), study.trial("hf", 3).inspect()
    assert got is not None and sent is not None and math.isnan(got.extra["peak"]) and got.error == sent.error


def test_rounded_and_special_numbers_travel(tmp_path: Path) -> None:
    losses = (math.inf, 5e-324, 0.1 + 0.2)
    curve = [
        replace(row, measured={**row.measured, "train_loss": x}) for row, x in zip(CURVE, losses, strict=True)
    ]
    steps = [replace(row, loss=x) for row, x in zip(STEPS, (-math.inf, -0.0), strict=True)]
    study = write_study(tmp_path / "own", "s", {"hf": 1}, {})
    study.trial("hf", 0).finish(RESULT, curve, steps)
    back = unpack(packed(study, tmp_path / "packs"), tmp_path / "back")
    assert trial_files(back / "trials") == trial_files(study.trials_folder)


@pytest.mark.parametrize("name", STUDIES)
def test_the_reference_studies_are_whole_and_small(name: str) -> None:
    data = load_study(REFERENCE / name)
    assert data.problems == () and data.missing == [] and len(data.trials) > 0
    # Steps are committed where a page or a figure reads them.
    left_out = find_study(REFERENCE, name).manifest()["packed"]["without_steps"]
    assert {*data.steps["recipe"]} == {*data.trials["recipe"]} - {*left_out}
    assert sum(file.stat().st_size for file in (REFERENCE / name).iterdir()) < 8e6
    assert all(file.stat().st_size <= 100_000 for file in (REFERENCE / name).glob("*.png"))


def test_the_reference_results_are_few_files() -> None:
    files = [file for file in REFERENCE.rglob("*") if file.is_file()]
    assert len(STUDIES) >= 12 and len(files) <= 199 and sum(f.stat().st_size for f in files) <= 40e6
    assert not [file for file in files if file.suffix in {".html", ".pdf", ".db"}]


def test_an_unfinished_study_is_refused_or_labelled_and_resumes(tmp_path: Path) -> None:
    study = write_study(tmp_path / "own", "s", {"hf": 2}, {"hf": [0.5]})
    trial = study.trial("hf", 1)
    trial.write_params({"recipe": "hf", "slot": 1, "params": {"lr": 0.1}})
    trial.begin_curve(CURVE[:1])
    trial.append_curve(CURVE[1])
    for step in (1, 2):
        trial.save_checkpoint(b"state %d" % step, step)
    with pytest.raises(InputError, match=r"study 's' is not finished \(hf 1 of 2\); --partial packs it"):
        pack(study, tmp_path / "packs")
    assert not (tmp_path / "packs" / "s").exists()
    found = packed(study, tmp_path / "packs")
    assert found.manifest()["packed"]["partial"] and load_study(found.folder).missing == ["hf 1 of 2"]
    back = Study(unpack(found, tmp_path / "back").parent, "s")
    assert trial_files(back.trial("hf", 1).path) == trial_files(trial.path)
    assert back.trial("hf", 1).load_checkpoints() == [b"state 2", b"state 1"]


def test_steps_are_left_out_where_asked(tmp_path: Path, study: Study) -> None:
    pack(study, tmp_path / "packs", partial=True, without_steps=["hf"])
    found = find_study(tmp_path / "packs", "s")
    assert set(load_study(found.folder).steps["recipe"]) == {"hf_published"}
    assert found.manifest()["packed"]["without_steps"] == ["hf"]
    back = Study(unpack(found, tmp_path / "back").parent, "s")
    assert back.trial("hf", 0).step_rows() is None and back.trial("hf", 0).inspect() is not None
    pack(study, tmp_path / "none", partial=True, without_steps=["hf", "hf_published"])
    bare = find_study(tmp_path / "none", "s")
    assert not (bare.folder / "steps.parquet").exists() and load_study(bare.folder).problems == ()
    assert list(load_study(bare.folder).steps) == list(load_study(found.folder).steps)
    assert load_study(bare.folder).steps.empty
    again = pack(Study(unpack(bare, tmp_path / "bare").parent, "s"), tmp_path / "again", partial=True)
    assert trial_files(again)["trials.parquet"] == trial_files(bare.folder)["trials.parquet"]
    with pytest.raises(InputError, match="--without-steps: no recipe 'hff' in s; did you mean 'hf'"):
        pack(study, tmp_path / "other", without_steps=["hff"])


def test_the_first_schema_stays_readable_and_packable(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "old_study", tmp_path / "own" / "old")
    study = Study(tmp_path / "own", "old")
    folders = load_study(study.folder)
    pack(study, tmp_path / "packs", partial=True)
    found = load_study(tmp_path / "packs" / "old")
    assert len(found.trials) == len(folders.trials) == 2
    pd.testing.assert_frame_equal(found.curves, folders.curves, check_exact=True)
    pd.testing.assert_frame_equal(found.steps, folders.steps, check_exact=True)


def test_nothing_is_written_over(tmp_path: Path, study: Study) -> None:
    found = packed(study, tmp_path / "packs")
    for write_again in (
        lambda: pack(study, tmp_path / "packs", partial=True),
        lambda: unpack(found, tmp_path / "own"),
    ):
        with pytest.raises(
            InputError, match=r"s exists, and is not written over: give another folder with --to"
        ):
            write_again()  # type: ignore[no-untyped-call]
    with pytest.raises(InputError, match="is not packed"):
        unpack(study, tmp_path / "other")


def rewritten(folder: Path, name: str, change: object) -> None:
    """Write another table into a pack, with its checksum."""
    table = parquet.read_table(folder / f"{name}.parquet")
    parquet.write_table(change(table), folder / f"{name}.parquet")  # type: ignore[operator]
    data = (folder / f"{name}.parquet").read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["packed"]["tables"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edited(folder: Path, **keys: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["packed"] = {**manifest["packed"], **keys}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def million(table: pa.Table) -> pa.Table:
    return table.take(pa.array([0] * 1_000_000))


BROKEN = {
    "steps.parquet is missing": lambda f: (f / "steps.parquet").unlink(),
    "trials.parquet: must be the file of": lambda f: (f / "trials.parquet").write_bytes(b"PAR1"),
    "curves.parquet is missing": lambda f: (f / "curves.parquet").unlink(),
    "packed.tables must have steps, and lacks it": lambda f: edited(
        f,
        tables={
            k: v
            for k, v in json.loads((f / "manifest.json").read_text())["packed"]["tables"].items()
            if k != "steps"
        },
    ),
    "manifest.json: is missing": lambda f: (f / "manifest.json").unlink(),
    "has the unknown column 'loss2'": lambda f: rewritten(
        f, "curves", lambda t: t.rename_columns([c.replace("train_loss", "loss2") for c in t.column_names])
    ),
    "must have the column 'stop', and lacks it": lambda f: rewritten(
        f, "steps", lambda t: t.drop_columns(["stop"])
    ),
    "column 'loss' must be double, got string": lambda f: rewritten(
        f, "steps", lambda t: t.set_column(t.column_names.index("loss"), "loss", t["loss"].cast(pa.string()))
    ),
    "must have at most": lambda f: rewritten(f, "steps", million),
    "has packed.format 2, and this version of ahf reads up to 1": lambda f: edited(f, format=2),
    "packed.files": lambda f: edited(f, files={"../../x.py": "rm"}),
    "packed.tables.trials": lambda f: edited(f, tables={"trials": 3}),
    "rows must belong to trials": lambda f: rewritten(
        f, "curves", lambda t: t.set_column(2, "trial", pa.array([77] * len(t), pa.int64()))
    ),
}


@pytest.mark.usefixtures("one_figure")
@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_pack_is_one_line(
    tmp_path: Path, study: Study, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = packed(study, tmp_path / "packs").folder
    BROKEN[line](folder)  # type: ignore[no-untyped-call]
    before = {p: p.read_bytes() for p in folder.rglob("*")}
    words = ["--results", str(tmp_path / "packs")]
    for command in (
        ["compare", "--study", "s"],
        ["show", "s"],
        ["export", "s"],
        ["unpack", "s", "--to", str(tmp_path)],
    ):
        code = main([*command, *words])
        said = capsys.readouterr().err
        if line.replace(" is missing", ": is missing").replace(":: ", ": ") in said or line in said:
            assert code == 2 and len(said.splitlines()) == 1, said
        else:  # a command that does not need the table
            assert code in (0, 3) and command[0] in ("show",), said
    assert main(["ls", *words]) == main(["status", *words]) == 0
    assert {p: p.read_bytes() for p in folder.rglob("*")} == before


def test_one_bad_row_hides_no_other_trial(tmp_path: Path, study: Study) -> None:
    folder = packed(study, tmp_path / "packs").folder

    def bad(table: pa.Table) -> pa.Table:
        status = table["status"].to_pylist()
        status[0] = "fine"
        return table.set_column(table.column_names.index("status"), "status", pa.array(status))

    rewritten(folder, "trials", bad)
    data = load_study(folder)
    assert len(data.trials) == 6 and len(data.problems) == 1
    assert data.problems[0].startswith(
        "trial hf/000: trials.parquet status: must be 'ok', 'diverged' or 'failed'"
    )


def test_a_packed_study_is_read_only_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(REFERENCE / "quick", tmp_path / "quick")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for command in (["search", "--preset", "quick"], ["prerun", "--preset", "quick"], ["repair", "quick"]):
        assert main([*command, "--results", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert "is packed, and a packed study is only read: `ahf unpack" in said.splitlines()[-1]
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.usefixtures("one_figure")
def test_commands_take_names_and_paths_of_both_forms(
    tmp_path: Path, study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pack(study, Path("results/reference"), partial=True)
    outputs = []
    for name in ("s", "results/reference/s", "own/s"):
        said = []
        for command in (
            ["compare", "tables", "--study", name],
            ["show", name, "hf/0"],
            ["status", "--study", name],
        ):
            assert main(command) in (0, 3), capsys.readouterr().err
            said.append([line for line in capsys.readouterr().out.splitlines() if "/" not in line])
        assert (
            main(["ls", name]) == 0 and main(["export", name, "--out", f"out-{name.replace('/', '-')}"]) == 0
        )
        capsys.readouterr()
        outputs.append(said)
    assert outputs[0] == outputs[1] == outputs[2]
    assert Path("out-s/curves.csv").read_bytes() == Path("out-own-s/curves.csv").read_bytes()
    assert main(["compare", "--study", "s"]) in (0, 3) and Path("results/reports/s/report.html").exists()
    assert main(["pack", "s", "--to", "more", "--partial"]) == 0
    assert main(["unpack", "more/s", "--to", "back"]) == 0
    assert main(["ls", "--results", "MISSING"]) == main(["status", "--results", "MISSING"]) == 2
