"""The slots of one recipe in an Optuna study: which are free, running, complete.

A slot is done by exactly one complete trial, whatever processes do and wherever they are killed.  A trial
is created with its slot in one transaction, in which the storage also numbers it.  Of a slot's trials that
are waiting, running or complete, only the lowest number may run. A process that finds a lower number fails
its own trial.  A trial that has failed never comes back.  So no slot has two trials that complete, and a
slot without one is free and is taken again.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ahf_cli.errors import InputError
from ahf_cli.recipes.hyperparameters import Range
from ahf_cli.search.plan import OWN_VALUE, Best
from ahf_cli.search.sampler import Known, fits, frozen
from ahf_cli.search.storage import Storage, quiet
from ahf_cli.study.trials import own_value, rank
from ahf_cli.training.records import TrialResult

MAX_RETRIES = 3
"""Times that a trial is tried again after its machine failed it."""
STOPPED, DUPLICATE = "stopped", "duplicate"
"""Why a trial of Optuna's failed, where that is no failure of the trial."""
_OPEN = (TrialState.WAITING, TrialState.RUNNING)


@dataclass(frozen=True)
class Claim:
    """A slot that this process runs, as a trial of Optuna's."""

    trial_id: int
    params: Mapping[str, float]


class Slots:
    """The slots of one recipe."""

    def __init__(self, storage: Storage, name: str, space: Mapping[str, Range]):
        self.storage, self.name, self.space = storage, name, space
        self._backend = storage.backend
        self.study = optuna.create_study(storage=self._backend, study_name=name, load_if_exists=True)
        self.claims: dict[int, Claim] = {}
        """trials of this process, by slot"""
        self._beaten = time.monotonic()
        self.refresh()

    def join(self, about: Mapping[str, Any]) -> None:
        """Write the data for others to join into a shared storage, or find that it holds another study.

        Raises:
            InputError: the storage has a study of this name with another identity.
        """
        before = self.study.user_attrs
        identity = json.loads(json.dumps(about.get("identity")))
        if before.get("identity", identity) != identity:
            raise InputError(
                f"storage {self.storage.where} has a study {self.name!r} with other settings; "
                "use another name"
            )
        for key, value in about.items():
            if key == "trials":
                value = max(value, before.get(key, 0))
            if before.get(key) != value and not (key == "identity" and key in before):
                self.study.set_user_attr(key, value)

    def refresh(self) -> None:
        """Read the trials of other processes."""
        trials = self._backend.get_all_trials(self.study._study_id, deepcopy=False)
        self._trials: dict[int, list[FrozenTrial]] = defaultdict(list)
        for trial in trials:
            slot = trial.user_attrs.get("slot")
            if isinstance(slot, int):
                self._trials[slot].append(trial)

    def complete(self) -> dict[int, FrozenTrial]:
        """Return the complete trials by slot."""
        return {s: t for s, ts in self._trials.items() for t in ts if t.state == TrialState.COMPLETE}

    def running(self) -> dict[int, FrozenTrial]:
        """Return the running trials by slot."""
        return {s: t for s, ts in self._trials.items() for t in ts if t.state == TrialState.RUNNING}

    def failures(self, slot: int) -> int:
        """Count the failures of a slot: of its machine, its memory or its disk."""
        failed = (t for t in self._trials.get(slot, ()) if t.state == TrialState.FAIL)
        return sum(t.user_attrs.get("failure") not in (STOPPED, DUPLICATE) for t in failed)

    def params(self, slot: int) -> dict[str, float] | None:
        """Return the hyperparameters that a slot has been given, None where it has none yet."""
        for trial in reversed(self._trials.get(slot, ())):
            if fits(trial.params, self.space):
                return dict(trial.params)
        return None

    def known(self) -> list[Known]:
        """Return the sampler's knowledge: complete and running trials."""
        complete = self.complete()
        ended = [Known(slot, trial.params, trial.value) for slot, trial in complete.items()]
        others: dict[int, Mapping[str, float]] = {s: t.params for s, t in self.running().items()}
        others |= {slot: claim.params for slot, claim in self.claims.items()}
        running = {
            s: params for s, params in others.items() if s not in complete and fits(params, self.space)
        }
        return ended + [Known(slot, params) for slot, params in running.items()]

    def free(self, count: int) -> list[int]:
        """Return the slots below `count` that are neither complete nor running."""
        taken = self.complete().keys() | self.running().keys() | self.claims.keys()
        return [slot for slot in range(count) if slot not in taken]

    def claim(self, slot: int, params: Mapping[str, float]) -> bool:
        """Take a free slot for this process; False where another one has it.

        Within its turn a process is alone; where it may not have been, it asks `withdraw` afterwards.
        """
        left = [t for t in self._trials.get(slot, ()) if t.state == TrialState.WAITING]
        for trial in left:
            if trial.params != params:  # another configuration would be recorded under it
                self._fail(trial._trial_id, DUPLICATE)
        waiting = [trial._trial_id for trial in left if trial.params == params]
        if waiting:  # left by a process that was killed, or will lose it to us, or we to it
            trial_id = waiting[0]
        else:
            who = {"slot": slot, "by": _who()}
            # Alone, it is running at once.  Else a sign of life must stand in the storage before it runs, or
            # it would run for ever where its process is killed in between.
            state = TrialState.WAITING if self.storage.shared else TrialState.RUNNING
            template = frozen(self.space, params, None, state, who)
            trial_id = self._backend.create_new_trial(self.study._study_id, template)
        if self.storage.shared or waiting:
            self._beat(trial_id)
            if not self._set(trial_id, TrialState.RUNNING):
                return False
            if waiting:
                self._backend.set_trial_user_attr(trial_id, "by", _who())
        self.claims[slot] = Claim(trial_id, dict(params))
        return True

    def withdraw(self, slot: int) -> bool:
        """Give a claim back if another process has claimed the slot before; return whether it has."""
        self.refresh()
        trial_id = self.claims[slot].trial_id
        rivals = [t for t in self._trials[slot] if t.state != TrialState.FAIL and t._trial_id < trial_id]
        if rivals:
            self.fail(slot, DUPLICATE)
        return bool(rivals)

    def tell(self, result: TrialResult) -> bool:
        """Complete a slot; False where it had been taken from this process, and the result does not count."""
        claim, said = self.claims.pop(result.slot), attributes(result)
        try:
            for key, value in said.items():
                self._backend.set_trial_user_attr(claim.trial_id, key, value)
        except optuna.exceptions.UpdateFinishedTrialError:
            told = False
        else:
            told = self._set(claim.trial_id, TrialState.COMPLETE, result.value)
        if told:  # the storage need not be asked
            trial = frozen(self.space, claim.params, result.value, attributes={"slot": result.slot, **said})
            trial._trial_id = claim.trial_id
            self._put(result.slot, trial)
        else:
            self._note(result.slot, claim.trial_id)
        return told

    def fail(self, slot: int, why: str) -> None:
        """Give a slot back, with the reason."""
        claim = self.claims.pop(slot)
        self._fail(claim.trial_id, why)
        self._note(slot, claim.trial_id)

    def live(self) -> None:
        """Give a sign of life for the trials of this process, and fail trials without one for too long."""
        if not self.storage.shared:
            return
        now = time.monotonic()
        if now - self._beaten >= self.storage.grace / 4 or now < self._beaten:
            for claim in self.claims.values():
                self._beat(claim.trial_id)
            self._beaten = now
        with quiet():
            optuna.storages.fail_stale_trials(self.study)

    def reconcile(self, finished: Mapping[int, TrialResult]) -> None:
        """Make the index agree with the records; for a storage that no other process has open.

        Trials that waited or ran have ended with their process.  Where the index counts a slot as complete
        that has no record, or counts one twice, it is made anew from the records.
        """
        for trial in (t for ts in self._trials.values() for t in ts if t.state in _OPEN):
            self._fail(trial._trial_id, STOPPED)
        for trial in self._backend.get_all_trials(self.study._study_id, deepcopy=False):
            if trial.state in _OPEN:  # without a slot: made by another program
                self._fail(trial._trial_id, STOPPED)
        self.refresh()
        told = [t for ts in self._trials.values() for t in ts if t.state == TrialState.COMPLETE]
        slots = [t.user_attrs["slot"] for t in told]
        agree = len(slots) == len(set(slots)) and all(
            (found := finished.get(t.user_attrs["slot"])) is not None
            and t.value == found.value
            and t.user_attrs.get(OWN_VALUE) == attributes(found).get(OWN_VALUE)
            for t in told
        )
        if not agree:
            self.rebuild(finished.values())
            return
        for slot in sorted(finished.keys() - set(slots)):
            self._add(finished[slot])
        self.refresh()

    def rebuild(self, finished: Iterable[TrialResult]) -> None:
        """Make the index anew from the records."""
        attributes = self.study.user_attrs
        optuna.delete_study(study_name=self.name, storage=self._backend)
        self.study = optuna.create_study(storage=self._backend, study_name=self.name)
        for key, value in attributes.items():
            self.study.set_user_attr(key, value)
        for result in sorted(finished, key=lambda r: r.slot):
            self._add(result)
        self.refresh()

    def remove(self) -> None:
        """Delete the study."""
        optuna.delete_study(study_name=self.name, storage=self._backend)

    def _add(self, result: TrialResult) -> None:
        params = {key: result.params.get(key) for key in self.space}
        if not fits(params, self.space):
            raise InputError(
                f"trial {result.recipe}/{result.slot} is recorded with hyperparameters outside its search "
                "space; was its result.json edited? Move its folder away, and it is trained again"
            )
        self.study.add_trial(
            frozen(
                self.space,
                result.params,
                result.value,
                attributes={"slot": result.slot, **attributes(result)},
            )
        )

    def _beat(self, trial_id: int) -> None:
        if self.storage.shared:
            self._backend.record_heartbeat(trial_id)  # type: ignore[attr-defined]

    def _set(self, trial_id: int, state: TrialState, value: float | None = None) -> bool:
        try:
            values = None if value is None else [value]
            return self._backend.set_trial_state_values(trial_id, state, values)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    def _fail(self, trial_id: int, why: str) -> None:
        try:
            self._backend.set_trial_user_attr(trial_id, "failure", why)
        except optuna.exceptions.UpdateFinishedTrialError:
            return
        self._set(trial_id, TrialState.FAIL)

    def _note(self, slot: int, trial_id: int) -> None:
        """Read one trial again, which is cheaper than all."""
        self._put(slot, self._backend.get_trial(trial_id))

    def _put(self, slot: int, trial: FrozenTrial) -> None:
        others = [t for t in self._trials[slot] if t._trial_id != trial._trial_id]
        self._trials[slot] = [*others, trial]


def attributes(result: TrialResult) -> dict[str, Any]:
    """Return the attributes of a finished trial in the index."""
    if result.status == "ok":
        own = own_value(result)
        tests = {k: v for k, v in result.measured.items() if k.startswith("test_") and math.isfinite(v)}
        return {**tests, **({OWN_VALUE: own} if own > result.value else {})}
    return {"status": result.status}


def _who() -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": now}


def names(storage: Storage) -> list[str]:
    """Return the names of all Optuna studies in a storage."""
    return optuna.get_all_study_names(storage=storage.backend)


def best_of(slots: Slots) -> Best | None:
    """Return the best complete trial; None where all have diverged."""
    complete = slots.complete()
    ok = {slot: t for slot, t in complete.items() if t.user_attrs.get("status") != "diverged"}
    if not ok:
        return None
    # Only a capped value has its own one beside it in the index.
    values = {slot: float(t.value or 0.0) for slot, t in ok.items()}
    own = {slot: float(ok[slot].user_attrs.get(OWN_VALUE, value)) for slot, value in values.items()}
    keys = [rank(value, own[slot], slot) for slot, value in values.items()]
    slot = min(keys)[2]
    return Best(slot, dict(complete[slot].params))
