"""The command line: exit codes, streams and help."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ahf_cli
from ahf_cli import cli
from ahf_cli.cli import main
from ahf_cli.cli.options import emit_json, log, resolve, say
from ahf_cli.config.load import load, parse, presets
from ahf_cli.config.strict_yaml import parse_yaml
from ahf_cli.errors import IncompleteError, InputError
from tests.processes import ROOT, ahf


@pytest.mark.parametrize(
    ("command", "code", "out", "err"),
    [
        ("--version", 0, f"ahf {ahf_cli.__version__}, compiled layers for ", ""),
        ("--help", 0, "Exit codes: 0 done, 1 error, 2 usage or bad input, 3 incomplete, 75", ""),
        ("", 2, "Usage: ahf", ""),
        ("confg", 2, "", "Did you mean 'config'?"),
        ("config ls", 0, "smoke  ", ""),
        ("config show --preset smoke", 0, "study: smoke\n", ""),
        ("config show --preset smok", 2, "", "ahf: --preset: unknown preset 'smok'; did you mean 'smoke'?\n"),
        (
            "config show --preset smoke --config x.yaml",
            2,
            "",
            "ahf: --preset and --config exclude each other: give one\n",
        ),
        ("config show --config no.yaml", 2, "", "ahf: no.yaml: cannot be read: No such file or directory\n"),
        (
            "config show -o train.epoch=1 -o seed=x",
            2,
            "",
            "ahf: --override: seed: must be an integer in [0, 2^63), got 'x'\n"
            "ahf: --override: train.epoch: unknown key; did you mean 'epochs'?\n",
        ),
        ("config show --study ../x", 2, "", "ahf: --study: study: must be a string that matches"),
        ("config validate", 2, "", "Missing argument"),
    ],
)
def test_a_command_ends_with_its_code_and_speaks_on_its_stream(
    command: str,
    code: int,
    out: str,
    err: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(command.split()) == code
    said = capsys.readouterr()
    assert out in said.out if out else said.out == ""
    assert err in said.err if err else said.err == ""


def test_show_prints_what_loads_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--preset", "quick", "-o", "spaces.hf.lr.low=0.5"]) == 0
    expected = load("quick", overrides=["spaces.hf.lr.low=0.5"])
    text = capsys.readouterr().out
    assert parse(parse_yaml(text, "out"), "out") == expected
    assert "#   hf_ggn: lr [0.5, 1] log, damping [1, 30]\n" in text
    assert main(["config", "show", "--recipe", "hf_published", "--trials", "3", "--device", "cpu"]) == 0
    shown = parse(parse_yaml(capsys.readouterr().out, "out"), "out")
    assert (shown.searched, shown.search.trials, shown.run.device) == (("hf_published",), 3, "cpu")
    assert main(["config", "show", "--preset", "quick", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain.pop("resolved") == load("quick").identity()
    assert parse(plain, "out") == load("quick")


def test_presets_say_their_purpose_and_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "ls", "--json"]) == 0
    listed = {entry["name"]: entry["purpose"] for entry in json.loads(capsys.readouterr().out)}
    assert list(listed) == list(presets())
    for name, purpose in listed.items():
        text = (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
        opening = text.split("#\n")[0].replace("\n# ", " ").removeprefix("# ")
        assert opening.split() == purpose.split() and f"--preset {name}\n" in text


@pytest.mark.parametrize("columns", [60, 300])
def test_presets_are_listed_within_the_width_of_the_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["config", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert min(columns, 100) - 15 < max(map(len, lines)) <= min(columns, 100)
    names = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert names == list(presets())


def test_validate_reports_all_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"good": "seed: 1", "bad": "sed: 1\ntrain: {steps: 0}", "broken": "a: ["}
    files = [tmp_path / f"{name}.yaml" for name in texts]
    for file, text in zip(files, texts.values(), strict=True):
        file.write_text(text, encoding="utf-8")
    assert main(["config", "validate", *map(str, files)]) == 2
    said = capsys.readouterr()
    assert said.out == f"{files[0]}: ok\n"
    assert [line.split(" ")[1] for line in said.err.splitlines()] == [
        *(f"{files[1]}:", f"{files[1]}:", f"{files[2]}:1:")
    ]
    assert main(["config", "validate", str(files[0]), "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["config", "validate", *map(str, files), "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert not document["ok"]
    assert [len(document["files"][str(file)]) for file in files] == [0, 2, 1]


def test_options_win_and_are_named() -> None:
    config = resolve("smoke", None, "123", ["search.trials=9", "seed=4"], ["hf_published"], 3, "cpu")
    assert (config.study, config.seed, config.searched) == ("123", 4, ("hf_published",))
    assert (config.search.trials, config.run.device) == (3, "cpu")
    assert resolve().study == "paper" and resolve(default_preset="smoke").study == "smoke"
    assert resolve(trials=4, trials_key="prerun.trials").prerun.trials == 4
    with pytest.raises(InputError, match="^--trials must be ≥ 1, got 0$"):
        resolve(trials=0)
    with pytest.raises(
        InputError, match="^--recipe: search.recipes: unknown recipe 'hff'; did you mean 'hf'"
    ):
        resolve(recipes=["hff"])


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("a\nb\x1b[2J"), 2, "ahf: a\\nb\\x1b[2J\n"),
        (IncompleteError(["two", "lines"]), 3, "ahf: two\nahf: lines\n"),
        (KeyboardInterrupt(), 75, "ahf: interrupted\n"),
        (PermissionError(13, "Permission denied", "results"), 1, "ahf: results: Permission denied\n"),
        (
            ZeroDivisionError("by zero"),
            1,
            "ahf: internal error: ZeroDivisionError: by zero (set AHF_DEBUG=1 for the traceback)\n",
        ),
    ],
)
def test_errors_become_lines_and_codes(
    error: BaseException,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.delenv("AHF_DEBUG", raising=False)
    monkeypatch.setattr("ahf_cli.config.load.presets", fail)
    assert main(["config", "ls"]) == code
    assert capsys.readouterr().err == line
    monkeypatch.setenv("AHF_DEBUG", "1")
    assert main(["config", "ls"]) == code
    assert ("Traceback" in capsys.readouterr().err) is (code == 1)


def test_results_go_to_standard_output_and_progress_to_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say("result")
    log("progress")
    log("unheard", quiet=True)
    assert capsys.readouterr() == ("result\n", "progress\n")
    emit_json({"a": math.nan, "b": [math.inf, (1.5, "λ")]})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, [1.5, "λ"]]}


def test_processes_exit_with_the_code() -> None:
    done = ahf("config", "show", "-o", "seed")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ahf: --override must be KEY=VALUE, got 'seed'\n"


def test_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = ahf("config", "show", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = ahf("config", "show", stdout=full.fileno())
    assert (done.returncode, done.stderr) == (1, "ahf: No space left on device\n")


def test_help_needs_nothing_slow() -> None:
    heavy = "{'torch', 'optuna', 'pandas', 'numpy', 'matplotlib', 'pydantic'}"
    code = (
        "import sys; from ahf_cli.cli import main; main(['--help']);"
        f"sys.exit(str({heavy} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "" and "config" in done.stdout


def test_every_command_is_in_the_help() -> None:
    help_text = ahf("--help").stdout
    names = [*cli.COMMANDS, *cli.GROUPS]
    assert names and all(f" {name} " in help_text for name in names)


COMMAND_LINES = [
    [], *([name] for name in cli.COMMANDS), *([name] for name in cli.GROUPS),
    *([name, str(command.name or command.callback.__name__)] for name, group in cli.GROUPS.items()
      for command in group.registered_commands if command.callback),
]  # fmt: skip


@pytest.mark.parametrize("words", COMMAND_LINES, ids=" ".join)
def test_every_help_ends_with_the_exit_codes(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main([*words, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    codes = "Exit codes: 0 done, 1 error, 2 usage or bad input, 3 incomplete, 75 interrupted"
    assert codes in " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= 60
