"""The environment does not reach in: paths, streams, signals, and the settings of other programs."""

from __future__ import annotations

import hashlib
import json
import os
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

from ahf_cli.search.storage import file_system
from ahf_cli.study.files import csv_bytes
from ahf_cli.study.store import Study
from tests.processes import ROOT, ahf, environment

OLD = Path(__file__).parent / "old_study"
TINY = [
    "search", "--preset", "smoke", "-o", "task.subset=400", "-o", "task.batch_size=64", "--recipe", "hf",
    "-o", "train.eval_every=2",
]  # fmt: skip


def copy_of_old_study(results: Path) -> Path:
    """A study of 20 files that an older version wrote, under the name `old`."""
    shutil.copytree(OLD, results / "old")
    return results / "old"


def test_every_printable_character_may_stand_in_a_path(tmp_path: Path) -> None:
    results = tmp_path / f"{string.printable[:95].replace('/', '')} %20 é😀"
    index = copy_of_old_study(results) / "study.db"
    finished = len(list(results.rglob("result.json")))
    for words in (["repair", "old"], ["show", "old"], ["export", "old"], ["ls"]):
        done = ahf(*words, "--results", str(results))
        assert done.returncode in (0, 3), done.stderr
    with closing(sqlite3.connect(index)) as connection:
        (count,) = connection.execute("SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE'").fetchone()
    assert count == finished > 0 and [p.name for p in tmp_path.iterdir()] == [results.name]


def test_a_search_runs_where_a_path_looks_like_a_quoted_one(tmp_path: Path) -> None:
    results = tmp_path / "a%20b?c#d{e}'"
    done = ahf(*TINY, "-o", "train.steps=1", "--trials", "1", "--results", str(results), "-q")
    assert done.returncode == 0, done.stderr
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
    "backend": ({"MPLBACKEND": "nonsense"}, "", b""),
    "working directory": ({}, "matplotlibrc", RC.encode()),
    "variable": ({"MATPLOTLIBRC": "here"}, "here", RC.encode()),
    "configuration": ({"MPLCONFIGDIR": "conf"}, "conf/matplotlibrc", RC.encode()),
    "damaged": ({}, "matplotlibrc", b"font.size: \xff\nnonsense\n"),
    "locale": ({"LC_ALL": "C", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "1"}, "", b""),
}


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


def test_figures_are_the_same_bytes_whatever_the_users_settings(tmp_path: Path) -> None:
    plain = drawn(tmp_path / "plain", {}, "", b"")
    assert sum(name.endswith((".png", ".pdf", ".svg")) for name in plain) == 6
    for name, settings in AMBIENT.items():
        assert drawn(tmp_path / name, *settings) == plain, name
    for pdf in (tmp_path / "plain").rglob("*.pdf"):
        assert b"/FontType 42" in pdf.read_bytes() or b"/CIDFontType2" in pdf.read_bytes()
        assert b"/Type3" not in pdf.read_bytes()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "ascii:strict", "utf-8"])
@pytest.mark.parametrize("words", ["config recipes", "prerun --help", "config recipes --json", "config nope"])
def test_a_character_that_a_stream_lacks_is_written_as_an_escape(encoding: str, words: str) -> None:
    done = ahf(*words.split(), env={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    assert done.returncode == (2 if "nope" in words else 0), done.stderr
    assert "internal error" not in done.stderr and "Traceback" not in done.stderr
    if "--json" in words:
        assert json.loads(done.stdout)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", ">&- 2>&- <&-", "2>/dev/full"])
@pytest.mark.parametrize(
    ("words", "code"),
    [("--help", 0), ("config ls", 0), ("config show --preset nope", 2), ("ls --results R", 0)],
)
def test_a_closed_stream_is_as_the_null_device(closed: str, words: str, code: int, tmp_path: Path) -> None:
    copy_of_old_study(tmp_path)
    line = f"{sys.executable} -m ahf_cli {words.replace(' R', f' {tmp_path}')} {closed}"
    env = environment()
    done = subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code
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


def test_an_index_of_another_version_of_optuna_is_made_anew(tmp_path: Path) -> None:
    words = [*TINY, "-o", "train.steps=1", "--trials", "1", "--results", str(tmp_path)]
    assert ahf(*words, "-q").returncode == 0
    index = tmp_path / "smoke" / "study.db"
    with closing(sqlite3.connect(index)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    done = ahf(*words)
    assert done.returncode == 0 and "all 1 trials are done" in done.stderr, done.stderr
    assert done.stderr.count("of another version of Optuna") == 1
    assert index.with_name("study.db.corrupt-1").exists() and index.exists()
    assert ahf(*words).stderr.count("another version") == 0


def test_no_text_of_a_table_is_a_formula() -> None:
    texts = ["=1+1", "+1", "-x", "@a", "\tb", "\rc", "plain", None, "a=b"]
    table = pd.DataFrame({"error": texts, "value": [-1.5] * len(texts), "ok": [True] * len(texts)})
    lines = csv_bytes(table).decode().split("\n")
    assert lines[1] == "'=1+1,-1.5,True" and lines[4] == "'@a,-1.5,True"
    assert [line.lstrip('"')[0] for line in lines[1:10]] == [*"''''''", "p", ",", "a"]
    assert csv_bytes(table[["value"]]).startswith(b"value\n-1.5\n")


def test_a_clone_that_turns_line_endings_keeps_every_byte(tmp_path: Path) -> None:
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
    assert ahf("repair", "old", "--results", str(clone / "results")).stdout.count("0 files set aside") == 1
