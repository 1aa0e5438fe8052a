"""A reference laboratory for Hessian-free optimization of neural networks."""

from __future__ import annotations

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    """Look the version up when it is asked for: reading package metadata would slow every start."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ahf-cli")
    except PackageNotFoundError:  # a source checkout that is not installed
        return "0+unknown"
