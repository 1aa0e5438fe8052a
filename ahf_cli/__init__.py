"""A reference laboratory for Hessian-free optimization.

Each public name is imported at its first use: `import ahf_cli` costs neither torch nor pandas.
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
    """Return a public name, imported at its first use."""
    if name == "__version__":
        return _version()
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pkgutil.resolve_name(f"ahf_cli.{_PLACES[name]}:{name}")


def __dir__() -> list[str]:
    """Return the names of the module, with the public names that are not imported yet."""
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ahf-cli")
    except PackageNotFoundError:  # a source checkout that is not installed
        return "0+unknown"
