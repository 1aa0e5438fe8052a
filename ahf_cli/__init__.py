"""A reference laboratory for Hessian-free optimization.

The names below are imported when they are first used: `import ahf_cli` costs neither torch nor pandas.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ahf_cli.notebook import compare, configure, pack, prerun, run, status, train, unpack
    from ahf_cli.optim import AdaptiveHessianFree, HessianFree
    from ahf_cli.report.study_data import load_study

    __version__: str

_PLACES = {
    "AdaptiveHessianFree": "optim",
    "HessianFree": "optim",
    "load_study": "report.study_data",
    **dict.fromkeys(
        ("compare", "configure", "pack", "prerun", "run", "status", "train", "unpack"), "notebook"
    ),
}
__all__ = [
    "AdaptiveHessianFree",
    "HessianFree",
    "__version__",
    "compare",
    "configure",
    "load_study",
    "pack",
    "prerun",
    "run",
    "status",
    "train",
    "unpack",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for."""
    if name == "__version__":
        return _version()
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pkgutil.resolve_name(f"ahf_cli.{_PLACES[name]}:{name}")


def __dir__() -> list[str]:
    """List the public names before they are imported."""
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ahf-cli")
    except PackageNotFoundError:  # a source checkout that is not installed
        return "0+unknown"
