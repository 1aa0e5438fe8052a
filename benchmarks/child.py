"""One measuring process: reads a job as JSON from its argument, prints the numbers as JSON.

Each section and each number of threads has its own process: a failure then concerns one section.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import torch

from ahf_cli.errors import InputError
from benchmarks.timing import Bench


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Measure the section of a job: its keys are `device`, `threads`, `quick` and `section`."""
    threads = job["threads"]
    torch.set_num_threads(threads)
    if job["device"] == "cuda" and not torch.cuda.is_available():
        raise InputError("--device must be a device that is there, got 'cuda', and PyTorch finds none")
    bench = Bench(torch.device(job["device"]), job["quick"])
    rows = importlib.import_module(f"benchmarks.{job['section']}").measure(bench)
    gpu = torch.cuda.get_device_name() if job["device"] == "cuda" else None
    return {
        "gpu": gpu, "packages": third_party(), "rows": [{"threads": threads, **row} for row in rows]
    }  # fmt: skip


def third_party() -> list[str]:
    """Return the names of all packages that this process has imported, other than Python's own."""
    names = {name.partition(".")[0] for name in sys.modules}
    return sorted(n for n in names - set(sys.stdlib_module_names) if not n.startswith("_"))


def main() -> int:
    """Run the job of the command line."""
    try:
        print(json.dumps(run(json.loads(sys.argv[1]))))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
