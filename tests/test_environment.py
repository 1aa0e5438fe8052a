"""Odd paths, closed streams, signals and the settings of other programs change no result."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import sqlite3
import string
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pandas as pd
import psutil
import pytest

from ahf_cli.cli import main
from ahf_cli.search.storage import file_system
from ahf_cli.study.files import csv_bytes
from ahf_cli.study.store import Study
from tests.processes import ROOT, environment

OLD = Path(__file__).parent / "old_study"
TINY = [
    "search", "--preset", "smoke", "-o", "task.subset=400", "-o", "task.batch_size=64", "--recipe", "hf",
    "-o", "train.eval_every=2",
]  # fmt: skip


def copy_of_old_study(results: Path) -> Path:
    """Copy the study of version 0.1.0 into a results folder, as the study `old`."""
    shutil.copytree(OLD, results / "old")
    return results / "old"


def test_every_printable_character_may_stand_in_a_path(tmp_path: Path) -> None:
    results = tmp_path / f"{string.printable[:95].replace('/', '')} %20 é😀"
    index = copy_of_old_study(results) / "study.db"
    finished = len(list(results.rglob("result.json")))
    commands = (["repair", "old"], ["show", "old"], ["export", "old"], ["ls"])
    assert [main([*words, "--results", str(results)]) for words in commands] == [0, 0, 0, 0]
    with closing(sqlite3.connect(index)) as connection:
        (count,) = connection.execute("SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE'").fetchone()
    assert count == finished > 0 and [p.name for p in tmp_path.iterdir()] == [results.name]


@pytest.mark.usefixtures("one_process")
def test_a_search_runs_where_a_path_looks_like_a_quoted_one(tmp_path: Path) -> None:
    results = tmp_path / "a%20b?c#d{e}'"
    assert main([*TINY, "-o", "train.steps=1", "--trials", "1", "--results", str(results), "-q"]) == 0
    assert (results / "smoke" / "study.db").exists() and [p.name for p in tmp_path.iterdir()] == [
        results.name
    ]


def test_a_mount_point_may_hold_any_character() -> None:
    assert file_system(Path("/é b/x"), "/dev/a / ext4 rw\n/dev/b /é\\040b nfs rw\n") == "nfs"


DRAW = """
import sys
from pathlib import Path
import pandas as pd
from ahf_cli.report.canvas import THEMES, Drawing, make

def draw(figure, theme):
    axes = figure.add_subplot()
    axes.plot([0, 1], [1, 2], label="a")
    axes.set_xlabel("step $t$")
    axes.legend()

drawing = Drawing("f", "t", pd.DataFrame({"a": [1]}), ["A caption."], draw)
for theme in THEMES.values():
    make(drawing, theme).save(Path(sys.argv[1]) / theme.name, ("png", "pdf", "svg"))
"""
RC = "text.usetex: True\nfont.size: 30\nsavefig.dpi: 7\naxes.facecolor: red\nfigure.autolayout: True\n"
AMBIENT: dict[str, tuple[dict[str, str], str, bytes]] = {
    "working directory": ({}, "matplotlibrc", RC.encode()),
    "variable": ({"MATPLOTLIBRC": "here"}, "here", RC.encode()),
    "damaged": ({}, "matplotlibrc", b"font.size: \xff\nnonsense\n"),
    "backend, configuration and locale": (
        {"MPLBACKEND": "nonsense", "MPLCONFIGDIR": "conf", "LC_ALL": "C", "TZ": "Asia/Tokyo",
         "SOURCE_DATE_EPOCH": "1"},
        "conf/matplotlibrc", RC.encode(),
    ),
}  # fmt: skip


def drawn(folder: Path, env: dict[str, str], file: str, content: bytes) -> dict[str, str]:
    folder.mkdir()
    if file:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(content)
    whole = environment(env)
    command = [sys.executable, "-W", "error", "-c", DRAW, "out"]
    done = subprocess.run(command, cwd=folder, env=whole, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    files = sorted((folder / "out").rglob("f.*"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_figures_are_the_same_bytes_with_all_settings_of_a_user(tmp_path: Path) -> None:
    plain = drawn(tmp_path / "plain", {}, "", b"")
    assert sum(name.endswith((".png", ".pdf", ".svg")) for name in plain) == 9
    for name, settings in AMBIENT.items():
        assert drawn(tmp_path / name, *settings) == plain, name
    for pdf in (tmp_path / "plain").rglob("*.pdf"):
        assert b"/FontType 42" in pdf.read_bytes() or b"/CIDFontType2" in pdf.read_bytes()
        assert b"/Type3" not in pdf.read_bytes()


SEVERAL = """
import sys
from pathlib import Path
from ahf_cli.__main__ import main
file, *lines = sys.argv[1:]
codes = []
for line in lines:
    sys.argv[1:] = line.split()
    codes.append(main())
    print(end="\\0", flush=True)
Path(file).write_text(repr(codes))
"""


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "ascii:strict", "utf-8"])
def test_a_character_that_a_stream_lacks_stops_no_command(encoding: str, tmp_path: Path) -> None:
    lines = ["config recipes", "prerun --help", "config recipes --json", "config nope"]
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, str(tmp_path / "codes"), *lines], capture_output=True,
        env=environment({"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}), check=True,
    )  # fmt: skip
    assert (tmp_path / "codes").read_text() == "[0, 0, 0, 2]"
    assert b"internal error" not in done.stderr and b"Traceback" not in done.stderr
    # Click writes UTF-8 to a stream that says ASCII, and leaves escapes to all others.
    recipes, _, document, *_ = done.stdout.decode("cp1252" if encoding == "cp1252" else "utf-8").split("\0")
    assert ("\\u03b1" if encoding == "cp1252" else "α") in recipes
    assert json.loads(document)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", ">&- 2>&- <&-", "2>/dev/full"])
def test_a_closed_stream_is_as_the_null_device(closed: str, tmp_path: Path) -> None:
    copy_of_old_study(tmp_path / "r")
    lines = ["--help", "config ls", "config show --preset nope", f"ls --results {tmp_path / 'r'}"]
    words = [sys.executable, "-c", SEVERAL, str(tmp_path / "codes"), *lines]
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join(words)} {closed}"], env=environment(), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert (tmp_path / "codes").read_text() == "[0, 0, 2, 0]"
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr
    assert "ahf: " not in done.stdout, "an error is not a result"


def test_workers_train_with_closed_streams(tmp_path: Path) -> None:
    words = [*TINY, "-o", "train.steps=1", "--trials", "1", "--results", str(tmp_path), "-o", "run.workers=1"]
    line = f"{sys.executable} -m ahf_cli {' '.join(words)} >&- 2>&- <&-"
    env = environment()
    assert subprocess.run(["bash", "-c", line], env=env, check=False).returncode == 0
    assert len(Study(tmp_path, "smoke").finished("hf")) == 1


@pytest.mark.parametrize("ignored", [False, True], ids=["terminal closed", "nohup"])
def test_a_hangup_stops_a_search_with_a_checkpoint_unless_ignored(ignored: bool, tmp_path: Path) -> None:
    steps = 5 if ignored else 100_000
    words = [*TINY, "-o", f"train.steps={steps}", "--trials", "1", "--results", str(tmp_path)]
    words += ["-o", "run.workers=1", "-o", "run.checkpoint_every=1", "-o", "train.epochs=1"]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "ahf_cli", *words], env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGHUP, before)
    trial = tmp_path / "smoke" / "trials" / "hf" / "000"
    deadline = time.monotonic() + 120
    while not list(trial.glob("checkpoint*" if not ignored else "*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    os.killpg(process.pid, signal.SIGHUP)  # as a closed terminal does: to the workers as well
    said = process.communicate(timeout=120)[0].decode()
    assert process.returncode == (0 if ignored else 75), said
    assert (trial / "result.json").exists() == ignored
    assert bool(list(trial.glob("checkpoint*"))) != ignored
    assert not psutil.wait_procs(children, timeout=30)[1]


def test_no_text_of_a_table_is_a_formula() -> None:
    texts = ["=1+1", "+1", "-x", "@a", "\tb", "\rc", "plain", None, "a=b"]
    table = pd.DataFrame({"error": texts, "value": [-1.5] * len(texts), "ok": [True] * len(texts)})
    lines = csv_bytes(table).decode().split("\n")
    assert lines[1] == "'=1+1,-1.5,True" and lines[4] == "'@a,-1.5,True"
    assert [line.lstrip('"')[0] for line in lines[1:10]] == [*"''''''", "p", ",", "a"]
    assert csv_bytes(table[["value"]]).startswith(b"value\n-1.5\n")


def test_a_clone_that_turns_line_endings_keeps_every_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    copy_of_old_study(origin / "results")
    shutil.copy(ROOT / ".gitattributes", origin)
    git = ["git", "-c", "core.autocrlf=true", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "-A", "-f"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], cwd=origin, check=True, capture_output=True)
    source = [f"file://{origin}", str(clone)]
    subprocess.run([*git, "clone", "-q", "--no-local", "--depth", "1", *source], check=True)
    files = [f.relative_to(origin) for f in origin.rglob("*") if f.is_file() and ".git" not in f.parts]
    assert len(files) > 5
    assert [f for f in files if (origin / f).read_bytes() != (clone / f).read_bytes()] == []
    assert main(["repair", "old", "--results", str(clone / "results")]) == 0
    assert capsys.readouterr().out.count("0 files set aside") == 1
