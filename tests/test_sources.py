from __future__ import annotations

import gzip
import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ahf_cli.errors import InputError
from ahf_cli.tasks import folder as folders
from ahf_cli.tasks import sources
from ahf_cli.tasks.datasets import DATA_SETS, DataSet
from ahf_cli.tasks.folder import digests, locate
from ahf_cli.tasks.sources import Source
from tests.fashion_mnist import FASHION, system_folder, write


def cache_folder() -> Path:
    return folders.cache_folder(DATA_SETS[FASHION])


def verify(folder: Path) -> None:
    folders.verify(folder, DATA_SETS[FASHION])


def no_source(reason: str) -> Source:
    def get(cache: Path, report: sources.Report, data: DataSet) -> Path:
        raise sources.SourceError(reason)

    return Source(f"source {reason}", get)


# Where the data are looked for


def test_the_first_place_that_holds_the_data_wins(
    bare: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="ahf data fetch"):
        locate()
    assert locate(write(bare / "option", contents)) == bare / "option"
    system = write(system_folder(), contents)
    assert locate() == system
    cache = write(cache_folder(), contents)
    assert bare in cache.parents
    assert locate() == cache
    monkeypatch.setenv("AHF_DATA_DIR", str(write(bare / "environment", contents)))
    assert locate() == bare / "environment"
    assert locate(bare / "option") == bare / "option"


def test_an_incomplete_cache_is_passed_over(bare: Path, contents: dict[str, bytes]) -> None:
    (write(cache_folder(), contents) / "t10k-labels-idx1-ubyte.gz").unlink()
    system = write(system_folder(), contents)
    assert locate() == system


@pytest.mark.parametrize("through_environment", [False, True])
def test_a_named_folder_must_hold_the_data(
    bare: Path,
    contents: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    through_environment: bool,
) -> None:
    write(system_folder(), contents)
    named = bare / "named"
    if through_environment:
        monkeypatch.setenv("AHF_DATA_DIR", str(named))
    ask = partial(locate, None if through_environment else named)
    with pytest.raises(InputError, match="named does not exist"):
        ask()
    (write(named, contents) / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"named must hold .* no t10k-labels-idx1-ubyte\.gz$"):
        ask()


def test_fetch_fills_a_folder_that_was_named(
    bare: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(target: Path, report: sources.Report, data: DataSet) -> Path:
        return write(target, contents)

    assert sources.fetch(bare / "new", tried=[Source("works", get)]) == bare / "new"
    assert not cache_folder().exists()
    write(system_folder(), contents)
    lines: list[str] = []
    monkeypatch.setenv("AHF_DATA_DIR", str(bare / "a" / "b"))
    assert sources.fetch(report=lines.append, tried=[no_source("needless")]) == bare / "a" / "b" == locate()
    assert lines == [f"copying Fashion-MNIST from {system_folder()}"]
    assert sorted(p.name for p in (bare / "a" / "b").iterdir()) == sorted(DATA_SETS[FASHION].files)
    monkeypatch.delenv("AHF_DATA_DIR")
    with pytest.raises(InputError, match="^data folder /proc/new cannot be written: "):
        sources.fetch(Path("/proc/new"))


def test_fetch_replaces_no_damaged_file_in_a_folder_that_was_named(
    bare: Path, contents: dict[str, bytes]
) -> None:
    write(system_folder(), contents)
    folder = write(bare / "mine", contents)
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"?")
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte\.gz is damaged"):
        sources.fetch(folder)
    assert (folder / "t10k-labels-idx1-ubyte.gz").read_bytes() == b"?"


# Damage


def assert_refused(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        locate()
    (line,) = caught.value.lines
    assert str(folder / name) in line and DATA_SETS[FASHION].files[name][:12] in line
    return line


def test_a_flipped_byte_is_refused_by_name(bare: Path, contents: dict[str, bytes]) -> None:
    folder = write(cache_folder(), contents)
    write(system_folder(), contents)  # whole, and yet no reason to pass the damaged one over
    name = "t10k-images-idx3-ubyte.gz"
    whole = (folder / name).read_bytes()
    for position in (0, 1, 10, len(whole) // 2, len(whole) - 9, len(whole) - 8, len(whole) - 1):
        changed = bytearray(whole)
        changed[position] ^= 1
        assert_refused(folder, name, bytes(changed))
    (folder / name).write_bytes(whole)
    assert locate() == folder


def test_a_truncated_file_is_refused_by_name(bare: Path, contents: dict[str, bytes]) -> None:
    folder = write(cache_folder(), contents)
    name = "train-labels-idx1-ubyte.gz"
    whole = (folder / name).read_bytes()
    for length in (0, 1, 9, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        assert_refused(folder, name, whole[:length])


def test_sound_archives_of_something_else_are_all_named(bare: Path, contents: dict[str, bytes]) -> None:
    folder = write(bare / "other", {name: content + b"\0" for name, content in contents.items()})
    with pytest.raises(InputError) as caught:
        verify(folder)
    for line, (name, content) in zip(caught.value.lines, contents.items(), strict=True):
        assert name in line
        assert f"found {hashlib.sha256(content + bytes(1)).hexdigest()[:12]}" in line


def test_name_and_time_in_the_gzip_header_do_not_count(bare: Path, contents: dict[str, bytes]) -> None:
    folder = write(bare / "named", contents)
    for name, content in contents.items():
        with gzip.GzipFile(folder / name, "wb", mtime=1_500_000_000) as stream:  # also writes the name
            stream.write(content)
        assert (folder / name).read_bytes()[3] == 8
    assert digests(folder, DATA_SETS[FASHION]) == {
        name: hashlib.sha256(contents[name]).hexdigest() for name in contents
    }


# Fetching


def test_fetch_tries_the_sources_in_order_and_only_if_needed(bare: Path, contents: dict[str, bytes]) -> None:
    def get(cache: Path, report: sources.Report, data: DataSet) -> Path:
        return write(cache, contents)

    lines: list[str] = []
    tried = [no_source("shut"), Source("works", get), no_source("untried")]
    assert sources.fetch(report=lines.append, tried=tried) == cache_folder()
    assert [line.split(":")[1].strip() for line in lines] == ["source shut", "shut", "works"]
    assert sources.fetch(tried=[no_source("needless")]) == cache_folder()


def test_when_every_source_fails_the_error_names_each(bare: Path, contents: dict[str, bytes]) -> None:
    def damages(cache: Path, report: sources.Report, data: DataSet) -> Path:
        return write(bare / "bad", contents | {"t10k-labels-idx1-ubyte.gz": b"?"})

    def no_room(cache: Path, report: sources.Report, data: DataSet) -> Path:
        raise OSError(28, "No space left on device")

    tried = [no_source("shut"), Source("damages", damages), Source("no room", no_room)]
    with pytest.raises(InputError) as caught:
        sources.fetch(tried=tried)
    first, *failures, last = caught.value.lines
    assert "could not be fetched" in first
    assert failures[0] == "  source shut: shut"
    assert failures[1].startswith("  damages: ") and "t10k-labels-idx1-ubyte.gz is damaged" in failures[1]
    assert failures[2].startswith("  no room: ") and "No space left" in failures[2]
    assert str(cache_folder()) in last and "AHF_DATA_DIR" in last
    assert all(name in last for name in DATA_SETS[FASHION].files)


def test_the_torchvision_source_fills_the_cache(
    bare: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    served = write(bare / "served", contents)
    md5 = [(name, hashlib.md5((served / name).read_bytes()).hexdigest()) for name in contents]
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        there = f"kind.mirrors, kind.resources = [{address!r}], {md5!r}\nkind("
        monkeypatch.setattr(sources, "_TORCHVISION", sources._TORCHVISION.replace("kind(", there))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        cache = sources.fetch(tried=sources.sources(DATA_SETS[FASHION])[:1])
        server.shutdown()
    assert cache == cache_folder()
    assert {path.name for path in cache.iterdir()} == set(contents)  # and no temporary folder


@pytest.mark.parametrize(
    ("script", "reason"),
    [("import time; time.sleep(60)", "no data arrived"), ("raise OSError('refused')", "OSError: refused")],
)
def test_a_dead_download_ends_soon_and_leaves_nothing(
    bare: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    monkeypatch.setattr(sources, "IMPORT_SECONDS", 1.0)
    monkeypatch.setattr(sources, "_TORCHVISION", script)
    with pytest.raises(sources.SourceError, match=reason):
        sources.from_torchvision(cache_folder(), print, DATA_SETS[FASHION])
    assert list(cache_folder().iterdir()) == []


def fake_apt(
    monkeypatch: pytest.MonkeyPatch, folder: Path, contents: dict[str, bytes], refuse: int
) -> list[str]:
    """Replace apt-get and dpkg-deb; the first `refuse` calls of apt-get fail."""
    calls: list[str] = []

    def run(*command: str, folder: Path | None = None) -> None:
        if command[0] == "dpkg-deb":
            write(Path(command[3]) / system_folder().relative_to("/"), contents)
            return
        words = [word for word in command[1:] if not word.startswith("-")]
        calls.append(words[0])
        if len(calls) <= refuse:
            raise sources.SourceError(f"apt-get: no {words[0]}")
        if words[0] == "download":
            assert folder is not None
            (folder / "it.deb").touch()
        if words[0] == "install":
            write(system_folder(), contents)

    monkeypatch.setattr(sources, "_run", run)
    monkeypatch.setattr("shutil.which", lambda name: name)
    return calls


@pytest.mark.parametrize(
    ("user", "refuse", "expected"),
    [
        (0, 0, ["update", "install"]),
        (0, 1, ["update", "install"]),
        (1000, 0, ["download"]),
        (1000, 1, ["download", "update", "download"]),
    ],
)
def test_the_debian_source_installs_as_root_and_else_unpacks(
    bare: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch,
    user: int, refuse: int, expected: list[str],
) -> None:  # fmt: skip
    calls = fake_apt(monkeypatch, bare, contents, refuse)
    monkeypatch.setattr("os.geteuid", lambda: user)
    folder = sources.fetch(tried=sources.sources(DATA_SETS[FASHION])[1:])
    assert folder == (system_folder() if user == 0 else cache_folder())
    assert calls == expected
    assert {path.name for path in folder.iterdir()} == set(contents)


def test_the_debian_source_says_why_it_failed(
    bare: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_apt(monkeypatch, bare, contents, 9)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(InputError, match=r"apt-get: no install \(and update: apt-get: no update\)"):
        sources.fetch(tried=sources.sources(DATA_SETS[FASHION])[1:])
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match="no apt-get on this system"):
        sources.fetch(tried=sources.sources(DATA_SETS[FASHION])[1:])


def test_two_fetches_at_once_do_not_harm_each_other(bare: Path, contents: dict[str, bytes]) -> None:
    both = threading.Barrier(2)
    found: list[Path] = []

    def get(cache: Path, report: sources.Report, data: DataSet) -> Path:
        with sources.temporary(cache) as name:
            folder = write(Path(name, "files"), contents)
            both.wait(10)
            return sources.move(folder, cache, data)

    work = [
        threading.Thread(target=lambda: found.append(sources.fetch(tried=[Source("get", get)]))) for _ in "12"
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert found == [cache_folder()] * 2
    assert {path.name for path in cache_folder().iterdir()} == set(contents)
