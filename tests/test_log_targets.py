"""`--log` with TensorBoard, MLflow and Weights & Biases themselves, offline, and read back."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from ahf_cli.study.store import Study
from ahf_cli.study.trial_folder import TrialFolder
from tests.processes import environment
from tests.test_logging import rows

# MLflow uses what SQLAlchemy will remove.
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
PROGRAM = """
import itertools, sys
from pathlib import Path
from ahf_cli.cli import main
from ahf_cli.search.single import train_single
from tests.test_logging import WORDS, adam
log, results = sys.argv[1], Path(sys.argv[2])
asked, single = itertools.count(1), adam()
stop = lambda: next(asked) > 4
assert train_single(single, single.study(results, "stopped"), log=log, should_stop=stop) is None
assert train_single(single, single.study(results, "stopped"), log=log) is not None
words = ["--recipe", "adam", "-o", "run.workers=1", "-o", "run.batch=2", "--study", "side", "-q"]
sys.exit(main(["search", *WORDS, *words, "--results", str(results), "--log", log]))
"""
USERS = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT")
Scalars = dict[str, dict[int, float]]
"""metric → step → value"""


def trained(target: str, results: Path, **own: str) -> subprocess.CompletedProcess[str]:
    """Stop and resume a run, then search with two trials side by side, in another process without network."""
    unset = {name: value for name, value in environment(own).items() if name not in USERS or name in own}
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-c", PROGRAM, target, str(results)]
    done = subprocess.run(command, capture_output=True, text=True, env={**unset, **proxies}, cwd=results)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    return done


def tensorboard(log: Path, trial: str) -> list[Scalars]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(log / "tensorboard" / trial))
    events.Reload()
    return [{tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}]


def mlflow(log: Path, trial: str) -> list[Scalars]:
    client = importlib.import_module("mlflow").MlflowClient(f"sqlite:///{log / 'mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name == log.parent.name)
    found = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in found} == {"FINISHED"}
    (run,) = (run for run in found if run.info.run_name == trial)  # one run, although it was stopped
    assert float(run.data.params["lr"]) > 0 and run.data.tags["ahf.status"] == "ok"
    return [
        {
            k: {m.step: m.value for m in client.get_metric_history(run.info.run_id, k)}
            for k in run.data.metrics
        }
    ]


def wandb(log: Path, trial: str) -> list[Scalars]:
    messages = importlib.import_module("wandb.proto.wandb_internal_pb2")
    found: dict[str, list[Scalars]] = defaultdict(list)
    for file in sorted((log / "wandb").glob("offline-run-*/*.wandb")):
        name, scalars = "", defaultdict[str, dict[int, float]](dict)
        for data in framed(file.read_bytes()):
            record = messages.Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                assert record.run.run_id in file.name
                name = f"{record.run.display_name} {record.run.run_id}"
            if record.WhichOneof("record_type") == "history":
                own = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                for key in own.keys() - {"step"}:
                    scalars[key][int(own["step"])] = own[key]
        found[name].append(scalars)
    (sessions,) = (found[name] for name in found if name.startswith(f"{trial} "))
    return sessions


def framed(data: bytes) -> list[bytes]:
    """Return the records of a file in blocks of 32 KiB: checksum, length and kind stand before each."""
    records, at, block = [b""], 7, 32768
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        records[-1] += data[at + 7 : at + 7 + size]
        at += 7 + size
        records += [b""] * (kind in (1, 4))  # whole, or the last part
    return records[:-1]


READ: dict[str, Callable[[Path, str], list[Scalars]]] = {
    "tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb
}  # fmt: skip


def expected(trial: TrialFolder) -> Scalars:
    """Return the finite numbers of a trial's files by metric and step."""
    found: Scalars = defaultdict(dict)
    for prefix, records in zip(("evaluation", "step"), rows(trial), strict=True):
        for record in records:
            for name, value in record.items():
                if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                    found[f"{prefix}/{name}"][record["step"]] = value
    return found


@pytest.mark.parametrize("name", READ)
def test_a_target_holds_the_records_of_a_resumed_run_and_of_trials_side_by_side(
    name: str, tmp_path: Path
) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.fail(f"{name} is not installed: run pip install -e '.[log]'", pytrace=False)
    trained(name, tmp_path)
    resumed = Study(tmp_path, "stopped")
    parts = READ[name](resumed.folder / "log", "trials/adam/000")
    assert len(parts) == (2 if name == "wandb" else 1)  # offline, each session is a file of the same run
    joined: Scalars = defaultdict(dict)
    for part in parts:
        for metric, values in part.items():
            assert not joined[metric].keys() & values.keys()  # no step twice
            joined[metric] |= values
    whole = expected(resumed.trial("adam", 0))
    assert len(whole) > 10 and sorted(whole["step/loss"]) == list(range(1, 8))
    for metric, values in whole.items():
        assert joined[metric] == pytest.approx(values, rel=1e-6)  # TensorBoard keeps float32
    side = Study(tmp_path, "side")
    for slot in (0, 1):
        (found,) = READ[name](side.folder / "log", f"trials/adam/{slot:03d}")
        for metric, values in expected(side.trial("adam", slot)).items():
            kept = found[metric] if metric.startswith("evaluation/") else {**values, **found[metric]}
            assert found[metric] and kept == pytest.approx(values, rel=1e-6)
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    assert {path.name for path in tmp_path.iterdir()} == {"stopped", "side"}


@pytest.mark.parametrize(
    ("name", "own", "kept"),
    [
        ("mlflow", {"MLFLOW_TRACKING_URI": "sqlite:///own.db", "MLFLOW_EXPERIMENT_NAME": "mine"}, "own.db"),
        ("wandb", {"WANDB_MODE": "offline", "WANDB_DIR": "own"}, "own"),
        ("wandb", {"WANDB_MODE": "disabled"}, ""),
    ],
)
def test_the_environment_of_the_user_decides(
    name: str, own: dict[str, str], kept: str, tmp_path: Path
) -> None:
    if "WANDB_DIR" in own:
        (tmp_path / "own").mkdir()
    trained(name, tmp_path, **own)
    assert {path.name for path in tmp_path.iterdir()} == {"stopped", "side", kept} - {""}
    if kept == "own":
        assert len(list((tmp_path / "own" / "wandb").glob("offline-run-*"))) == 4
    if name == "mlflow":
        client = importlib.import_module("mlflow").MlflowClient(f"sqlite:///{tmp_path / 'own.db'}")
        assert {e.name for e in client.search_experiments()} == {"Default", "mine"}
    logs = [path for study in ("stopped", "side") for path in (tmp_path / study / "log").rglob("*")]
    assert [path for path in logs if path.is_file()] == []
