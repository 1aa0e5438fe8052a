"""Data sets as splits of examples: small files, damaged files and Fashion-MNIST itself."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ahf_cli.cli.data import app
from ahf_cli.errors import InputError
from ahf_cli.tasks import sources
from ahf_cli.tasks.data import load, read_idx, split_rows
from ahf_cli.tasks.datasets import DATA_SETS
from tests.fashion_mnist import FASHION, idx, system_folder, write

ARCHIVE_BYTES = {
    "train-images-idx3-ubyte.gz": 26_421_880,
    "train-labels-idx1-ubyte.gz": 29_515,
    "t10k-images-idx3-ubyte.gz": 4_422_102,
    "t10k-labels-idx1-ubyte.gz": 5_148,
}  # of the archives that torchvision downloads


@pytest.fixture(scope="module")
def real() -> Path:
    return sources.fetch()


# Reading


def test_a_split_has_the_examples_of_its_files(bare: Path, contents: dict[str, bytes]) -> None:
    folder = write(system_folder(), contents)
    paper, full = load(folder, "paper"), load(folder, "full")
    assert paper.validation is not None and full.validation is None
    assert (len(paper.train), len(paper.validation), len(paper.test)) == (50, 10, 10)
    assert (len(full.train), len(full.test)) == (60, 10)
    assert full.train.images.dtype == torch.uint8 and full.train.images.shape == (60, 1, 28, 28)
    assert full.train.labels.dtype == torch.int64 and full.train.labels.shape == (60,)
    assert full.train.images.numpy().tobytes() == contents["train-images-idx3-ubyte.gz"][16:]
    train, validation = split_rows(60, "paper")
    assert torch.equal(paper.train.images, full.train.images[train])
    assert torch.equal(paper.validation.labels, full.train.labels[validation])
    moved = paper.test.to("meta")
    assert moved.images.is_meta and moved.labels.is_meta and len(moved) == 10


@pytest.mark.parametrize(("subset", "sizes"), [(1, (1, 1, 1)), (20, (20, 10, 10)), (60, (50, 10, 10))])
def test_a_subset_is_the_beginning(
    bare: Path, contents: dict[str, bytes], subset: int, sizes: tuple[int, int, int]
) -> None:
    folder = write(system_folder(), contents)
    whole, part = load(folder, "paper"), load(folder, "paper", subset)
    assert whole.validation is not None and part.validation is not None
    assert (len(part.train), len(part.validation), len(part.test)) == sizes
    assert torch.equal(part.train.images, whole.train.images[:subset])
    assert torch.equal(part.validation.labels, whole.validation.labels[:subset])


def test_load_refuses_a_wrong_subset_split_and_file(bare: Path, contents: dict[str, bytes]) -> None:
    folder = write(system_folder(), contents)
    for subset in (0, -1, 61):
        with pytest.raises(InputError, match=rf"subset must be in \[1, 60\], got {subset}"):
            load(folder, "paper", subset)
    with pytest.raises(InputError, match="split must be one of paper, full, got 'papr'"):
        load(folder, "papr")  # type: ignore[arg-type]
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz is damaged"):
        load(folder, "paper")


GOOD = idx(np.zeros((3, 28, 28), np.uint8))


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "must start with the IDX magic 00000803, found $"),
        (GOOD[:10], "must start with the IDX magic"),
        (b"\0\0\x0d" + GOOD[3:], "must start with the IDX magic 00000803, found 00000d03"),
        (idx(np.zeros(3, np.uint8)), "found 00000801"),
        (idx(np.zeros((3, 28, 27), np.uint8)), r"must hold items of shape \(28, 28\), found \(28, 27\)"),
        (GOOD[:-1], "must hold 2352 bytes of data, found 2351"),
        (GOOD + b"\0", "must hold 2352 bytes of data, found 2353"),
        (GOOD[:4] + b"\xff" * 4 + GOOD[8:], "bytes of data, found 2352"),
    ],
)
def test_what_is_no_idx_file_is_refused(tmp_path: Path, content: bytes, rule: str) -> None:
    path = tmp_path / "some.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match=f"some.gz {rule}" if rule.startswith("must") else rule):
        read_idx(path, (28, 28))
    path.write_bytes(gzip.compress(content)[:-5])
    with pytest.raises(InputError, match="some.gz must be a gzip file"):
        read_idx(path, (28, 28))


# The real data


def test_fashion_mnist_has_its_splits(real: Path) -> None:
    paper, full = load(real, "paper"), load(real, "full")
    assert paper.validation is not None and full.validation is None
    assert (len(paper.train), len(paper.validation), len(paper.test)) == (50_000, 10_000, 10_000)
    assert torch.bincount(full.train.labels).tolist() == [6000] * 10
    assert torch.bincount(full.test.labels).tolist() == [1000] * 10
    train, validation = split_rows(60_000, "paper")
    assert validation is not None
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(60_000))
    order = np.random.default_rng(0).permutation(60_000)
    assert np.array_equal(train, order[:50_000]) and np.array_equal(validation, order[50_000:])
    assert torch.equal(load(real, "paper", 100).train.images, paper.train.images[:100])


def test_the_first_images_are_those_of_the_file(real: Path) -> None:
    split = load(real, "full", 5)
    for images, prefix in ((split.train.images, "train"), (split.test.images, "t10k")):
        with gzip.open(real / f"{prefix}-images-idx3-ubyte.gz") as stream:
            stream.seek(16)
            sums = [sum(stream.read(784)) for _ in range(5)]
        assert images.sum((1, 2, 3), dtype=torch.int64).tolist() == sums


def test_the_files_are_those_of_torchvision(real: Path) -> None:
    # Debian's archives differ from torchvision's in the header alone: they are shorter by the file's name.
    md5 = dict(import_module("torchvision.datasets").FashionMNIST.resources)
    assert set(md5) == set(DATA_SETS[FASHION].files)
    for name, expected in md5.items():
        archive = (real / name).read_bytes()
        if hashlib.md5(archive).hexdigest() != expected:
            assert archive[3] == 0, "no name in the header"
            assert len(archive) + len(f"{Path(name).stem}\0") == ARCHIVE_BYTES[name]


def test_importing_the_data_module_leaves_torch_alone() -> None:
    script = "import sys, ahf_cli.tasks.data; sys.exit(any(m.startswith('torch') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


# The command


def test_the_commands_print_the_folder(bare: Path, contents: dict[str, bytes]) -> None:
    folder = write(system_folder(), contents)
    for command in ("fetch", "verify", "path"):
        result = CliRunner().invoke(app, [command])
        assert (result.exit_code, result.stdout) == (0, f"{folder}\n")
        quiet = CliRunner().invoke(app, [command, "-q", "--json"])
        assert (quiet.exit_code, quiet.stderr) == (0, "")
        assert json.loads(quiet.stdout)["folder"] == str(folder)
        assert json.loads(quiet.stdout)["files"] == {
            name: DATA_SETS[FASHION].files[name] for name in contents
        }
    assert CliRunner().invoke(app, ["verify"]).stderr.count("ok ") == 4


def test_the_folder_comes_from_the_option_or_the_environment(bare: Path, contents: dict[str, bytes]) -> None:
    option, variable = write(bare / "option", contents), write(bare / "variable", contents)
    environment = {"AHF_DATA_DIR": str(variable)}
    assert CliRunner().invoke(app, ["path"], env=environment).stdout == f"{variable}\n"
    named = CliRunner().invoke(app, ["path", "--data-dir", str(option)], env=environment)
    assert named.stdout == f"{option}\n"


@pytest.mark.parametrize(
    ("command", "folder", "line"),
    [
        ("verify", "none", "data folder /none does not exist"),
        ("path", "none", "data folder /none does not exist"),
        ("fetch", "", "--data-dir must name a folder, got ''"),
        ("fetch", "file/x", "data folder /file/x cannot be written: Not a directory"),
    ],
)
def test_the_commands_raise_input_errors(
    bare: Path, contents: dict[str, bytes], command: str, folder: str, line: str
) -> None:
    write(system_folder(), contents)
    (bare / "file").touch()
    result = CliRunner().invoke(app, [command, "--data-dir", folder and str(bare / folder)])
    assert isinstance(result.exception, InputError) and result.exception.exit_code == 2
    assert str(result.exception).replace(str(bare), "") == line
    assert result.stdout == ""
