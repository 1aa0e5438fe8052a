"""Data sets by name: their files, their arrays and their errors."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from ahf_cli.cli import main
from ahf_cli.config.load import load as load_config
from ahf_cli.errors import InputError
from ahf_cli.tasks import sources
from ahf_cli.tasks.data import checked, load
from ahf_cli.tasks.datasets import DATA_SETS, DataSet, training_size
from ahf_cli.tasks.folder import locate
from ahf_cli.tasks.task import Task

if TYPE_CHECKING:
    from ahf_cli.tasks.datasets import Arrays

NAMES = ("fashion_mnist", "mnist", "cifar10", "cifar100")


pytestmark = pytest.mark.usefixtures("no_data")


def archive(path: Path, members: dict[str, bytes]) -> str:
    """Write a gzipped tar archive and return its SHA-256."""
    with tarfile.open(path, "w:gz") as opened:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def batch(first: int, count: int, key: str, protocol: int = 2) -> bytes:
    """Return a pickle of CIFAR: image n is 3,072 bytes n, and its label is n % 10."""
    rows = np.repeat(np.arange(first, first + count, dtype=np.uint8)[:, None], 3072, axis=1)
    return pickle.dumps({"data": rows, key: [n % 10 for n in range(first, first + count)]}, protocol)


def small_cifar(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    """Write a CIFAR of 30 + 6 images into a folder and register it."""
    folder.mkdir(parents=True)
    (file,) = DATA_SETS[name].files
    if name == "cifar10":
        members = {f"cifar-10-batches-py/data_batch_{n + 1}": batch(6 * n, 6, "labels") for n in range(5)}
        members["cifar-10-batches-py/test_batch"] = batch(30, 6, "labels")
    else:
        members = {"cifar-100-python/train": batch(0, 30, "fine_labels")}
        members["cifar-100-python/test"] = batch(30, 6, "fine_labels")
    digest = archive(folder / file, members)
    data = replace(DATA_SETS[name], files={file: digest}, training=30)
    monkeypatch.setitem(DATA_SETS, name, data)
    return data


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_from_its_archive(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_cifar(tmp_path / "xdg" / "ahf" / name, name, monkeypatch)
    split = load(locate(data=data), "paper", data=data)
    assert split.validation is not None and split.outputs == DATA_SETS[name].classes
    assert (len(split.train), len(split.validation), len(split.test)) == (25, 5, 6)
    assert split.train.images.shape == (25, 3, 32, 32) and split.train.images.dtype == torch.uint8
    first = split.train.images[:, 0, 0, 0].long()
    assert (split.train.images == first[:, None, None, None]).all()
    assert torch.equal(split.train.labels, first % 10)
    assert split.test.images[:, 2, 31, 31].tolist() == [30, 31, 32, 33, 34, 35]
    task = Task.on(split, "mlp", 5)
    assert task.objective([0], 1, 0).evaluate(task.initial(0)[None]).gradient.isfinite().all()


class Run:
    """An object whose unpickling creates a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("malicious",)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (pickle.dumps({"data": Run(), "labels": []}), "mkdir is no part of an array"),
        (b"", "must be a pickle of images and labels"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}), "must be a pickle of images and labels"),
        (pickle.dumps({"data": np.zeros((2, 7), np.uint8), "labels": [0, 1]}), "cannot reshape"),
    ],
)
def test_a_pickle_that_is_no_array_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, rule: str
) -> None:
    monkeypatch.chdir(tmp_path)
    archive(tmp_path / "cifar-10-python.tar.gz", {"cifar-10-batches-py/data_batch_1": content})
    with pytest.raises(InputError, match=rule):
        DATA_SETS["cifar10"].read(tmp_path)
    assert not (tmp_path / "malicious").exists()


def test_an_archive_that_lacks_a_member_or_is_none_is_refused(tmp_path: Path) -> None:
    archive(tmp_path / "cifar-100-python.tar.gz", {"cifar-100-python/train": batch(0, 3, "fine_labels")})
    with pytest.raises(InputError, match="must hold cifar-100-python/test"):
        DATA_SETS["cifar100"].read(tmp_path)
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="must be a gzipped tar archive"):
        DATA_SETS["cifar100"].read(tmp_path)


def test_a_changed_archive_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_cifar(tmp_path / "here", "cifar10", monkeypatch)
    with (tmp_path / "here" / "cifar-10-python.tar.gz").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(InputError, match=r"cifar-10-python\.tar\.gz is damaged: its SHA-256 must be"):
        locate(tmp_path / "here", data)


def test_mnist_lies_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {}
    for name in DATA_SETS["mnist"].files:
        count, image = (12 if name.startswith("train") else 3), "images" in name
        body = bytes(count * (784 if image else 1))
        shape = struct.pack(">3I", count, 28, 28) if image else struct.pack(">I", count)
        contents[name] = gzip.compress(struct.pack(">I", 0x803 if image else 0x801) + shape + body)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setitem(DATA_SETS, "mnist", replace(DATA_SETS["mnist"], files=digests, training=12))
    (tmp_path / "named" / "mnist").mkdir(parents=True)
    for name, content in contents.items():
        (tmp_path / "named" / "mnist" / name).write_bytes(content)
    monkeypatch.setenv("AHF_DATA_DIR", str(tmp_path / "named"))
    assert locate(data=DATA_SETS["mnist"]) == tmp_path / "named" / "mnist"
    with pytest.raises(InputError, match="must hold the 4 Fashion-MNIST files"):
        locate(data=DATA_SETS["fashion_mnist"])
    assert len(load(tmp_path / "named" / "mnist", "full", data=DATA_SETS["mnist"]).train) == 12


@pytest.mark.parametrize("name", NAMES[1:])
def test_what_cannot_be_fetched_says_how_to_get_it(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_TORCHVISION", "raise OSError('no network')")
    assert main(["data", "path", name]) == 2
    assert f"run `ahf data fetch {name}`" in capsys.readouterr().err
    assert main(["data", "fetch", name]) == 2
    said = capsys.readouterr().err
    assert "torchvision download: OSError: no network" in said and "Debian" not in said
    assert f"put {', '.join(DATA_SETS[name].files)} into " in said


def test_an_unknown_data_set_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "path", "cifar1O"]) == 2
    assert capsys.readouterr().err == "ahf: unknown data set 'cifar1O'; did you mean 'cifar10'?\n"
    with pytest.raises(
        InputError, match=r"task\.data: must be one of .*, got 'mnits'; did you mean 'mnist'\?"
    ):
        load_config("quick", overrides=["task.data=mnits"])


@pytest.mark.parametrize(
    ("override", "size"),
    [("task.data=cifar10", 41_667), ("task.data=cifar100", 41_667), ("task.data=mnist", 50_000)],
)
def test_sizes_follow_the_data_set(override: str, size: int) -> None:
    config = load_config("paper", overrides=[override])
    assert training_size(config.task.data, "paper") == size
    with pytest.raises(InputError, match=f"task.subset: must be ≤ {size}, the training images"):
        load_config("paper", overrides=[override, f"task.subset={size + 1}"])


def arrays(**changes: Any) -> Arrays:
    whole: dict[str, Any] = {"x": np.zeros((8, 2), np.float32), "y": np.arange(8) % 3} | changes
    return whole["x"], whole["y"], whole.get("xt", np.zeros((2, 2))), whole.get("yt", np.ones(2, int))


OWN = DataSet("own", "own", 3, (2,), 8, lambda folder: arrays())


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"x": np.zeros((8, 3))}, r"the training inputs must have shape \(2,\), found \(3,\)"),
        (
            {"xt": np.zeros((2, 2), int)},
            "the test inputs must be bytes or floating-point .*, found int64",
        ),
        ({"y": np.zeros(7, int)}, "the training set must have one integer label per input"),
        ({"y": np.zeros(8)}, "the training set must have one integer label per input"),
        ({"yt": np.full(2, 3)}, r"the test labels must be in \[0, 3\), found 3 to 3"),
        ({"xt": np.zeros((0, 2)), "yt": np.zeros(0, int)}, "the test set must have examples, found none"),
        ({"x": np.zeros((9, 2)), "y": np.zeros(9, int)}, "must have 8 training examples, found 9"),
    ],
)
def test_arrays_are_what_the_data_set_says(changes: dict[str, Any], rule: str) -> None:
    assert checked(OWN, arrays()) is not None
    with pytest.raises(InputError, match=f"data set own: {rule}"):
        checked(OWN, arrays(**changes))


def test_numbers_are_taken_as_they_are_and_bytes_are_divided_by_255() -> None:
    numbers = arrays(x=np.full((8, 2), 255.0), xt=np.full((2, 2), 3.0))
    split = load(None, "full", data=DataSet("own", "own", 3, (2,), 8, lambda folder: numbers))
    task = Task.on(split, "mlp", 4)
    assert (task.batch([0], 1, 0).inputs == 255).all() and (task.pixels(split.test.images) == 3).all()
    assert task.pixels(torch.tensor([51], dtype=torch.uint8)).item() == pytest.approx(0.2)
    with pytest.raises(InputError, match=r"task\.model: lenet cannot be made for inputs of shape \(2,\)"):
        Task.on(split, "lenet", 4)
