"""`python -m ahf_cli`, and the command `ahf`."""

from __future__ import annotations

import sys

from ahf_cli import streams
from ahf_cli.interruption import raise_on_signals, resume_line


def main() -> int:
    """Run `ahf` and return its exit code; signals are handled before slow imports begin."""
    streams.prepare()
    raise_on_signals()
    try:
        from ahf_cli.cli import main as run

        return run()
    except KeyboardInterrupt:
        print(f"ahf: {resume_line()}", file=sys.stderr)
        return 75


if __name__ == "__main__":  # worker processes import this module again
    sys.exit(main())
