"""Matplotlib with its default settings instead of the user's; no other module imports it."""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Axes", "Figure", "FigureCanvasAgg", "MaxNLocator", "settings", "write"]


@contextmanager
def _without_the_users() -> Iterator[None]:
    """A context in which an import of Matplotlib reads only its own `matplotlibrc`, and no MPLBACKEND.

    An unknown backend or a damaged file would end the import with an error.
    """
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.origin is not None
    before = {name: os.environ.pop(name, None) for name in ("MPLBACKEND", "MATPLOTLIBRC")}
    os.environ["MATPLOTLIBRC"] = str(Path(spec.origin).parent / "mpl-data" / "matplotlibrc")
    try:
        with chdir("/"):  # a matplotlibrc in the working directory comes before all others
            yield
    finally:
        del os.environ["MATPLOTLIBRC"]
        os.environ.update({name: value for name, value in before.items() if value is not None})


with _without_the_users():
    import matplotlib
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402


@contextmanager
def settings(theme: Any) -> Iterator[None]:
    """A context in which Matplotlib has its own defaults and the settings of a theme."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(theme)
        yield


def write(figure: Figure, kind: str, content: io.BytesIO, dpi: int, metadata: Any) -> None:
    """Write a laid-out figure in a vector format: pdf, svg or pgf.

    `Figure.savefig` would draw the figure twice, once for the layout.
    """
    backend: Any = importlib.import_module(f"matplotlib.backends.backend_{kind}")
    figure.set_dpi(dpi)
    getattr(backend.FigureCanvas(figure), f"print_{kind}")(content, metadata=metadata)
