"""The tables by name, in the order in which they are measured and shown.  Imports nothing heavy."""

from __future__ import annotations

import argparse
from typing import Literal, get_args

from ahf_cli.recipes.hyperparameters import nearest

Section = Literal[
    "products",
    "variants",
    "steps",
    "recipes",
    "others",
    "trials",
    "growth",
    "evaluation",
    "workers",
    "machine",
    "kernels",
    "classes",
    "large",
]
SECTIONS: tuple[Section, ...] = get_args(Section)


def section(name: str) -> str:
    """Return the name of a table, or say which is nearest."""
    if name not in SECTIONS:
        raise argparse.ArgumentTypeError(f"unknown table {name!r}{nearest(name, SECTIONS)}")
    return name
