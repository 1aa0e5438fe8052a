"""The one writer and reader of results: a study's folder, with one folder per trial in it.

Every file is written whole or not at all.  A file that a crash or a bad disk left torn is set aside under
another name. Its trial counts as unfinished.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ahf_cli.errors import InputError
from ahf_cli.study.files import atomic_write, make_folder, write_json
from ahf_cli.study.lock import FolderLock
from ahf_cli.study.manifest import PRERUN, check_name, checked, first, following, plain, refuse_other
from ahf_cli.study.opening import DamagedError, as_json, folders, read, read_json, refuse_links
from ahf_cli.study.packed import Pack, PackedTrials, is_packed
from ahf_cli.study.trial_folder import TrialFolder, TrialFolders
from ahf_cli.study.trials import InFolders, Trials, read_results
from ahf_cli.training.records import TrialResult

if TYPE_CHECKING:  # pydantic and YAML are slow to import
    from ahf_cli.config.load import Config


class Study(AbstractContextManager["Study"]):
    """A study's folder `results/<name>`: opened for writing by one process, read by any.

    A packed study is read through the same methods, and never written.

    Use it as a context manager to release the lock that `open_for_writing` takes.
    """

    phase = "search"
    """the part of a packed study's tables that its trials are in"""

    def __init__(
        self,
        results: Path,
        name: str,
        *,
        home: Path | None = None,
        given: bool = False,
        pack: Pack | None = None,
    ):
        self.results = Path(results)
        self.name = name if given else check_name(name)
        self.home = home or self.results
        """the results folder that the user named"""
        self._within = pack
        self._lock = FolderLock(self.folder)

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return self.results / self.name

    @property
    def trials_folder(self) -> Path:
        """The folder of its trials, one folder per recipe and slot."""
        return self.folder / "trials"

    @property
    def trials(self) -> TrialFolders:
        """Its trials, in a form that worker processes can be given."""
        return TrialFolders(self.trials_folder)

    @cached_property
    def pack(self) -> Pack | None:
        """The packed form of the study; None where its trials are folders."""
        if self._within is not None:
            return self._within
        return Pack(self.folder) if is_packed(self.folder) else None

    @property
    def reader(self) -> Trials:
        """Its trials, to be read in either form."""
        return InFolders(self.trials) if self.pack is None else PackedTrials(self.pack, self.phase)

    @property
    def report_folder(self) -> Path:
        """The folder of its figures and tables: in its own folder, or beside all studies if it is packed."""
        return self.folder / "report" if self.pack is None else self.home / "reports" / self.name

    @property
    def prerun(self) -> Study:
        """The study's pre-run: a study of its own in the folder `prerun`."""
        return self.part("prerun")

    def part(self, name: str) -> Study:
        """Return a pre-run by the name of its folder."""
        if self.pack is None:
            return Study(self.folder, name, home=self.home)
        return _PackedPart(self.folder, name, home=self.home, pack=self.pack)

    def preruns(self) -> list[str]:
        """Return the names of the folders of its pre-runs."""
        found = folders(self.folder) if self.pack is None else self.pack.phases()
        return [name for name in found if re.fullmatch(PRERUN, name)]

    @property
    def reruns(self) -> Reruns:
        """The re-runs of its best trials with new seeds."""
        return Reruns(self.results, self.name, home=self.home, given=True, pack=self.pack)

    def exists(self) -> bool:
        """Tell whether there is anything of this study on disk."""
        parts = ("manifest.json", "trials", "prerun")
        return self.pack is not None or any(os.path.lexists(self.folder / part) for part in parts)

    def text(self, name: str) -> str | None:
        """Return the content of a small file, such as `config.yaml`; None where it is missing."""
        try:
            return read(self.folder / name).decode(errors="replace")
        except FileNotFoundError:
            return None

    def config(self, overrides: Sequence[str] = (), with_classes: bool = False) -> Config:
        """Return its own configuration; one that is to train or gives an identity needs its classes.

        Raises InputError where the file is missing, no regular file, or not valid in this version.
        """
        from ahf_cli.config.load import stored

        file = self.folder / "config.yaml"
        if (text := self.text(file.name)) is None:
            raise InputError(f"{file}: cannot be read: there is no such file")
        return stored(text, str(file), file.stem, overrides, with_classes)

    def refuse_packed(self) -> None:
        """Raise InputError where the study is packed, and say how to go on."""
        if self.pack is not None:
            raise InputError(
                f"{self.folder} is packed, and a packed study is only read: `ahf unpack "
                f"{shlex.quote(str(self.folder))} --to DIR` makes a copy in the folder DIR, and the same "
                "command with --results DIR goes on with it"
            )

    def open_for_writing(
        self, config_yaml: str, identity: Mapping[str, object], manifest: Mapping[str, Any]
    ) -> None:
        """Create the study or resume it, under a lock that ends with this process.

        `manifest["plan"]` gives the number of trials of each recipe; on resuming it only grows.  Raises
        InputError if the folder cannot be written or holds a study with another identity, AhfError if another
        process has it open.  Nothing is overwritten then.
        """
        self.refuse_packed()
        try:
            make_folder(self.folder)
            self.lock()
            try:
                content = self._next_manifest(plain(identity), plain(manifest))
                for stale in self.folder.rglob(".*.tmp"):
                    stale.unlink(missing_ok=True)
                atomic_write(self.folder / "config.yaml", config_yaml.encode())
                write_json(self.folder / "manifest.json", content)
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise InputError(f"cannot write results to {self.folder}: {error.strerror or error}") from error

    def drop_session(self) -> None:
        """Take back the record of this session, which has trained nothing: no result is of its code."""
        content = self.manifest()
        if len(content["sessions"]) > 1:
            write_json(self.folder / "manifest.json", {**content, "sessions": content["sessions"][:-1]})

    def lock(self) -> None:
        """Keep other processes from writing, as `open_for_writing` does, whatever the manifest says."""
        self.refuse_packed()
        self._acquire()
        try:
            refuse_links(self.folder)
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def manifest(self) -> dict[str, Any]:
        """Return `manifest.json`, {} where it is missing; raises InputError where it cannot be read."""
        if self.pack is not None:
            return self.pack.manifest
        file = self.folder / "manifest.json"
        try:
            return checked(file, read_json(file))
        except FileNotFoundError:
            return {}
        except DamagedError as error:
            raise InputError(f"{file} is damaged ({error.why}): {self._repair}") from None

    @property
    def _repair(self) -> str:
        name, results = self.name, self.results
        if name == "prerun":  # a part of the study that it lies in
            name, results = results.name, results.parent
        words = shlex.join(["ahf", "repair", name, "--results", str(results)])
        return f"`{words}` makes it anew from config.yaml and the trials"

    def planned(self) -> dict[str, int]:
        """Return how many trials each recipe is to have."""
        return self._plan("plan")

    def _plan(self, key: str) -> dict[str, int]:
        return dict(self.manifest().get(key, {}))

    def recipes(self) -> list[str]:
        """Return the recipes found on disk: planned ones in the order of the plan, then others by name."""
        found, plan = self.recipes_on_disk(), list(self.planned())
        return [r for r in plan if r in found] + sorted(r for r in found if r not in plan)

    def recipes_on_disk(self) -> list[str]:
        """Return the recipes found on disk by name, whatever the manifest says."""
        return self.reader.recipes()

    def begun(self, recipe: str) -> int:
        """Return how many trials of a recipe have a result, whole or not; no result is read."""
        slots = self.reader.slots(recipe)
        if self.pack is not None:
            return sum(self.pack.trials[self.phase, recipe, slot]["status"] is not None for slot in slots)
        return sum(os.path.lexists(self.trial(recipe, slot).path / "result.json") for slot in slots)

    def hopeless(self, recipe: str) -> bool:
        """Tell whether a recipe lacks trials because there is nothing to train: never so in a search."""
        return False

    def results_of(self, recipes: Sequence[str]) -> tuple[list[TrialResult], list[str]]:
        """Return the results of recipes by slot, and one line for each trial that is damaged."""
        return read_results(self.reader, recipes)

    def read_results(self) -> tuple[list[TrialResult], list[str]]:
        """Return the results of all trials by recipe and slot, and one line for each that is damaged."""
        return self.results_of(self.recipes())

    def finished(self, recipe: str) -> list[TrialResult]:
        """Return the results of a recipe by slot: ok and diverged ones, and those that failed for good."""
        return self.results_of([check_name(recipe, "recipe")])[0]

    def trial(self, recipe: str, slot: int) -> TrialFolder:
        """Return the folder of one trial, which need not exist yet."""
        return self.trials.trial(check_name(recipe, "recipe"), slot)

    def holder(self) -> str | None:
        """Return the process that has the study open for writing, as "PID on HOST"; None where none has."""
        return self._lock.holder() if self.pack is None else None

    def remove(self) -> None:
        """Delete the study's folder; raises AhfError where a process has it open.

        Of a folder that is a symbolic link only the link is deleted, and nothing is locked.
        """
        if self.folder.is_symlink():
            self.folder.unlink()
            return
        lock = self.folder / ".lock"
        if lock.is_symlink() or lock.is_fifo():  # no process of ours holds it, and it must not be followed
            lock.unlink()
        self._acquire()
        gone = self.folder.with_name(f".{self.name}.{secrets.token_hex(4)}.removed")
        os.replace(self.folder, gone)  # at once, so that half a study is never seen
        self.close()
        shutil.rmtree(gone)

    def _acquire(self) -> None:
        self._lock.acquire(f"study {self.name!r}")

    def _next_manifest(self, identity: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """Return the manifest to write, or raise InputError if the folder holds another study."""
        before = self.manifest()
        if not before:
            if folders(self.trials_folder):
                raise InputError(f"{self.folder} holds trials but no manifest.json: {self._repair}")
            return first(self.name, identity, given)
        refuse_other(self.name, before.get("identity", {}), identity)
        return following(before, identity, given)


class Reruns(Study):
    """The re-runs of a study: `reruns/<recipe>/<replicate>`, trial folders whose slot is the replicate."""

    phase = "rerun"

    @property
    def trials_folder(self) -> Path:
        """The folder of the re-runs, one folder per recipe and replicate."""
        return self.folder / "reruns"

    def planned(self) -> dict[str, int]:
        """Return how many re-runs each recipe is to have."""
        return self._plan("rerun_plan")

    def hopeless(self, recipe: str) -> bool:
        """Tell whether all trials of a recipe have diverged, so that it has none to run again."""
        search = Study(self.results, self.name, home=self.home, given=True, pack=self.pack)
        results = [r for r in search.finished(recipe) if r.status != "failed"]
        return len(results) >= search.planned().get(recipe, 0) and all(
            r.status == "diverged" for r in results
        )


class _PackedPart(Study):
    """A pre-run of a packed study: a study of its own, whose trials are in the same tables."""

    @property
    def phase(self) -> str:  # type: ignore[override]
        return self.name

    def manifest(self) -> dict[str, Any]:
        """Return the pre-run's own `manifest.json`, {} where it is missing."""
        text = self.text("manifest.json")
        if text is None:
            return {}
        file = self.folder / "manifest.json"
        return checked(file, as_json(file, text.encode()))

    def text(self, name: str) -> str | None:
        """Return the content of a small file, which the pack carries in its manifest."""
        assert self.pack is not None
        return self.pack.files.get(f"{self.name}/{name}")

    def exists(self) -> bool:
        """Tell whether the pack has it."""
        return self.pack is not None and self.name in self.pack.phases()
