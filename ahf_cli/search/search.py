"""N trials of each recipe: asked of a sampler, trained by workers, committed one by one, resumed by slot."""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from ahf_cli.errors import AhfError
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.search.plan import HOOKS, SEARCH_SLOT, Best, Hooks, SearchPlan
from ahf_cli.search.pool import Ended, Job, Outcome, WorkerPool, describe
from ahf_cli.search.sampler import fits, propose, sampler, sobol
from ahf_cli.search.slots import MAX_RETRIES, STOPPED, Slots, best_of
from ahf_cli.search.storage import Storage, TrialFiles, in_memory
from ahf_cli.study.trial_folder import TrialFolders
from ahf_cli.training.records import TrialResult

__all__ = ["Hooks", "Job", "Outcome", "Search", "SearchPlan", "WorkerPool"]

HOST = socket.gethostname()
BREAKER = 3
"""Such failures one after the other, without a success between, after which this process gives up."""


class Search:
    """One search over one storage.  The trial records are the truth; the storage is an index of them.

    With a shared storage several processes run the same search, each with an object like this one.
    """

    def __init__(self, plan: SearchPlan, records: TrialFolders, storage: Storage | None = None):
        self.plan, self.records, self.storage = plan, records, storage or in_memory()
        self.trial_files = TrialFiles(self.storage) if self.storage.shared else None
        self.slots = {
            name: Slots(self.storage, plan.index_name(name), plan.spaces[name]) for name in plan.recipes
        }
        self._forgiven: dict[tuple[str, int], int] = {}
        self._in_a_row = 0
        self._looked = self._asked = -math.inf
        self._here: set[tuple[str, int]] = set()
        for name, slots in self.slots.items():
            if self.storage.shared:
                slots.join(plan.about.get(name, {}))
            else:
                slots.reconcile(self._finished_of(name))
            for slot in range(0 if plan.guest else plan.trials):
                # A new start of a search repeats the trials that were given up.
                self._forgiven[name, slot] = slots.failures(slot)
        self.collect()

    @property
    def unfinished(self) -> list[tuple[str, int]]:
        """Slots without a finished trial, in the order of training: some of each recipe first."""
        complete = {name: slots.complete() for name, slots in self.slots.items()}
        return [(n, s) for s in range(self.plan.trials) for n in self.plan.recipes if s not in complete[n]]

    def run(self, make_pool: Callable[[], WorkerPool], hooks: Hooks = HOOKS) -> bool:
        """Train everything that is unfinished; return whether all is done, False where it was stopped.

        Raises:
            AhfError: a bug in the training code, or trials that failed too often.
        """
        if not self.unfinished or hooks.should_stop():
            return not self.unfinished
        with make_pool() as pool:
            try:
                self._work(pool, hooks)
            except BaseException:
                pool.stop()
                raise
        self.collect()
        lost = [f"{n}/{s}" for n, s in self.unfinished if self._given_up(n, s)]
        if lost and not hooks.should_stop():
            raise AhfError(
                f"failed {MAX_RETRIES + 1} times each: {', '.join(lost)}; the same command tries again"
            )
        return not self.unfinished

    def best(self) -> dict[str, Best]:
        """Return the best trial of each recipe; without recipes whose trials have all diverged."""
        found = {name: best_of(slots) for name, slots in self.slots.items()}
        return {name: best for name, best in found.items() if best is not None}

    def rebuild(self) -> int:
        """Make the index anew from the records; return the number of finished trials.

        Raises:
            AhfError: other processes are running trials of it.
        """
        for name, slots in self.slots.items():
            slots.live()
            slots.refresh()
            if slots.running():
                raise AhfError(
                    f"{len(slots.running())} trials of {name} are running; stop their processes first, or "
                    f"wait until {self.storage.grace} s have passed since they ended"
                )
        count = 0
        for name, slots in self.slots.items():
            finished = self._finished_of(name)
            count += len(finished)
            slots.rebuild(finished.values())
            if self.trial_files:
                self.trial_files.remove(slots.name)
                for slot, trial in slots.complete().items():
                    self.trial_files.put(slots.name, trial._trial_id, self.records.trial(name, slot).pack())
        return count

    def collect(self) -> list[TrialResult]:
        """Fetch trials that other machines have finished into the records here."""
        fetched: list[TrialResult] = []
        if self.trial_files is None or self.plan.guest:
            return fetched
        for name, slots in self.slots.items():
            for slot, trial in sorted(slots.complete().items()):
                if (name, slot) in self._here:
                    continue
                self._here.add((name, slot))
                if self._finished(name, slot) is None:
                    record = self.records.trial(name, slot)
                    files = self.trial_files.get(slots.name, trial._trial_id)
                    if files and record.unpack(files) and (result := record.result()) is not None:
                        fetched.append(result)
        return fetched

    def _work(self, pool: WorkerPool, hooks: Hooks) -> None:
        """Keep the pool busy until nothing is left or a stop."""
        running: list[Job] = []
        stopping = False
        while True:
            if not stopping and hooks.should_stop():
                stopping = True
                pool.stop()
            self._look_around(hooks)
            while not stopping and pool.free() and (job := self._next_job(hooks)) is not None:
                pool.submit(job)
                running.append(job)
            if not running and (stopping or not self._others_run()):
                return
            for event in pool.events(0.2):
                if isinstance(event, Ended):
                    running.remove(event.job)
                    self._settle(event.job, event.outcome, hooks)
                else:
                    hooks.on_progress(event)

    def _look_around(self, hooks: Hooks) -> None:
        """In a shared storage: give signs of life, and read the results of others."""
        now = time.monotonic()
        if not self.storage.shared or now - self._looked < min(1.0, self.storage.grace / 8):
            return
        self._looked = now
        for slots in self.slots.values():
            slots.live()
            slots.refresh()
        for result in self.collect():
            hooks.on_result(result)

    def _others_run(self) -> bool:
        """Tell whether other processes have slots that may yet come back to us."""
        if not self.storage.shared:
            return False
        return any(not self._given_up(name, slot) for name, slot in self.unfinished)

    def _next_job(self, hooks: Hooks) -> Job | None:
        """Take the next free slots of one recipe, up to the size of a batch; None without one."""
        if self.storage.shared and time.monotonic() - self._asked < 1:
            return None  # there was nothing a moment ago
        with self.storage.turn(self.plan.prefix) as turn:
            job = self._choose(hooks)
        if job is not None and turn.lost:
            slots = self.slots[job.recipe.name]
            left = {slot: params for slot, params in job.params.items() if not slots.withdraw(slot)}
            job = self._job(job.recipe.name, left) if left else None
        if job is None:
            self._asked = time.monotonic()
        return job

    def _choose(self, hooks: Hooks) -> Job | None:
        for name in self._by_turn():
            if self.storage.shared:  # known trials may be a second old
                self.slots[name].refresh()
            params: dict[int, dict[str, float]] = {}
            for slot in self._free(name):
                if len(params) < self.plan.batch and (asked := self._take(name, slot, hooks)) is not None:
                    params[slot] = asked
            if params:
                return self._job(name, params)
        return None

    def _by_turn(self) -> list[str]:
        """Return the recipes that have free slots, as far as is known, the one with the lowest first."""
        free = [(self._free(name), k, name) for k, name in enumerate(self.slots)]
        return [name for _, _, name in sorted((slots[0], k, name) for slots, k, name in free if slots)]

    def _job(self, name: str, params: dict[int, dict[str, float]]) -> Job:
        attempts = {slot: self.slots[name].failures(slot) + 1 for slot in params}
        best = self.plan.again.get(name)
        of_best = {SEARCH_SLOT: float(best.slot)} if best else {}
        starts = {slot: self.plan.start_of(slot) for slot in params}
        extra = {slot: {**of_best, **self.plan.extra_of(slot)} for slot in params}
        return Job(self.plan.recipes[name], params, attempts, starts, extra)

    def _free(self, name: str) -> list[int]:
        return [slot for slot in self.slots[name].free(self.plan.trials) if not self._given_up(name, slot)]

    def _given_up(self, name: str, slot: int) -> bool:
        return self.slots[name].failures(slot) - self._forgiven.get((name, slot), 0) > MAX_RETRIES

    def _take(self, name: str, slot: int, hooks: Hooks) -> dict[str, float] | None:
        """Claim a slot and return its hyperparameters, earlier or new ones; None where it is lost."""
        finished = self._finished(name, slot)
        params = self._params(name, slot, finished)
        if not self.slots[name].claim(slot, params):
            return None
        if finished:  # trained before, by a process that could not tell
            self._tell(finished, hooks)
            return None
        note = {"recipe": name, "slot": slot, "params": params, "started": _now(), "host": HOST}
        try:
            self.records.trial(name, slot).write_params(note)
        except OSError as error:
            self._failed(self.plan.recipes[name], [slot], describe(error), hooks)
            return None
        return params

    def _params(self, name: str, slot: int, finished: TrialResult | None) -> dict[str, float]:
        """Return a slot's hyperparameters: as trained, as asked before, or new ones of the sampler."""
        if name in self.plan.again:
            return dict(self.plan.again[name].params)
        space, note = self.plan.spaces[name], self.records.trial(name, slot).read_params() or {}
        before: object = {key: finished.params.get(key) for key in space} if finished else note.get("params")
        if fits(before, space):
            return dict(before)
        return self.slots[name].params(slot) or self._propose(name, slot)

    def _propose(self, name: str, slot: int) -> dict[str, float]:
        draw = self.plan.draw_of(slot)
        if self.plan.sampler == "qmc":
            return sobol(self.plan.spaces[name], self.plan.seed, self.plan.stream, draw)
        parallel = self.storage.shared or self.plan.workers * self.plan.batch > 1
        own = sampler(self.plan.sampler, self.plan.seed, self.plan.stream, draw, parallel)
        return propose(self.plan.spaces[name], own, self.slots[name].known())

    def _settle(self, job: Job, outcome: Outcome, hooks: Hooks) -> None:
        """Count the finished trials of a job, and give back its other slots."""
        name = job.recipe.name
        done = {result.slot: result for result in outcome.results}
        for slot in job.params:  # trials that a worker committed before it died count as well
            if (committed := self._finished(name, slot)) is not None:
                done[slot] = committed
        for slot in sorted(done):
            self._tell(done[slot], hooks)
        left = [slot for slot in job.params if slot not in done]
        if not outcome.error:
            self._in_a_row = self._in_a_row if outcome.stopped else 0
            for slot in left:
                self.slots[name].fail(slot, STOPPED)
            return
        if outcome.infrastructure:
            self._failed(job.recipe, left, outcome.error, hooks)
            return
        for slot in left:
            self.slots[name].fail(slot, outcome.error)
        first = f"{name}/{left[0]}" if left else name
        raise AhfError(f"trial {first} failed, and the search stops: {outcome.error}")

    def _failed(self, recipe: Recipe, left: Iterable[int], error: str, hooks: Hooks) -> None:
        """Give back the trials of a job that its machine failed, and leave where that goes on and on."""
        slots = self.slots[recipe.name]
        for slot in left:
            slots.fail(slot, error)
            again = MAX_RETRIES + 1 - slots.failures(slot) + self._forgiven.get((recipe.name, slot), 0)
            tries = "is given up" if again < 1 else f"is tried again (retry {MAX_RETRIES + 1 - again} of 3)"
            hooks.on_remark(f"{recipe.name}/{slot:03d} {tries}: {error}")
            if again < 1:
                with contextlib.suppress(OSError):
                    self.records.trial(recipe.name, slot).finish(self._lost(recipe, slot, error), [], [])
        self._in_a_row += 1
        if self._in_a_row >= BREAKER:
            raise AhfError(
                f"{BREAKER} failures in a row, and this search leaves: {error}; "
                "the same command goes on from here"
            )

    def _lost(self, recipe: Recipe, slot: int, error: str) -> TrialResult:
        """Return the record of a trial that was given up."""
        params = recipe.complete(self.slots[recipe.name].params(slot) or {})
        nan = dict.fromkeys(("train_loss", "test_loss", "validation_loss"), math.nan)
        cap = math.nan if self.plan.cap is None else self.plan.cap
        return TrialResult(
            recipe.name, slot, "failed", 0, 0, cap, "", params, self.plan.start_of(slot).seed, nan, 0.0,
            attempts=self.slots[recipe.name].failures(slot), error=error,
        )  # fmt: skip

    def _tell(self, result: TrialResult, hooks: Hooks) -> None:
        """Complete a slot in the index."""
        slots = self.slots[result.recipe]
        self._here.add((result.recipe, result.slot))
        if self.trial_files:
            files = self.records.trial(result.recipe, result.slot).pack()
            for name in self.trial_files.put(slots.name, slots.claims[result.slot].trial_id, files):
                hooks.on_remark(f"{result.recipe}/{result.slot:03d}: {name} is too long for the storage")
        if slots.tell(result):
            hooks.on_result(result)
        else:
            hooks.on_remark(
                f"{result.recipe}/{result.slot:03d}: another process has taken this trial over; not counted"
            )

    def _finished(self, name: str, slot: int) -> TrialResult | None:
        result = self.records.trial(name, slot).result()
        return None if result is None or result.status == "failed" else result

    def _finished_of(self, name: str) -> dict[int, TrialResult]:
        """Return the finished records of a recipe, also those beyond the number of trials asked for."""
        last = max([self.plan.trials - 1, self.plan.known - 1, *self.slots[name].complete()])
        found = {slot: self._finished(name, slot) for slot in range(last + 1)}
        return {slot: result for slot, result in found.items() if result is not None}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
