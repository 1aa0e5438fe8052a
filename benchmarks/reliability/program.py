"""`ahf search` and `ahf worker` with trials of a few milliseconds: the same parts, and no torch."""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import closing
from pathlib import Path

from ahf_cli.errors import AhfError
from ahf_cli.interruption import Interruption
from ahf_cli.search.pool import ProcessPool
from ahf_cli.search.search import Hooks, Search
from ahf_cli.search.storage import answering, open_storage, sqlite_url
from ahf_cli.study.frames import write_tables
from ahf_cli.study.index import whole_index
from ahf_cli.study.store import Study
from ahf_cli.study.trial_folder import TrialFolders
from benchmarks.reliability.toy import Toy, plan


def main() -> int:
    """Run or resume a search, or join one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=Path)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--recipes", default="hf,adaptive_hf")
    parser.add_argument("--join", action="store_true", help="as `ahf worker` in the search's results folder")
    parser.add_argument(
        "--apart", action="store_true", help="as `ahf worker` on a machine without that folder"
    )
    parser.add_argument("--after", type=Path, help="begin when this file is there")
    words = parser.parse_args()
    try:
        return _run(words)
    except AhfError as error:
        print("\n".join(error.lines), file=sys.stderr)
        return error.exit_code


def _run(words: argparse.Namespace) -> int:
    study, url, joins = Study(words.results, "toy"), os.environ.get("AHF_STORAGE"), words.join or words.apart
    recipes = tuple(words.recipes.split(","))
    if not joins:
        study.open_for_writing("study: toy\n", {"seed": 0}, {"plan": dict.fromkeys(recipes, words.trials)})
    records: TrialFolders = study.trials
    said = {"config": "study: toy\n", "identity": {"seed": 0}, "trials": words.trials, "created": "now"}
    if words.apart:
        records = TrialFolders(words.results / f".worker-{os.getpid()}" / "trials")
    own = plan(
        words.trials, words.workers, recipes, words.sampler,
        prefix="toy/search/" if url else "", guest=joins, about=dict.fromkeys(recipes, said),
    )  # fmt: skip
    storage = open_storage(url or sqlite_url(whole_index(study.folder)))
    stop = Interruption()
    with study, closing(storage), answering(storage), stop.watched(quiet=True):
        search = Search(own, records, storage)
        print("ready", flush=True)
        while words.after and not words.after.exists():
            time.sleep(0.01)
        hooks = Hooks(
            on_result=lambda r: print("done", r.recipe, r.slot, flush=True),
            on_remark=lambda line: print("remark", line, flush=True),
            should_stop=stop,
        )
        toy = Toy(records, words.seconds, words.steps)
        done = search.run(lambda: ProcessPool(toy, words.workers), hooks)
        if not joins:
            write_tables(study)
    return 0 if done else 75


if __name__ == "__main__":  # worker processes import this module again
    sys.exit(main())
