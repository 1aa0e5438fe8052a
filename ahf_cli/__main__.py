"""`python -m ahf_cli`: the same as `ahf`."""

from __future__ import annotations

import sys

from ahf_cli.cli import main

if __name__ == "__main__":  # worker processes import this module again
    sys.exit(main())
